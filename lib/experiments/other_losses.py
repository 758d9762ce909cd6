"""Losses with another exponential tail, and losses without one.

Where the exponential tail c e^{-z} of a loss governs, dα/dt = |ℓ'(α)| ‖∇α‖² with
‖∇α‖ ~ L a^{1/L} α^{1 - 1/L}, a being the limit of the normalized margin, so that
α = ln t + (2 - 2/L) ln α + 2 ln L + (2/L) ln a + ln c up to what tends to zero; for a linear model
of margin γ that is α = ln t + 2 ln γ + ln c.

The solver of `latephase.flow` is built on that tail. Losses without it are followed on linear
models, by the force -ℓ' alone, in steps so small that the way is the flow's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from latephase.flow.trajectory import Trajectory
from latephase.measures.max_margin import hard_margin


def clock(flow: Trajectory, record: int, margin: float, constant: float = 1.0) -> float:
    """Return α - ln t - (2 - 2/L) ln α - 2 ln L - (2/L) ln a - ln c at a record of a flow.

    margin: a, the limit of the normalized margin; constant: c of the loss, e^z ℓ(z) → c. Tends to
    zero.
    """
    alpha, degree = flow.smoothed_margin[record], flow.degree
    known = 2 * np.log(degree) + 2 / degree * np.log(margin) + np.log(constant)
    return float(alpha - flow.log_time[record] - (2 - 2 / degree) * np.log(alpha) - known)


def predictor(module: torch.nn.Module, w: np.ndarray) -> np.ndarray:
    """Return the vector [d] of a (deep) linear model with the trainable weights w [P]."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    torch.nn.utils.vector_to_parameters(torch.as_tensor(w), trained)
    inputs = next(module.parameters()).shape[1]
    return module(torch.eye(inputs, dtype=torch.float64)).detach().numpy()[:, 0]


def polynomial(power: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return -ℓ' of ℓ(z) = (1 + z)^-power, continued below z = 0 by its tangent."""
    return lambda p: power * (1.0 + np.maximum(p, 0.0)) ** (-power - 1.0)


def hinge(p: np.ndarray) -> np.ndarray:
    """Return -ℓ' of ℓ(z) = max(0, 1 - z)."""
    return np.where(p < 1.0, 1.0, 0.0)


def squared(p: np.ndarray) -> np.ndarray:
    """Return -ℓ' of ℓ(z) = (1 - z)²/2."""
    return 1.0 - p


def polynomial_limit(z: np.ndarray, power: float) -> np.ndarray:
    """Return the unit vector [d] that minimizes Σ (z_i·u)^-power over those with Zu > 0.

    The direction to which a loss with that tail leads. The sum being homogeneous, it is also the
    direction of the minimizer of Σ (z_i·w)^-power + ½‖w‖², which is strictly convex: by Newton's
    method within Zw > 0. Raises ValueError where Zu > 0 has no solution.
    """
    direction, margin = hard_margin(z, np.ones(len(z)))
    w = direction / margin

    def value(w: np.ndarray) -> float:
        p = z @ w
        return np.sum(p**-power) + 0.5 * w @ w if p.min() > 0.0 else np.inf

    for _ in range(200):
        p = z @ w
        gradient = w - power * z.T @ p ** (-power - 1.0)
        hessian = np.eye(len(w)) + power * (power + 1.0) * (z.T * p ** (-power - 2.0)) @ z
        step = -np.linalg.solve(hessian, gradient)
        while value(w + step) > value(w) and np.linalg.norm(step) > 1e-13 * np.linalg.norm(w):
            step = 0.5 * step
        w = w + step
        if np.linalg.norm(step) <= 1e-13 * np.linalg.norm(w):
            break
    return w / np.linalg.norm(w)
