"""The way to α = 0, where the late phase begins.

With the exponential loss α > 0 means R < ℓ(0) = 1: the risk, a sum, is smaller than what one
example at the boundary would contribute, so that every example is on its side. The converse is
false: of n examples with margin z > 0 each, R = n e^{-z} is above one until z = ln n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from experiments import frames
from experiments.directional_convergence import unguarded
from latephase.flow.course import Course, alone
from latephase.flow.errors import BudgetSpent, SolverError
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.runge_kutta import FlowState
from latephase.flow.trajectory import largest_drop
from latephase.measures.settling import deepest_fall
from latephase.problem.degree import checked_degree
from latephase.problem.margins import Problem
from latephase.problem.task import Task
from latephase.zoo.networks import deep_linear, linear, two_layer
from latephase.zoo.tasks import separable_points

# By what power of the width the outputs are smaller than those of order one.
KINDS = {"outputs of order one": 0.0, "mean-field outputs": 0.5}
DATA = ["twenty points", "twenty points, plain ReLU", "sixty random labels"]
MOVED, TIME = "‖W − W₀‖/‖W₀‖ at α = 0", "time t at α = 0"


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

    def seen(state: FlowState) -> None:
        weights.append(state.w())
        smallest = problem.margins(weights[-1]).min()
        rows.append((state.smoothed_margin, smallest, state.log_time))
        if len(rows) > steps and state.smoothed_margin < until:
            why = f"{steps} steps are spent at α = {state.smoothed_margin:.3g}"
            raise BudgetSpent(why, state.smoothed_margin, None)

    alone(Course(problem, degree, settings).work(until), seen)
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


def twenty(seed: int) -> Task:
    """Return twenty separable points in ten dimensions, coordinates of size one."""
    task = separable_points(20, 10, margin=0.1, seed=seed)
    return replace(task, x=task.x * 10**0.5)


def coin_tosses(n: int, dimension: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n standard Gaussian points [n, dimension] and labels [n], ±1 of even chance each."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, dimension)), rng.choice([-1, 1], n)
    return torch.from_numpy(x), torch.from_numpy(y)


def random_starts(seeds: Sequence[int], widths: Sequence[int]) -> pd.DataFrame:
    """Return a row for each start: data, kind, seed, width, way (an `Onset`), MOVED and TIME.

    data: of `DATA`; plain ReLUs to width 128, random labels at 64 and 256, both with mean-field
    outputs from the first two seeds only. No way and no numbers where α = 0 is not reached.
    """
    narrower, rows = [width for width in widths if width <= 128], []
    for data, some in zip(DATA, (widths, narrower, [64, 256]), strict=True):
        for kind, power in KINDS.items():
            for seed in seeds if data == DATA[0] or power == 0 else seeds[:2]:
                for width in some:
                    about = {"data": data, "kind": kind, "seed": seed, "width": width}
                    rows.append(about | _arrival(data, power, seed, width))
    return pd.DataFrame(rows)


def _arrival(data: str, power: float, seed: int, width: int) -> dict:
    rng = torch.Generator().manual_seed(seed)
    try:
        if data == DATA[1]:
            return {MOVED: relu_movement(twenty(seed), width, power, rng)}
        net = two_layer(10, width, "squared_relu", fixed_signs=True, generator=rng)
        net[-1].weight.data /= width**power
        if data == DATA[2]:
            way = onset(net, *coin_tosses(60, 10, seed), until=1e-3, tol=1e-3, steps=120)
        else:
            task = twenty(seed)
            way = onset(net, task.x, task.y, tol=1e-4, steps=120)
    except SolverError:
        return {}
    return {"way": way, MOVED: way.at_zero("movement"), TIME: np.exp(way.at_zero("log_time"))}


def slopes(runs: pd.DataFrame, data: str, column: str) -> dict[str, dict[int, float]]:
    """Return for each kind of outputs {seed: the slope of a column's logarithm against ln m}."""
    found = {kind: {} for kind in KINDS}
    runs = runs[runs.data == data].dropna(subset=column)
    for (kind, seed), rows in runs.groupby(["kind", "seed"]):
        found[kind][seed] = frames.slope(rows.width, rows[column])
    return found


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


@unguarded()
def opposite(seeds: Sequence[int]) -> pd.DataFrame:
    """Return a row for each start that fits the opposite labels: model, seed, way, and what of γ̃.

    fell: by how much it sinks while α ≤ 0; drop: its largest relative drop from there to α = 10⁶.
    The models learn those labels to α = 100, are scaled to a margin of one, and follow the flow.
    """
    rows = []
    for seed in seeds:
        rng, task = {"generator": torch.Generator().manual_seed(seed)}, twenty(seed)
        for model, net in {
            "linear": linear(10, **rng),
            "deep linear": deep_linear([10, 4, 1], **rng),
            "squared ReLU": two_layer(10, 32, "squared_relu", fixed_signs=True, **rng),
        }.items():
            taught = gradient_flow(net, task.x, -task.y, until=100.0, tol=1e-2)
            taught.write_to(net, normalized=True)
            trained = [weight for weight in net.parameters() if weight.requires_grad]
            for weight in trained:
                weight.data *= taught.normalized_margin[-1] ** (-1 / taught.degree)
            way = onset(net, task.x, task.y, until=3.0, tol=1e-4, steps=200)
            torch.nn.utils.vector_to_parameters(torch.from_numpy(way.last), trained)
            flow = gradient_flow(net, task, until=1e6, records=10_000, tol=1e-2)
            late = way.normalized_smoothed_margin[way.before.stop :]
            rows.append({
                "model": model,
                "seed": seed,
                "way": way,
                "fell": fall_before(way),
                "drop": largest_drop([*late, *flow.normalized_smoothed_margin[1:]]),
            })  # fmt: skip
    return pd.DataFrame(rows)


def fall_before(way: Onset) -> float:
    """Return by how much γ̃ sinks below an earlier value while α ≤ 0, relative to that."""
    return deepest_fall(way.normalized_smoothed_margin[way.before])


def steps(run) -> pd.DataFrame:
    """Return a row for each step of a run's way: α, and γ̃ in units of |γ̃| at the start."""
    margin = run.way.normalized_smoothed_margin
    columns = {"smoothed margin α (zero: the late phase begins)": run.way.smoothed_margin,
               "γ̃ in units of |γ̃| at the start": margin / -margin[0]}  # fmt: skip
    return pd.DataFrame({"model": run.model, "seed": run.seed} | columns)
