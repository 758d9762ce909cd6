"""The flow along kinks beside explicit steps and smoothed ones; errors of recorded fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory
from latephase.problem.task import Task
from latephase.problem.vectors import angle

# The fields of a trajectory whose errors are known, by what they describe.
FIELDS = {
    "state": ("direction", "log_norm", "log_time", "path_length"),
    "margins": ("margins", "normalized_margin", "normalized_smoothed_margin"),
    "KKT point": ("dual", "misalignment", "kkt_stationarity", "kkt_complementarity"),
}
# Relative arc length after which the steps are given up.
ARC = 40.0


def explicit_steps(
    net: torch.nn.Module, task: Task, step: float, levels: Sequence[float]
) -> np.ndarray:
    """Return W/‖W‖ [levels, P] of the first steps with α ≥ each of the rising `levels`.

    net: linear layers without biases and ReLUs between them, one output. W += step ‖W‖ g/‖g‖ with
    g = ∇α, α = -ln Σ e^{-p}, whose gates are open where z > 0: about a kink along which the flow
    slides, W chatters at a distance of order `step`. Raises RuntimeError where a level is not
    reached.
    """
    layers = [w.detach().numpy().copy() for w in net.parameters()]
    inputs, y, found = task.x.numpy().T, task.y.numpy(), []
    for _ in range(round(ARC / step)):
        values = [inputs]
        for w in layers[:-1]:
            values.append(np.maximum(w @ values[-1], 0.0))
        p = y * (layers[-1] @ values[-1])[0]
        q = np.exp(p.min() - p)
        if p.min() - np.log(q.sum()) >= levels[len(found)]:
            w = np.concatenate([w.ravel() for w in layers])
            found.append(w / np.linalg.norm(w))
            if len(found) == len(levels):
                return np.array(found)
        share, slopes = (y * q / q.sum())[None], []
        for w, value in zip(layers[::-1], values[::-1], strict=True):
            slopes.append(share @ value.T)
            share = (w.T @ share) * (value > 0)
        squares = [sum(np.vdot(v, v) for v in each) for each in (layers, slopes)]
        if squares[1] == 0.0:
            break
        for w, slope in zip(layers, slopes[::-1], strict=True):
            w += step * np.sqrt(squares[0] / squares[1]) * slope
    raise RuntimeError(f"expected α = {levels[len(found)]:g} within an arc length of {ARC:g}")


@dataclass(frozen=True, eq=False)
class Ways:
    """Flows from one start, and explicit steps.

    net, task: two layers and their examples. flows: along kinks, by falling tol, all through the
    levels of `explicit` [2, P], the last beyond. smoothed: to the first level, by falling ε.
    """

    net: torch.nn.Module
    task: Task
    flows: list[Trajectory]
    explicit: np.ndarray
    smoothed: list[Trajectory]

    def errors(self) -> list[float]:
        """Return the angle of each flow to the explicit steps, at either level, the larger."""
        both = [(flow.direction[:2], self.explicit) for flow in self.flows]
        return [max(map(angle, *ways)) for ways in both]

    def errors_from(self, direction: np.ndarray) -> list[float]:
        """Return the angle of each flow at the first level to a direction [P]."""
        return [angle(flow.direction[0], direction) for flow in self.flows]

    def bends(self, exact: np.ndarray) -> list[float]:
        """Return the angle of each smoothed flow to a direction [P]."""
        return [angle(flow.direction[-1], exact) for flow in self.smoothed]

    def smoothed_distance(self, width: float) -> float | None:
        """Return the largest |z| in the last smoothed flow where that of the exact one is ≤ width.

        At the first level, in units of the root mean square of all z; None where there is none.
        """
        kinks = np.abs(self._inputs(self.flows[-1].direction[0])) <= width
        moved = np.abs(self._inputs(self.smoothed[-1].direction[-1]))[kinks]
        return float(moved.max()) if len(moved) else None

    def _inputs(self, direction: np.ndarray) -> np.ndarray:
        first = next(self.net.parameters())
        z = self.task.x.numpy() @ direction[: first.numel()].reshape(first.shape).T
        return z / np.sqrt(np.mean(z**2))


def ways(
    net: torch.nn.Module,
    task: Task,
    tols: Sequence[float],
    epsilons: Sequence[float],
    levels: Sequence[float],
) -> Ways:
    """Follow all of them: the flow with the last tol through all levels, the others as `Ways` says.

    Smoothed flows have the last tol, too; explicit steps are 1e-4 of ‖W‖.
    """
    at = [levels[:2]] * (len(tols) - 1) + [levels]
    settings = {"tol": tols[-1], "until": levels[0]}
    return Ways(
        net,
        task,
        [gradient_flow(net, task, tol=tol, at=to) for tol, to in zip(tols, at, strict=True)],
        explicit_steps(net, task, 1e-4, levels[:2]),
        [gradient_flow(net, task, kink_smoothing=each, **settings) for each in epsilons],
    )


def field_errors(rows: Iterable[Mapping]) -> pd.DataFrame:
    """Return the largest error of each field at each tol: columns part, field, tol, largest error.

    rows: of a case at one α, with keys tol and errors, which maps fields to their errors.
    """
    found = pd.DataFrame([{"tol": row["tol"], **row["errors"]} for row in rows])
    largest = found.groupby("tol", sort=False).max()
    return pd.DataFrame(
        [
            {"part": part, "field": field, "tol": tol, "largest error": error}
            for part, fields in FIELDS.items()
            for field in fields
            for tol, error in largest[field].items()
        ]
    )
