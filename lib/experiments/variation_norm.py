"""The predictor of largest margin of two layers of neurons with three inputs, however many.

A network Φ = Σ_j a_j relu(⟨w_j, x⟩)^k of norm ‖W‖ is linear in masses m_j ≥ 0 of the directions
d_j = w_j/‖w_j‖: Φ = Σ_j s_j m_j relu(⟨d_j, x⟩)^k. For plain ReLUs (k = 1), outer weights trained,
‖W‖² ≥ 2 Σ m, with equality at equal norms |a_j| = ‖w_j‖, and m_j = |a_j|‖w_j‖; for squared ReLUs
(k = 2) with fixed signs ‖W‖² = Σ m. So the largest margin is that of the linear program

    min Σ m  subject to  y_i Φ(x_i) ≥ 1,  m ≥ 0,

over all directions of the sphere and both signs, whose solution `largest_margin` finds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

_FOUND = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
# Directions that a round adds to the program, and how far apart they are.
_ADDED, _APART = 20, 1e-6


@dataclass(frozen=True, eq=False)
class Predictor:
    """Directions [k, 3] and their masses, with signs, [k]; total mass, and its relative error."""

    power: int
    directions: np.ndarray
    masses: np.ndarray
    gap: float

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the values at points [m, 3]."""
        return np.maximum(points @ self.directions.T, 0.0) ** self.power @ self.masses

    @property
    def norm(self) -> float:
        """Σ m, the variation norm: margin 1 is the largest for it."""
        return float(np.abs(self.masses).sum())


def largest_margin(x: np.ndarray, y: np.ndarray, power: int, rounds: int = 100) -> Predictor:
    """Return the solution of the program for inputs x [n, 3] in general position and labels ±1.

    Directions are added where the dual constraint |Σ λ_i y_i relu(⟨d, x_i⟩)^k| ≤ 1 is violated.
    Once that is by no more than 1e-9 anywhere on the sphere, no network has a larger margin by more
    than that part of it. Raises ArithmeticError if so many rounds do not get there.
    """
    vertices, patterns = _arrangement(x)
    directions = vertices
    for _ in range(rounds):
        features = np.maximum(x @ directions.T, 0.0) ** power
        features = np.hstack([features, -features])
        solved = linprog(
            np.ones(features.shape[1]),
            A_ub=-y[:, None] * features,
            b_ub=-np.ones(len(x)),
            method="highs-ds",
            options=_FOUND,
        )
        dual = -solved.ineqlin.marginals * y
        tried = np.concatenate([_stationary(x, dual, patterns, power), vertices])
        heights = np.abs(np.maximum(tried @ x.T, 0.0) ** power @ dual)
        if heights.max() <= 1.0 + 1e-9:
            plus, minus = np.reshape(solved.x, (2, -1))
            return Predictor(power, directions, plus - minus, float(heights.max() - 1.0))
        directions = np.vstack([directions, _highest(tried, heights)])
    raise ArithmeticError(
        f"after {rounds} rounds a constraint is violated by {heights.max() - 1:g}"
    )


def _arrangement(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices [k, 3] that the planes ⟨d, x_i⟩ = 0 cut on the sphere, and what lies on.

    The latter are all patterns ⟨d, x_i⟩ > 0 of open cones, [cones, n]: each has a vertex, at which
    the two examples that vanish are on or off independently of each other.
    """
    i, j = np.triu_indices(len(x), 1)
    vertices = np.cross(x[i], x[j])
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    vertices, i, j = np.vstack([vertices, -vertices]), np.tile(i, 2), np.tile(j, 2)
    patterns, each = [], np.arange(len(vertices))
    for first in (False, True):
        for second in (False, True):
            on = vertices @ x.T > 0.0
            on[each, i], on[each, j] = first, second
            patterns.append(on)
    return vertices, np.unique(np.vstack(patterns), axis=0)


def _stationary(x, dual, patterns, power: int) -> np.ndarray:
    """Return unit vectors [k, 3] among which are the extrema of Σ dual_i relu(⟨d, x_i⟩)^k.

    In a cone it is ⟨v, d⟩ or ⟨d, Ad⟩, with its extrema at v or at eigenvectors of A, on a plane
    ⟨d, x_i⟩ = 0 at those of the projections; the rest are vertices.
    """
    across = np.eye(3) - x[:, :, None] * x[:, None, :] / (x**2).sum(axis=1)[:, None, None]
    across = np.concatenate([np.eye(3)[None], across])
    if power == 1:
        found = np.einsum("pij,cj->cpi", across, (patterns * dual) @ x).reshape(-1, 3)
    else:
        forms = np.einsum("cn,ni,nj->cij", patterns * dual, x, x)
        found = np.linalg.eigh(across @ forms[:, None] @ across)[1].swapaxes(-1, -2).reshape(-1, 3)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    kept = lengths[:, 0] > 1e-9 * lengths.max()
    found = found[kept] / lengths[kept]
    return np.concatenate([found, -found])


def _highest(tried: np.ndarray, heights: np.ndarray) -> np.ndarray:
    taken = []
    for index in np.argsort(-heights):
        if heights[index] <= 1.0 or len(taken) == _ADDED:
            break
        if all(np.linalg.norm(tried[index] - one) > _APART for one in taken):
            taken.append(tried[index])
    return np.array(taken)
