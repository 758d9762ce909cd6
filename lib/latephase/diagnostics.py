"""Measures of a late-phase state: margins, alignment, KKT residuals, path length, layers.

All take NumPy arrays. p are margins [n] or pairwise margins [n, k-1] at W, q the dual variables
∂α/∂p of the same shape, L the degree of homogeneity; lengths and angles are in radians.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigh, eigvalsh
from torch import Tensor


def unit(vector: np.ndarray) -> np.ndarray:
    """Return v / ‖v‖; raises ValueError for v = 0 or a norm that is not finite."""
    norm = np.linalg.norm(vector)
    if not 0.0 < norm < np.inf:
        raise ValueError(f"expected a vector of positive finite norm, got norm {norm}")
    return vector / norm


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Return the angle between two vectors, accurate for small angles: 2 asin(‖â - b̂‖/2)."""
    return 2.0 * float(np.arcsin(min(1.0, 0.5 * np.linalg.norm(unit(a) - unit(b)))))


def alignment(w: np.ndarray, gradient: np.ndarray) -> float:
    """Return cos(W, ∇α), equal to cos(W, -∇R)."""
    return float(unit(w) @ unit(gradient))


def misalignment(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1 - cos of the angle between two vectors, as ½‖â - b̂‖², which does not cancel."""
    return 0.5 * float(np.sum((unit(a) - unit(b)) ** 2))


def kkt_stationarity(direction: np.ndarray, gradient: np.ndarray, margin: float, degree: float):
    """Return ε = ‖W‖ p_min^{-1/L} ‖Ŵ - ĝ‖ of the approximate KKT point W/p_min^{1/L}.

    direction: W up to a factor; gradient: -∇R up to a factor; margin: p_min/‖W‖^L > 0. The
    difference of unit vectors is taken as it is: 1 - cos would cancel. (Lyu and Li 2019.)
    """
    return margin ** (-1.0 / degree) * float(np.linalg.norm(unit(direction) - unit(gradient)))


def kkt_complementarity(
    margins: np.ndarray, dual: np.ndarray, gradient_norm: float, degree: float
) -> float:
    """Return δ = max_i λ_i (p_i/p_min - 1), λ_i = p_min^{1-2/L} ‖W‖ |ℓ'(p_i)| / ‖∇R‖.

    margins: p/‖W‖^L; gradient_norm: ‖∇α‖/‖W‖^{L-1}, so that no power of ‖W‖ is formed.
    """
    smallest = margins.min()
    multipliers = smallest ** (1.0 - 2.0 / degree) * dual / gradient_norm
    return float(np.max(multipliers * (margins / smallest - 1.0)))


def kkt_residual(
    direction: np.ndarray,
    gradient: np.ndarray,
    margins: np.ndarray,
    dual: np.ndarray,
    degree: float,
) -> tuple[float, float]:
    """Return (ε, δ) at the unit vector `direction`, all arguments taken there.

    The pair measures how far W is from a KKT point of min ½‖W‖² subject to p_i ≥ 1. Both are
    NaN while some margin is not positive, where the definition needs p_min > 0.
    """
    smallest = float(margins.min())
    if smallest <= 0.0:
        return float("nan"), float("nan")
    stationarity = kkt_stationarity(direction, gradient, smallest, degree)
    norm = float(np.linalg.norm(gradient))
    return stationarity, kkt_complementarity(margins, dual, norm, degree)


def tangent_curvature(
    hessian: np.ndarray, direction: np.ndarray, margin: float, degree: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (curvatures [P-1] in ascending order, their unit tangents [P, P-1]) at a KKT point.

    hessian: Σ q_i ∇²p_i at the unit vector θ = `direction`, Σq = 1; margin: Σ q_i p_i(θ). Along a
    great circle through θ with unit tangent d, Σ q_i p_i grows like ½ s² c, c = dᵀHd - L Σ q_i p_i:
    the arc turns back towards -θ, which by Euler's relation costs its radial derivative. Where one
    example alone holds the margin, c > 0 means that θ is no local maximum of the margin.
    """
    theta = unit(direction)
    basis = np.linalg.svd(theta[None])[2][1:].T
    curvatures, tangents = np.linalg.eigh(basis.T @ hessian @ basis)
    return curvatures - degree * margin, basis @ tangents


def path_length(directions: np.ndarray) -> np.ndarray:
    """Return the length [records] of the polygon through directions [records, P] up to each.

    Each piece is the angle between successive unit vectors, a lower bound on the curve's.
    """
    chords = np.linalg.norm(np.diff(directions, axis=0), axis=1)
    pieces = 2.0 * np.arcsin(np.minimum(1.0, 0.5 * chords))
    return np.concatenate([[0.0], np.cumsum(pieces)])


def circle_masses(vectors: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the sum of ‖w_j‖² over the vectors [m, 2] whose angle lies in each bin, [bins].

    edges [bins + 1]: ascending angles in radians that cover one turn, from any angle on.
    """
    angles = np.arctan2(vectors[:, 1], vectors[:, 0])
    turned = (angles - edges[0]) % (2.0 * np.pi) + edges[0]
    return np.histogram(turned, bins=edges, weights=(vectors**2).sum(axis=1))[0]


def top_singular(matrix: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return (σ, u, v), the largest singular value of a matrix and its unit vectors.

    From the smaller Gram matrix, of which only the last eigenpair is computed: several times
    cheaper than a decomposition. σ is as accurate; the vectors' error is rounding times
    σ²/(σ² - σ_2²). Raises ValueError for a matrix without positive finite norm.
    """
    scale = np.linalg.norm(matrix)
    if not 0.0 < scale < np.inf:
        raise ValueError(f"expected a matrix of positive finite norm, got norm {scale}")
    scaled = matrix / scale
    scaled = scaled if len(matrix) <= matrix.shape[1] else scaled.T
    last = len(scaled) - 1
    short = eigh(scaled @ scaled.T, subset_by_index=[last, last])[1][:, 0]
    image = scaled.T @ short
    value = np.linalg.norm(image)
    pair = (short, image / value)
    return float(scale * value), *(pair if len(matrix) <= matrix.shape[1] else pair[::-1])


def spectral_ratio(weight: np.ndarray) -> float:
    """Return ‖A‖_2 / ‖A‖_F of a layer, 1 exactly when its rank is one; kernels as [out, rest]."""
    matrix = weight.reshape(len(weight), -1)
    return float(np.linalg.norm(matrix, 2) / np.linalg.norm(matrix))


def rank_defect(weight: np.ndarray) -> float:
    """Return 1 - ‖A‖_2²/‖A‖_F², from the smaller singular values; kernels as [out, rest]."""
    squares = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False) ** 2
    return float(np.sum(squares[1:]) / np.sum(squares))


def neighbor_defect(lower: np.ndarray, upper: np.ndarray) -> float:
    """Return 1 - ⟨v, u⟩² of the vectors of `neighbor_alignment`, without cancellation."""
    left = np.linalg.svd(lower, full_matrices=False)[0][:, 0]
    right = np.linalg.svd(upper, full_matrices=False)[2][0]
    return float(np.sum((right - (right @ left) * left) ** 2))


def neighbor_alignment(lower: np.ndarray, upper: np.ndarray) -> float:
    """Return |⟨v, u⟩| of the top right singular vector of `upper` and top left of `lower`.

    lower [m, d], upper [h, m]: layers that follow each other; 1 when they are aligned.
    """
    left = np.linalg.svd(lower, full_matrices=False)[0][:, 0]
    right = np.linalg.svd(upper, full_matrices=False)[2][0]
    return float(abs(right @ left))


def balancedness(lower: np.ndarray, upper: np.ndarray) -> float:
    """Return ‖upperᵀ upper - lower lowerᵀ‖_2, conserved by the flow of a deep linear network."""
    # Symmetric: its norm is its largest eigenvalue in size.
    ends = eigvalsh(upper.T @ upper - lower @ lower.T)[[0, -1]]
    return float(np.abs(ends).max())


def saliency(module: torch.nn.Module, x: Tensor | np.ndarray) -> np.ndarray:
    """Return ∇_x Φ(x_i; W) of each input, of the shape of x, for a module with one output.

    With W/‖W‖ in the module (`Trajectory.write_to`, normalized=True) it is ∇_x Φ/‖W‖^L. Evaluates
    in evaluation mode and restores the mode. Raises ValueError for several outputs.
    """
    parameter = next(module.parameters())
    inputs = torch.as_tensor(x).detach().to(parameter.device, parameter.dtype).requires_grad_(True)
    training = module.training
    try:
        output = module.eval()(inputs)
    finally:
        module.train(training)
    if output.numel() != len(inputs):
        raise ValueError(
            f"saliency: expected one output for each of {len(inputs)} inputs, got outputs of "
            f"shape {list(output.shape)}"
        )
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    return gradient.cpu().numpy()
