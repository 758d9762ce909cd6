"""How soon a flow is at its limit: exponents of ln t.

For the flow of a homogeneous network ln t and α agree to leading order, so that distances to the
limit fall like a power of ln t, which `exponent` measures. Near a limit θ with margin a the flow
can be linearized: in ρ = ln‖W‖ it is dθ/dρ = Σ q_i ∇p_i(θ)/(L Σ q_i p_i(θ)) - θ. Moves that change
the margins of the examples with q_i > 0 are undone by q, up to order 1/α. Of those that do not, the
curvature H = Σ q_i ∇²p_i makes d' = (h/(La) - 1) d for an eigenvalue h of H among them: an error
that falls like ‖W‖^{-κ}, κ = 1 - h/(La), hence like (ln t)^{-κ/L}. The largest h decides, unless
the start has no part along it. This is a heuristic of ours, no theorem: it supposes that the
support is fixed and that what it neglects is small.

If the angle is of order (ln t)^{-r}, then 1 - cos(W, -∇R) is of order (ln t)^{-2r}: the direction's
speed is proportional to its distance. The margin a is stationary at the limit, which makes the
smallest margin's distance to it of second order as well; but γ̃ is below the smallest margin by the
entropy of q over ‖W‖^L, which is of order 1/ln t, so that a - γ̃ is of order (ln t)^{-min(2r, 1)}.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import null_space

from latephase.flow.trajectory import Trajectory
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle


def last_approach(angles: np.ndarray, nearest: float = 1e-6, farthest: float = 1e-2) -> np.ndarray:
    """Return which records [k] lie on the last approach to the limit, where exponents are measured.

    angles: to the limit, radians. From the first record on after which the angle stays below
    `farthest`, up to the last before it falls below `nearest`, where rounding begins.
    """
    angles = np.asarray(angles, dtype=float)
    far, near = np.flatnonzero(angles > farthest), np.flatnonzero(angles < nearest)
    places = np.arange(len(angles))
    return (places > far.max(initial=-1)) & (places < near.min(initial=len(angles)))


def exponent(log_time: np.ndarray, values: np.ndarray, kept: np.ndarray) -> float:
    """Return the slope of ln v against ln ln t over the records where `kept` is true.

    By least squares, each record weighing as much as the part of ln ln t that it stands for. NaN
    is never returned: +inf where fewer than three records with v > 0 and ln t > 0 are kept, so
    that a flow which ends early does not pass for one with an exponent.
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
    lengths = np.linalg.norm(constraints, axis=1, keepdims=True)
    free = null_space(constraints / np.where(lengths > 0.0, lengths, 1.0), rcond=1e-9)
    if free.shape[1] == 0:
        return -1.0
    margin = float(dual @ problem.margins(direction))
    curvatures = np.linalg.eigvalsh(free.T @ problem.hessian(direction, dual) @ free)
    kappa = 1.0 - curvatures / (degree * margin)
    # Along a set of limits nothing moves: that is no error.
    moving = kappa[np.abs(kappa) > 1e-2]
    return -float(min(1.0, moving.min(initial=degree) / degree))


@dataclass(frozen=True, eq=False)
class Decay:
    """How a flow comes to its limit: three series over its records, and their exponents in ln t.

    log_time, angle (to the limit), misalignment (1 - cos(W, -∇R)), gap (a - γ̃)  [k]
    kept [k]: the records of `last_approach`, between which exponents are measured
    predicted, early: `curvature_exponent` at the last and at the first record
    """

    log_time: np.ndarray
    angle: np.ndarray
    misalignment: np.ndarray
    gap: np.ndarray
    kept: np.ndarray
    predicted: float
    early: float

    @property
    def resolved(self) -> bool:
        """Whether the angle falls by three powers of ten between the records kept."""
        angles = self.angle[self.kept]
        return len(angles) > 2 and bool(angles.max() >= 1e3 * angles.min())

    @property
    def exponents(self) -> tuple[float, float, float]:
        """The exponents of angle, misalignment and gap."""
        series = (self.angle, self.misalignment, self.gap)
        return tuple(exponent(self.log_time, one, self.kept) for one in series)

    @property
    def surprise(self) -> float:
        """|measured - predicted| exponent of the angle, +inf for a flow without one."""
        return abs(self.exponents[0] - self.predicted)

    @property
    def order_defect(self) -> float:
        """How far the exponents of 1 - cos and of a - γ̃ are from -2r and -min(2r, 1), over r.

        r is minus the exponent of the angle. The larger of the two; +inf without exponents.
        """
        first, cosine, gap = self.exponents
        if not np.isfinite([first, cosine, gap]).all():
            return float("inf")
        r = -first
        return max(abs(cosine / first - 2.0), abs(gap + min(2.0 * r, 1.0)) / abs(r))


def decay(
    problem: Problem,
    flow: Trajectory,
    limit: np.ndarray | None = None,
    margin: float | None = None,
    kept_until: float = 0.75,
) -> Decay:
    """Return the `Decay` of a flow of the problem towards `limit`, where the margin is `margin`.

    Where the flow slides along kinks no exponent is predicted. Without a known limit the last
    record stands in for it, and records with ln t above (the last)^kept_until are left out: there
    the distance to the last record is no longer that to the limit.
    """
    end = flow.direction[-1] if limit is None else limit
    top = flow.normalized_smoothed_margin[-1] if margin is None else margin
    angles = np.array([angle(direction, end) for direction in flow.direction])
    latest = np.inf if limit is not None else flow.log_time[-1] ** kept_until
    last, first = (
        float("nan")
        if flow.active_kinks.any()
        else curvature_exponent(problem, flow.direction[k], flow.dual[k], flow.degree)
        for k in (-1, 0)
    )
    return Decay(
        log_time=flow.log_time,
        angle=angles,
        misalignment=flow.misalignment,
        gap=top - flow.normalized_smoothed_margin,
        kept=last_approach(angles) & (flow.log_time <= latest),
        predicted=last,
        early=first,
    )


def interval(values: Iterable[float]) -> str:
    """Return the median of some exponents and their range, as text, and how many are finite."""
    values = np.asarray(list(values), dtype=float)
    found = values[np.isfinite(values)]
    share = "" if len(found) == len(values) else f", {len(found)} of {len(values)}"
    if len(found) == 0:
        return "not seen"
    return f"{np.median(found):.2f} ({found.min():.2f} to {found.max():.2f}){share}"
