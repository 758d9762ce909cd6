"""Gradient flow on an exponential-tailed risk, followed to smoothed margins of 1e300.

After the explicit early phase, when every margin is positive and α ≥ 2, the direction is followed
in ρ = ln‖W‖: dθ/dρ = ∇α/(L Σ q p) - θ at scale S = e^{Lρ}, by a two-stage singly diagonally implicit
Runge–Kutta method of order 2 (γ = 1 - 1/√2, L-stable, stiffly accurate). One step may multiply α
by any factor, so the cost grows with ln α.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latephase import diagnostics
from latephase.clock import LogClock
from latephase.early import STEP_BUDGET, EarlyState, early_phase
from latephase.homogeneity import checked_degree
from latephase.linearization import Linearization
from latephase.losses import Loss
from latephase.problem import Problem
from latephase.recorder import offered, thinned
from latephase.stage import Stage, solve_stage
from latephase.trajectory import Trajectory

GAMMA = 1.0 - 1.0 / math.sqrt(2.0)
# The late phase starts here: below, the explicit method is cheap and needs no positive margins.
HANDOVER = 2.0
LANDING = 1e-3
DEFAULT_SMOOTHING = 1e-3
_LATE_STEP_BUDGET = 20_000
_LONGEST_STEP = 3.0
_SMALLEST_STEP = 1e-9
_NEWTON = 0.02
# Accepted steps may lower α/‖W‖^L by rounding, a few parts in 1e16, not by a solver's error.
_MONOTONE = 2e-13


class NotSeparated(RuntimeError):
    """The risk cannot reach the smoothed margin asked for.

    best_smoothed_margin: the largest α seen; trajectory: the records so far, or None.
    """

    def __init__(self, message: str, best: float, trajectory: Trajectory | None) -> None:
        super().__init__(message)
        self.best_smoothed_margin = best
        self.trajectory = trajectory


class StepCollapse(RuntimeError):
    """The step fell to nothing at a kink that cannot be smoothed; `trajectory` is what stands."""

    def __init__(self, message: str, trajectory: Trajectory | None) -> None:
        super().__init__(message)
        self.trajectory = trajectory


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

    module, x, y, loss: as in `latephase.problem.Problem`; the risk R is the sum over examples.
    until: smoothed margin α = ℓ⁻¹(R) to reach, up to 1e300; the last record has
        until ≤ α ≤ until·(1 + 1e-3).
    tol: error per step of the direction W/‖W‖.
    records: at most so many accepted steps are kept, the nearest to an even grid in ln α.
    degree: homogeneity degree, measured when None and checked when given.
    kink_smoothing: ε of the smoothing of ReLU kinks (`latephase.kinks`). None follows the module
        as it is and smooths with ε = 1e-3, from the start, only if the step collapses at a kink.
    jacobian_bytes: bound on a stored Jacobian; beyond, it is recomputed in blocks.

    Raises ValueError for input it cannot use; NotSeparated where the risk stays large;
    StepCollapse at a kink that is not a ReLU's.
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
        return _Flow(problem, degree, settings).run(until)
    except StepCollapse as collapse:
        kinks = problem.kinks()
        if kink_smoothing is not None or not kinks.smoothable:
            raise
        settings |= {"kink_smoothing": DEFAULT_SMOOTHING, "smoothed_because": str(collapse)}
    return _Flow(problem.smoothed(DEFAULT_SMOOTHING), degree, settings).run(until)


def _check_settings(until: float, tol: float, records: int, kink_smoothing: float | None) -> None:
    if not 0.0 < until <= 1e300:
        raise ValueError(f"until: expected a smoothed margin in (0, 1e300], got {until!r}")
    if not 0.0 < tol < 1.0:
        raise ValueError(f"tol: expected an error in (0, 1), got {tol!r}")
    if records != int(records) or records < 1:
        raise ValueError(f"records: expected a positive integer, got {records!r}")
    if kink_smoothing is not None and not 0.0 < kink_smoothing < 1.0:
        raise ValueError(f"kink_smoothing: expected ε in (0, 1) or None, got {kink_smoothing!r}")


@dataclass(frozen=True)
class State:
    """A state of the flow: W = e^{log_norm} direction, and what belongs to it.

    p [n, ·] and gradient [P] are margins and ∇α of the unit direction with the dual variables q,
    that is p/‖W‖^L and ∇α/‖W‖^{L-1}.
    """

    direction: np.ndarray
    log_norm: float
    p: np.ndarray
    log_dual: np.ndarray
    gradient: np.ndarray
    normalized_smoothed_margin: float
    smoothed_margin: float
    dual_gap: float
    log_time: float
    path_length: float

    def mean_margin(self) -> float:
        """Return Σ q p at the unit direction."""
        return float(np.vdot(np.exp(self.log_dual), self.p))


class _Flow:
    """The flow of one problem: its state, its clock and what it has recorded."""

    def __init__(self, problem: Problem, degree: float, settings: dict[str, Any]) -> None:
        self.problem, self.degree, self.settings = problem, degree, settings
        self.clock = LogClock(problem.loss)
        self.steps, self.best = 0, -math.inf
        self.path_length, self.last_direction = 0.0, None
        self.w, self.state = problem.w0, None
        self.entries: list[tuple[float, State]] = []
        self.linearization: Linearization | None = None
        self.step = 1e-2

    def run(self, until: float) -> Trajectory:
        """Return the trajectory up to α = until."""
        if self.state is None or not self._ready():
            self._early(until)
        if self.state.smoothed_margin < until:
            self._late(until)
        return self.trajectory()

    def _ready(self) -> bool:
        return self.state.smoothed_margin >= HANDOVER and self.state.p.min() > 0.0

    def _early(self, until: float) -> None:
        tol = 0.1 * self.settings["tol"]
        recent, kinks = [], None
        states = early_phase(self.problem, self.w, tol, until)
        while True:
            try:
                early = next(states)
            except FloatingPointError as error:
                raise self._collapse(str(error)) from error
            self._arrive_early(early)
            if self.state is not None and (early.alpha >= until or self._ready()):
                return
            if early.stationary() or self.steps > STEP_BUDGET:
                raise self._not_separated(early, until)
            # 200 steps that together advance less than 200·tol: chatter along kinks.
            recent = [*recent[-199:], early.advance]
            if len(recent) == 200 and sum(recent) < 200 * self.settings["tol"]:
                kinks = kinks or self.problem.kinks()
                if self.problem.kink_smoothing is None and (kinks.smoothable or kinks.other):
                    raise self._collapse("the early phase chatters along a kink")

    def _arrive_early(self, early: EarlyState) -> None:
        self.w, self.best = early.w, max(self.best, early.alpha)
        self.steps += early.advance > 0
        gradient_norm = float(np.linalg.norm(early.gradient))
        log_time = self.clock.advance(early.alpha, math.log(max(gradient_norm, 1e-300)))
        norm = float(np.linalg.norm(early.w))
        if norm == 0.0:
            return
        direction, log_norm = early.w / norm, math.log(norm)
        self._lengthen(direction)
        shrink = math.exp(-self.degree * log_norm)
        self.state = State(
            direction,
            log_norm,
            early.p * shrink,
            early.log_dual,
            early.gradient * norm ** (1.0 - self.degree),
            early.alpha * shrink,
            early.alpha,
            0.0,
            log_time,
            self.path_length,
        )
        if early.alpha > 0.0:
            self._record()

    def _late(self, until: float) -> None:
        tol, cap, started = self.settings["tol"], _LONGEST_STEP, self.steps
        newton = _NEWTON * tol
        while self.state.smoothed_margin < until:
            state = self.state
            slope = np.vdot(state.gradient, state.gradient) / (
                self.degree * state.mean_margin() * state.normalized_smoothed_margin
            )
            left = math.log(until / state.smoothed_margin) + 0.4 * LANDING
            step = min(self.step, cap, left / slope)
            if step < _SMALLEST_STEP:
                raise self._collapse(f"the late phase's step fell to {step:.1e}")
            if self.steps - started > _LATE_STEP_BUDGET:
                raise NotSeparated(
                    f"the budget of {_LATE_STEP_BUDGET} late steps is spent at smoothed margin "
                    f"{state.smoothed_margin:.6g}, short of {until:.6g}",
                    self.best,
                    self.trajectory(),
                )
            solved = self._implicit_step(state, step, newton)
            if solved is None:
                self.step, cap = 0.5 * step, 0.5 * step
                continue
            stage, error = solved
            factor = 0.9 * max(error / tol, 1e-9) ** -0.5
            if error > tol:
                self.step = step * max(0.2, factor)
                continue
            arrived = self._arrived(stage, state.log_norm + step)
            growth = math.log(arrived.smoothed_margin / state.smoothed_margin)
            if arrived.smoothed_margin > until * (1.0 + LANDING):
                self.step = step * left / growth
                continue
            drop = state.normalized_smoothed_margin - arrived.normalized_smoothed_margin
            if drop > _MONOTONE * state.normalized_smoothed_margin and newton > 1e-13:
                newton *= 0.01
                continue
            newton = _NEWTON * tol
            # A step cut short by the landing says nothing about the next one's length.
            if step == self.step or error > 0.25 * tol:
                self.step = step * min(4.0, factor)
            cap = min(1.1 * cap, _LONGEST_STEP)
            self._accept(arrived)

    def _implicit_step(
        self, state: State, step: float, newton: float
    ) -> tuple[Stage, float] | None:
        """Return (second stage, error estimate), or None where Newton does not converge."""
        degree, theta = self.degree, state.direction
        kappa = GAMMA * step
        if self.linearization is None:
            self.linearization = self._linearize(theta, state.log_dual.reshape(-1))
        mean = state.mean_margin()
        rate = state.gradient / (degree * mean) - theta
        u = state.log_dual.reshape(-1) + math.log(kappa / (degree * mean))
        log_scale = degree * (state.log_norm + kappa)
        first = self._solve((theta + kappa * rate, u), theta, kappa, log_scale, newton)
        if not first.converged:
            return None
        slope = (first.theta - theta) / kappa
        center = theta + step * (1.0 - GAMMA) * slope
        guess = (center + kappa * slope, first.log_multiplier)
        second = self._solve(guess, center, kappa, degree * (state.log_norm + step), newton)
        if not second.converged:
            return None
        # The embedded method is implicit Euler's first stage carried over the step.
        change = (second.theta - center) / kappa - slope
        return second, float(step * GAMMA * np.linalg.norm(change))

    def _solve(self, guess, center, kappa: float, log_scale: float, tol: float) -> Stage:
        stage = solve_stage(
            self.problem,
            self._linearize,
            self.linearization,
            guess,
            center,
            kappa,
            log_scale,
            self.degree,
            tol,
        )
        self.linearization = stage.linearization
        return stage

    def _linearize(self, theta: np.ndarray, log_multiplier: np.ndarray) -> Linearization:
        curved = self.problem.kink_smoothing is not None
        return Linearization(self.problem, theta, log_multiplier, curved)

    def _arrived(self, stage: Stage, rho: float) -> State:
        norm = float(np.linalg.norm(stage.theta))
        direction, log_norm = stage.theta / norm, rho + math.log(norm)
        u = self.problem.shaped(stage.log_multiplier)
        p, pulled = self.problem.weighted_gradient(direction, np.exp(u - u.max()))
        log_scale = self.degree * log_norm
        normalized, gap, log_dual = self.problem.loss.from_multipliers(
            torch.from_numpy(p), torch.from_numpy(u), log_scale
        )
        log_dual = log_dual.numpy()
        gradient = pulled * math.exp(log_dual.max())
        return State(
            direction,
            log_norm,
            p,
            log_dual,
            gradient,
            normalized,
            _exp_times(log_scale, normalized),
            _exp_times(log_scale, gap),
            math.nan,
            math.nan,
        )

    def _accept(self, arrived: State) -> None:
        self._lengthen(arrived.direction)
        log_gradient = math.log(np.linalg.norm(arrived.gradient))
        log_gradient += (self.degree - 1.0) * arrived.log_norm
        log_time = self.clock.advance(arrived.smoothed_margin, log_gradient)
        self.state = State(
            **{**vars(arrived), "log_time": log_time, "path_length": self.path_length}
        )
        self.best = max(self.best, arrived.smoothed_margin)
        self.steps += 1
        self._record()

    def _lengthen(self, direction: np.ndarray) -> None:
        if self.last_direction is not None:
            self.path_length += diagnostics.angle(self.last_direction, direction)
        self.last_direction = direction

    def _record(self) -> None:
        records, until = self.settings["records"], self.settings["until"]
        alpha = self.state.smoothed_margin
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
        flow.settings = self.settings | {"until": float(until)}
        flow.linearization = None
        return flow.run(until)

    def _collapse(self, what: str) -> StepCollapse:
        kinks = self.problem.kinks()
        named = ", ".join(sorted(kinks.other))
        if self.problem.kink_smoothing is not None:
            why = "its ReLU kinks are smoothed already"
        elif kinks.smoothable:
            why = "it calls ReLU"
        else:
            why = "it calls no ReLU that could be smoothed"
        if named:
            why += f"; kinks that cannot be smoothed: {named}"
        return StepCollapse(
            f"{what} at smoothed margin {self.best:.6g}: the module is not smooth there ({why})",
            self.trajectory(),
        )

    def _not_separated(self, early: EarlyState, until: float) -> NotSeparated:
        product = np.linalg.norm(early.w) * np.linalg.norm(early.gradient)
        if early.stationary():
            why = f"the risk is stationary (‖W‖‖∇α‖ = {product:.1e})"
        else:
            why = f"the budget of {STEP_BUDGET} early steps is spent (‖W‖‖∇α‖ = {product:.1e})"
        wrong = int((self.problem.true_margins(early.p) <= 0).sum())
        return NotSeparated(
            f"{why} at smoothed margin {early.alpha:.6g}, short of {until:.6g}, with {wrong} of "
            f"{self.problem.n} examples on the wrong side",
            self.best,
            self.trajectory(),
        )


def _exp_times(log_scale: float, value: float) -> float:
    """Return e^{log_scale} value without overflow on the way."""
    if log_scale < 600.0 or value == 0.0:
        return math.exp(min(log_scale, 700.0)) * value
    return math.copysign(math.exp(log_scale + math.log(abs(value))), value)


def _measured(problem: Problem, degree: float, state: State) -> dict[str, Any]:
    """Return one record of a trajectory, field by field."""
    q = np.exp(state.log_dual)
    margins = problem.true_margins(state.p)
    stationarity, complementarity = diagnostics.kkt_residual(
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
        "alignment": diagnostics.alignment(state.direction, state.gradient),
        "kkt_stationarity": stationarity,
        "kkt_complementarity": complementarity,
        "path_length": state.path_length,
        "dual_gap": state.dual_gap,
        "direction": state.direction,
        "margins": margins,
        "dual": q,
    }
