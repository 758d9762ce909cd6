"""Gradient descent beside its flow, its limits, and losses without an exponential tail.

For families of small networks as `latephase.training.together` steps them, before the risk is
small. What comes after is the flow's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from latephase.measures.max_margin import hard_margin
from latephase.problem.vectors import arc
from latephase.training.together import Family, descend, shares


def curvatures(family: Family, w: np.ndarray, rule: str = "constant") -> np.ndarray:
    """Return the largest eigenvalue [r] of the Hessian of R for "constant", else of ln R.

    By central differences of the gradient: exact to nine digits or so.
    """
    size = w.shape[1]
    step = 1e-5 * np.linalg.norm(w, axis=1).mean()
    moved = w[:, None] + step * np.concatenate([np.eye(size), -np.eye(size)])
    many = family.rows(np.repeat(np.arange(len(w)), 2 * size))
    p, pull_back = many.margins_and_pull_back(moved.reshape(-1, size))
    pushes = pull_back(np.exp(-p) if rule == "constant" else shares(p)[0])
    pushes = pushes.reshape(len(w), 2, size, size)
    hessian = (pushes[:, 1] - pushes[:, 0]) / (2.0 * step)
    return np.linalg.eigvalsh(0.5 * (hessian + hessian.swapaxes(1, 2)))[:, -1]


def edges(family: Family, path: np.ndarray, rate: float) -> np.ndarray:
    """Return η λ/2 [k] at the states [k, P] of the "relative" rule, above 1 beyond the edge.

    For a family of one data set: η is the step in ln R, λ its largest curvature.
    """
    along = family.rows(np.zeros(len(path), dtype=int))
    length = np.linalg.norm(_ascent(along, path), axis=1)
    # No step is taken where the gradient vanishes.
    size = rate * np.linalg.norm(path, axis=1) * (length > 0) / np.maximum(length, 1e-300)
    return 0.5 * size * curvatures(along, path, "relative")


def _ascent(family: Family, w: np.ndarray) -> np.ndarray:
    """Return -∇ln R = ∇α [r, P]."""
    p, pull_back = family.margins_and_pull_back(w)
    return pull_back(shares(p)[0])


def flow_to(family: Family, w: np.ndarray, level: float, steps: int = 400) -> np.ndarray:
    """Return states [steps + 1, r, P] of the flow from w [r, P] to α = level.

    α itself is the variable, dW/dα = ∇α/‖∇α‖², so that every run lands on the level; by the
    classical method of order 4.
    """
    states = [np.array(w, dtype=np.float64)]
    length = ((level - family.smoothed_margins(states[0])) / steps)[:, None]

    def velocity(point: np.ndarray) -> np.ndarray:
        push = _ascent(family, point)
        return push / np.linalg.norm(push, axis=1, keepdims=True) ** 2

    for _ in range(steps):
        w = states[-1]
        first = velocity(w)
        second = velocity(w + 0.5 * length * first)
        third = velocity(w + 0.5 * length * second)
        fourth = velocity(w + length * third)
        states.append(w + length / 6.0 * (first + 2.0 * second + 2.0 * third + fourth))
    return np.array(states)


def departures(
    family: Family,
    flow: np.ndarray,
    fractions: np.ndarray,
    *,
    rule: str = "constant",
    draws: int = 1,
    **settings: object,
) -> np.ndarray:
    """Return where descent gets [draws, r, fractions, P] that goes as far as the flow.

    flow: what `flow_to` returned; descent has the same starts and ends at the same α. The step is
    a fraction of the stability edge 2/λ, where λ is the largest curvature that the flow meets; with
    momentum μ times 1 - μ. draws: of the batches. settings: momentum, batch and order of `descend`.
    """
    start, end = flow[0], flow[-1]
    level, r = family.smoothed_margins(end), len(end)
    along = flow[:: max(1, len(flow) // 50)]
    which = np.tile(np.arange(r), len(along))
    curvature = curvatures(family.rows(which), along.reshape(-1, start.shape[1]), rule)
    step = 2.0 / curvature.reshape(len(along), r).max(axis=0)
    step = step * (1.0 - settings.get("momentum", 0.0))
    index = np.tile(np.repeat(np.arange(r), len(fractions)), draws)
    rates = step[index] * np.tile(fractions, r * draws)
    runs = descend(family.rows(index), start[index], rates, level[index], rule=rule, **settings)
    return runs.end.reshape(draws, r, len(fractions), -1)


def apart(ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the root mean square, over draws, of angles [r, fractions] to others [r, P]."""
    ends, others = _units(ends), _units(others)[:, None]
    angles = arc(np.linalg.norm(ends - others, axis=-1))
    return np.sqrt((angles**2).mean(axis=0))


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# Losses without an exponential tail on linear models. The solver of `latephase.flow` is built on
# that tail; here steps so small that the way is the flow's go down by the force -ℓ' alone.


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
