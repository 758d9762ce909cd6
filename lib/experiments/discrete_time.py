"""Gradient descent beside its flow, early and late: distances, edges of stability, limits.

For families of small networks as `latephase.training.together` steps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn.utils import vector_to_parameters

from experiments.frames import slope, stacked
from latephase.flow.gradient_flow import gradient_flow, gradient_flows
from latephase.flow.trajectory import Trajectory, largest_drop
from latephase.measures.max_margin import hard_margin
from latephase.problem.task import Task
from latephase.problem.vectors import angle, arc
from latephase.training.together import Descents, Family, descend, family, shares
from latephase.zoo import tasks
from latephase.zoo.networks import deep_linear, linear, two_layer


def squared_relus(seed: int) -> tuple[torch.nn.Sequential, Task, torch.Generator]:
    """Return twelve squared ReLUs, half of them with negative signs, ten planar points to learn.

    All is trained. The generator is left where the network was drawn.
    """
    draw = torch.Generator().manual_seed(seed)
    network = _both_signs(two_layer(2, 12, "squared_relu", generator=draw, scale=0.7))
    return network, tasks.separable_points(10, 2, margin=0.1, seed=seed), draw


def _both_signs(network: torch.nn.Sequential) -> torch.nn.Sequential:
    with torch.no_grad():
        network[2].weight.abs_()
        network[2].weight[0, ::2] *= -1
    return network


def curvatures(family: Family, w: np.ndarray, rule: str = "constant") -> np.ndarray:
    """Return the largest eigenvalue [r] of the Hessian of R for "constant", else of ln R.

    By central differences of the gradient: exact to nine digits or so.
    """
    size = w.shape[1]
    step = 1e-5 * np.linalg.norm(w, axis=1).mean()
    moved = w[:, None] + step * np.concatenate([np.eye(size), -np.eye(size)])
    many = family.rows(np.repeat(np.arange(len(w)), 2 * size))
    p, pull_back = many.margins_and_pull_back(moved.reshape(-1, size))
    pushes = pull_back(np.exp(-p) if rule == "constant" else shares(p)[0])
    pushes = pushes.reshape(len(w), 2, size, size)
    hessian = (pushes[:, 1] - pushes[:, 0]) / (2.0 * step)
    return np.linalg.eigvalsh(0.5 * (hessian + hessian.swapaxes(1, 2)))[:, -1]


def edges(family: Family, path: np.ndarray, rate: float) -> np.ndarray:
    """Return η λ/2 [k] at the states [k, P] of the "relative" rule, above 1 beyond the edge.

    For a family of one data set: η is the step in ln R, λ its largest curvature.
    """
    along = family.rows(np.zeros(len(path), dtype=int))
    length = np.linalg.norm(_ascent(along, path), axis=1)
    # No step is taken where the gradient vanishes.
    size = rate * np.linalg.norm(path, axis=1) * (length > 0) / np.maximum(length, 1e-300)
    return 0.5 * size * curvatures(along, path, "relative")


def _ascent(family: Family, w: np.ndarray) -> np.ndarray:
    """Return -∇ln R = ∇α [r, P]."""
    p, pull_back = family.margins_and_pull_back(w)
    return pull_back(shares(p)[0])


def flow_to(family: Family, w: np.ndarray, level: float, steps: int = 400) -> np.ndarray:
    """Return states [steps + 1, r, P] of the flow from w [r, P] to α = level.

    α itself is the variable, dW/dα = ∇α/‖∇α‖², so that every run lands on the level; by the
    classical method of order 4.
    """
    states = [np.array(w, dtype=np.float64)]
    length = ((level - family.smoothed_margins(states[0])) / steps)[:, None]

    def velocity(point: np.ndarray) -> np.ndarray:
        push = _ascent(family, point)
        return push / np.linalg.norm(push, axis=1, keepdims=True) ** 2

    for _ in range(steps):
        w = states[-1]
        first = velocity(w)
        second = velocity(w + 0.5 * length * first)
        third = velocity(w + 0.5 * length * second)
        fourth = velocity(w + length * third)
        states.append(w + length / 6.0 * (first + 2.0 * second + 2.0 * third + fourth))
    return np.array(states)


def departures(
    family: Family,
    flow: np.ndarray,
    fractions: np.ndarray,
    *,
    rule: str = "constant",
    draws: int = 1,
    **settings: object,
) -> np.ndarray:
    """Return where descent gets [draws, r, fractions, P] that goes as far as the flow.

    flow: what `flow_to` returned; descent has the same starts and ends at the same α. The step is
    a fraction of the stability edge 2/λ, where λ is the largest curvature that the flow meets; with
    momentum μ times 1 - μ. draws: of the batches. settings: momentum, batch and order of `descend`.
    """
    start, end = flow[0], flow[-1]
    level, r = family.smoothed_margins(end), len(end)
    along = flow[:: max(1, len(flow) // 50)]
    which = np.tile(np.arange(r), len(along))
    curvature = curvatures(family.rows(which), along.reshape(-1, start.shape[1]), rule)
    step = 2.0 / curvature.reshape(len(along), r).max(axis=0)
    step = step * (1.0 - settings.get("momentum", 0.0))
    index = np.tile(np.repeat(np.arange(r), len(fractions)), draws)
    rates = step[index] * np.tile(fractions, r * draws)
    runs = descend(family.rows(index), start[index], rates, level[index], rule=rule, **settings)
    return runs.end.reshape(draws, r, len(fractions), -1)


def apart(ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the root mean square, over draws, of angles [r, fractions] to others [r, P]."""
    ends, others = _units(ends), _units(others)[:, None]
    angles = arc(np.linalg.norm(ends - others, axis=-1))
    return np.sqrt((angles**2).mean(axis=0))


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def late_descent(
    family: Family, w: np.ndarray, rate: float, level: float, degree: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return where descent from w [r, P] is at α = level [r, P], and its largest drops of γ̃ [r].

    W ← W - s ∇ln R with s = rate/max(1, ‖∇ln R‖²): each step lowers ln R by `rate` at most, to
    first order. A drop is one of γ̃ = α/‖W‖^degree, relative, between two steps, as
    `latephase.flow.trajectory.largest_drop` says; nothing rejects a step. A run that breaks off
    ends at its last iterate.
    """
    steps = int(20 * level / rate) + 1
    run = descend(family, w, rate, level, rule="normalized", steps=steps, keep=range(steps))
    ends, drops = run.end.copy(), []
    for k, end in enumerate(ends):
        path = run.path(k)
        alpha = family.rows(np.full(len(path), k)).smoothed_margins(path)
        drops.append(largest_drop(alpha / np.linalg.norm(path, axis=1) ** degree))
        if not np.isfinite(end).all():
            ends[k] = path[-1]
    return ends, np.array(drops)


def by_signs(family: Family, w: np.ndarray, rate: float, level: float) -> np.ndarray:
    """Return where descent along the signs of the gradient from w [r, P] first has α ≥ level.

    Steepest descent where the length of a step is its largest entry: W ← W - s sign(∇ln R) with
    s = rate/‖∇ln R‖_1, which lowers ln R by `rate` to first order.
    """
    w, ends = w.copy(), w.copy()
    arrived = np.zeros(len(w), dtype=bool)
    for _ in range(int(20 * level / rate) + 1):
        push = _ascent(family, w)
        w = w + rate * np.sign(push) / np.abs(push).sum(axis=1, keepdims=True)
        ends[~arrived] = w[~arrived]
        arrived |= family.smoothed_margins(w) >= level
        if arrived.all():
            break
    return ends


def strayed(ends: np.ndarray, others: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return angle(end, other)/angle(start, other) [r] of weights [r, P]: 1 for standing still."""
    triples = zip(ends, others, start, strict=True)
    return np.array([angle(end, other) / angle(at, other) for end, other, at in triples])


# Where descent ends.


def basins(seeds: Sequence[int], rates: Sequence[float], until: float) -> pd.DataFrame:
    """Return where `squared_relus` end, in steps of a share of ‖W‖ to α = 2 and then by the flow.

    A row for each rate and seed. angle: to the limit of the flow all the way (rad); margin: that of
    this limit over the flow's, minus one; both NaN where a step killed every neuron that a point
    needs. edge: the largest ηλ/2 on the way.
    """
    networks, points, _ = zip(*map(squared_relus, seeds), strict=True)
    whole, begin = family(networks, points)
    rows = []

    def limits(starts: np.ndarray) -> dict[int, Trajectory]:
        """Return the flows from the starts [seeds, P] that are finite, by their place."""
        arrived = np.flatnonzero(np.isfinite(starts).all(1)).tolist()
        for k in arrived:
            vector_to_parameters(torch.from_numpy(starts[k]), networks[k].parameters())
        nets, data = ([of[k] for k in arrived] for of in (networks, points))
        found = gradient_flows(nets, data, until=until, tol=3e-3, records=4) if arrived else []
        return dict(zip(arrived, found, strict=True))

    flows = limits(flow_to(whole, begin, level=2.0)[-1])
    for rate in rates:
        run = _relative(whole, begin, rate, 20_000)
        ends = limits(run.end)
        for k, seed in enumerate(seeds):
            way = run.path(k)
            edge = edges(whole.rows([k]), way[:: max(1, len(way) // 200)], rate).max()
            row = {"seed": seed, "rate": rate, "angle": np.nan, "margin": np.nan, "edge": edge}
            if k in ends:
                end, flow = ends[k], flows[k]
                row["angle"] = angle(flow.direction[-1], end.direction[-1])
                row["margin"] = end.normalized_margin[-1] / flow.normalized_margin[-1] - 1
            rows.append(row)
    return pd.DataFrame(rows)


def _relative(one: Family, begin: np.ndarray, rate: float, steps: int) -> Descents:
    return descend(one, begin, rate, 2.0, rule="relative", keep=range(steps), steps=steps)


def ways(seed: int, sizes: Sequence[float]) -> pd.DataFrame:
    """Return ways of the neurons of `squared_relus` to α = 2: of the flow, and in steps of sizes.

    Columns: size, 0 for the flow; way; neuron; its coordinates over ‖W‖; α and, of descent, the
    step times curvature in units of the edge at thirty states.
    """
    network, task, _ = squared_relus(seed)
    one, begin = family([network], [task])
    paths = {0.0: flow_to(one, begin, level=2.0)[::16, 0]}
    for size in sizes:
        way = _relative(one, begin, size, 2000).path(0)
        paths[size] = way[np.unique(np.geomspace(1, len(way), 30).astype(int)) - 1]
    rows = []
    for size, way in paths.items():
        rays = (way[:, :24] / np.linalg.norm(way, axis=1, keepdims=True)).reshape(-1, 12, 2)
        about = {"size": size, "way": "descent" if size else "flow"}
        about["smoothed margin α"] = one.rows(np.zeros(len(way), dtype=int)).smoothed_margins(way)
        about["ηλ/2"] = edges(one, way, size) if size else np.nan
        for neuron in range(12):
            coordinates = zip(RAYS, rays[:, neuron].T, strict=True)
            rows.append(about | {"neuron": neuron} | dict(coordinates))
    return stacked(rows)


RAYS = ("first coordinate of $w_j$/‖W‖", "second coordinate of $w_j$/‖W‖")


# How far from the flow.


@dataclass(frozen=True, eq=False)
class Model:
    """Networks of one kind with their ten points of four dimensions, and their flow to α = 1.

    flow [k, r, P]; inexact: the largest angle to what half as many steps of the method give.
    """

    name: str
    networks: Sequence[torch.nn.Sequential]
    points: Sequence[Task]
    family: Family
    flow: np.ndarray
    inexact: float


def models(seeds: Sequence[int]) -> dict[str, Model]:
    """Return linear models, deep linear ones of three layers and six squared ReLUs, by name."""
    points = [tasks.separable_points(10, 4, margin=0.5, seed=seed) for seed in seeds]
    kinds = {"linear": [], "deep linear": [], "squared ReLU": []}
    for seed in seeds:
        draw = {"generator": torch.Generator().manual_seed(seed)}
        kinds["linear"].append(linear(4, scale=0.3, **draw))
        kinds["deep linear"].append(deep_linear([4, 3, 3, 1], scale=0.8, **draw))
        network = two_layer(4, 6, "squared_relu", scale=0.7, **draw)
        kinds["squared ReLU"].append(_both_signs(network))
    found = {}
    for name, networks in kinds.items():
        one, start = family(networks, points)
        flow, coarser = (flow_to(one, start, level=1.0, steps=steps) for steps in (400, 200))
        inexact = float(apart(flow[-1][None, :, None], coarser[-1]).max())
        found[name] = Model(name, networks, points, one, flow, inexact)
    return found


def gaps(
    model: Model, seeds: Sequence[int], kind: str, fractions: np.ndarray, **settings: object
) -> pd.DataFrame:
    """Return how far `departures` of a model are from its flow, and from the next start's.

    Columns: model, kind (of steps), seed, step (as a share of the edge), angle, wrong (rad).
    """
    ends = departures(model.family, model.flow, fractions, **settings)
    off = [apart(ends, flow) for flow in (model.flow[-1], np.roll(model.flow[-1], 1, axis=0))]
    about = {"model": model.name, "kind": kind, "seed": np.repeat(seeds, len(fractions))}
    columns = {"step": np.tile(fractions, len(seeds)), "angle": off[0].ravel()}
    return pd.DataFrame(about | columns | {"wrong": off[1].ravel()})


def orders(
    found: dict[str, Model], seeds: Sequence[int], halvings: int, draws: int
) -> pd.DataFrame:
    """Return the `gaps` of each model in three kinds of steps, of the linear one in batches too."""
    halves, soft = 0.5 ** np.arange(1, halvings + 1), {"rule": "logarithmic"}
    rows = []
    for model in found.values():
        rows.append(gaps(model, seeds, "constant", halves))
        rows.append(gaps(model, seeds, "normalized", halves, **soft))
        rows.append(gaps(model, seeds, "momentum", halves / 4, momentum=0.8, **soft))
    for order in ("reshuffled", "independent"):
        batches = {"batch": 5, "order": order, "draws": draws}
        rows.append(gaps(found["linear"], seeds, order, halves[:5], **batches))
    return stacked(rows)


def slopes(found: pd.DataFrame) -> pd.DataFrame:
    """Return the orders of `gaps`: model, kind, seed, slope, and stuck, held against another flow.

    Over the three smallest steps; of batches, whose angles are means of draws, over all of them.
    """
    rows = []
    for key, rest in found.groupby(["model", "kind", "seed"], sort=False):
        kept = rest if key[1] in ("reshuffled", "independent") else rest.nsmallest(3, "step")
        rows.append((*key, slope(kept.step, kept.angle), slope(kept.step, kept.wrong)))
    return pd.DataFrame(rows, columns=["model", "kind", "seed", "slope", "stuck"])


def linear_limits(model: Model, draws: int, until: float) -> pd.DataFrame:
    """Return angles of linear models to the SVM, after independent batches at half the edge.

    before: at α = 1; limit: after the flow from there to `until`. Of the first draw.
    """
    batches = {"batch": 5, "order": "independent", "draws": draws}
    ends = departures(model.family, model.flow, 0.5 ** np.arange(1, 6), **batches)
    rows = []
    for network, task, w in zip(model.networks, model.points, ends[0, :, 0], strict=True):
        vector_to_parameters(torch.from_numpy(w), network.parameters())
        end, svm = gradient_flow(network, task, until=until, tol=1e-3), hard_margin(task)[0]
        rows.append((angle(w, svm), angle(end.direction[-1], svm)))
    return pd.DataFrame(rows, columns=["before", "limit"])


def late_runs(found: dict[str, Model], seeds: Sequence[int]) -> pd.DataFrame:
    """Return late descent from α = 1 to 300 of the two models of degree three, a row for each run.

    steps: "small" ones lower ln R by ¼ to first order, "large" ones by 16, "signs" by ¼ along the
    signs of the gradient. fall: the largest of γ̃, not of signs; stray: where it ends, by `strayed`.
    """
    rows = []
    for model in (found["deep linear"], found["squared ReLU"]):
        one, ready = model.family, model.flow[-1]
        goal = flow_to(one, ready, level=300.0, steps=1500)[-1]
        for name, rate in (("small", 0.25), ("large", 16.0), ("signs", 0.25)):
            if name == "signs":
                there, falls = by_signs(one, ready, rate, 300.0), np.full(len(seeds), np.nan)
            else:
                there, falls = late_descent(one, ready, rate, 300.0, 3.0)
            strays = strayed(there, goal, ready)
            for seed, fall, stray in zip(seeds, falls, strays, strict=True):
                rows.append((model.name, seed, name, fall, stray))
    return pd.DataFrame(rows, columns=["model", "seed", "steps", "fall", "stray"])


def epochs_to_loss(recorded: Mapping) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the table of recorded training to a loss of 10^-800, and what is said of it."""
    epochs = pd.DataFrame(recorded["headline"])
    best, published = epochs[epochs.reached].epochs.min(), recorded["published"]["epochs"]
    told = {"best-epochs": float(best), "best-share": float(best / published)}
    names = {"schedule": "schedule", "reached": "reached", "epochs": "epochs", "redone": "redone"}
    names |= {"separated_at_epoch": "separated at epoch", "log10_loss": "log₁₀ of the loss"}
    names |= {"largest_drop": "largest drop"}
    epochs = epochs.assign(reached=epochs.reached.map({True: "yes", False: "no"}))
    return epochs[[*names]].rename(columns=names), told | {"published-epochs": published}
