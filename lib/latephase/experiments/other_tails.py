"""Losses without an exponential tail on linear models, where they lead, and by which way.

The solver of `latephase.flow` is built on the exponential tail. Here risks Σ ℓ(p_i) of margins
p = Zw, rows z_i = y_i x_i, go down by explicit steps so small that the way is the flow's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Force = Callable[[np.ndarray], np.ndarray]


def polynomial(power: float) -> Force:
    """Return -ℓ' of ℓ(z) = (1 + z)^-power, continued below z = 0 by its tangent."""
    return lambda p: power * (1.0 + np.maximum(p, 0.0)) ** (-power - 1.0)


def hinge(p: np.ndarray) -> np.ndarray:
    """Return -ℓ' of ℓ(z) = max(0, 1 - z)."""
    return np.where(p < 1.0, 1.0, 0.0)


def squared(p: np.ndarray) -> np.ndarray:
    """Return -ℓ' of ℓ(z) = (1 - z)²/2."""
    return 1.0 - p


def follow(
    z: np.ndarray, w: np.ndarray, force: Force, steps: int, size: float, relative: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return states [steps, s, d] of descent from w [s, d] on rows z [s, n, d], and their ln t.

    W ← W - size ∇R/λ with the largest eigenvalue λ of ZᵀZ; or, relative=True, by size ‖W‖ along
    -∇R, for losses under which W goes to infinity.
    """
    fixed = size / np.linalg.norm(z, 2, axis=(1, 2))[:, None] ** 2
    states, passed = [np.asarray(w, dtype=np.float64)], []
    for _ in range(steps):
        w = states[-1]
        push = (z.swapaxes(1, 2) @ force(z @ w[..., None]))[..., 0]
        step = fixed
        if relative:
            step = size * _length(w) / _length(push)
        states.append(w + step * push)
        passed.append(step[:, 0])
    return np.array(states[1:]), np.log(np.cumsum(passed, axis=0))


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1, keepdims=True)


def polynomial_limit(z: np.ndarray, power: float) -> np.ndarray:
    """Return the unit vector [d] that minimizes Σ (z_i·u)^-power over those with Zu > 0.

    The direction to which a loss with that tail leads. The sum being homogeneous, it is also the
    direction of the minimizer of Σ (z_i·w)^-power + ½‖w‖², which is strictly convex: by Newton's
    method within Zw > 0. Raises ValueError where Zu > 0 has no solution.
    """
    w = _inside(z)
    for _ in range(200):
        p = z @ w
        gradient = w - power * z.T @ p ** (-power - 1.0)
        hessian = np.eye(len(w)) + power * (power + 1.0) * (z.T * p ** (-power - 2.0)) @ z
        step, value = -np.linalg.solve(hessian, gradient), np.sum(p**-power) + 0.5 * w @ w
        share = 1.0
        while share > 1e-12:
            tried = w + share * step
            inside = np.all(z @ tried > 0.0)
            if inside and np.sum((z @ tried) ** -power) + 0.5 * tried @ tried <= value:
                break
            share *= 0.5
        w = w + share * step
        if np.linalg.norm(step) <= 1e-13 * np.linalg.norm(w):
            break
    return w / np.linalg.norm(w)


def _inside(z: np.ndarray) -> np.ndarray:
    """Return some w with Zw > 0, by the perceptron."""
    w = z.sum(axis=0)
    for _ in range(100_000):
        p = z @ w
        if p.min() > 0.0:
            return w
        w = w + z[p.argmin()]
    raise ValueError("z: expected rows with a common half-space, found none")
