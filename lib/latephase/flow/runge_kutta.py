"""The step of the flow: a diagonally implicit Runge–Kutta method in arc length or in ln‖W‖.

dW/ds = t(W), the unit vector of ∇α, or of the Clarke subgradient of α that the flow follows:
bounded however stiff the flow is, and the same before separation and after it. Each implicit stage
is one steepest point on a sphere (`latephase.flow.sliding`).

Where the gradient has come near to W, ln‖W‖ takes the place of s: θ = W/‖W‖ has
dθ/dln‖W‖ = t/⟨t, θ⟩ - θ, which is small late, and a direction that drifts with ln‖W‖ is met exactly
by steps of any length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from latephase.flow.errors import KinkCrossed, StepFailed
from latephase.flow.linear import vanishing
from latephase.flow.newton import Ball, Guess, Sliding, Solved
from latephase.flow.sliding import Slider
from latephase.flow.state import State, exp_times
from latephase.flow.tuning import TUNING
from latephase.problem import vectors
from latephase.problem.margins import Problem

# Pieces of a step in which its direction turns back, by which its path is measured.
_FINE = 256


@dataclass(frozen=True)
class Tableau:
    """An ESDIRK method: a first explicit stage, the same γ in all others, the last one the end.

    rows: a_ij of the implicit stages, without γ. error: b less the weights of an embedded method
    or formula whose order makes the error of a step of length h an O(h^rate).
    """

    gamma: float
    rows: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    rate: int

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights b of the stages."""
        return (*self.rows[-1], self.gamma)

    @property
    def nodes(self) -> tuple[float, ...]:
        """The places c of the stages, from 0 to 1."""
        return (0.0, *(sum(row) + self.gamma for row in self.rows))


def _sdirk2() -> Tableau:
    gamma = 1.0 - 1.0 / math.sqrt(2.0)
    # ∫t ds by the stages, less what the parabola through the beginning and both stages gives.
    begin = ((1.0 + gamma) / 2.0 - gamma - 1.0 / 3.0) / gamma
    first = 1.0 - gamma - (1.0 / 3.0 - 1.0 / 2.0) / (gamma * (gamma - 1.0))
    rows = (0.0,), (0.0, 1.0 - gamma)
    return Tableau(gamma, rows, (begin, first, -begin - first), 3)


