"""Slow independent oracles that the flow is tested against, and points whose limits are known.

The oracles share no code with the flow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp

from latephase.problem.task import Task


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


def soudry_points() -> Task:
    """The points (.5, 1.5), (1.5, .5) with label +1 and their negatives with label -1.

    Linear model, exponential loss: the direction tends to (1, 1)/√2 and w - ŵ ln t to
    ½ ln 8 · (1, 1) from every start. Data of Soudry et al. 2018.
    """
    half = np.array([[0.5, 1.5], [1.5, 0.5]])
    return _task(np.concatenate([half, -half]), np.array([1, 1, -1, -1]), "soudry_points")


def outvoted_support_point(n: int) -> Task:
    """One point against n - 1 copies of another: z_1 = (.1, 0), else z = (.2, .2), z = -y x.

    Linear model from w = 0: the margin is γ = .1 and the limit direction (-1, 0), yet the copies
    outvote the support point early, ‖w_t - projection‖ ≥ ln n - ln 2. Labels alternate so that
    both occur; margins depend on z alone. Source: Ji and Telgarsky 2021.
    """
    y = np.where(np.arange(n) % 2 == 0, 1, -1)
    z = np.tile([0.2, 0.2], (n, 1))
    z[0] = 0.1, 0.0
    return _task(-y[:, None] * z, y, "outvoted_support_point")


def _task(x: np.ndarray, y: np.ndarray, name: str) -> Task:
    return Task(torch.from_numpy(x), torch.from_numpy(y), name, "0" * 64)
