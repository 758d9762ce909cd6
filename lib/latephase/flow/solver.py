"""Following one flow: early phase, late phase, clock and records, until α is reached or an error.

An explicit method in relative arc length brings any start to separation; from there the implicit
late phase multiplies α by a factor a step, so that the cost grows with ln α.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from latephase.flow.clock import LogClock
from latephase.flow.errors import NotSeparated, StepCollapse
from latephase.flow.explicit import STEP_BUDGET, EarlyState, early_phase, is_stationary
from latephase.flow.implicit import LateStepper
from latephase.flow.recorder import offered, thinned
from latephase.flow.state import State, exp_times
from latephase.flow.trajectory import LANDING, Trajectory
from latephase.problem import kkt, vectors
from latephase.problem.losses import EXPONENTIAL
from latephase.problem.margins import Problem

# The late phase starts here: below, the explicit method is cheap and needs no positive margins.
HANDOVER = 2.0
LATE_STEP_BUDGET = 20_000
# Where the late phase was entered for stiffness, before α > 0: so many steps, and so many
# gradients, must take off a hundredth of -α, or else the examples count as not separable. The most
# that a flow which does separate was seen to need is 93 steps and 674 gradients.
STAGNATION_STEPS = 200
STAGNATION_GRADIENTS = 1000
# Short steps mean chatter along kinks only where the risk is not nearly stationary.
CHATTER_SLOPE = 1e-2
_LONGEST_STEP = 3.0
# Where cos(W, ∇α) is smaller, the direction turns by many times the growth of ln ‖W‖.
_ASKEW, _FIRST_TURN = 0.1, 0.01
_SMALLEST_TURN = 1e-9
_FIRST_CURVED_STEP = 1e-3
# Stages of more iterations than this, on average, get the curvature of a smooth model of few
# parameters: of many, computing and diagonalizing it takes longer than what it saves.
_MANY_ITERATIONS = 4.0
_FEW_PARAMETERS = 300
# Error of the stages' solution as a part of tol.
_NEWTON = 0.02
_FINEST_NEWTON = 1e-11
# Accepted steps may lower α/‖W‖^L by rounding, a few parts in 1e16, not by a solver's error.
_MONOTONE = 2e-13
# Margins of at least this size that are this many times the smoothed one: a turn of a thousandth
# changes every dual variable.
_LARGE, _UNRESOLVED = 1e4, 10.0
_NEARLY_ALIGNED = 1e-3


class Flow:
    """The flow of one problem: where it is, its clock, and what it has recorded."""

    def __init__(self, problem: Problem, degree: float, settings: dict[str, Any]) -> None:
        self.problem, self.degree, self.settings = problem, degree, settings
        self.tol = settings["tol"]
        self.clock = LogClock(problem.loss)
        # With kinks smoothed the early phase is stiff, and left as soon as the late one can step.
        self.stiff = problem.kink_smoothing is not None
        self.tried_stiff = self.stiff
        self.stepper = LateStepper(problem, degree, curved=self.stiff)
        self.next_step = self.longest = 0.01
        self.steps, self.best, self.path_length = 0, -math.inf, 0.0
        self.state: State | None = None
        self.entries: list[tuple[float, State]] = []

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
        if state.smoothed_margin >= HANDOVER and state.p.min() > 0.0:
            return True
        smallest = state.p.min() * math.exp(self.degree * state.log_norm)
        steep = self.problem.loss is EXPONENTIAL or smallest > 0.0
        return self.stiff and steep and state.alignment() > 0.1

    def _early(self, until: float) -> None:
        start = self.problem.w0 if self.state is None else self.state.w()
        states = early_phase(self.problem, start, 0.1 * self.tol, until, self.degree)
        advances: list[float] = []
        while True:
            try:
                early = next(states)
            except FloatingPointError as error:
                raise self._collapse(str(error)) from error
            self._arrive_early(early)
            if self.state is not None and (early.alpha >= until or self._separated()):
                return
            if early.stationary():
                raise self._not_separated("the risk is stationary", early.slope(), early.p)
            if self.steps > STEP_BUDGET:
                spent = f"the budget of {STEP_BUDGET} early steps is spent"
                raise self._not_separated(spent, early.slope(), early.p)
            advances = [*advances, *[0.0] * early.rejected, early.advance][-200:]
            # A smooth flow that is not stiff allows the method of order 5 steps near tol^{1/5}; a
            # jump of the gradient that the flow keeps crossing allows steps near tol.
            short = len(advances) == 200 and sum(advances) < 200 * 10 * self.tol
            if short and not self.tried_stiff:
                self._leave_explicit(early)

    def _leave_explicit(self, early: EarlyState) -> None:
        """Raise StepCollapse at a kink; otherwise let the implicit method try what is stiff."""
        if self.problem.smoothable() or self.problem.kinks().other:
            if early.slope() > CHATTER_SLOPE:
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
        newton, fell, started, advances = _NEWTON * self.tol, math.inf, self.steps, []
        standing = _Standing(self.state, self.degree, started, self._gradients())
        self.longest = _LONGEST_STEP
        if (alignment := self.state.alignment()) < _ASKEW:
            self.next_step = min(self.next_step, _FIRST_TURN * alignment)
        while self.state.smoothed_margin < until:
            state = self.state
            step = min(self.next_step, self.longest, _left(state, self.degree, until))
            # A step in ρ turns the direction by its tangent's length, 1/cos(W, ∇α), times as much.
            turn = step / max(state.alignment(), 1e-300)
            if turn < _SMALLEST_TURN and state.smoothed_margin < HANDOVER:
                self.stiff = False
                return
            # Attempts that on average hardly advance: short steps and rejections along kinks.
            crawls = len(advances) == 100 and sum(advances) < 100 * self._crawl()
            if turn < _SMALLEST_TURN or crawls:
                self._add_curvature(f"the implicit step fell to {step:.1e}")
                advances = []
                continue
            advances = [*advances[-99:], 0.0]
            slope = exp_times(self.degree * state.log_norm, np.linalg.norm(state.gradient))
            largest = math.exp(min(0.0, _log_largest(state, self.degree)))
            if is_stationary(state.smoothed_margin, slope, largest):
                raise self._not_separated("the risk is stationary", slope, state.p)
            taken = self.steps - started
            if taken > LATE_STEP_BUDGET:
                raise self._not_separated(f"{taken} late steps are spent", slope, state.p)
            standing = standing.at(state, self.steps, self._gradients())
            if still := standing.still(self.steps, self._gradients()):
                raise self._not_separated(still, slope, state.p)
            toils = self.stepper.iterations > _MANY_ITERATIONS and not self.stepper.curved
            if toils and state.direction.size <= _FEW_PARAMETERS and self._curvable:
                self.stepper = LateStepper(self.problem, self.degree, curved=True)
            stepped = self.stepper.step(state, step, min(newton, self._resolving(state, step)))
            if stepped is None:
                self.next_step = self.longest = 0.5 * step
                newton, fell = _NEWTON * self.tol, math.inf
                continue
            arrived, error = stepped
            factor = 0.9 * max(error / self.tol, 1e-9) ** -0.5
            if error > self.tol:
                self.next_step = step * max(0.2, factor)
            elif arrived.smoothed_margin > until * (1.0 + LANDING):
                self.next_step = step * _fraction(state, arrived, until)
            elif (fall := _fall(state, arrived)) > _MONOTONE and newton > _FINEST_NEWTON:
                if fall < 0.5 * fell:
                    newton, fell = max(1e-3 * newton, _FINEST_NEWTON), fall
                else:
                    # Not Newton's error, but the method's: the step is too long to be monotone.
                    self.next_step = self.longest = 0.5 * step
                    newton, fell = _NEWTON * self.tol, math.inf
            else:
                # Where margins are level to rounding, the next step would have to tighten it again.
                newton, fell = min(_NEWTON * self.tol, 30.0 * newton), math.inf
                self.next_step = max(min(self.next_step, step * factor), step * min(4.0, factor))
                self.longest = min(1.25 * self.longest, _LONGEST_STEP)
                self._accept_late(arrived)
                advances[-1] = turn

    def _gradients(self) -> int:
        return self.problem.evaluations["gradient"]

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
        if angle < _NEARLY_ALIGNED:
            growth = min(growth, _MONOTONE**0.5)
        return max(growth, _FINEST_NEWTON)

    def _crawl(self) -> float:
        """Return the mean turn of a step below which the late phase counts as collapsed."""
        return (0.1 if self.stepper.curved else 10.0) * self.tol

    def _add_curvature(self, what: str) -> None:
        """Give Newton's method the curvature of a smooth model, so far left out, or collapse."""
        if self.stepper.curved or not self._curvable:
            raise self._collapse(what)
        self.stepper = LateStepper(self.problem, self.degree, curved=True)
        self.next_step, self.longest = _FIRST_CURVED_STEP, _LONGEST_STEP

    @functools.cached_property
    def _curvable(self) -> bool:
        """Whether the model has a curvature that can be stored."""
        kinked = self.problem.smoothable() or self.problem.kinks().other
        return not kinked and 8 * self.problem.w0.size**2 <= self.problem.jacobian_bytes

    def _accept_late(self, arrived: State) -> None:
        log_gradient = math.log(np.linalg.norm(arrived.gradient))
        log_gradient += (self.degree - 1.0) * arrived.log_norm
        self.clock.advance(arrived.smoothed_margin, log_gradient)
        self.best = max(self.best, arrived.smoothed_margin)
        self.steps += 1
        self._move(arrived)

    def _move(self, state: State) -> None:
        if self.state is not None:
            self.path_length += vectors.angle(self.state.direction, state.direction)
        self.state = dataclasses.replace(
            state, log_time=self.clock.log_time, path_length=self.path_length
        )
        alpha = self.state.smoothed_margin
        if alpha > 0.0 and (not self.entries or alpha > math.exp(self.entries[-1][0])):
            records, until = self.settings["records"], self.settings["until"]
            self.entries = offered(self.entries, alpha, self.state, records, until)

    def trajectory(self) -> Trajectory | None:
        """Return what has been recorded, or None before the first state with α > 0."""
        if not self.entries:
            return None
        kept = thinned(self.entries, self.settings["records"], self.settings["until"])
        states = [state for _, state in kept]
        columns = [_measured(self.problem, self.degree, state) for state in states]
        return Trajectory(
            **{name: np.array([column[name] for column in columns]) for name in columns[0]},
            log_dual=states[-1].log_dual,
            degree=self.degree,
            evaluations=dict(self.problem.evaluations),
            steps=self.steps,
            settings=dict(self.settings),
            continuation=self._extended,
        )

    def _extended(self, trajectory: Trajectory, until: float) -> Trajectory:
        reached = float(trajectory.smoothed_margin[-1])
        if not reached < until <= 1e300:
            raise ValueError(
                f"extend: expected `until` beyond the smoothed margin {reached:.6g} that the "
                f"trajectory has reached and at most 1e300, got {until!r}"
            )
        # A flow of its own, so that the same trajectory can be extended again.
        flow = copy.copy(self)
        flow.problem, flow.clock = self.problem.recounted(), copy.copy(self.clock)
        flow.stepper = LateStepper(flow.problem, self.degree, self.stepper.curved)
        flow.settings = self.settings | {"until": float(until)}
        return flow.run(until)

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
            largest = math.exp(min(700.0, _log_largest(self.state, self.degree)))
            if largest > max(_LARGE, _UNRESOLVED * abs(self.best)):
                why += (
                    f"; with margins of up to {largest:.1e} the gradient of the risk jumps from "
                    "one example to the next: give inputs in larger units or a smaller start"
                )
        message = f"{what} at smoothed margin {self.best:.6g}: {why}"
        return StepCollapse(message, self.best, self.trajectory())

    def _not_separated(self, why: str, slope: float, p: np.ndarray) -> NotSeparated:
        until, examples = self.settings["until"], self.problem.true_margins(p)
        return NotSeparated(
            f"{why} (‖W‖‖∇α‖ = {slope:.1e}), the largest smoothed margin being {self.best:.6g}, "
            f"short of {until:.6g}, with {int((examples <= 0).sum())} of {len(examples)} examples "
            "on the wrong side",
            self.best,
            self.trajectory(),
        )


