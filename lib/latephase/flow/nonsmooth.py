"""The step of a nonsmooth flow: a two-stage implicit method in arc length, along active kinks.

dW/ds = t(W), the unit vector of the Clarke subgradient of α that the flow follows, by SDIRK2 with
γ = 1 - 1/√2 (Alexander 1977): order 2, stiffly accurate, without a history that a kink could
spoil. Either stage is one `latephase.flow.sliding` step, of length γh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latephase.flow.implicit import GAMMA
from latephase.flow.sliding import Ball, Guess, Slider, Sliding, Solved
from latephase.flow.state import State, exp_times
from latephase.problem.losses import Loss

# What ∫t ds over a step is by the stages, less what the parabola through its beginning (0), the
# first stage (γ) and the end (1) gives: an estimate of the third order in the step.
_BEGIN = ((1 + GAMMA) / 2 - GAMMA - 1 / 3) / GAMMA
_FIRST = 1.0 - GAMMA - (1 / 3 - 1 / 2) / (GAMMA * (GAMMA - 1.0))
_ERROR = (_BEGIN, _FIRST, -_BEGIN - _FIRST)


@dataclass(frozen=True, eq=False, kw_only=True)
class KinkedState(State):
    """A state with the kinks it slides along.

    tangent [P]: the unit vector t; c [K]: ∂(Σ q p + Σ μ z)/∂out times hi - lo at the unit
    direction; sliding: gates and active kinks; z [K] at the unit direction.
    """

    tangent: np.ndarray
    c: np.ndarray
    z: np.ndarray
    sliding: Sliding


@dataclass(frozen=True, eq=False)
class Step:
    """The state arrived at, and errors of its direction: what is smooth, and jumps at kinks.

    kink: where along the step, from 0 to 1, the kink lies that most of `jump` is from.
    """

    state: KinkedState
    error: float
    jump: float
    kink: float


class KinkedStepper:
    """Steps of one problem of degree L."""

    def __init__(self, kinked: Any, loss: Loss, degree: float, pairs: int, tol: float) -> None:
        self.kinked, self.loss, self.degree, self.pairs = kinked, loss, degree, pairs
        self.slider = Slider(kinked, loss, pairs, tol)
        sizes = [kinked.n // pairs * math.prod(shape) for _, _, shape in kinked.sites]
        self.site = np.repeat(np.arange(len(sizes)), sizes)

    def start(self, w: np.ndarray) -> KinkedState:
        """Return the state of W [P], its gates those of the signs of z."""
        norm = float(np.linalg.norm(w))
        direction, log_norm = w / norm, math.log(norm)
        p, z, gates = self.kinked.evaluate_natural(direction)
        scale = np.exp(self.degree * log_norm)
        shaped = torch.from_numpy(self._shaped(scale * p))
        alpha, log_dual = self.loss.smoothed_margin_and_log_duals(shaped)
        none = np.zeros(0, dtype=int)
        point = self.kinked.at(direction, gates, none)
        gradient, c = point.pull(np.exp(log_dual.numpy().reshape(-1)), np.zeros(0))
        return KinkedState(
            direction,
            log_norm,
            self._shaped(p),
            log_dual.numpy(),
            gradient,
            float(alpha) / scale,
            float(alpha),
            tangent=gradient / max(float(np.linalg.norm(gradient)), 1e-300),
            c=c,
            z=z,
            sliding=Sliding(gates, none, np.zeros(0)),
        )

    def step(self, state: KinkedState, length: float) -> Step:
        """Return the step of arc length length·‖W‖; raises StepFailed."""
        kappa, begin = GAMMA * length, state.tangent
        scale = self._scale(state.z)
        ball = self._ball(state, state.direction, kappa)
        theta = ball.center + ball.radius * begin
        slope = float(np.linalg.norm(state.gradient))
        size = ball.radius / slope * np.linalg.norm(theta) ** (1.0 - self.degree)
        u = state.log_dual.reshape(-1) + math.log(size)
        nu = state.normalized_smoothed_margin * np.linalg.norm(theta) ** self.degree
        nu += (np.log(np.exp(u - u.max()).sum()) + u.max()) * math.exp(-ball.log_scale)
        guess = Guess(theta, u, nu, state.sliding, size * state.c)
        first = self.slider.solve(ball, guess, scale)
        middle = (first.theta - ball.center) / ball.radius
        center = state.direction + (length - kappa) * middle
        second_ball = self._ball(state, center, kappa)
        stretch = second_ball.radius / ball.radius
        theta = second_ball.center + second_ball.radius * middle
        second = self.slider.solve(second_ball, first.guess(theta, stretch), scale)
        end = (second.theta - second_ball.center) / second_ball.radius
        unit = float(np.linalg.norm(center)) + kappa
        error = sum(weight * t for weight, t in zip(_ERROR, (begin, middle, end), strict=True))
        norm = float(np.linalg.norm(second.theta))
        direction = second.theta / norm

        def turned(error: np.ndarray) -> float:
            e = second.linearized.filtered(length / unit * error)
            return float(np.linalg.norm(e - (direction @ e) * direction)) / norm

        missed, part = self._jumps(state, first, second, scale)
        log_norm = state.log_norm + math.log(unit * norm)
        return Step(
            self._arrived(second, direction, norm, log_norm, end),
            turned(error),
            0.0 if missed is None else turned(missed / second_ball.radius),
            part,
        )

    def _jumps(
        self, state: KinkedState, first: Solved, second: Solved, scale: np.ndarray
    ) -> tuple[np.ndarray | None, float]:
        """Return what the stages' weights miss of the jumps of Jᵀλ at kinks that the step crosses.

        A kink keeps its gate up to a part τ of the step, where its z crosses zero; in the sum of
        the stages it keeps it for 1 - γ or for nothing. Also returns the τ of the kink that matters
        most. Where a kink begins to slide the jump is along ∂z, and z = 0 makes it good.
        """
        before, after = state.sliding.gates, second.sliding.gates
        crossed = before != after
        crossed[state.sliding.active] = crossed[second.sliding.active] = False
        if not crossed.any():
            return None, 1.0
        late = first.sliding.filled() == before
        z0, z1, z2 = (np.abs(z) + 1e-300 for z in (state.z, first.z, second.z))
        part = np.where(late, GAMMA + (1.0 - GAMMA) * z1 / (z1 + z2), GAMMA * z0 / (z0 + z1))
        missed = crossed * (part - np.where(late, 1.0 - GAMMA, 0.0))
        gates = second.sliding.filled() + missed * (before - after)
        point = self.kinked.at(second.theta, gates, np.zeros(0, dtype=int))
        pulled = point.pull(np.exp(second.log_multiplier), np.zeros(0))[0]
        worst = int(np.abs(missed * second.c * scale).argmax())
        return pulled - second.pulled, float(part[worst])

    def _shaped(self, p: np.ndarray) -> np.ndarray:
        return p if self.pairs == 1 else p.reshape(-1, self.pairs)

    def _scale(self, z: np.ndarray) -> np.ndarray:
        """Return the root mean square of z over its layer, for each kink."""
        counts = np.bincount(self.site)
        return np.sqrt(np.bincount(self.site, z * z) / counts)[self.site]

    def _ball(self, state: KinkedState, center: np.ndarray, radius: float) -> Ball:
        unit = float(np.linalg.norm(center)) + radius
        log_scale = self.degree * (state.log_norm + math.log(unit))
        return Ball(center / unit, radius / unit, log_scale)

    def _arrived(
        self, solved: Solved, direction: np.ndarray, norm: float, log_norm: float, end: np.ndarray
    ) -> KinkedState:
        p = self._shaped(solved.p) * norm**-self.degree
        u, log_scale = self._shaped(solved.log_multiplier), self.degree * log_norm
        normalized, gap, log_dual = self.loss.from_multipliers(
            torch.from_numpy(p), torch.from_numpy(u), log_scale
        )
        log_dual = log_dual.numpy()
        active = solved.sliding.active
        distance = np.abs(solved.z[active]) / np.maximum(self._scale(solved.z)[active], 1e-300)
        factor = math.exp(log_dual.max() - u.max()) * norm ** (1.0 - self.degree)
        return KinkedState(
            direction,
            log_norm,
            p,
            log_dual,
            factor * solved.pulled,
            normalized,
            exp_times(log_scale, normalized),
            exp_times(log_scale, gap),
            active_kinks=len(active),
            kink_distance=float(distance.max(initial=0.0)),
            tangent=end,
            c=factor * solved.c,
            z=solved.z,
            sliding=solved.sliding,
        )