# Alexander (1977): order 2. Kinks leave no step smooth enough for more.
SDIRK2 = _sdirk2()
# Kennedy and Carpenter (2003), ARK4(3)6L[2]SA: order 4, L-stable, stages of order 2.
ESDIRK4 = Tableau(
    0.25,
    (
        (1 / 4,),
        (8611 / 62500, -1743 / 31250),
        (5012029 / 34652500, -654441 / 2922500, 174375 / 388108),
        (
            15267082809 / 155376265600,
            -71443401 / 120774400,
            730878875 / 902184768,
            2285395 / 8070912,
        ),
        (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211),
    ),
    (
        82889 / 524892 - 4586570599 / 29645900160,
        0.0,
        15625 / 83664 - 178811875 / 945068544,
        69875 / 102672 - 814220225 / 1159782912,
        -2260 / 8211 + 3700637 / 11593932,
        1 / 4 - 61727 / 225920,
    ),
    4,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class FlowState(State):
    """A state with what the next step begins from.

    tangent [P]: the unit vector t; c [K]: ∂(Σ q p + Σ μ z)/∂out times hi - lo at the unit
    direction; sliding: gates and active kinks; z [K] at the unit direction; steepness: Σ q ‖∇p‖
    there.
    """

    tangent: np.ndarray
    c: np.ndarray
    z: np.ndarray
    sliding: Sliding
    steepness: float

    def late(self) -> bool:
        """Return whether steps from here are in ln‖W‖."""
        return self.smoothed_margin > 0.0 and self.alignment() > TUNING.aligned

    def branched(self, before: FlowState) -> int:
        """Return how many kinks slid before and no longer do, for either side now leads away."""
        left = np.setdiff1d(before.sliding.active, self.sliding.active, assume_unique=True)
        heavy = math.exp(-TUNING.live) * np.abs(self.c).max(initial=0.0)
        return int(np.count_nonzero(self.c[left] > heavy))

    def steep(self, degree: float) -> float:
        """Return the slope ‖W‖‖∇α‖ beside which one is small: ‖W‖ Σ q ‖∇p‖, or min(1, max|p|)."""
        log_scale = degree * self.log_norm
        largest = log_scale + math.log(max(np.abs(self.p).max(), 1e-300))
        return max(math.exp(min(0.0, largest)), exp_times(log_scale, self.steepness))


@dataclass(frozen=True, eq=False)
class Step:
    """The state arrived at, and errors of its direction: what is smooth, and jumps at kinks.

    kink: where along the step, from 0 to 1, the kink lies that most of `jump` is from. arc: the
    length that the direction moved. nodes: (α, ln‖∇α‖) at the implicit stages. radial: whether the
    step was in ln‖W‖.
    """

    state: FlowState
    error: float
    jump: float
    kink: float
    arc: float
    nodes: list[tuple[float, float]]
    radial: bool


class Request(NamedTuple):
    """A step that is asked for: of arc length length·‖W‖ from a state."""

    stepper: Stepper
    state: FlowState
    length: float
    tableau: Tableau

    def answer(self) -> Step | StepFailed:
        """Return the step, or why it is not solved."""
        try:
            return self.stepper.step(self.state, self.length, self.tableau)
        except StepFailed as failed:
            return failed


class Stepper:
    """Steps of one problem of degree L; `kinked` gives its margins, kinks and derivatives."""

    def __init__(self, kinked: Any, problem: Problem, degree: float, tol: float) -> None:
        self.kinked, self.loss, self.degree = kinked, problem.loss, degree
        self.pairs = problem.pairs
        self.slider = Slider(kinked, problem.loss, problem.pairs, tol, problem.evaluations)
        self.tol = tol

    def counting(self, evaluations: dict[str, int]) -> Stepper:
        """Return the same stepper, whose evaluations are counted there."""
        other = copy.copy(self)
        other.slider = copy.copy(self.slider)
        other.slider.counts = evaluations
        return other

    def at_zero(self) -> tuple[float, np.ndarray, float]:
        """Return α, ∇α [P] and how fast margins grow along it, at W = 0."""
        w = np.zeros(self.kinked.P)
        p, _, gates = self.kinked.evaluate_natural(w)
        alpha, log_dual = self.loss.smoothed_margin_and_log_duals(torch.from_numpy(self.shaped(p)))
        point = self.kinked.at(w, gates, np.zeros(0, dtype=int))
        gradient = point.pull(np.exp(log_dual.numpy().reshape(-1)), np.zeros(0))[0]
        return float(alpha), gradient, float(np.abs(point.push(gradient)[0]).max())

    def start(self, w: np.ndarray) -> FlowState:
        """Return the state of W [P], its gates those of the signs of z."""
        norm = float(np.linalg.norm(w))
        direction, log_norm = w / norm, math.log(norm)
        p, z, gates = self.kinked.evaluate_natural(direction)
        scale = math.exp(self.degree * log_norm)
        shaped = torch.from_numpy(self.shaped(scale * p))
        alpha, log_dual = self.loss.smoothed_margin_and_log_duals(shaped)
        none = np.zeros(0, dtype=int)
        point = self.kinked.at(direction, gates, none)
        gradient, c = point.pull(np.exp(log_dual.numpy().reshape(-1)), np.zeros(0))
        return FlowState(
            direction,
            log_norm,
            self.shaped(p),
            log_dual.numpy(),
            gradient,
            float(alpha) / scale,
            float(alpha),
            tangent=gradient / max(float(np.linalg.norm(gradient)), 1e-300),
            c=c,
            z=z,
            sliding=Sliding(gates, none, np.zeros(0)),
            steepness=float(np.exp(log_dual.numpy().reshape(-1)) @ np.sqrt(point.squares())),
        )

    def vanishing(self, state: FlowState) -> np.ndarray | None:
        """Return λ [n] ≥ 0 of a combination of the ∇p that vanishes, and Zᵀμ with it; None of none.

        None as well where B = [J; Z] does not fit into `jacobian_bytes`.
        """
        sliding = state.sliding
        point = self.kinked.at(state.direction, sliding.filled(), sliding.active)
        try:
            rows = point.rows()
        except ValueError:
            return None
        free = len(rows) - len(sliding.active)
        return vanishing(rows[:free], rows[free:])

    def step(self, state: FlowState, length: float, tableau: Tableau) -> Step:
        """Return the step of arc length length·‖W‖; raises StepFailed.

        ESDIRK4 raises KinkCrossed as soon as a stage has other gates than the beginning.
        """
        late = state.late()
        trial = (_RadialTrial if late else _Trial)(self, state, length, tableau)
        for row in tableau.rows:
            stage = trial.solve(trial.begin(row))
            if tableau is ESDIRK4 and not stage.sliding.same(state.sliding):
                raise KinkCrossed(tableau.nodes[len(trial.stages)] * self._met(state, stage))
        error = sum(d * t for d, t in zip(tableau.error, trial.slopes, strict=True))
        jump, part = 0.0, 1.0
        if not stage.sliding.same(state.sliding):
            missed, seen, part = self._jumps(state, *trial.stages, trial.scale)
            jump = trial.turned(missed / trial.radius)
            if jump > TUNING.jump * self.tol:
                # What the weights miss is made good; what that changes of it is what is left.
                trial.again(trial.h * missed / trial.radius)
                still, seen, part = self._jumps(state, *trial.stages, trial.scale)
                jump = max(trial.turned((still - missed) / trial.radius), 0.1 * jump)
            error = error - seen / trial.radius
        arrived = self._arrived(trial)
        units = trial.log_units[1:-1]
        nodes = [self._stage_node(*one) for one in zip(trial.stages[:-1], units, strict=True)]
        nodes.append(self.node(arrived))
        points = [trial.start, *(one.theta for one in trial.stages)]
        length = arc(tableau, points, trial.slopes, trial.h)
        return Step(arrived, trial.turned(error), jump, part, length, nodes, late)

    def slope(self, state: FlowState) -> float:
        """Return ‖∇α‖ of the unit direction, more than zero."""
        return max(float(np.linalg.norm(state.gradient)), 1e-300)

    def node(self, state: FlowState) -> tuple[float, float]:
        """Return α and ln‖∇α‖ of a state."""
        return state.smoothed_margin, math.log(self.slope(state)) + self._grown(state.log_norm)

    def _grown(self, log_norm: float) -> float:
        return (self.degree - 1.0) * log_norm

    def _jumps(
        self, state: FlowState, first: Solved, second: Solved, scale: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return what the weights of SDIRK2 miss of jumps of Jᵀλ at kinks that the step crosses.

        A kink keeps its gate up to a part τ of the step, where its z crosses zero; in the sum of
        the stages it keeps it for 1 - γ or for nothing. Also returns what the estimate of the error
        has of all gates that change otherwise than by sliding, and the τ of the kink that matters
        most. Where a kink begins to slide the jump is along ∂z, and z = 0 makes it good.
        """
        gamma, (begin, middle, _) = SDIRK2.gamma, SDIRK2.error
        slides = [
            np.isin(np.arange(self.kinked.K), one.active)
            for one in (state.sliding, first.sliding, second.sliding)
        ]
        before, between, end = (
            one.filled() for one in (state.sliding, first.sliding, second.sliding)
        )
        seen = begin * (before - end) + middle * (between - end)
        # Where a step begins at z = 0 without sliding, what is before the kink was shut.
        aside = slides[0] | slides[2] | (state.z == 0.0)
        seen[aside] = 0.0
        crossed = (before != end) & ~aside
        z0, z1, z2 = (np.abs(z) + 1e-300 for z in (state.z, first.z, second.z))
        late = between == before
        part = np.where(late, gamma + (1.0 - gamma) * z1 / (z1 + z2), gamma * z0 / (z0 + z1))
        missed = crossed * (part * (before - end) - (1.0 - gamma) * (between - end))
        none = np.zeros(0, dtype=int)

        def jump(weights: np.ndarray) -> np.ndarray:
            if not weights.any():
                return np.zeros(self.kinked.P)
            point = self.kinked.at(second.theta, end + weights, none)
            return point.pull(np.exp(second.log_multiplier), np.zeros(0))[0] - second.pulled

        worst = int(np.abs(missed * second.c * scale).argmax())
        return jump(missed), jump(seen), float(part[worst])

    def _met(self, state: FlowState, stage: Solved) -> float:
        """Return at which part of the way to a stage the first kink is met, about."""
        before, after = state.sliding, stage.sliding
        flipped = before.gates != after.gates
        flipped[before.active] = flipped[after.active] = False
        if not flipped.any():
            return 0.5
        old, new = (np.abs(of.z) / (self._scale(of.z, of.p) + 1e-300) for of in (state, stage))
        return float((old / (old + new + 1e-300))[flipped].min())

    def shaped(self, p: np.ndarray) -> np.ndarray:
        """Return an array of all margins in their shape [n, ·]."""
        return p if self.pairs == 1 else p.reshape(-1, self.pairs)

    def _scale(self, z: np.ndarray, p: np.ndarray) -> np.ndarray:
        """Return the root mean square of z over its layer, for each kink.

        Of a layer whose kinks all slide it is a small part of what others have, or the margins.
        """
        site = self.kinked.site
        sizes = np.sqrt(np.bincount(site, z * z) / np.maximum(np.bincount(site), 1))
        least = TUNING.flat * max(sizes.max(initial=0.0), np.abs(p).max())
        return np.maximum(sizes, least)[site]

    def _stage_node(self, stage: Solved, log_unit: float) -> tuple[float, float]:
        normalized, _, log_dual = self._carried(stage, 1.0, self.degree * log_unit)
        alpha = exp_times(self.degree * log_unit, normalized)
        slope = max(float(np.linalg.norm(stage.pulled)), 1e-300)
        log_factor = float(log_dual.max()) - stage.log_multiplier.max()
        return alpha, math.log(slope) + log_factor + self._grown(log_unit)

    def _carried(self, stage: Solved, shrink: float, log_scale: float):
        """Return α/S, the gap of the duals and ln q of a stage, its p times `shrink`, S p there."""
        p, u = self.shaped(shrink * stage.p), self.shaped(stage.log_multiplier)
        normalized, gap, log_dual = self.loss.from_multipliers(
            torch.from_numpy(p), torch.from_numpy(u), log_scale
        )
        return normalized, gap, log_dual.numpy()

    def _arrived(self, trial: _Trial) -> FlowState:
        stage = trial.stages[-1]
        norm = float(np.linalg.norm(stage.theta))
        log_norm = trial.log_units[-1] + math.log(norm)
        log_scale, shrink = self.degree * log_norm, norm**-self.degree
        normalized, gap, log_dual = self._carried(stage, shrink, log_scale)
        active, linearized = stage.sliding.active, stage.linearized
        distance = np.abs(stage.z[active]) / np.maximum(
            self._scale(stage.z, stage.p)[active], 1e-300
        )
        factor = math.exp(log_dual.max() - stage.log_multiplier.max()) * norm ** (1.0 - self.degree)
        return FlowState(
            stage.theta / norm,
            log_norm,
            self.shaped(shrink * stage.p),
            log_dual,
            factor * stage.pulled,
            normalized,
            exp_times(log_scale, normalized),
            exp_times(log_scale, gap),
            active_kinks=len(active),
            kink_distance=float(distance.max(initial=0.0)),
            tangent=trial.tangent(),
            c=factor * stage.c,
            z=stage.z,
            sliding=stage.sliding,
            steepness=float(
                np.exp(log_dual.reshape(-1)[linearized.rows])
                @ np.sqrt(linearized.squares[: len(linearized.rows)])
            )
            * norm ** (1.0 - self.degree),
        )


class _Trial:
    """The stages of one step of arc length from a state, in units of N = (1 + length)‖W‖.

    slopes: dθ/ds at the beginning and each stage. log_units: ln N there.
    """

    def __init__(self, of: Stepper, state: FlowState, length: float, tableau: Tableau) -> None:
        self.of, self.state, self.tableau = of, state, tableau
        self.scale, self.rest, self.stages = of._scale(state.z, state.p), 0.0, []
        self._begin(length)
        if state.smoothed_margin <= 0.0:
            self.rest = TUNING.settling * of.slope(state)
        # ln λ of each stage, less its growth with θ, by which the next one's is guessed.
        size = self.radius / math.hypot(of.slope(state), self.rest)
        self.duals = [state.log_dual.reshape(-1) + math.log(size)]
        self.last = Guess(self.start, self.duals[0], state.sliding, size * state.c)

    def _begin(self, length: float) -> None:
        unit = 1.0 + length
        self.start, self.h = self.state.direction / unit, length / unit
        self.log_units = [self.state.log_norm + math.log(unit)] * len(self.tableau.nodes)
        self.radius, self.slopes = self.tableau.gamma * self.h, [self.state.tangent]

    def _ball(self, begin: np.ndarray) -> Ball:
        """Return the ball of the stage θ = begin + hγ dθ/ds."""
        return Ball(begin, self.radius, self.of.degree * self.log_units[0], self.rest)

    def _slope_of(self, stage: Solved, ball: Ball) -> np.ndarray:
        return (stage.theta - ball.center) / ball.radius

    def _guess(self, slope: np.ndarray) -> np.ndarray:
        # Close to a stationary point tangents are shorter than one.
        longest = max(np.linalg.norm(one) for one in self.slopes)
        return longest / max(np.linalg.norm(slope), 1e-300) * slope

    def tangent(self) -> np.ndarray:
        """Return t at the last stage."""
        return self.slopes[-1]

    def begin(self, row: tuple[float, ...]) -> np.ndarray:
        """Return θ of the next stage, less what its own slope adds."""
        parts = zip(row, self.slopes, strict=True)
        return self.start + self.h * sum(a * slope for a, slope in parts if a)

    def solve(self, begin: np.ndarray) -> Solved:
        """Return the next stage, guessed from those before it."""
        count, nodes, degree = len(self.slopes), self.tableau.nodes, self.of.degree
        weights = extrapolation(nodes[:count], nodes[count])

        def guessed(values: list[np.ndarray]) -> np.ndarray:
            return sum(w * value for w, value in zip(weights, values, strict=True) if w)

        theta = begin + self.tableau.gamma * self.h * self._guess(guessed(self.slopes))
        norm = float(np.linalg.norm(theta))
        # Of either sign at most one: a guess must not drop or lift a margin.
        u = self.duals[-1] + np.clip(guessed(self.duals) - self.duals[-1], -1.0, 1.0)
        u = u + (1.0 - degree) * math.log(norm)
        return self._solved(begin, replace(self.last, theta=theta, log_multiplier=u))

    def again(self, shift: np.ndarray) -> None:
        """Solve the last stage once more, its beginning shifted."""
        last = self.stages.pop()
        self.duals.pop()
        begin = last.theta - self.tableau.gamma * self.h * self.slopes.pop() + shift
        self._solved(begin, replace(self.last, theta=last.theta + shift))

    def turned(self, error: np.ndarray) -> float:
        """Return by how much an error of the mean slope turns the direction at the end."""
        theta = self.last.theta
        e = self.radius / self.tableau.gamma * self.last.linearized.filtered(error)
        norm = float(np.linalg.norm(theta))
        return float(np.linalg.norm(e - (theta @ e) / norm**2 * theta)) / norm

    def _solved(self, begin: np.ndarray, guess: Guess) -> Solved:
        ball = self._ball(begin)
        solve, late = self.of.slider.solve, self.state.smoothed_margin > 0.0
        last = len(self.slopes) == len(self.tableau.rows)
        tight = TUNING.tight if late else max(TUNING.tight, TUNING.early * self.of.tol)
        stage = solve(ball, guess, self.scale, tight, late and last)
        if last and not late and self.of._stage_node(stage, self.log_units[-1])[0] > 0.0:
            # From here on α/‖W‖^L may not fall.
            stage = solve(ball, stage.guess(), self.scale, TUNING.tight, True)
        self.last = stage.guess()
        self.stages.append(stage)
        self.slopes.append(self._slope_of(stage, ball))
        growth = (self.of.degree - 1.0) * math.log(np.linalg.norm(stage.theta))
        self.duals.append(stage.log_multiplier + growth)
        return stage


class _RadialTrial(_Trial):
    """The stages of a step in ln N from ‖W‖ to (1 + length)‖W‖, where α > 0.

    θ = b + hγ (t/⟨t, θ⟩ - θ) is θ - b/(1 + hγ) = r t/⟨t, θ⟩ with r = hγ/(1 + hγ).
    """

    def _begin(self, length: float) -> None:
        state, self.start, self.h = self.state, self.state.direction, math.log1p(length)
        self.log_units = [state.log_norm + self.h * node for node in self.tableau.nodes]
        share = self.tableau.gamma * self.h
        self.radius = share / (1.0 + share)
        self.slopes = [state.tangent / (state.tangent @ self.start) - self.start]

    def _ball(self, begin: np.ndarray) -> Ball:
        log_scale = self.of.degree * self.log_units[len(self.slopes)]
        return Ball((1.0 - self.radius) * begin, self.radius, log_scale, radial=True)

    def _slope_of(self, stage: Solved, ball: Ball) -> np.ndarray:
        return super()._slope_of(stage, ball) - stage.theta

    def _guess(self, slope: np.ndarray) -> np.ndarray:
        return slope

    def tangent(self) -> np.ndarray:
        """Return t at the last stage."""
        moved = self.slopes[-1] + self.last.theta
        return moved / np.linalg.norm(moved)


def arc(tableau: Tableau, points: list[np.ndarray], slopes: list[np.ndarray], h: float) -> float:
    """Return the length of the direction's path over a step, by the method's own weights.

    points, slopes: θ and dθ/ds at the beginning and each stage. Where the direction turns back
    within the step, its speed has a corner that no weights see: there it is the length of the
    polynomial path through the stages. Slopes err by parts of tol, which late is more than the
    path is long: then it is that of the polygon.
    """
    thetas = np.array(points)
    lengths = vectors.norms(thetas)[:, None]
    units = thetas / lengths
    across = (slopes - vectors.dots(slopes, units)[:, None] * units) / lengths
    products = across @ across.T
    if products.min() < 0.0:
        basis = np.array([_lagrange(tableau.nodes, (i + 0.5) / _FINE) for i in range(_FINE)])
        squares = np.einsum("ti,ij,tj->t", basis, products, basis)
        length = h * float(np.sqrt(np.maximum(squares, 0.0)).mean())
    else:
        length = h * float(tableau.weights @ np.sqrt(products.diagonal()))
    chords = np.diff(units[np.argsort(tableau.nodes, kind="stable")], axis=0)
    polygon = float(vectors.arc(vectors.norms(chords)).sum())
    return length if polygon < length < 1.1 * polygon else polygon


def _lagrange(nodes: Sequence[float], at: float) -> list[float]:
    """Return the weights of values at the nodes in their polynomial's value at c = `at`."""
    weights = []
    for j, node in enumerate(nodes):
        others = [*nodes[:j], *nodes[j + 1 :]]
        weights.append(math.prod((at - other) / (node - other) for other in others))
    return weights


def extrapolation(nodes: tuple[float, ...], at: float) -> list[float]:
    """Return the weights by which the last three stages' values are continued to c = `at`."""
    known = sorted(range(len(nodes)), key=lambda j: abs(nodes[j] - at))[:3]
    weights = [0.0] * len(nodes)
    for j, weight in zip(known, _lagrange([nodes[j] for j in known], at), strict=True):
        weights[j] = weight
    return weights
