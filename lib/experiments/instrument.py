"""The solver beside exact answers, beside itself, beside others, and along kinks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.integrate import quad

from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.runge_kutta import ESDIRK4, Stepper
from latephase.flow.trajectory import Trajectory
from latephase.measures.max_margin import hard_margin
from latephase.problem.kinked import kinked
from latephase.problem.margins import Problem
from latephase.problem.task import Task
from latephase.problem.vectors import alignment, angle, unit
from latephase.zoo import networks, tasks

ALPHA, ANGLE = "smoothed margin α", "angle to the SVM direction (radians)"
PEERS = ("LSODA", "BDF", "Radau", "CVODE")

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


def drawn(seed: int) -> torch.Generator:
    """Return a generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def lines(seeds: Sequence[int], until: float) -> pd.DataFrame:
    """Return flows of linear models on a hundred points of R²⁰: seed, net, task, flow, α and angle.

    The last two are arrays [records]; the angle is that to the direction of the SVM.
    """
    rows = []
    for seed in seeds:
        task = tasks.separable_points(100, 20, margin=0.1, seed=seed)
        net = networks.linear(20, generator=drawn(seed), scale=0.1)
        flow = gradient_flow(net, task, until=until, records=10_000)
        svm = hard_margin(task)[0]
        errors = np.array([angle(direction, svm) for direction in flow.direction])
        rows.append((seed, net, task, flow, flow.smoothed_margin, errors))
    return pd.DataFrame(rows, columns=["seed", "net", "task", "flow", ALPHA, ANGLE])


def without_duals(run, level: float, by: float = 1e-7) -> tuple[float, float]:
    """Return 1 - cos(W, -∇R) at the first α ≥ level, and with q from margins of W moved by `by`.

    W/‖W‖ of a linear model, in a random direction.
    """
    flow, at = run.flow, np.argmax(run.flow.smoothed_margin >= level)
    z = run.task.y.numpy()[:, None] * run.task.x.numpy()
    noise = np.random.default_rng(run.seed).standard_normal(z.shape[1])
    moved = flow.direction[at] + by * unit(noise)
    p = np.exp(flow.log_norm[at]) * (z @ moved)
    q = np.exp(p.min() - p)
    return flow.misalignment[at], 1 - alignment(moved, z.T @ (q / q.sum()))


def deep_three() -> tuple[torch.nn.Module, Task]:
    """Return a deep linear network of degree three and its 25 points in R⁵."""
    net = networks.deep_linear([5, 4, 4, 1], generator=drawn(0), scale=0.8)
    return net, tasks.separable_points(25, 5, margin=0.2, seed=0)


def fixed_steps(counts: Sequence[int]) -> pd.DataFrame:
    """Return errors of `deep_three` with so many equal steps: method, length of a step, error.

    From α = 20 on until ‖W‖ has grown by a fifth, against the last count; beside them the sums of
    the errors that the embedded method of order three estimates.
    """
    net, task = deep_three()
    first = gradient_flow(net, task, until=20.0, tol=1e-6)
    problem = Problem(first.write_to(net), task.x, task.y)
    stepper, found = Stepper(kinked(problem), problem, 3.0, tol=1e-9), []
    begin = stepper.start(problem.w0)
    for count in counts:
        state, estimated = begin, 0.0
        for _ in range(count):
            length = 0.2 / count * np.exp(begin.log_norm - state.log_norm)
            step = stepper.step(state, length, ESDIRK4)
            state, estimated = step.state, estimated + step.error
        found.append((0.2 / count, state.direction, estimated))
    *found, (_, best, _) = found
    rows = [("ESDIRK4", length, angle(end, best)) for length, end, _ in found]
    rows += [("embedded, order 3", length, estimated) for length, _, estimated in found]
    names = ["method", "length of a step, in units of ‖W‖", "error of the direction (radians)"]
    return pd.DataFrame(rows, columns=names)


