"""The maximum margin through the origin, by a solver that shares no code with the flow."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

from latephase.problem.task import Task, inputs_and_labels


def hard_margin(
    x: Tensor | np.ndarray | Task, y: Tensor | np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return (unit direction w [d], margin) that maximizes min_i y_i ⟨w, x_i⟩ over ‖w‖ = 1.

    x [n, d] and y [n] in {-1, +1}, or a Task for both. A support vector machine through the
    origin. Its dual as a least-distance problem,
    min ‖Zᵀλ‖² + (Σλ - 1)² over λ ≥ 0 with rows z_i = y_i x_i, is solved exactly by the active-set
    method for nonnegative least squares (Lawson and Hanson 1974): w ∝ Zᵀλ.
    Raises ValueError where the data is not separable through the origin.

    >>> import numpy as np, latephase
    >>> direction, margin = latephase.hard_margin(np.array([[0.1, 0.0], [0.2, 0.2]]), [1, 1])
    >>> print(np.round(direction, 6), round(margin, 6))
    [1. 0.] 0.1
    """
    direction, margin, _ = _hard_margin(x, y)
    return direction, margin


def hard_margin_dual(
    x: Tensor | np.ndarray | Task, y: Tensor | np.ndarray | None = None
) -> np.ndarray:
    """Return the dual solution q [n] ≥ 0, Σq = 1, of `hard_margin`: Σ q_i y_i x_i = margin · w.

    Exactly zero off the support vectors. Unique where those are linearly independent.
    Raises ValueError as `hard_margin` does.
    """
    weights = _hard_margin(x, y)[2]
    return weights / weights.sum()


def _hard_margin(x, y) -> tuple[np.ndarray, float, np.ndarray]:
    x, y = inputs_and_labels(x, y)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64).reshape(-1)
    if x.ndim != 2 or len(x) == 0 or y.shape != (len(x),):
        raise ValueError(f"expected x [n, d] and y [n], got {list(x.shape)} and {list(y.shape)}")
    if not (np.isfinite(x).all() and set(y.tolist()) <= {-1.0, 1.0}):
        raise ValueError("expected finite x and labels -1 and +1")
    scale = np.linalg.norm(x, axis=1).max()
    z = y[:, None] * x / (scale or 1.0)
    system = np.vstack([z.T, np.ones(len(z))])
    target = np.append(np.zeros(z.shape[1]), 1.0)
    weights, _ = nnls(system, target, maxiter=50 * len(z))
    normal = z.T @ weights
    norm = np.linalg.norm(normal)
    margin = float((z @ normal).min() / norm) if norm > 0.0 else 0.0
    # Rounding of Zᵀλ, whose terms cancel to zero where the data is not separable.
    if margin <= 1e-12:
        raise ValueError("not separable through the origin: no direction has a positive margin")
    return normal / norm, margin * scale, weights
