"""How weights and gradient stand to each other along a flow, and the gradient in the inputs.

p are margins [n] or pairwise margins [n, k-1] at W, q the dual variables ∂α/∂p of the same shape,
L the degree of homogeneity; lengths and angles are in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import entr
from torch import Tensor

from latephase.flow.trajectory import Trajectory
from latephase.problem.checks import in_mode
from latephase.problem.margins import Problem
from latephase.problem.modules import called
from latephase.problem.vectors import misalignment, path_length, unit


def saliency(module: torch.nn.Module, x: Tensor | np.ndarray) -> np.ndarray:
    """Return ∇_x Φ(x_i; W) of each input, of the shape of x, for a module with one output.

    With W/‖W‖ in the module (`Trajectory.write_to`, normalized=True) it is ∇_x Φ/‖W‖^L. Evaluates
    in evaluation mode and restores the mode. Raises ValueError for several outputs.
    """
    parameter = next(module.parameters())
    inputs = torch.as_tensor(x).detach().to(parameter.device, parameter.dtype).requires_grad_(True)
    with in_mode(module, training=False):
        output = called(module, inputs)
    if output.numel() != len(inputs):
        raise ValueError(
            f"saliency: expected one output for each of {len(inputs)} inputs, got outputs of "
            f"shape {list(output.shape)}"
        )
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    return gradient.cpu().numpy()


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradient beside the weights at the k records of a flow of degree L.

    smoothed_margin [k]     α
    misalignment [k]        1 - cos(W, -∇R)
    gradient [k, P]         -∇R/‖∇R‖
    gradient_length [k]     length of the polygon through `gradient`, radians
    potential [k]           ‖∇α‖/(L‖W‖^{L-1}), the dual potential
    margin [k]              γ̃ = α/‖W‖^L
    entropy [k]             H(q)/‖W‖^L with H(q) = -Σ q ln q, between 0 and ln n/‖W‖^L
    """

    smoothed_margin: np.ndarray
    misalignment: np.ndarray
    gradient: np.ndarray
    gradient_length: np.ndarray
    potential: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray

    def gap(self) -> np.ndarray:
        """Return (potential - γ̃)/γ̃ [k]: no less than zero, and zero in the limit."""
        return self.potential / self.margin - 1.0

    def euler_defect(self) -> np.ndarray:
        """Return |potential · cos / (γ̃ + entropy) - 1| [k].

        Zero for the exponential loss: ⟨W, ∇α⟩ = L Σ q p by homogeneity, Σ q p = α + H(q).
        """
        return np.abs(
            self.potential * (1.0 - self.misalignment) / (self.margin + self.entropy) - 1.0
        )


def along(problem: Problem, flow: Trajectory, degree: float | None = None) -> Gradients:
    """Return the `Gradients` at the records of a flow of the problem.

    problem: with the kinks smoothed as the flow had them. degree: another one than the flow's, to
    see what that breaks.
    """
    degree = flow.degree if degree is None else degree
    gradients = [
        problem.weighted_gradient(w, q)[1] for w, q in zip(flow.direction, flow.dual, strict=True)
    ]
    directions = np.array([unit(g) for g in gradients])
    surprise = entr(flow.dual).reshape(len(flow), -1).sum(1)
    return Gradients(
        smoothed_margin=flow.smoothed_margin,
        misalignment=np.array(
            [misalignment(w, g) for w, g in zip(flow.direction, directions, strict=True)]
        ),
        gradient=directions,
        gradient_length=path_length(directions),
        potential=np.linalg.norm(gradients, axis=1) / degree,
        margin=flow.normalized_smoothed_margin,
        entropy=surprise * np.exp(-degree * flow.log_norm),
    )


def with_duals_from_margins(problem: Problem, flow: Trajectory, record: int = -1) -> float:
    """Return 1 - cos(W, -∇R) at a record if the duals are the softmax of its computed margins.

    That is what an experiment has that knows the weights alone. The margins at a large ‖W‖ carry
    the rounding of the direction, multiplied by ‖W‖^L, into an exponential.
    """
    direction = flow.direction[record]
    p = problem.margins(direction) * np.exp(flow.degree * flow.log_norm[record])
    dual = np.exp(p.min() - p)
    return misalignment(direction, problem.weighted_gradient(direction, dual / dual.sum())[1])
