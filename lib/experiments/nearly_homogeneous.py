"""Descent of networks that are nearly homogeneous, against the flow of what is left of them.

W ← W + s ∇α with s = rise/‖∇α‖²: the step that raises the smoothed margin α by `rise` to first
order, which is one against the gradient of R by s/R. The networks have degree three but for terms
of lower degree; what is left of them at large weights, Φ_H, has that degree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from experiments.since_2020 import unbalanced
from experiments.steepest import dual_variables, smoothed_margin
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory, largest_drop
from latephase.measures.max_margin import hard_margin
from latephase.problem.kkt import kkt_residual
from latephase.problem.task import Task
from latephase.problem.vectors import angle, unit
from latephase.zoo.tasks import separable_points

DEGREE = 3.0
MARGIN = "normalized margin α/‖W‖³"
SILENT = "only the bias of the output speaks for some example"
Weights = list[np.ndarray]


class Residual(torch.nn.Module):
    """x ↦ ⟨u, x + A(Bx + b) + a⟩ + c, all trained but the branch around A and B.

    In the limit of large weights x, a and c are left behind, and b stays, which has the degree of
    B: the linear predictor (BᵀAᵀu, ⟨Aᵀu, b⟩) of (x, 1).
    """

    def __init__(self, inputs: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        shapes = [(inputs, width), (width, inputs), (inputs, 1)]
        self.first, self.second, self.last = _linear(shapes)
        _draw(self, 0.6, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.second(self.first(x)))[:, 0]

    def leading_predictor(self) -> np.ndarray:
        """Return the unit vector [inputs + 1] of that predictor."""
        pulled = (self.last.weight @ self.second.weight).detach()[0]
        first = torch.column_stack([self.first.weight, self.first.bias]).detach()
        return unit((pulled @ first).numpy())

    @staticmethod
    def ascent(x, y, first, b, second, a, last, c) -> tuple[np.ndarray, Weights]:
        """Return margins [runs, n] and α's gradients [runs, ...] in the weights, in their order."""
        inner = x @ first.mT + b[:, None]
        outer = x + inner @ second.mT + a[:, None]
        p = y * ((outer @ last.mT)[..., 0] + c)
        weights = dual_variables(p) * y
        total, u = weights.sum(1, keepdims=True), last[:, 0]
        pulled = (u[:, None] @ second)[:, 0]
        summed = [(weights[:, None] @ part)[:, 0] for part in (x, inner, outer)]
        return p, [
            pulled[..., None] * summed[0][:, None], pulled * total,
            u[..., None] * summed[1][:, None], u * total, summed[2][:, None], total,
        ]  # fmt: skip


class Biased(torch.nn.Module):
    """x ↦ Σ_j a_j max(0, ⟨w_j, x⟩ + b_j)² + c: at large weights c is left behind, and b stays."""

    def __init__(self, inputs: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.last = _linear([(inputs, width), (width, 1)])
        _draw(self, 0.3, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)) ** 2)[:, 0]

    @staticmethod
    def ascent(x, y, first, b, last, c) -> tuple[np.ndarray, Weights]:
        """Return margins [runs, n] and α's gradients [runs, ...] in the weights, in their order."""
        rows = np.maximum(x @ first.mT + b[:, None], 0.0)
        p = y * ((rows**2 @ last.mT)[..., 0] + c)
        weights = dual_variables(p) * y
        pulled = 2.0 * rows * weights[..., None] * last
        total = weights.sum(1, keepdims=True)
        return p, [pulled.mT @ x, pulled.sum(1), weights[:, None] @ rows**2, total]

    @staticmethod
    def residual(x, y, first, b, last, c) -> float:
        """Return ε of the KKT conditions of Φ_H at one run's weights, NaN with a margin below 0.

        With multipliers of the network's own: it is they that weigh the examples in descent.
        """
        weights = [w[None] for w in (first, b, last, c)]
        p, gradients = Biased.ascent(x[None], y[None], *weights)
        gradients[-1] = np.zeros(1)
        w, gradient = (np.concatenate([v.ravel() for v in parts]) for parts in (weights, gradients))
        margins = (p[0] - y * c) / np.linalg.norm(w) ** DEGREE
        return kkt_residual(unit(w), gradient, margins, dual_variables(p)[0], DEGREE)[0]


def _linear(shapes: Sequence[tuple[int, int]]) -> list[torch.nn.Linear]:
    return [torch.nn.Linear(*shape, dtype=torch.float64) for shape in shapes]


def _draw(module: torch.nn.Module, scale: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0.0, scale, generator=generator)


