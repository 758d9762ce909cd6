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

import numpy as np
from scipy.linalg import null_space

from latephase.problem import Problem


def approach(angles: np.ndarray, nearest: float = 1e-9, farthest: float = 1e-2) -> np.ndarray:
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


def interval(values: np.ndarray) -> str:
    """Return the median of some numbers and their range, as text: "-0.50 (-0.52 … -0.47)"."""
    values = np.asarray(values, dtype=float)
    return f"{np.median(values):.2f} ({values.min():.2f} … {values.max():.2f})"