@dataclasses.dataclass(frozen=True)
class _Standing:
    """The state at which a flow was last seen to get on, and when that was.

    It gets on where a hundredth is taken off -α; and, while all margins are below one in size, so
    that α hardly depends on them, where they double.
    """

    state: State
    degree: float
    steps: int
    gradients: int

    def at(self, state: State, steps: int, gradients: int) -> _Standing:
        """Return where the flow stands at a new state."""
        gained = state.smoothed_margin > 0.99 * self.state.smoothed_margin
        largest = _log_largest(state, self.degree)
        before = _log_largest(self.state, self.degree)
        doubled = largest < 0.0 and largest > before + math.log(2.0)
        return _Standing(state, self.degree, steps, gradients) if gained or doubled else self

    def still(self, steps: int, gradients: int) -> str:
        """Return what says that a margin below zero stands still, or nothing."""
        steps, gradients = steps - self.steps, gradients - self.gradients
        enough = steps > STAGNATION_STEPS or gradients > STAGNATION_GRADIENTS
        if self.state.smoothed_margin > 0.0 or not enough:
            return ""
        return f"in {steps} steps, {gradients} gradients the smoothed margin stood still"


def _left(state: State, degree: float, until: float) -> float:
    """Return the step in ρ that leads to the landing interval at the present growth of ln α."""
    if state.smoothed_margin <= 0.0:
        return math.inf
    growth = np.vdot(state.gradient, state.gradient) / (
        degree * state.mean_margin() * state.normalized_smoothed_margin
    )
    return (math.log(until / state.smoothed_margin) + 0.4 * LANDING) / growth


