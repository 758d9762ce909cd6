"""The way from a start to α = 0, where the late phase begins.

With the exponential loss α > 0 means R < ℓ(0) = 1: the risk, a sum, is smaller than what one
example at the boundary would contribute, so that every example is on its side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from latephase.flow.clock import LogClock
from latephase.flow.errors import NotSeparated
from latephase.flow.explicit import early_phase
from latephase.flow.tuning import TUNING
from latephase.problem.degree import checked_degree
from latephase.problem.margins import Problem
from latephase.problem.vectors import path_length, unit


@dataclass(frozen=True)
class Onset:
    """The accepted steps of the flow from a start on, [steps + 1] each.

    smoothed_margin              α, which increases
    normalized_smoothed_margin   γ̃ = α/‖W‖^L
    norm                         ‖W‖
    movement                     ‖W - W₀‖/‖W₀‖
    path_length                  of W/‖W‖ since the start, radians
    log_time                     ln t of dW/dt = -∇R since the start, -inf there
    last [P]                     W after the last step
    """

    smoothed_margin: np.ndarray
    normalized_smoothed_margin: np.ndarray
    norm: np.ndarray
    movement: np.ndarray
    path_length: np.ndarray
    log_time: np.ndarray
    last: np.ndarray

    @property
    def before(self) -> slice:
        """The steps with α ≤ 0."""
        return slice(0, int(np.sum(self.smoothed_margin <= 0)))

    def at_zero(self, name: str) -> float:
        """Return a quantity at α = 0, interpolated between the two steps about it.

        The start's own value where it has α > 0 already.
        """
        series, alpha = getattr(self, name), self.smoothed_margin
        if alpha[0] > 0:
            return float(series[0])
        return float(np.interp(0.0, alpha[1:], series[1:]))


def onset(
    module: torch.nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    until: float = 0.1,
    tol: float = 1e-5,
    steps: int = TUNING.early_steps,
) -> Onset:
    """Return the flow of the exponential loss from the module's parameters to α = until.

    By the explicit method of the solver's early phase; tol is the error of a step relative to ‖W‖.
    Raises NotSeparated where α does not get there within so many steps.
    """
    problem = Problem(module, x, y)
    degree = checked_degree(problem.module, problem.x, None)
    clock, rows, directions = LogClock(problem.loss), [], []
    for state in early_phase(problem, problem.w0, tol, until, degree):
        log_time = clock.advance(state.alpha, math.log(max(np.linalg.norm(state.gradient), 1e-300)))
        rows.append((state.alpha, np.linalg.norm(state.w), np.linalg.norm(state.w - problem.w0),
                     log_time))  # fmt: skip
        directions.append(unit(state.w))
        if state.alpha >= until:
            break
        if state.stationary() or len(rows) > steps:
            why = "the risk is stationary" if state.stationary() else f"{steps} steps are spent"
            raise NotSeparated(f"{why} at α = {state.alpha:.3g}", state.alpha, None)
    alpha, norm, moved, log_time = np.array(rows).T
    return Onset(
        smoothed_margin=alpha,
        normalized_smoothed_margin=alpha / norm**degree,
        norm=norm,
        movement=moved / norm[0],
        path_length=path_length(np.array(directions)),
        log_time=log_time,
        last=state.w,
    )
