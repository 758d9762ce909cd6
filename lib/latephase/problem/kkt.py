"""How far weights are from a KKT point of margin maximization.

All take NumPy arrays. p are margins [n] or pairwise margins [n, k-1] at W, q the dual variables
∂α/∂p of the same shape, L the degree of homogeneity.
"""

from __future__ import annotations

import numpy as np

from latephase.problem.vectors import unit


def kkt_residual(
    direction: np.ndarray,
    gradient: np.ndarray,
    margins: np.ndarray,
    dual: np.ndarray,
    degree: float,
) -> tuple[float, float]:
    """Return (ε, δ): how far W is from a KKT point of min ½‖W‖² subject to p_i ≥ 1.

        ε = ‖W‖ p_min^{-1/L} ‖Ŵ - ĝ‖, g = -∇R,
        δ = max_i λ_i (p_i/p_min - 1),  λ_i = p_min^{1-2/L} ‖W‖ |ℓ'(p_i)| / ‖∇R‖

    of the approximate KKT point W/p_min^{1/L} (Lyu and Li 2019). All arguments are taken at the
    unit vector `direction`, the gradient being ∇α. Both are NaN while some margin is not positive,
    where the definition needs p_min > 0.
    """
    smallest = float(margins.min())
    if smallest <= 0.0:
        return float("nan"), float("nan")
    # The difference of unit vectors is taken as it is: 1 - cos would cancel.
    apart = float(np.linalg.norm(unit(direction) - unit(gradient)))
    norm = float(np.linalg.norm(gradient))
    multipliers = smallest ** (1.0 - 2.0 / degree) * dual / norm
    complementarity = float(np.max(multipliers * (margins / smallest - 1.0)))
    return smallest ** (-1.0 / degree) * apart, complementarity


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