def adaptive(tols: Sequence[float]) -> pd.DataFrame:
    """Return errors of the direction of `deep_three` at α = 1000: a row for each tol, beside it.

    fixed: as many runs with the first tol. Against a run with tol = 1e-7.
    """
    net, task = deep_three()
    best, *ends = (
        gradient_flow(net, task, until=1e3, tol=tol).direction[-1]
        for tol in (1e-7, *tols, *[tols[0]] * len(tols))
    )
    errors = np.array([angle(end, best) for end in ends]).reshape(2, -1)
    return pd.DataFrame({"tol": tols, "error of the direction at α = 1000": errors[0],
                         "fixed": errors[1]})  # fmt: skip


def clocks() -> pd.DataFrame:
    """Return ln t of the flow of Φ = w₁w₂w₃ from w = (½, ½, ½), a row for each later record.

    By the solver, exact, by the trapezoid rule between records, and the α of the growth law.
    """
    net = networks.deep_linear([1, 1, 1, 1], generator=drawn(0))
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    flow = gradient_flow(net, np.ones((1, 1)), [1.0], until=1e5, tol=1e-5)
    alpha, log_time = flow.smoothed_margin[1:], flow.log_time[1:]

    def scaled(p: float) -> float:
        # e^{-p} t, by quadrature of v = e^{u - p} from the end backwards: nothing overflows.
        ends = 0, min(p - 0.125, 60)
        return quad(lambda s: np.exp(-s) / (3 * (p - s) ** (4 / 3)), *ends, limit=200)[0]

    exact = np.array([p + np.log(scaled(p)) for p in alpha])
    rate = alpha - 2 * (np.log(3.0) / 2 + 2 / 3 * np.log(alpha))
    pieces = np.log(np.diff(alpha)) + np.logaddexp(rate[1:], rate[:-1]) - np.log(2)
    crude = np.logaddexp.accumulate(np.concatenate([[exact[0]], pieces]))
    law = log_time + np.log(3.0) + 4 / 3 * np.log(np.maximum(log_time, 1.0))
    columns = {ALPHA: alpha, "solver": log_time, "exact": exact, "trapezoid": crude, "law": law}
    return pd.DataFrame(columns)


def models(run) -> dict[str, tuple[torch.nn.Module, Task]]:
    """Return four networks with their tasks, the first that of a run of `lines`."""
    net, task = deep_three()
    planar = tasks.planar_points(60, seed=0)
    deeper = networks.deep_linear([5, 4, 4, 4, 1], generator=drawn(0))
    squared = networks.two_layer(3, 50, "squared_relu", generator=drawn(0), scale=0.3)
    return {
        "linear": (run.net, run.task),
        "deep linear, 3": (net, task),
        "deep linear, 4": (deeper, task),
        "squared ReLU, 200 weights": (squared, planar),
    }


def costs(cases: Mapping, decades: Sequence[float]) -> tuple[pd.DataFrame, list[Trajectory]]:
    """Return what `models` cost from the start to each α: a row each, and where they end.

    Columns: model, α reached, the evaluations of each kind, all, and seconds so far.
    """
    rows, ends = [], []
    for name, (net, task) in cases.items():
        began, flow = time.perf_counter(), None
        for decade in decades:
            flow = flow.extend(decade) if flow else gradient_flow(
                net, task, until=decade, records=10_000)  # fmt: skip
            counted = {f"{kind} evaluations": n for kind, n in flow.evaluations.items()}
            about = {"model": name, f"{ALPHA} reached": decade, "all": sum(counted.values())}
            rows.append(about | counted | {"seconds": time.perf_counter() - began})
        ends.append(flow)
    return pd.DataFrame(rows), ends