def _fraction(state: State, arrived: State, until: float) -> float:
    """Return the part of a step past `until` that would have landed."""
    if state.smoothed_margin <= 0.0:
        return 0.5
    wanted = math.log(until / state.smoothed_margin) + 0.4 * LANDING
    return min(0.9, wanted / math.log(arrived.smoothed_margin / state.smoothed_margin))


def _fall(state: State, arrived: State) -> float:
    """Return by which part α/‖W‖^L, which the flow never lowers once α > 0, came out lower."""
    before = state.normalized_smoothed_margin
    return 1.0 - arrived.normalized_smoothed_margin / before if before > 0.0 else 0.0


def _measured(problem: Problem, degree: float, state: State) -> dict[str, Any]:
    """Return one record of a trajectory, field by field."""
    q = np.exp(state.log_dual)
    margins = problem.true_margins(state.p)
    stationarity, complementarity = kkt.kkt_residual(
        state.direction, state.gradient, state.p, q, degree
    )
    raw = margins
    if problem.kink_smoothing is not None:
        raw = problem.true_margins(problem.smoothed(None).margins(state.direction))
    return {
        "smoothed_margin": state.smoothed_margin,
        "log_norm": state.log_norm,
        "log_time": state.log_time,
        "normalized_margin": float(margins.min()),
        "normalized_smoothed_margin": state.normalized_smoothed_margin,
        "raw_normalized_margin": float(raw.min()),
        "alignment": vectors.alignment(state.direction, state.gradient),
        "kkt_stationarity": stationarity,
        "kkt_complementarity": complementarity,
        "path_length": state.path_length,
        "dual_gap": state.dual_gap,
        "direction": state.direction,
        "margins": margins,
        "dual": q,
    }


def _log_largest(state: State, degree: float) -> float:
    """Return ln max|p| at W, of which the exponential may overflow."""
    return degree * state.log_norm + math.log(max(np.abs(state.p).max(), 1e-300))
