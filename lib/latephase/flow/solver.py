"""Following one flow: early phase, late phase, clock and records, until α is reached or an error.

An explicit method in relative arc length brings any start to separation; from there the implicit
late phase multiplies α by a factor a step, so that the cost grows with ln α.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from latephase.flow.course import Course, left, log_largest
from latephase.flow.errors import StepCollapse
from latephase.flow.explicit import EarlyState, early_phase
from latephase.flow.implicit import LateStepper
from latephase.flow.state import State
from latephase.flow.trajectory import Trajectory
from latephase.flow.tuning import TUNING
from latephase.problem import vectors
from latephase.problem.losses import EXPONENTIAL
from latephase.problem.margins import Problem


class Flow(Course):
    """The flow of a smooth problem, or of one whose kinks are smoothed."""

    def __init__(self, problem: Problem, degree: float, settings: dict[str, Any]) -> None:
        super().__init__(problem, degree, settings)
        # With kinks smoothed the early phase is stiff, and left as soon as the late one can step.
        self.stiff = problem.kink_smoothing is not None
        self.tried_stiff = self.stiff
        self.stepper = LateStepper(problem, degree, curved=self.stiff)
        self.next_step = self.longest = TUNING.first_step

    def run(self, until: float) -> Trajectory:
        """Return the trajectory up to α = until."""
        while self.state is None or self.state.smoothed_margin < until:
            if self.state is not None and self._separated():
                self._late(until)
            else:
                self._early(until)
        return self.trajectory()

    def _separated(self) -> bool:
        """Return whether the late phase can step from here.

        It needs ‖W‖ to grow, that is Σ q p > 0, and, unless the loss is exponential, margins
        where ln(-ℓ') is not flat.
        """
        state = self.state
        if state.smoothed_margin >= TUNING.handover and state.p.min() > 0.0:
            return True
        smallest = state.p.min() * math.exp(self.degree * state.log_norm)
        steep = self.problem.loss is EXPONENTIAL or smallest > 0.0
        return self.stiff and steep and state.alignment() > 0.1

    def _early(self, until: float) -> None:
        """Step explicitly until the late phase can take over, or to α = until."""
        advances: deque[float] = deque(maxlen=TUNING.chatter_attempts)
        for early in self._early_states(until):
            self._arrive_early(early)
            if self.state is not None and (early.alpha >= until or self._separated()):
                return
            if early.stationary():
                raise self._not_separated("the risk is stationary", early.slope(), early.p)
            if self.steps > TUNING.early_steps:
                spent = f"the budget of {TUNING.early_steps} early steps is spent"
                raise self._not_separated(spent, early.slope(), early.p)
            advances.extend([*[0.0] * early.rejected, early.advance])
            if not self.tried_stiff and self._short(advances, TUNING.chatter_step):
                self._leave_explicit(early)

    def _early_states(self, until: float) -> Iterator[EarlyState]:
        start = self.problem.w0 if self.state is None else self.state.w()
        tol = TUNING.early_tol * self.tol
        try:
            yield from early_phase(self.problem, start, tol, until, self.degree)
        except FloatingPointError as error:
            raise self._collapse(str(error)) from error

    def _short(self, steps: deque[float], mean: float) -> bool:
        """Return whether the last steps, as many as are kept, are below `mean`·tol on average."""
        return len(steps) == steps.maxlen and sum(steps) < steps.maxlen * mean * self.tol

    def _leave_explicit(self, early: EarlyState) -> None:
        """Raise StepCollapse at a kink; otherwise let the implicit method try what is stiff."""
        if self.problem.smoothable() or self.problem.kinks().other:
            if early.slope() > TUNING.chatter_slope:
                raise self._collapse("the explicit step chatters along a kink")
        else:
            self.stiff = self.tried_stiff = True

    def _arrive_early(self, early: EarlyState) -> None:
        self.best = max(self.best, early.alpha)
        self.steps += int(early.advance > 0.0)
        norm = float(np.linalg.norm(early.w))
        length = float(np.linalg.norm(early.gradient))
        if self.state is None or early.advance > 0.0:
            self.clock.advance(early.alpha, math.log(max(length, 1e-300)))
        if norm == 0.0:
            return
        log_norm = math.log(norm)
        shrink = math.exp(-self.degree * log_norm)
        self._move(
            State(
                early.w / norm,
                log_norm,
                early.p * shrink,
                early.log_dual,
                early.gradient * norm ** (1.0 - self.degree),
                early.alpha * shrink,
                early.alpha,
            )
        )

    def _late(self, until: float) -> None:
        """Step implicitly to α = until, or to where only the explicit method can go on."""
        self._enter_late()
        while self.state.smoothed_margin < until:
            step = min(self.next_step, self.longest, left(self.state, self.degree, until))
            # A step in ρ turns the direction by its tangent's length, 1/cos(W, ∇α), times as much.
            turn = step / max(self.state.alignment(), 1e-300)
            tiny = turn < TUNING.smallest_turn
            if tiny and self.state.smoothed_margin < TUNING.handover:
                self.stiff = False
                return
            if tiny or self._short(self.turns, self._crawl()):
                self._add_curvature(f"the implicit step fell to {step:.1e}")
                continue
            self._raise_where_it_stands()
            self.turns.append(0.0)
            self._attempt(step, turn, until)

    def _enter_late(self) -> None:
        self.started = self.steps
        # Where the flow was last seen to get on, and after how many steps and gradients.
        self.standing = self.state, self.steps, self.problem.evaluations["gradient"]
        # Of attempts that on average hardly turn: short steps and rejections along kinks.
        self.turns: deque[float] = deque(maxlen=TUNING.crawl_attempts)
        self.longest = TUNING.longest_step
        self._loosen()
        if (alignment := self.state.alignment()) < TUNING.askew:
            self.next_step = min(self.next_step, TUNING.first_turn * alignment)

    def _raise_where_it_stands(self) -> None:
        """Raise NotSeparated at a stationary point, without progress, or past the budget."""
        state, taken = self.state, self.steps - self.started
        slope = self._slope()
        if self._stationary():
            raise self._not_separated("the risk is stationary", slope, state.p)
        if taken > TUNING.late_steps:
            raise self._not_separated(f"{taken} late steps are spent", slope, state.p)
        if still := self._still():
            raise self._not_separated(still, slope, state.p)

    def _still(self) -> str:
        """Return what says that a margin below zero stands still, or nothing.

        The flow gets on where a hundredth is taken off -α; and, while all margins are below one in
        size, so that α hardly depends on them, where they double.
        """
        before, steps, gradients = self.standing
        largest = log_largest(self.state, self.degree)
        gained = self.state.smoothed_margin > 0.99 * before.smoothed_margin
        doubled = largest < 0.0 and largest > log_largest(before, self.degree) + math.log(2.0)
        if gained or doubled:
            self.standing = self.state, self.steps, self.problem.evaluations["gradient"]
            return ""
        steps, gradients = self.steps - steps, self.problem.evaluations["gradient"] - gradients
        enough = steps > TUNING.stagnant_steps or gradients > TUNING.stagnant_gradients
        if before.smoothed_margin > 0.0 or not enough:
            return ""
        return f"in {steps} steps, {gradients} gradients the smoothed margin stood still"

    def _attempt(self, step: float, turn: float, until: float) -> None:
        """Try one step in ρ: accept it, or say how long and how exact the next try is to be."""
        state = self.state
        toils = self.stepper.iterations > TUNING.many_iterations and not self.stepper.curved
        if toils and state.direction.size <= TUNING.few_parameters and self._curvable:
            self.stepper = LateStepper(self.problem, self.degree, curved=True)
        stepped = self.stepper.step(state, step, min(self.newton, self._resolving(state, step)))
        if stepped is None:
            self._halve(step)
            return
        arrived, error = stepped
        factor = 0.9 * max(error / self.tol, 1e-9) ** -0.5
        fall = _fall(state, arrived)
        if error > self.tol:
            self.next_step = step * max(0.2, factor)
        elif arrived.smoothed_margin > until * (1.0 + TUNING.landing):
            self.next_step = step * _fraction(state, arrived, until)
        elif fall > TUNING.monotone and self.newton > TUNING.finest_newton:
            self._tighten(fall, step)
        else:
            self.turns[-1] = turn
            self._accept_late(arrived, step, factor)

    def _halve(self, step: float) -> None:
        """Try half a step, as exactly as at first."""
        self.next_step = self.longest = 0.5 * step
        self._loosen()

    def _loosen(self) -> None:
        self.newton, self.fell = TUNING.newton * self.tol, math.inf

    def _tighten(self, fall: float, step: float) -> None:
        """Solve the stages of a step more exactly by which γ̃ fell, as the flow's cannot."""
        if fall < 0.5 * self.fell:
            self.newton, self.fell = max(1e-3 * self.newton, TUNING.finest_newton), fall
        else:
            # Not Newton's error, but the method's: the step is too long to be monotone.
            self._halve(step)

    def _accept_late(self, arrived: State, step: float, factor: float) -> None:
        # Where margins are level to rounding, the next step would have to tighten it again.
        self.newton = min(TUNING.newton * self.tol, 30.0 * self.newton)
        self.fell = math.inf
        self.next_step = max(min(self.next_step, step * factor), step * min(4.0, factor))
        self.longest = min(1.25 * self.longest, TUNING.longest_step)
        self._tick(arrived)
        self.best = max(self.best, arrived.smoothed_margin)
        self.steps += 1
        self._move(arrived)

    def _resolving(self, state: State, step: float) -> float:
        """Return the error of a stage that leaves the growth of α/‖W‖^L over the step visible.

        Over dρ its logarithm grows by L tan² of the angle between W and ∇α, while an error of the
        stage changes it by that error times the angle.
        """
        if state.smoothed_margin <= 0.0:
            return math.inf
        angle = vectors.angle(state.direction, state.gradient)
        growth = 0.01 * self.degree * step * angle
        # Close to alignment its square is what is left, and the next step may grow by less.
        if angle < TUNING.nearly_aligned:
            growth = min(growth, TUNING.monotone**0.5)
        return max(growth, TUNING.finest_newton)

    def _crawl(self) -> float:
        """Return the mean turn of a step, in tol, below which the late phase has collapsed."""
        return TUNING.crawl_turn_curved if self.stepper.curved else TUNING.crawl_turn

    def _add_curvature(self, what: str) -> None:
        """Give Newton's method the curvature of a smooth model, so far left out, or collapse."""
        if self.stepper.curved or not self._curvable:
            raise self._collapse(what)
        self.stepper = LateStepper(self.problem, self.degree, curved=True)
        self.next_step, self.longest = TUNING.first_curved_step, TUNING.longest_step
        self.turns.clear()

    @functools.cached_property
    def _curvable(self) -> bool:
        """Whether the model has a curvature that can be stored."""
        kinked = self.problem.smoothable() or self.problem.kinks().other
        return not kinked and 8 * self.problem.w0.size**2 <= self.problem.jacobian_bytes

    def _resume(self) -> None:
        self.stepper = LateStepper(self.problem, self.degree, self.stepper.curved)

    def _collapse(self, what: str) -> StepCollapse:
        kinks = self.problem.kinks()
        if self.problem.kink_smoothing is not None:
            why = "the module is not smooth there (its ReLU kinks are smoothed already)"
        elif self.problem.smoothable():
            why = "the module is not smooth there (it calls ReLU)"
        else:
            why = "the module calls no ReLU that could be smoothed"
        if kinks.other:
            why += f"; kinks that cannot be smoothed: {', '.join(sorted(kinks.other))}"
        if self.state is not None:
            largest = math.exp(min(700.0, log_largest(self.state, self.degree)))
            if largest > max(TUNING.large, TUNING.unresolved * abs(self.best)):
                why += (
                    f"; with margins of up to {largest:.1e} the gradient of the risk jumps from "
                    "one example to the next: give inputs in larger units or a smaller start"
                )
        message = f"{what} at smoothed margin {self.best:.6g}: {why}"
        return StepCollapse(message, self.best, self.trajectory())


def _fraction(state: State, arrived: State, until: float) -> float:
    """Return the part of a step past `until` that would have landed."""
    if state.smoothed_margin <= 0.0:
        return 0.5
    wanted = math.log(until / state.smoothed_margin) + 0.4 * TUNING.landing
    return min(0.9, wanted / math.log(arrived.smoothed_margin / state.smoothed_margin))


def _fall(state: State, arrived: State) -> float:
    """Return by which part α/‖W‖^L, which the flow never lowers once α > 0, came out lower."""
    before = state.normalized_smoothed_margin
    return 1.0 - arrived.normalized_smoothed_margin / before if before > 0.0 else 0.0