def peer_rows(record: Mapping) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return rows of the recorded comparison: one for each size and solver, and one for each run.

    The latter has the runs to α = 10⁶ that were tried, and those asked for more, with `until`.
    """
    sizes, runs = [], []
    for row in record["rows"]:
        size = {"size": f"{row['parameters']} weights, {row['examples']} points"}
        for name, one in row["solvers"].items():
            about = size | {"solver": name, "seconds": one["seconds"]}
            sizes.append(about | {"CPU seconds over gradient_flow's": one["ratio"]})
            for run in (*one["tried"], *(one.get("further") or [])):
                runs.append(size | {"solver": name} | run)
    return pd.DataFrame(sizes), pd.DataFrame(runs)


def faster(sizes: pd.DataFrame) -> str:
    """Return which peers take less time than `gradient_flow`, size by size."""
    found = []
    for size, rows in sizes.groupby("size", sort=False):
        took = rows.set_index("solver").seconds
        quicker = took[took.index.isin(PEERS) & (took < took["gradient_flow"])].sort_values()
        if len(quicker):
            found.append(f"{', '.join(quicker.index)} ({size})")
    return "; ".join(found) or "none of them"


def along_kinks(
    seeds: Sequence[int], tols: Sequence[float], epsilons: Sequence[float], levels: Sequence[float]
) -> pd.DataFrame:
    """Return `Ways` of a network with twelve ReLUs and twenty points: a row for each seed.

    off, bent: their errors, and bends from the exact flow; sliding: the flow with the last tol.
    The controls: astray, strangers: the same, from where a smoothed flow, or another seed's exact
    one, goes; wide: the angle of the former to explicit steps; distance, moved: the largest |z| on
    active kinks, of the exact flow and of smoothed ones, over the last tol.
    """
    cases = [
        ways(
            networks.two_layer(3, 12, generator=drawn(seed)),
            *(tasks.planar_points(20, deleted=0.5, seed=seed), tols, epsilons, levels),
        )
        for seed in seeds
    ]
    exact = [one.flows[-1].direction[0] for one in cases]
    rows = []
    for seed, one, here, there in zip(seeds, cases, exact, [*exact[1:], exact[0]], strict=True):
        smooth, last = one.smoothed[0].direction[-1], one.flows[-1]
        moved = one.smoothed_distance(0.01 * tols[-1])
        rows.append({
            "seed": seed,
            "sliding": last,
            "off": np.array(one.errors()),
            "bent": np.array(one.bends(here)),
            "astray": one.errors_from(smooth),
            "strangers": one.bends(there),
            "wide": angle(smooth, one.explicit[0]),
            "distance": float(last.kink_distance.max()) / tols[-1],
            "moved": None if moved is None else moved / tols[-1],
        })  # fmt: skip
    return pd.DataFrame(rows)


def forked() -> tuple[torch.nn.Module, Task]:
    """Return a start from which more than one curve is a gradient flow, of PyTorch's weights."""
    torch.manual_seed(13)
    layers = [torch.nn.Linear(*fan, bias=False) for fan in ((3, 10), (10, 8), (8, 1))]
    relus = [torch.nn.ReLU(), torch.nn.ReLU()]
    net = torch.nn.Sequential(layers[0], relus[0], layers[1], relus[1], layers[2]).double()
    points = tasks.planar_points(20, neurons=6, deleted=0.7, seed=13)
    return net, replace(points, x=points.x * torch.tensor([1, 1, 0.5]))


def unfit(task: Task) -> list[tuple[torch.nn.Module, Task]]:
    """Return networks that no flow is defined for, or not to the end, with what they are to fit.

    Labels that contradict each other, on the task's points; biases; and a kink away from zero.
    """
    torch.manual_seed(0)
    flat = networks.linear(3, generator=drawn(1))
    clamped = networks.two_layer(3, 12, generator=drawn(1), scale=0.5)
    clamped[1] = torch.nn.Hardtanh(0.0, 1e30)
    biased = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    return [(flat, tasks.with_contradictions(task)), (biased, task), (clamped, task)]
