"""The flow of a module with kinks, from any start to any α: one implicit method for both phases."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch

from latephase.flow.course import Course, left, log_largest
from latephase.flow.errors import NotSeparated, StepCollapse
from latephase.flow.implicit import GAMMA
from latephase.flow.nonsmooth import KinkedState, KinkedStepper, Step
from latephase.flow.sliding import StepFailed
from latephase.flow.trajectory import Trajectory
from latephase.flow.tuning import TUNING
from latephase.problem.margins import Problem


def past(step: Step) -> float:
    """Return the factor of a step that has too large a jump in it to one that has not.

    A kink 1 - γ along the step, or at its end, is where the stages' weights count it right.
    """
    past = step.kink / (1.0 - GAMMA)
    return past if past < 0.9 else 0.95 * step.kink


class KinkedFlow(Course):
    """Follows the kinks of a problem; `kinked` gives them and their gates."""

    def __init__(
        self, problem: Problem, kinked: Any, degree: float, settings: dict[str, Any]
    ) -> None:
        super().__init__(problem, degree, settings)
        self.stepper = KinkedStepper(kinked, problem.loss, degree, problem.pairs, self.tol)
        self.length, self.attempts = TUNING.first_length, 0

    def run(self, until: float) -> Trajectory:
        """Return the trajectory up to α = until.

        Raises NotSeparated at a stationary point, StepCollapse where no step can be solved.
        """
        if self.state is None:
            self._arrive(self.stepper.start(self.problem.w0))
        while self.state.smoothed_margin < until:
            if self._stationary() or self._settled() or self._only_dead():
                raise self._stands()
            if self.attempts > TUNING.kinked_attempts:
                raise self._not_separated(
                    f"{self.attempts} attempted steps are spent", self._slope(), self.state.p
                )
            if self.length < TUNING.smallest_length:
                raise self._collapse()
            self._attempt(until)
        return self.trajectory()

    def _attempt(self, until: float) -> None:
        """Try one step: accept it, or say how long the next try is to be."""
        length = self.length
        if self.state.smoothed_margin > 0.0:
            length = min(length, math.expm1(left(self.state, self.degree, until)))
        self.attempts += 1
        try:
            step = self.stepper.step(self.state, length)
        except StepFailed:
            self.length = TUNING.shorter * length
            return
        part = TUNING.kinked_tol * self.tol
        arrived = step.state
        factor = 0.9 * (part / max(step.error, 1e-12 * part)) ** (1.0 / 3.0)
        if max(step.error, step.jump) > part:
            beyond = past(step) if step.jump > part else 1.0
            self.length = length * min(max(0.2, factor), beyond)
        elif arrived.smoothed_margin > until * (1.0 + TUNING.landing):
            self._land(length, arrived, until)
        else:
            grown = min(TUNING.longest_length, length * min(4.0, factor))
            # A step cut short to land says nothing against the next.
            self.length = max(grown, self.length) if length < self.length else grown
            self._arrive(arrived)

    def _land(self, length: float, arrived: KinkedState, until: float) -> None:
        """Step to α = until, which a step of that length passes, by the Illinois method.

        Where the steps that go before are not solved, go as far as one that is.
        """
        target = math.asinh(until * (1.0 + 0.4 * TUNING.landing))
        low, high = (0.0, self.state), (length, arrived)
        below, above = (math.asinh(end.smoothed_margin) - target for _, end in (low, high))
        for _ in range(TUNING.landings):
            self.attempts += 1
            part = below / (below - above)
            at = low[0] + min(max(part, 0.02), 0.98) * (high[0] - low[0])
            try:
                state = self.stepper.step(self.state, at).state
            except StepFailed:
                break
            gap = math.asinh(state.smoothed_margin) - target
            if until <= state.smoothed_margin <= until * (1.0 + TUNING.landing):
                low = at, state
                break
            if gap < 0.0:
                low, below, above = (at, state), gap, 0.5 * above
            else:
                high, below, above = (at, state), 0.5 * below, gap
        if low[0] == 0.0:
            self.length = TUNING.shorter * min(length, high[0])
        else:
            self._arrive(low[1])

    def _arrive(self, state: KinkedState) -> None:
        self.best = max(self.best, state.smoothed_margin)
        self.steps += int(self.state is not None)
        self._tick(state)
        self._move(state)

    def _resume(self) -> None:
        self.stepper = copy.copy(self.stepper)

    def _dead(self) -> np.ndarray:
        """Return the examples whose margins are exactly zero, and whose kinks do not slide."""
        zero = (self.state.p.reshape(self.problem.n, -1) == 0.0).all(1)
        zero[self.stepper.kinked.owner[self.state.sliding.active]] = False
        return np.flatnonzero(zero)

    def _settled(self) -> bool:
        """Return whether steps fall to nothing because the flow is at a stationary point.

        Kinks that slide, within their width, resolve a point of zero slope to a part of tol.
        """
        below = self.state.smoothed_margin <= 0.0 and self.length < TUNING.settled_length
        unit = math.exp(min(0.0, log_largest(self.state, self.degree)))
        return below and self._slope() <= TUNING.kink_width * self.tol * unit

    def _only_dead(self) -> bool:
        """Return whether nothing is left of the risk but that of examples with zero output."""
        dead = len(self._dead())
        if dead == 0 or self.state.smoothed_margin > 0.0:
            return False
        zeros = torch.zeros(dead * self.problem.pairs, dtype=torch.float64)
        shaped = zeros if self.problem.pairs == 1 else zeros.reshape(dead, -1)
        bound = float(self.problem.loss.smoothed_margin(shaped))
        return self.state.smoothed_margin > bound - TUNING.dead

    def _stands(self) -> NotSeparated:
        dead, why = self._dead(), "the risk is stationary"
        if len(dead):
            names = ", ".join(map(str, dead[:20])) + (", …" if len(dead) > 20 else "")
            why += f": the output is zero, and stays zero, for {len(dead)} examples ({names})"
        return self._not_separated(why, self._slope(), self.state.p)

    def _collapse(self) -> StepCollapse:
        return StepCollapse(
            f"the implicit step fell to {self.length:.1e} at smoothed margin {self.best:.6g}, "
            f"with {len(self.state.sliding.active)} active kinks",
            self.best,
            self.trajectory(),
        )
