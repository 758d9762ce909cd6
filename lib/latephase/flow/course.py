"""The course of one flow, whichever way it steps: where it is, its clock, what it has recorded."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from latephase.flow.clock import LogClock
from latephase.flow.errors import NotSeparated
from latephase.flow.explicit import is_stationary
from latephase.flow.state import Entry, State, exp_times, thinned
from latephase.flow.trajectory import Trajectory, trajectory_of
from latephase.flow.tuning import TUNING
from latephase.problem import vectors
from latephase.problem.margins import Problem


class Course(ABC):
    """Follows one problem of degree L; a subclass says how."""

    def __init__(self, problem: Problem, degree: float, settings: dict[str, Any]) -> None:
        self.problem, self.degree, self.settings = problem, degree, settings
        self.tol = settings["tol"]
        self.clock = LogClock(problem.loss)
        self.steps, self.best, self.path_length = 0, -math.inf, 0.0
        self.state: State | None = None
        self.entries: list[Entry] = []

    @abstractmethod
    def run(self, until: float) -> Trajectory:
        """Return the trajectory up to α = until."""

    @abstractmethod
    def _resume(self) -> None:
        """Give this course, a copy, its own part of what steps."""

    def _tick(self, state: State) -> None:
        """Move the clock to a state."""
        log_gradient = math.log(max(float(np.linalg.norm(state.gradient)), 1e-300))
        log_gradient += (self.degree - 1.0) * state.log_norm
        self.clock.advance(state.smoothed_margin, log_gradient)

    def _move(self, state: State) -> None:
        if self.state is not None:
            self.path_length += vectors.angle(self.state.direction, state.direction)
        measured = {"log_time": self.clock.log_time, "path_length": self.path_length}
        self.state = dataclasses.replace(state, **measured)
        alpha = self.state.smoothed_margin
        if alpha > 0.0 and (not self.entries or alpha > math.exp(self.entries[-1][0])):
            self.entries = [*self.entries, (float(np.log(alpha)), self.state)]
        # Dropped on the final grid now and then, which drops nothing that the end would keep: the
        # last entry stays, and stands for every grid point beyond it.
        if len(self.entries) >= 4 * self.settings["records"] + 64:
            self.entries = self._kept()

    def _kept(self) -> list[Entry]:
        return thinned(self.entries, self.settings["records"], self.settings["until"])

    def trajectory(self) -> Trajectory | None:
        """Return what has been recorded, or None before the first state with α > 0."""
        if not self.entries:
            return None
        return trajectory_of(
            [state for _, state in self._kept()],
            self.degree,
            raw_margins=None if self.problem.kink_smoothing is None else self._raw_margins,
            evaluations=dict(self.problem.evaluations),
            steps=self.steps,
            settings=dict(self.settings),
            continuation=self._extended,
        )

    def _raw_margins(self, direction: np.ndarray) -> np.ndarray:
        return self.problem.true_margins(self.problem.smoothed(None).margins(direction))

    def _extended(self, trajectory: Trajectory, until: float) -> Trajectory:
        reached = float(trajectory.smoothed_margin[-1])
        if not reached < until <= 1e300:
            raise ValueError(
                f"extend: expected `until` beyond the smoothed margin {reached:.6g} that the "
                f"trajectory has reached and at most 1e300, got {until!r}"
            )
        # A course of its own, so that the same trajectory can be extended again.
        course = copy.copy(self)
        course.problem, course.clock = self.problem.recounted(), copy.copy(self.clock)
        course.settings = self.settings | {"until": float(until)}
        course._resume()
        return course.run(until)

    def _stationary(self) -> bool:
        """Return whether the state is a stationary point that does not separate the examples."""
        unit = math.exp(min(0.0, log_largest(self.state, self.degree)))
        return is_stationary(self.state.smoothed_margin, self._slope(), unit)

    def _slope(self) -> float:
        """Return ‖W‖‖∇α‖."""
        norm = float(np.linalg.norm(self.state.gradient))
        return exp_times(self.degree * self.state.log_norm, norm)

    def _not_separated(self, why: str, slope: float, p: np.ndarray) -> NotSeparated:
        until, examples = self.settings["until"], self.problem.true_margins(p)
        return NotSeparated(
            f"{why} (‖W‖‖∇α‖ = {slope:.1e}), the largest smoothed margin being {self.best:.6g}, "
            f"short of {until:.6g}, with {int((examples <= 0).sum())} of {len(examples)} examples "
            "on the wrong side",
            self.best,
            self.trajectory(),
        )


def left(state: State, degree: float, until: float) -> float:
    """Return the step in ρ that leads to the landing interval at the present growth of ln α."""
    if state.smoothed_margin <= 0.0:
        return math.inf
    growth = np.vdot(state.gradient, state.gradient) / (
        degree * state.mean_margin() * state.normalized_smoothed_margin
    )
    return (math.log(until / state.smoothed_margin) + 0.4 * TUNING.landing) / growth


def log_largest(state: State, degree: float) -> float:
    """Return ln max|p| at W, of which the exponential may overflow."""
    return degree * state.log_norm + math.log(max(np.abs(state.p).max(), 1e-300))
