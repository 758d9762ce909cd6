"""The flow of a module with kinks, from any start to any α: one implicit method for both phases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from latephase.flow.course import Course, left, log_largest
from latephase.flow.errors import KinkCrossed, NotSeparated, StepCollapse, StepFailed
from latephase.flow.runge_kutta import ESDIRK4, SDIRK2, FlowState, Step, Stepper, Tableau
from latephase.flow.trajectory import Trajectory
from latephase.flow.tuning import TUNING
from latephase.problem.margins import Problem


def past(step: Step) -> float:
    """Return the factor of a step that has too large a jump in it to one that has not.

    A kink 1 - γ along the step, or at its end, is where the stages' weights count it right.
    """
    past = step.kink / (1.0 - SDIRK2.gamma)
    return past if past < 0.9 else 0.95 * step.kink


class KinkedFlow(Course):
    """Follows the kinks of a problem; `kinked` gives them and their gates."""

    def __init__(
        self, problem: Problem, kinked: Any, degree: float, settings: dict[str, Any]
    ) -> None:
        super().__init__(problem, degree, settings)
        self.stepper = Stepper(kinked, problem, degree, self.tol)
        self.attempts = 0
        # Lengths of the next steps by either method, in units of ‖W‖; steps to take with the one
        # for kinks before the other is tried again, and how many they are to be next time.
        self.length = self.hop = TUNING.first_length
        self.hops, self.patience = 0, 1

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

    def _attempt(self, until: float) -> bool:
        """Try one step: accept it and return True, or say how long the next try is to be."""
        tableau = SDIRK2 if self.hops else ESDIRK4
        length = self.hop if self.hops else self.length
        if self.state.smoothed_margin > 0.0:
            length = min(length, math.expm1(left(self.state, self.degree, until)))
        self.attempts += 1
        try:
            step = self.stepper.step(self.state, length, tableau)
        except KinkCrossed as kink:
            self._approach(kink.part * length)
            return False
        except StepFailed:
            self._shorten(TUNING.shorter * length)
            return False
        allowed = TUNING.kinked_tol * self.tol
        same = step.state.sliding.same(self.state.sliding)
        # The error of a step that kinks bend is of its length.
        rate = tableau.rate if same or step.error < allowed else 1.0
        factor = 0.9 * (allowed / max(step.error, 1e-12 * allowed)) ** (1.0 / rate)
        if max(step.error, step.jump) > allowed:
            beyond = past(step) if step.jump > allowed else 1.0
            self._shorten(length * min(max(0.1, factor), beyond))
            return False
        if length > TUNING.first_length and self._falls(step.state):
            # The method for kinks is of lower order, but loses no height.
            if not self.hops:
                self.hop = length
                self._approach(0.0)
            self._shorten(0.5 * length)
            return False
        if step.state.smoothed_margin > until * (1.0 + TUNING.landing):
            return self._land(length, step, until, tableau)
        # A step cut short to land says nothing against the next.
        grown = min(TUNING.longest_length, length * min(4.0, factor))
        if self.hops:
            self.hop = max(grown, self.hop) if length < self.hop else grown
            self.hops -= int(same)
            self.length = TUNING.near_kink * self.hop
        else:
            self.length = max(grown, self.length) if length < self.length else grown
            self.patience = 1
        self._arrive(step.state)
        return True

    def _falls(self, state: FlowState) -> bool:
        """Return whether α/‖W‖^L came out lower, which the flow never lowers once α > 0.

        A step short enough loses no more than rounding does.
        """
        before = self.state.normalized_smoothed_margin
        return before > 0.0 and state.normalized_smoothed_margin < (1.0 - TUNING.monotone) * before

    def _shorten(self, length: float) -> None:
        if self.hops:
            self.hop = length
        self.length = length

    def _approach(self, reach: float) -> None:
        """Go to just before a kink at that distance, or through it by the method for kinks."""
        if reach > TUNING.near_kink * self.hop:
            self.length = 0.9 * reach
        else:
            self.hops, self.patience = self.patience, min(2 * self.patience, TUNING.patience)

    def _land(self, length: float, arrived: Step, until: float, tableau: Tableau) -> bool:
        """Step to α = until, which a step of that length passes, by the Illinois method.

        Where the steps that go before are not solved, go as far as one that is.
        """
        target = math.asinh(until * (1.0 + 0.4 * TUNING.landing))
        low, high = (0.0, None), (length, arrived)
        below = math.asinh(self.state.smoothed_margin) - target
        above = math.asinh(arrived.state.smoothed_margin) - target
        for _ in range(TUNING.landings):
            self.attempts += 1
            part = below / (below - above)
            at = low[0] + min(max(part, 0.02), 0.98) * (high[0] - low[0])
            try:
                step = self.stepper.step(self.state, at, tableau)
            except StepFailed:
                break
            gap = math.asinh(step.state.smoothed_margin) - target
            if until <= step.state.smoothed_margin <= until * (1.0 + TUNING.landing):
                low = at, step
                break
            if gap < 0.0:
                low, below, above = (at, step), gap, 0.5 * above
            else:
                high, below, above = (at, step), 0.5 * below, gap
        if low[1] is None:
            self._shorten(TUNING.shorter * min(length, high[0]))
            return False
        self._arrive(low[1].state)
        return True

    def _arrive(self, state: FlowState) -> None:
        self.best = max(self.best, state.smoothed_margin)
        self.steps += int(self.state is not None)
        self._tick(state)
        self._move(state)

    def _resume(self) -> None:
        self.stepper = self.stepper.counting(self.problem.evaluations)

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