def descent(
    modules: Sequence[torch.nn.Module],
    tasks: Sequence[Task],
    levels: Sequence[float],
    rise: float,
    *,
    signs: bool = False,
    most: int = 10**6,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (α, ‖W‖) [steps, runs, 2] of gradient descent, and its W [levels, runs, P] at levels.

    All runs step together until each has passed the last level, for `most` steps at most: where a
    level was not reached W is NaN. signs: along the signs of the gradient, by as much to first
    order.
    """
    x, y = (np.array([getattr(task, name).numpy() for task in tasks]) for name in ("x", "y"))
    stacked = [
        np.array([w.detach().numpy() for w in layer])
        for layer in zip(*(module.parameters() for module in modules), strict=True)
    ]
    seen, states = [], np.full((len(levels), len(x), sum(w[0].size for w in stacked)), np.nan)
    reached = np.zeros(len(x), dtype=int)
    while (reached < len(levels)).any() and len(seen) < most:
        p, gradients = modules[0].ascent(x, y, *stacked)
        flat, push = (
            np.concatenate([w.reshape(len(x), -1) for w in parts], 1)
            for parts in (stacked, gradients)
        )
        seen.append(np.column_stack([smoothed_margin(p), np.linalg.norm(flat, axis=1)]))
        steps = [np.sign(g) if signs else g for g in gradients]
        size = rise / (np.abs(push) if signs else push**2).sum(1)
        stacked = [
            w + step * size.reshape(-1, *[1] * (w.ndim - 1))
            for w, step in zip(stacked, steps, strict=True)
        ]
        for run in np.flatnonzero(reached < len(levels)):
            if seen[-1][run, 0] >= levels[reached[run]]:
                states[reached[run], run] = flat[run]
                reached[run] += 1
    return np.array(seen), states


def residual_runs(seeds: Sequence[int], levels: Sequence[float]) -> tuple[pd.DataFrame, ...]:
    """Return (rows along descent, a row a seed) of residual networks on eight unbalanced points.

    As `_runs`, the flow from the last level on, and "svm" and "origin": the angles of the leading
    predictor at its end to the support vector machine of (x, 1) and to that without the 1.
    """
    tasks = _tasks(seeds)
    modules = [Residual(2, 3, _generator(seed)) for seed in seeds]
    thrown, _ = descent(modules, tasks, [levels[0], 50.0], 4.0)
    rows, ends, flows = _runs(modules, tasks, seeds, levels, levels[-1], thrown)
    found = []
    for module, task, flow in zip(modules, tasks, flows, strict=True):
        flow.write_to(module, -1, normalized=True)
        x, predictor = task.x.numpy(), module.leading_predictor()
        with_one = hard_margin(np.column_stack([x, np.ones(len(x))]), task.y.numpy())[0]
        without = np.append(hard_margin(task)[0], 0.0)
        found.append({"svm": angle(predictor, with_one), "origin": angle(predictor, without)})
    return rows, ends.join(pd.DataFrame(found))


def biased_runs(
    seeds: Sequence[int], levels: Sequence[float], ahead: float
) -> tuple[pd.DataFrame, pd.DataFrame, dict[int, str]]:
    """Return the same of squared ReLUs with biases, the flow from where descent passes `ahead`.

    And seeds left out, with the reason: there Φ_H does not separate the points at levels[0].

    The large steps start where descent passes levels[0]. And "residuals": ε of the KKT conditions
    of Φ_H at the levels; "signs": the same of descent along signs, from the same start.
    """
    every = [
        (seed, Biased(2, 8, _generator(seed)), task)
        for seed, task in zip(seeds, _tasks(seeds), strict=True)
    ]
    _, first = descent(*list(zip(*every, strict=True))[1:], levels[:1], 0.1)
    dark = [
        _leading_margin(Biased(2, 8, _generator(0)), task, w) <= 0.0
        for (_, _, task), w in zip(every, first[-1], strict=True)
    ]
    silent = {one[0]: SILENT for one, left in zip(every, dark, strict=True) if left}
    kept = [one for one, left in zip(every, dark, strict=True) if not left]
    seeds, modules, tasks = zip(*kept, strict=True)
    _, along = descent(modules, tasks, levels, 0.1, signs=True)
    starts = [_at(Biased(2, 8, _generator(0)), w) for w in first[0, ~np.array(dark)]]
    thrown, _ = descent(starts, tasks, [200.0], 8.0, most=1000)
    rows, ends, _ = _runs(modules, tasks, seeds, levels, ahead, thrown)

    def residuals(states: np.ndarray) -> list[list[float]]:
        found = []
        for k, (module, task) in enumerate(zip(modules, tasks, strict=True)):
            x, y = task.x.numpy(), task.y.numpy()
            at = (
                [w.detach().numpy() for w in _at(module, one).parameters()] for one in states[:, k]
            )
            found.append([module.residual(x, y, *weights) for weights in at])
        return found

    states = np.swapaxes(np.array([*ends["states"]]), 0, 1)
    return rows, ends.assign(residuals=residuals(states), signs=residuals(along)), silent


def _tasks(seeds: Sequence[int]) -> list[Task]:
    return [unbalanced(separable_points(8, 2, margin=0.3, seed=seed)) for seed in seeds]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _leading_margin(module: Biased, task: Task, w: np.ndarray) -> float:
    """Return the least margin of Φ_H at w [P]."""
    module = _at(module, w)
    with torch.no_grad():
        return float((task.y * (module(task.x) - module.last.bias)).min())


def _at(module: torch.nn.Module, w: np.ndarray) -> torch.nn.Module:
    """Return the module, its weights set to w [P]."""
    torch.nn.utils.vector_to_parameters(torch.tensor(w), module.parameters())
    return module


def _runs(
    modules: Sequence[torch.nn.Module],
    tasks: Sequence[Task],
    seeds: Sequence[int],
    levels: Sequence[float],
    ahead: float,
    thrown: np.ndarray,
) -> tuple[pd.DataFrame, pd.DataFrame, list[Trajectory]]:
    """Return (rows along descent, a row a seed, flows of Φ_H from the level `ahead` to α = 10^30).

    The rows: seed, "smoothed margin α", MARGIN, every twentieth step from levels[0] on. The others:
    "drop", of the normalized margin from levels[0] on; "large steps", the same of the descents
    `thrown` [steps, runs, 2]; "states", W at the levels, and its "angles" to the flow's "limit".
    """
    seen, states = descent(modules, tasks, levels, 0.1)
    rows, ends, flows = [], [], []
    for k, (seed, module, task) in enumerate(zip(seeds, modules, tasks, strict=True)):
        alpha, margin = _normalized(seen[:, k], levels[0])
        columns = {"smoothed margin α": alpha, MARGIN: margin}
        rows.append(pd.DataFrame({"seed": seed} | columns).iloc[::20])
        start = _at(module, states[levels.index(ahead), k])
        flow = gradient_flow(start, task, homogenized=True, until=1e30, tol=1e-2, records=4)
        ends.append({
            "seed": seed,
            "drop": largest_drop(margin),
            "large steps": largest_drop(_normalized(thrown[:, k], levels[0])[1]),
            "limit": flow.direction[-1],
            "angles": [angle(w, flow.direction[-1]) for w in states[:, k]],
            "states": states[:, k],
        })  # fmt: skip
        flows.append(flow)
    return pd.concat(rows, ignore_index=True), pd.DataFrame(ends), flows


def _normalized(seen: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return α and α/‖W‖³ [steps] from where α is first reached."""
    seen = seen[np.argmax(seen[:, 0] >= alpha) :]
    return seen[:, 0], seen[:, 0] / seen[:, 1] ** DEGREE


def verdicts(residual: pd.DataFrame, biased: pd.DataFrame, silent: dict[int, str]) -> dict:
    """Return {claim: value and controls} of `residual_runs` and `biased_runs`."""
    found = {
        "homogenized-limit": {
            "value": residual.svm,
            "control": {"without the bias": residual.origin},
        },
        "biased-kkt": {
            "value": [residuals[-1] / residuals[0] for residuals in biased.residuals],
            "control": {
                "descent along signs": [signs[-1] / signs[0] for signs in biased.signs],
            },
        },
    }
    for name, ends in (("nearly-homogeneous", residual), ("biased", biased)):
        swapped = [
            angle(run.states[-1], ends.limit[other]) / run.angles[0]
            for run, other in zip(ends.itertuples(), np.roll(ends.index, -1), strict=True)
        ]
        found[f"{name}-margin"] = {
            "value": ends["drop"],
            "control": {"large steps": ends["large steps"]},
        }
        found[f"{name}-direction"] = {
            "value": [angles[-1] / angles[0] for angles in ends.angles],
            "control": {"another start": swapped},
        }
    for name in ("biased-margin", "biased-direction", "biased-kkt"):
        found[name] |= {"seeds": [*biased.seed], "dropped": silent}
    return found
