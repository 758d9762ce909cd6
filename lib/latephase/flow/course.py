"""The course of one flow: the steps it tries, its clock, and what it records."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from latephase.flow.clock import LogClock
from latephase.flow.ending import ended
from latephase.flow.errors import KinkCrossed, StepFailed
from latephase.flow.progress import progress
from latephase.flow.runge_kutta import (
    ESDIRK4,
    SDIRK2,
    FlowState,
    Request,
    Step,
    Stepper,
    Tableau,
)
from latephase.flow.state import Entry, exp_times, thinned
from latephase.flow.trajectory import Trajectory, trajectory_of
from latephase.flow.tuning import TUNING
from latephase.problem.kinked import kinked
from latephase.problem.margins import Problem

# What asks for steps, and yields the states it comes to; what it gets for a step is the answer.
Work = Generator[FlowState | Request, Step | StepFailed | None, Any]


def alone(work: Work, seen: Callable[[FlowState], None]) -> Any:
    """Return what the work comes to, its steps taken one by one; each state is seen."""
    answer = None
    while True:
        try:
            asked = work.send(answer)
        except StopIteration as end:
            return end.value
        try:
            answer = None
            if isinstance(asked, Request):
                answer = asked.answer()
            else:
                seen(asked)
        except KeyboardInterrupt as stopped:
            work.throw(stopped)


class Course:
    """Follows the flow of one problem of degree L from its start, to any α.

    Stretches in which no kink changes its part are stepped through with ESDIRK4, kinks with SDIRK2.
    """

    def __init__(self, problem: Problem, degree: float, settings: dict[str, Any]) -> None:
        self.problem, self.degree, self.settings = problem, degree, settings
        self.tol, self.budget = settings["tol"], settings.get("attempts", TUNING.attempts)
        self.landing = min(
            TUNING.landing, max(TUNING.landing_tol * self.tol, TUNING.finest_landing)
        )
        self.stepper = Stepper(kinked(problem), problem, degree, self.tol)
        left = self.stepper.kinked.sites
        if problem.kink_smoothing is not None and left and not problem.smoothable():
            raise ValueError(
                "kink_smoothing: it smooths ReLU and leaky ReLU, and the module has none but "
                f"{left[0][0]} in {left[0][1]}; without it that is followed as it is"
            )
        self.clock = LogClock(problem.loss)
        self.steps, self.attempts, self.best, self.path_length = 0, 0, -math.inf, 0.0
        self.branchings = 0
        self.state: FlowState | None = None
        self.entries: list[Entry] = []
        # Lengths of the next steps by either method, in units of ‖W‖; steps to take with the one
        # for kinks before the other is tried again, and how many they are to be next time.
        self.length = self.hop = TUNING.first_length
        self.hops, self.patience = 0, 1
        # Whether records are wanted between here and `until`. Closing steps that are due, whether
        # one was given up since the last step, and whether that was too long for its multipliers.
        self.between, self.due, self.unclosed, self.unsettled = True, 0, False, False
        # The largest relative fall of γ̃ over an accepted step, once α > 0.
        self.drop = 0.0
        # The attempts and the α at which the flow was last seen to get on.
        self.standing = 0, -math.inf

    def run(self, until: float) -> Trajectory:
        """Return the trajectory up to α = until.

        Raises NotSeparated at a stationary point, StepCollapse where no step can be solved,
        BudgetSpent where the attempts are.
        """
        with progress(until) as show:
            return alone(self.work(until), lambda state: show(state.smoothed_margin))

    def work(self, until: float) -> Work:
        """Ask for the steps up to α = until; yield the start, and each state accepted."""
        try:
            if self.state is None:
                self._begin()
            yield self.state
            while self.state.smoothed_margin < until:
                error = ended(self)
                if error is not None:
                    raise error
                accepted = yield from self._attempt(until)
                if accepted and not self.due:
                    yield self.state
        except KeyboardInterrupt as stopped:
            stopped.trajectory = self.trajectory()
            raise
        self._record()
        return self.trajectory()

    def _step(self, length: float, tableau: Tableau) -> Generator[Request, Step | StepFailed, Step]:
        """Return the step that comes for an answer; raises StepFailed."""
        came = yield Request(self.stepper, self.state, length, tableau)
        if isinstance(came, StepFailed):
            raise came
        if not math.isfinite(came.state.smoothed_margin):
            raise StepFailed("overflow")
        return came

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

    def _begin(self) -> None:
        w = self.problem.w0
        if not w.any():
            w = self._out_of_zero()
        state = self.stepper.start(w)
        self.lowest = exp_times(self.degree * state.log_norm, float(state.p.min()))
        self._arrive(state, [self.stepper.node(state)])

    def _out_of_zero(self) -> np.ndarray:
        """Return the W, on the way that the gradient at W = 0 points, of margins that are tiny."""
        alpha, gradient, growth = self.stepper.at_zero()
        if growth == 0.0:
            raise ValueError(
                "module: its parameters are all zero and the gradient of the risk vanishes there; "
                "the flow never leaves such a start"
            )
        self.clock.advance([(alpha, math.log(np.linalg.norm(gradient)))])
        return TUNING.out_of_zero / growth * gradient

    def _attempt(self, until: float) -> Work:
        """Try one step: accept it and return True, or say how long the next try is to be."""
        tableau = SDIRK2 if self.hops else ESDIRK4
        length, goal = self.hop if self.hops else self.length, until
        if self.state.smoothed_margin > 0.0:
            growth = self._growth()
            left = self._distance(self.state, until) / growth
            if self.state.late() and not self.unclosed:
                # The last steps to a level are closing ones.
                kept = TUNING.closings * TUNING.closing
                if self.due or left < min(kept + 0.5 * TUNING.closing, math.log1p(length)):
                    return (yield from self._close(left, until))
                if left > kept:
                    goal, left = until * math.exp(-growth * kept), left - kept
            length = min(length, math.expm1(left))
        self.attempts += 1
        try:
            step = yield from self._step(length, tableau)
        except KinkCrossed as kink:
            self._approach(kink.part * length)
            return False
        except StepFailed:
            self._shorten(TUNING.shorter * length)
            return False
        allowed = TUNING.error * self.tol
        same = step.state.sliding.same(self.state.sliding)
        # The error of a step that kinks bend is of its length.
        rate = tableau.rate if same or step.error < allowed else 1.0
        factor = 0.9 * (allowed / max(step.error, 1e-12 * allowed)) ** (1.0 / rate)
        jump = step.jump / (TUNING.jump * self.tol)
        # What a jump leaves is of the step's length, and so is the number of jumps.
        factor = min(factor, 0.9 * max(jump, 1e-6) ** -0.5)
        if self._errs(step):
            beyond = past(step) if jump > 1.0 else 1.0
            self._shorten(length * min(max(0.1, factor), beyond))
            return False
        if length > TUNING.first_length and self._falls(step.state):
            # The method for kinks is of lower order, but loses no height.
            if not self.hops:
                self.hop = length
                self._approach(0.0)
            self._shorten(0.5 * length)
            return False
        if step.state.smoothed_margin > goal * (1.0 + self.landing):
            return (yield from self._land(length, step, goal, tableau))
        # A step cut short to land says nothing against the next.
        grown = min(TUNING.longest_length, length * min(4.0, factor))
        if self.hops:
            self.hop = max(grown, self.hop) if length < self.hop else grown
            self.hops -= int(same)
            self.length = TUNING.near_kink * self.hop
        else:
            self.length = max(grown, self.length) if length < self.length else grown
            self.patience = 1
        self._accept(step)
        return True

    def _close(self, left: float, until: float) -> Work:
        """Try a short step in ln‖W‖, over which the multipliers settle; without it, go on as it is.

        They are of the order of the stages: after a long step they are off by more than W is. left:
        the way in ln‖W‖ to α = until, on which the step lands where that is near.
        """
        near = left < 1.5 * TUNING.closing
        length, growth = left if near else TUNING.closing, self._growth()
        for _ in range(TUNING.landings):
            self.attempts += 1
            try:
                step = yield from self._step(math.expm1(length), SDIRK2)
            except StepFailed:
                break
            if self._errs(step, TUNING.closing_error) or self._falls(step.state):
                break
            if not near or 1.0 <= step.state.smoothed_margin / until <= 1.0 + self.landing:
                self._accept(step)
                return True
            length += self._distance(step.state, until) / growth
        self.due, self.unclosed = 0, True
        self._record()
        return False

    def _errs(self, step: Step, part: float = 1.0) -> bool:
        allowed = part * self.tol
        return step.error > TUNING.error * allowed or step.jump > TUNING.jump * allowed

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

    def _land(self, length: float, arrived: Step, until: float, tableau: Tableau) -> Work:
        """Step to α = until, which a step of that length passes, by the Illinois method.

        Where the steps that go before are not solved, go as far as one that is.
        """
        target = math.asinh(until * (1.0 + 0.4 * self.landing))
        low, high = (0.0, None), (length, arrived)
        below = math.asinh(self.state.smoothed_margin) - target
        above = math.asinh(arrived.state.smoothed_margin) - target
        for _ in range(TUNING.landings):
            self.attempts += 1
            part = below / (below - above)
            at = low[0] + min(max(part, 0.02), 0.98) * (high[0] - low[0])
            try:
                step = yield from self._step(at, tableau)
            except StepFailed:
                break
            gap = math.asinh(step.state.smoothed_margin) - target
            if until <= step.state.smoothed_margin <= until * (1.0 + self.landing):
                low = at, step
                break
            if gap < 0.0:
                low, below, above = (at, step), gap, 0.5 * above
            else:
                high, below, above = (at, step), 0.5 * below, gap
        if low[1] is None:
            self._shorten(TUNING.shorter * min(length, high[0]))
            return False
        self._accept(low[1])
        return True

    def _accept(self, step: Step) -> None:
        self.steps += 1
        self.path_length += step.arc
        self.branchings += step.state.branched(self.state)
        grown = step.state.log_norm - self.state.log_norm
        self.unsettled = step.radial and grown > 2.0 * TUNING.closing
        self.due = TUNING.closings * self.between if self.unsettled else max(0, self.due - 1)
        self.unclosed = False
        before, after = (one.normalized_smoothed_margin for one in (self.state, step.state))
        if before > 0.0:
            self.drop = max(self.drop, (before - after) / before)
        self._arrive(step.state, step.nodes, step.radial)

    def _arrive(
        self, state: FlowState, nodes: list[tuple[float, float]], radial: bool = False
    ) -> None:
        self.best = max(self.best, state.smoothed_margin)
        if state.smoothed_margin > 0.99 * self.standing[1]:
            self.standing = self.attempts, min(state.smoothed_margin, 0.0)
        log_time = self.clock.advance(nodes, radial)
        measured = {"log_time": log_time, "path_length": self.path_length}
        self.state = dataclasses.replace(state, branchings=self.branchings, **measured)
        if not self.due and not self.unsettled:
            self._record()

    def _record(self) -> None:
        alpha = self.state.smoothed_margin
        place = math.log(alpha) if alpha > 0.0 else -math.inf
        if place > (self.entries[-1][0] if self.entries else -math.inf):
            self.entries = [*self.entries, (place, self.state.bare())]
        # Dropped on the final grid now and then, which drops nothing that the end would keep: the
        # last entry stays, and stands for every grid point beyond it.
        if len(self.entries) >= 4 * self.settings["records"] + 64:
            self.entries = self._kept()

    def _kept(self) -> list[Entry]:
        return thinned(self.entries, self.settings["records"], self.settings["until"])

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
        course.stepper = self.stepper.counting(course.problem.evaluations)
        course.settings, course.attempts = self.settings | {"until": float(until)}, 0
        course.between = True
        return course.run(until)

    def _distance(self, state: FlowState, until: float) -> float:
        """Return how far a state with α > 0 is from the interval to land in, in ln α."""
        return math.log(until / state.smoothed_margin) + 0.4 * self.landing

    def _growth(self) -> float:
        """Return how fast ln α grows with ln‖W‖, or with arc length in units of ‖W‖."""
        state, norm = self.state, float(np.linalg.norm(self.state.gradient))
        growth = norm / state.normalized_smoothed_margin
        return growth / state.alignment() if state.late() else growth


def past(step: Step) -> float:
    """Return the factor of a step that has too large a jump in it to one that has not.

    A kink 1 - γ along the step, or at its end, is where the stages' weights count it right.
    """
    past = step.kink / (1.0 - SDIRK2.gamma)
    return past if past < 0.9 else 0.95 * step.kink
