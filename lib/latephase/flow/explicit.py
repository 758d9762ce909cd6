"""The early phase: explicit Runge–Kutta in relative arc length, from any start to separation.

dW/dσ = r ∇α/‖∇α‖ with r = max(‖W‖, s₀): one unit of σ moves W by its own length, and a small scale
s₀ lets W = 0 be left. Needs no separability. Close to a stationary point, r‖∇α‖ < 1e-6 m with
m = min(1, max|p|), the speed falls off smoothly, so that the flow can settle there and be told from
one that goes on. While margins are below one the flow is, by Euler's relation, no faster than they
are large, at rest or not: hence m.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latephase.flow.tuning import TUNING
from latephase.problem.margins import Problem

# Dormand and Prince's fifth-order pair (1980); the last stage is the next step's first.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True, eq=False)
class EarlyState:
    """W [P] with α, p [n, ·], ln q, ∇α there, r, the σ of the step there, and its rejections."""

    w: np.ndarray
    alpha: float
    p: np.ndarray
    log_dual: np.ndarray
    gradient: np.ndarray
    radius: float
    advance: float
    rejected: int = 0

    def slope(self) -> float:
        """Return r‖∇α‖, that is ‖W‖‖∇α‖ away from zero."""
        return self.radius * float(np.linalg.norm(self.gradient))

    def unit(self) -> float:
        """Return m = min(1, max|p|), beside which the slope is large or small."""
        return min(1.0, float(np.abs(self.p).max()))

    def stationary(self) -> bool:
        """Return whether W is a stationary point that does not separate the examples."""
        return is_stationary(self.alpha, self.slope(), self.unit())


def is_stationary(alpha: float, slope: float, unit: float) -> bool:
    """Return whether α, ‖W‖‖∇α‖ and m are those of a stationary point with α ≤ 0."""
    return alpha <= 0.0 and slope <= TUNING.stationary * unit


def early_phase(
    problem: Problem, w: np.ndarray, tol: float, until: float = np.inf, degree: float = 1.0
) -> Iterator[EarlyState]:
    """Yield the accepted states from W on, the first being W itself.

    tol bounds the error of a step relative to ‖W‖; degree is L, which limits a step's length. A
    step past `until`·(1 + 1e-3) is shortened until it lands between. Raises ValueError where
    ∇α = 0 at W = 0, FloatingPointError where the step falls below 1e-12.
    """
    alpha, p, log_dual, gradient = problem.smoothed_margin(w)
    length = float(np.linalg.norm(gradient))
    if not np.any(w) and length == 0.0:
        raise ValueError(
            "module: its parameters are all zero and the gradient of the risk vanishes there; "
            "the flow never leaves such a start"
        )
    smallest = 1e-3 * float(np.linalg.norm(w)) if np.any(w) else 1e-2 / length

    def at(point: np.ndarray, advance: float) -> EarlyState:
        radius = max(float(np.linalg.norm(point)), smallest)
        return EarlyState(point, *problem.smoothed_margin(point), radius, advance)

    def velocity(s: EarlyState) -> np.ndarray:
        settling = TUNING.settling * s.unit() / s.radius
        speed = np.hypot(np.linalg.norm(s.gradient), settling)
        return s.radius * s.gradient / speed if speed else np.zeros_like(s.w)

    state = EarlyState(w, alpha, p, log_dual, gradient, max(smallest, np.linalg.norm(w)), 0.0)
    yield state
    step, first, rejected = 1e-2, velocity(state), 0
    while True:
        slopes, point, end = [first], state.w, state
        for row in _STAGES:
            point = state.w + step * sum(a * k for a, k in zip(row, slopes, strict=True) if a)
            end = at(point, step)
            slopes.append(velocity(end))
        error = step * sum(e * k for e, k in zip(_ERROR, slopes, strict=True) if e)
        near = TUNING.nearly_stationary * state.unit()
        allowed = tol * state.radius * (min(1.0, state.slope() / near) if near else 1.0)
        ratio = float(np.linalg.norm(error)) / max(allowed, 1e-300)
        if not np.isfinite(ratio):
            ratio = 1e9
        factor = min(5.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
        if ratio <= 1.0 and end.alpha > until * (1.0 + TUNING.landing):
            part = (until * (1.0 + 0.5 * TUNING.landing) - state.alpha) / (end.alpha - state.alpha)
            factor = min(0.9, max(part, 1e-3))
        elif ratio <= 1.0:
            state, first = dataclasses.replace(end, rejected=rejected), slopes[-1]
            rejected = 0
            yield state
        else:
            rejected += 1
        step = min(step * factor, TUNING.longest_growth / degree)
        if step < TUNING.smallest_step:
            raise FloatingPointError(f"step of the early phase fell to {step:.1e}")
