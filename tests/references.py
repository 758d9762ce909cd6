"""Slow independent oracles that the flow is tested against; they share no code with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp


def finite_differences(function: Callable, w: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the Jacobian [m, P] of function(w) [m] by central differences of length `step`."""
    columns = [
        (np.ravel(function(w + step * e)) - np.ravel(function(w - step * e))) / (2.0 * step)
        for e in np.eye(w.size)
    ]
    return np.array(columns).T


def physical_flow(
    negative_gradient: Callable[[np.ndarray], np.ndarray],
    w: np.ndarray,
    times: np.ndarray,
    rtol: float = 1e-10,
) -> np.ndarray:
    """Return W(t) [times, P] of dW/dt = -∇R(W) from W(0) = w, by an explicit method of order 8.

    Reaches only as far as the risk is not small: the time to α is about e^α.
    """
    solution = solve_ivp(
        lambda _, v: negative_gradient(v),
        (0.0, float(times[-1])),
        w,
        method="DOP853",
        t_eval=np.asarray(times, dtype=np.float64),
        rtol=rtol,
        atol=rtol * max(1.0, float(np.linalg.norm(w))),
    )
    if not solution.success:
        raise RuntimeError(f"the reference solver failed: {solution.message}")
    return solution.y.T
