"""Gradient descent beside its flow, early and late: distances, edges of stability, limits.

For families of small networks as `latephase.training.together` steps them.
"""

from __future__ import annotations

import numpy as np

from latephase.flow.trajectory import largest_drop
from latephase.problem.vectors import angle, arc
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


def late_descent(
    family: Family, w: np.ndarray, rate: float, level: float, degree: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return where descent from w [r, P] is at α = level [r, P], and its largest drops of γ̃ [r].

    W ← W - s ∇ln R with s = rate/max(1, ‖∇ln R‖²): each step lowers ln R by `rate` at most, to
    first order. A drop is one of γ̃ = α/‖W‖^degree, relative, between two steps, as
    `latephase.flow.trajectory.largest_drop` says; nothing rejects a step. A run that breaks off
    ends at its last iterate.
    """
    steps = int(20 * level / rate) + 1
    run = descend(family, w, rate, level, rule="normalized", steps=steps, keep=range(steps))
    ends, drops = run.end.copy(), []
    for k, end in enumerate(ends):
        path = run.path(k)
        alpha = family.rows(np.full(len(path), k)).smoothed_margins(path)
        drops.append(largest_drop(alpha / np.linalg.norm(path, axis=1) ** degree))
        if not np.isfinite(end).all():
            ends[k] = path[-1]
    return ends, np.array(drops)


def by_signs(family: Family, w: np.ndarray, rate: float, level: float) -> np.ndarray:
    """Return where descent along the signs of the gradient from w [r, P] first has α ≥ level.

    Steepest descent where the length of a step is its largest entry: W ← W - s sign(∇ln R) with
    s = rate/‖∇ln R‖_1, which lowers ln R by `rate` to first order.
    """
    w, ends = w.copy(), w.copy()
    arrived = np.zeros(len(w), dtype=bool)
    for _ in range(int(20 * level / rate) + 1):
        push = _ascent(family, w)
        w = w + rate * np.sign(push) / np.abs(push).sum(axis=1, keepdims=True)
        ends[~arrived] = w[~arrived]
        arrived |= family.smoothed_margins(w) >= level
        if arrived.all():
            break
    return ends


def strayed(ends: np.ndarray, others: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return angle(end, other)/angle(start, other) [r] of weights [r, P]: 1 for standing still."""
    triples = zip(ends, others, start, strict=True)
    return np.array([angle(end, other) / angle(at, other) for end, other, at in triples])
