"""The late phase's step: a two-stage implicit Runge–Kutta method in ρ = ln‖W‖.

dθ/dρ = ∇α/(L Σ q p) - θ at scale S = e^{Lρ} by SDIRK2, γ = 1 - 1/√2: order 2, L-stable, stiffly
accurate (Alexander 1977). The unit sphere attracts: the radial part of the right side is 1 - ‖θ‖².
The size of a step is bounded by how fast the direction turns, not by the growth of α.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from latephase.flow.newton import Stage, solve_stage
from latephase.flow.newton_matrix import Linearization
from latephase.flow.state import State, exp_times
from latephase.problem.margins import Problem

GAMMA = 1.0 - 1.0 / math.sqrt(2.0)


@dataclass
class LateStepper:
    """Steps of one problem; keeps the linearization and the trend from one to the next."""

    problem: Problem
    degree: float
    curved: bool
    linearization: Linearization | None = None
    # d²θ/dρ² and du/dρ over the last step, by which the next one's first stage is guessed.
    trend: tuple[np.ndarray, np.ndarray] | None = None
    # A running mean of the iterations of a stage.
    iterations: float = 0.0

    def step(self, state: State, step: float, newton: float) -> tuple[State, float] | None:
        """Return (state at ρ + step, error estimate), or None where Newton does not converge.

        newton bounds the error of the stages; the estimate is the distance to the embedded
        method of order 1, which continues with the first stage's slope.
        """
        theta, kappa = state.direction, GAMMA * step
        if self.linearization is None:
            self.linearization = self._linearize(theta, state.log_dual.reshape(-1))
        mean = state.mean_margin()
        velocity = state.gradient / (self.degree * mean) - theta
        u = state.log_dual.reshape(-1) + math.log(kappa / (self.degree * mean))
        rho, rest = state.log_norm, step - kappa
        bend, drift = self.trend or (0.0, 0.0)
        # Of a step that fails there is none.
        self.trend = None
        guess = (theta + kappa * (velocity + kappa * bend), u + _limited(kappa * drift))
        # From separation on the multipliers decide what α/‖W‖^L gains in a step.
        tols = newton, min(1e-5, 5.0 * newton) if state.smoothed_margin > 0.0 else 1e-3
        first = self._solve(guess, theta, kappa, rho + kappa, tols)
        if not first.converged:
            return None
        slope = (first.theta - theta) / kappa
        bend, drift = (slope - velocity) / kappa, (first.log_multiplier - u) / kappa
        center = theta + rest * slope
        guess = (
            center + kappa * (slope + rest * bend),
            first.log_multiplier + _limited(rest * drift),
        )
        second = self._solve(guess, center, kappa, rho + step, tols)
        if not second.converged:
            return None
        change = (second.theta - center) / kappa - slope
        self.trend = change / rest, (second.log_multiplier - first.log_multiplier) / rest
        return self._arrived(second, rho + step), kappa * float(np.linalg.norm(change))

    def _linearize(self, theta: np.ndarray, log_multiplier: np.ndarray) -> Linearization:
        return Linearization(self.problem, theta, log_multiplier, self.curved)

    def _solve(self, guess, center, kappa: float, rho: float, tols: tuple[float, float]) -> Stage:
        stage = solve_stage(
            self.problem,
            self._linearize,
            self.linearization,
            guess,
            center,
            kappa,
            self.degree * rho,
            self.degree,
            *tols,
        )
        self.linearization = stage.linearization
        self.iterations += 0.1 * (stage.iterations - self.iterations)
        return stage

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
        return State(
            direction,
            log_norm,
            p,
            log_dual,
            pulled * math.exp(log_dual.max()),
            normalized,
            exp_times(log_scale, normalized),
            exp_times(log_scale, gap),
        )


def _limited(change: np.ndarray) -> np.ndarray:
    """Return the change of u, of either sign at most one: a guess must not drop or lift a pair."""
    return np.clip(change, -1.0, 1.0)
