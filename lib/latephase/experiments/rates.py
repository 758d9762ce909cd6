"""How fast a flow comes to its limit: exponents in ln t, measured along it and read off its end.

For the flow of a homogeneous network ln t and the smoothed margin α agree to leading order, and
‖W‖ grows like (ln t)^{1/L}. So a rate is a power of ln t, and `exponent` measures it.

Near a limit θ with margin a the flow can be linearized. In ρ = ln‖W‖ it is

    dθ/dρ = Σ q_i ∇p_i(θ)/(L Σ q_i p_i(θ)) - θ .

Moves that change the margins of the examples with q_i > 0 are undone by q, up to order 1/α. Of
those that do not, the curvature H = Σ q_i ∇²p_i makes d' = (h/(La) - 1) d for an eigenvalue h of
H among them: an error that falls like ‖W‖^{-κ}, κ = 1 - h/(La), hence like (ln t)^{-κ/L}. The
largest h decides, unless the start has no part along it. This is a heuristic of ours, no theorem:
it supposes that the support is fixed and that what it neglects is small.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import null_space

from latephase.flow.trajectory import Trajectory
from latephase.measures.alignment import along
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle


def approach(angles: np.ndarray, nearest: float = 1e-6, farthest: float = 1e-2) -> np.ndarray:
    """Return which records [k] lie on the last approach to the limit, where a rate is measured.

    angles: to the limit, radians. From the first record on after which the angle stays below
    `farthest`, up to the last before it falls below `nearest`, where rounding begins.
    """
    angles = np.asarray(angles, dtype=float)
    far, near = np.flatnonzero(angles > farthest), np.flatnonzero(angles < nearest)
    first = far[-1] + 1 if len(far) else 0
    last = near[0] if len(near) else len(angles)
    places = np.arange(len(angles))
    return (places >= first) & (places < last)


def exponent(log_time: np.ndarray, values: np.ndarray, kept: np.ndarray) -> float:
    """Return the slope of ln v against ln ln t over the records where `kept` is true.

    By least squares, each record weighing as much as the part of ln ln t that it stands for. NaN
    is never returned: +inf where fewer than three records with v > 0 and ln t > 0 are kept, so
    that a flow which ends early does not pass for one with a rate.
    """
    log_time, values = np.asarray(log_time, dtype=float), np.asarray(values, dtype=float)
    kept = kept & (log_time > 0.0) & (values > 0.0)
    if kept.sum() < 3:
        return float("inf")
    u, v = np.log(log_time[kept]), np.log(values[kept])
    return float(np.polyfit(u, v, 1, w=np.sqrt(np.gradient(u)))[0])


def curvature_exponent(
    problem: Problem, direction: np.ndarray, dual: np.ndarray, degree: float, support: float = 1e-6
) -> float:
    """Return the exponent -min(1, κ/L) of the angle to the limit, from the limit's curvature.

    direction: W/‖W‖ at the end of a flow; dual: its q; examples with q > `support` hold the
    margin. -1 where these fix the direction, as errors of order 1/α remain in any case.
    """
    holding = np.flatnonzero(dual > support)
    constraints = np.vstack([problem.jacobian(direction, holding), direction])
    scale = np.linalg.norm(constraints, axis=1, keepdims=True)
    free = null_space(constraints / np.where(scale > 0.0, scale, 1.0), rcond=1e-9)
    if free.shape[1] == 0:
        return -1.0
    margin = float(dual @ problem.margins(direction))
    curvatures = np.linalg.eigvalsh(free.T @ problem.hessian(direction, dual) @ free)
    kappa = 1.0 - curvatures / (degree * margin)
    # Along a set of limits nothing moves: that is no error.
    moving = kappa[np.abs(kappa) > 1e-2]
    return -float(min(1.0, moving.min(initial=degree) / degree))


@dataclass(frozen=True)
class Rates:
    """How a flow comes to its limit: three series over its records, and their exponents in ln t.

    log_time, angle (to the limit), misalignment (1 - cos(W, -∇R)), gap (a - γ̃)  [k]
    kept [k]: the records on the `approach` between which exponents are measured
    predicted: `curvature_exponent` at the last record
    """

    log_time: np.ndarray
    angle: np.ndarray
    misalignment: np.ndarray
    gap: np.ndarray
    kept: np.ndarray
    predicted: float

    @property
    def exponents(self) -> tuple[float, float, float]:
        """Return the exponents of angle, misalignment and gap."""
        series = (self.angle, self.misalignment, self.gap)
        return tuple(exponent(self.log_time, one, self.kept) for one in series)

    @property
    def surprise(self) -> float:
        """Return |measured - predicted| exponent of the angle, +inf for a flow without one."""
        return abs(self.exponents[0] - self.predicted)

    @property
    def ratio_defect(self) -> float:
        """Return how far the other two exponents are from twice the angle's, relative to it.

        The larger of the two differences of the ratio from 2; +inf for a flow without exponents.
        """
        first, *others = self.exponents
        if not np.isfinite([first, *others]).all():
            return float("inf")
        return max(abs(other / first - 2.0) for other in others)


def rates(
    problem: Problem,
    flow: Trajectory,
    limit: np.ndarray | None = None,
    margin: float | None = None,
    kept_until: float = 0.75,
) -> Rates:
    """Return the `Rates` of a flow of the problem towards `limit`, where the margin is `margin`.

    problem: with the kinks smoothed as the flow had them. Without a known limit the last record
    stands in for it, and records with ln t above (the last)^kept_until are left out: there the
    distance to the last record is no longer that to the limit.
    """
    end = flow.direction[-1] if limit is None else limit
    top = flow.normalized_smoothed_margin[-1] if margin is None else margin
    angles = np.array([angle(direction, end) for direction in flow.direction])
    latest = np.inf if limit is not None else flow.log_time[-1] ** kept_until
    return Rates(
        log_time=flow.log_time,
        angle=angles,
        misalignment=along(problem, flow).misalignment,
        gap=top - flow.normalized_smoothed_margin,
        kept=approach(angles) & (flow.log_time <= latest),
        predicted=curvature_exponent(problem, flow.direction[-1], flow.dual[-1], flow.degree),
    )


def interval(values: Iterable[float]) -> str:
    """Return the median of some exponents and their range, as text, and how many are finite."""
    values = np.asarray(list(values), dtype=float)
    found = values[np.isfinite(values)]
    share = "" if len(found) == len(values) else f", {len(found)} of {len(values)}"
    if len(found) == 0:
        return "not seen"
    return f"{np.median(found):.2f} ({found.min():.2f} to {found.max():.2f}){share}"
