"""The way to α = 0, where the late phase begins.

With the exponential loss α > 0 means R < ℓ(0) = 1: the risk, a sum, is smaller than what one
example at the boundary would contribute, so that every example is on its side. The converse is
false: of n examples with margin z > 0 each, R = n e^{-z} is above one until z = ln n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from latephase.flow.course import Course
from latephase.flow.errors import BudgetSpent
from latephase.flow.gradient_flow import gradient_flow
from latephase.problem.degree import checked_degree
from latephase.problem.margins import Problem
from latephase.problem.task import Task
from latephase.zoo.networks import two_layer


@dataclass(frozen=True, eq=False)
class Onset:
    """The accepted steps of the flow from a start on, [steps + 1] each.

    smoothed_margin              α, which increases
    normalized_smoothed_margin   γ̃ = α/‖W‖^L
    movement                     ‖W - W₀‖/‖W₀‖
    smallest_margin              min p_i
    log_time                     ln t of dW/dt = -∇R since the start, -inf there
    last [P]                     W after the last step
    """

    smoothed_margin: np.ndarray
    normalized_smoothed_margin: np.ndarray
    movement: np.ndarray
    smallest_margin: np.ndarray
    log_time: np.ndarray
    last: np.ndarray

    @property
    def before(self) -> slice:
        """The steps with α ≤ 0."""
        return slice(0, int(np.sum(self.smoothed_margin <= 0)))

    @property
    def at_separation(self) -> float:
        """α at the first step with every p_i > 0; at most 0 unless that step passes α = 0."""
        return float(self.smoothed_margin[np.argmax(self.smallest_margin > 0)])

    def at_zero(self, name: str) -> float:
        """Return a quantity at α = 0, interpolated between the two steps about it.

        The start's own value where it has α > 0 already.
        """
        series, alpha = getattr(self, name), self.smoothed_margin
        return float(series[0] if alpha[0] > 0 else np.interp(0.0, alpha[1:], series[1:]))


def onset(
    module: torch.nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    until: float = 0.1,
    tol: float = 1e-5,
    steps: int = 2000,
) -> Onset:
    """Return the flow of the exponential loss from the module's parameters to α = until.

    tol is the error of a step, relative to ‖W‖. Raises BudgetSpent where α does not get there
    within so many steps.
    """
    problem = Problem(module, x, y, "exponential")
    degree = checked_degree(problem.module, problem.x, None)
    settings = {"tol": tol, "until": until, "records": 1}
    weights, rows = [], []
    for state in Course(problem, degree, settings).states(until):
        weights.append(state.w())
        smallest = problem.margins(weights[-1]).min()
        rows.append((state.smoothed_margin, smallest, state.log_time))
        if len(rows) > steps and state.smoothed_margin < until:
            why = f"{steps} steps are spent at α = {state.smoothed_margin:.3g}"
            raise BudgetSpent(why, state.smoothed_margin, None)
    alpha, smallest, log_time = np.array(rows).T
    w = np.array(weights)
    norm = np.linalg.norm(w, axis=1)
    return Onset(
        smoothed_margin=alpha,
        normalized_smoothed_margin=alpha / norm**degree,
        movement=np.linalg.norm(w - w[0], axis=1) / norm[0],
        smallest_margin=smallest,
        log_time=log_time,
        last=w[-1],
    )


def coin_tosses(n: int, dimension: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n standard Gaussian points [n, dimension] and labels [n], ±1 of even chance each."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, dimension)), rng.choice([-1, 1], n)
    return torch.from_numpy(x), torch.from_numpy(y)


def relu_movement(task: Task, width: int, power: float, generator: torch.Generator) -> float:
    """Return ‖W - W₀‖/‖W₀‖ at α = 10⁻³ of two layers of plain ReLUs, outputs ±1/width^(½ + power).

    By the exact flow along kinks, from Gaussian inner weights W₀; the outer ones are fixed.
    """
    inputs = task.x.shape[1]
    net = two_layer(inputs, width, "relu", fixed_signs=True, generator=generator)
    net[-1].weight.data /= width**power
    start = net[0].weight.detach().numpy().ravel()
    # With a tenth of the tolerance moves differ by a fiftieth at most, and take half as long again.
    arrived = gradient_flow(net, task, until=1e-3, tol=0.1).record(0)
    reached = arrived.direction * math.exp(arrived.log_norm)
    return float(np.linalg.norm(reached - start) / np.linalg.norm(start))
