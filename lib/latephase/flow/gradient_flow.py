"""Gradient flow on an exponential-tailed risk, followed to smoothed margins of 1e300."""

from __future__ import annotations

import numpy as np
import torch

from latephase.flow.errors import StepCollapse
from latephase.flow.solver import Flow
from latephase.flow.trajectory import Trajectory
from latephase.problem.degree import checked_degree
from latephase.problem.losses import Loss
from latephase.problem.margins import Problem

DEFAULT_SMOOTHING = 1e-3


def gradient_flow(
    module: torch.nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    loss: str | Loss = "exponential",
    until: float = 1e6,
    tol: float = 1e-4,
    records: int = 64,
    degree: float | None = None,
    kink_smoothing: float | None = None,
    jacobian_bytes: int = 2**30,
) -> Trajectory:
    """Return the trajectory of dW/dt = -∇R(W) from the module's parameters to α = `until`.

    module, x, y, loss: as in `latephase.problem.margins.Problem`; the risk R is the sum over
        examples.
    until: smoothed margin α = ℓ⁻¹(R) to reach, up to 1e300; the last record has
        until ≤ α ≤ until·(1 + 1e-3).
    tol: error per step of the direction W/‖W‖.
    records: at most so many accepted steps are kept, the nearest to an even grid in ln α.
    degree: homogeneity degree, measured when None and checked when given.
    kink_smoothing: ε of the smoothing of ReLU kinks (`latephase.problem.kinks`). None follows
        the module as it is and smooths with ε = 1e-3, from the start, only if the step collapses at
        a kink.
    jacobian_bytes: bound on a stored Jacobian; beyond, it is recomputed in blocks.

    Raises ValueError for input it cannot use; NotSeparated where the risk stays large;
    StepCollapse at a kink that is not a ReLU's.

    >>> import numpy as np, torch, latephase
    >>> x = np.array([[0.5, 1.5], [1.5, 0.5], [-0.5, -1.5], [-1.5, -0.5]])
    >>> y = np.array([1, 1, -1, -1])
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> flow = latephase.gradient_flow(model, x, y, until=1e12)
    >>> print(np.round(flow.direction[-1], 6), f"{flow.smoothed_margin[-1]:.0e}")
    [0.707107 0.707107] 1e+12
    """
    _check_settings(until, tol, records, kink_smoothing)
    problem = Problem(module, x, y, loss, jacobian_bytes, kink_smoothing)
    degree = checked_degree(problem.module, problem.x, degree)
    settings = {
        "loss": problem.loss.name,
        "until": float(until),
        "tol": float(tol),
        "records": int(records),
        "kink_smoothing": kink_smoothing,
        "smoothed_because": None if kink_smoothing is None else "asked for",
        "jacobian_bytes": int(jacobian_bytes),
    }
    try:
        return Flow(problem, degree, settings).run(until)
    except StepCollapse as collapse:
        if kink_smoothing is not None or not problem.smoothable():
            raise
        settings |= {"kink_smoothing": DEFAULT_SMOOTHING, "smoothed_because": str(collapse)}
    return Flow(problem.smoothed(DEFAULT_SMOOTHING), degree, settings).run(until)


def _check_settings(until: float, tol: float, records: int, kink_smoothing: float | None) -> None:
    if not 0.0 < until <= 1e300:
        raise ValueError(f"until: expected a smoothed margin in (0, 1e300], got {until!r}")
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol: expected an error in (0, 1), got {tol!r}")
    if isinstance(records, bool) or records != int(records) or records < 1:
        raise ValueError(f"records: expected a positive integer, got {records!r}")
    if kink_smoothing is not None and not 0.0 < kink_smoothing < 1.0:
        raise ValueError(f"kink_smoothing: expected ε in (0, 1) or None, got {kink_smoothing!r}")
