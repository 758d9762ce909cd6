"""How soon a flow is at its limit: exponents of ln t.

For the flow of a homogeneous network ln t and α agree to leading order, so that distances to the
limit fall like a power of ln t, which `exponent` measures. Near a limit θ with margin a the flow
can be linearized: in ρ = ln‖W‖ it is dθ/dρ = Σ q_i ∇p_i(θ)/(L Σ q_i p_i(θ)) - θ. Moves that change
the margins of the examples with q_i > 0 are undone by q, up to order 1/α. Of those that do not, the
curvature H = Σ q_i ∇²p_i makes d' = (h/(La) - 1) d for an eigenvalue h of H among them: an error
that falls like ‖W‖^{-κ}, κ = 1 - h/(La), hence like (ln t)^{-κ/L}. The largest h decides, unless
the start has no part along it. This is a heuristic of ours, no theorem: it supposes that the
support is fixed and that what it neglects is small.

If the angle is of order (ln t)^{-r}, then 1 - cos(W, -∇R) is of order (ln t)^{-2r}: the direction's
speed is proportional to its distance. The margin a is stationary at the limit, which makes the
smallest margin's distance to it of second order as well; but γ̃ is below the smallest margin by the
entropy of q over ‖W‖^L, which is of order 1/ln t, so that a - γ̃ is of order (ln t)^{-min(2r, 1)}.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.linalg import null_space

from experiments import clothes
from experiments.frames import stacked
from experiments.where_it_fails import Hat, HatNetwork, on_sphere
from latephase.flow.errors import SolverError, StepCollapse
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory
from latephase.measures.max_margin import hard_margin
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle
from latephase.zoo import networks, tasks


def last_approach(angles: np.ndarray, nearest: float = 1e-6, farthest: float = 1e-2) -> np.ndarray:
    """Return which records [k] lie on the last approach to the limit, where exponents are measured.

    angles: to the limit, radians. From the first record on after which the angle stays below
    `farthest`, up to the last before it falls below `nearest`, where rounding begins.
    """
    angles = np.asarray(angles, dtype=float)
    far, near = np.flatnonzero(angles > farthest), np.flatnonzero(angles < nearest)
    places = np.arange(len(angles))
    return (places > far.max(initial=-1)) & (places < near.min(initial=len(angles)))


def exponent(log_time: np.ndarray, values: np.ndarray, kept: np.ndarray) -> float:
    """Return the slope of ln v against ln ln t over the records where `kept` is true.

    By least squares, each record weighing as much as the part of ln ln t that it stands for. NaN
    is never returned: +inf where fewer than three records with v > 0 and ln t > 0 are kept, so
    that a flow which ends early does not pass for one with an exponent.
    """
    log_time, values = np.asarray(log_time, dtype=float), np.asarray(values, dtype=float)
    kept = kept & (log_time > 0.0) & (values > 0.0)
    if kept.sum() < 3:
        return float("inf")
    u, v = np.log(log_time[kept]), np.log(values[kept])
    return float(np.polyfit(u, v, 1, w=np.sqrt(np.gradient(u)))[0])


def curvature_exponent(
    problem: Problem, direction: np.ndarray, dual: np.ndarray, degree: float, support: float = 1e-6
) -> float:
    """Return the exponent -min(1, κ/L) of the angle to the limit, from the limit's curvature.

    direction: W/‖W‖ at the end of a flow; dual: its q; examples with q > `support` hold the
    margin. -1 where these fix the direction, as errors of order 1/α remain in any case.
    """
    holding = np.flatnonzero(dual > support)
    constraints = np.vstack([problem.jacobian(direction, holding), direction])
    lengths = np.linalg.norm(constraints, axis=1, keepdims=True)
    free = null_space(constraints / np.where(lengths > 0.0, lengths, 1.0), rcond=1e-9)
    if free.shape[1] == 0:
        return -1.0
    margin = float(dual @ problem.margins(direction))
    curvatures = np.linalg.eigvalsh(free.T @ problem.hessian(direction, dual) @ free)
    kappa = 1.0 - curvatures / (degree * margin)
    # Along a set of limits nothing moves: that is no error.
    moving = kappa[np.abs(kappa) > 1e-2]
    return -float(min(1.0, moving.min(initial=degree) / degree))


@dataclass(frozen=True, eq=False)
class Decay:
    """How a flow comes to its limit: three series over its records, and their exponents in ln t.

    log_time, angle (to the limit), misalignment (1 - cos(W, -∇R)), gap (a - γ̃)  [k]
    kept [k]: the records of `last_approach`, between which exponents are measured
    predicted, early: `curvature_exponent` at the last and at the first record
    """

    log_time: np.ndarray
    angle: np.ndarray
    misalignment: np.ndarray
    gap: np.ndarray
    kept: np.ndarray
    predicted: float
    early: float

    @property
    def resolved(self) -> bool:
        """Whether the angle falls by three powers of ten between the records kept."""
        angles = self.angle[self.kept]
        return len(angles) > 2 and bool(angles.max() >= 1e3 * angles.min())

    @property
    def exponents(self) -> tuple[float, float, float]:
        """The exponents of angle, misalignment and gap."""
        series = (self.angle, self.misalignment, self.gap)
        return tuple(exponent(self.log_time, one, self.kept) for one in series)

    @property
    def surprise(self) -> float:
        """|measured - predicted| exponent of the angle, +inf for a flow without one."""
        return abs(self.exponents[0] - self.predicted)

    @property
    def order_defect(self) -> float:
        """How far the exponents of 1 - cos and of a - γ̃ are from -2r and -min(2r, 1), over r.

        r is minus the exponent of the angle. The larger of the two; +inf without exponents.
        """
        first, cosine, gap = self.exponents
        if not np.isfinite([first, cosine, gap]).all():
            return float("inf")
        r = -first
        return max(abs(cosine / first - 2.0), abs(gap + min(2.0 * r, 1.0)) / abs(r))


def decay(
    problem: Problem,
    flow: Trajectory,
    limit: np.ndarray | None = None,
    margin: float | None = None,
    kept_until: float = 0.75,
) -> Decay:
    """Return the `Decay` of a flow of the problem towards `limit`, where the margin is `margin`.

    Where the flow slides along kinks no exponent is predicted. Without a known limit the last
    record stands in for it, and records with ln t above (the last)^kept_until are left out: there
    the distance to the last record is no longer that to the limit.
    """
    end = flow.direction[-1] if limit is None else limit
    top = flow.normalized_smoothed_margin[-1] if margin is None else margin
    angles = np.array([angle(direction, end) for direction in flow.direction])
    latest = np.inf if limit is not None else flow.log_time[-1] ** kept_until
    last, first = (
        float("nan")
        if flow.active_kinks.any()
        else curvature_exponent(problem, flow.direction[k], flow.dual[k], flow.degree)
        for k in (-1, 0)
    )
    return Decay(
        log_time=flow.log_time,
        angle=angles,
        misalignment=flow.misalignment,
        gap=top - flow.normalized_smoothed_margin,
        kept=last_approach(angles) & (flow.log_time <= latest),
        predicted=last,
        early=first,
    )


# The models of the page, from the fastest to the slowest.
ORDER = ("linear", "deep linear", "squared ReLU, fixed signs", "squared ReLU", "two-layer ReLU")


def flows(seeds: Sequence[int], neurons: int, shirts: int, until: float) -> pd.DataFrame:
    """Return the flows of the models of `ORDER` from all seeds, a row each.

    Deep linear networks on so many images of `clothes` to α = 10^16, the others on twelve points of
    four dimensions, linear ones to 10^6 and networks to `until`. Columns: model, seed, task, flow,
    and decay, the flow's `Decay`; where the solver gave up both are None.
    """
    rows = [row for seed in seeds for row in _followed(seed, neurons, shirts, until)]
    rows.sort(key=lambda row: ORDER.index(row[0]))
    return pd.DataFrame(rows, columns=["model", "seed", "task", "flow", "decay"])


def _followed(seed: int, neurons: int, shirts: int, until: float) -> list[tuple]:
    deep, shirt = clothes.deep_linear(seed, shirts)
    # Starts are those that follow in the generator on a network of the page on test error.
    draw = {"generator": clothes.convolutional(seed)[1], "scale": 0.8}
    task, kind = tasks.separable_points(12, 4, margin=0.1, seed=seed), (4, neurons, "squared_relu")
    linear = networks.linear(4, **draw | {"scale": 0.1})
    signed = networks.two_layer(*kind, fixed_signs=True, generator=draw["generator"])
    trained, kinked = networks.two_layer(*kind, **draw), networks.two_layer(4, neurons, **draw)
    far, found = np.arange(0, np.log10(until) + 0.5, 1.5), []
    runs = ((linear, task, np.arange(0, 6.1, 0.2)), (deep, shirt, np.arange(0, 17)))
    runs += tuple((module, task, far) for module in (signed, trained, kinked))
    for name, (module, task, decades) in zip(ORDER, runs, strict=True):
        limit = hard_margin(task.x, task.y) if name == "linear" else ()
        try:
            flow = gradient_flow(module, task, tol=1e-3, at=10.0**decades)
            way = decay(Problem(module, task.x, task.y), flow, *limit)
            found.append((name, seed, task, flow, way))
        except SolverError:
            found.append((name, seed, task, None, None))
    return found


def hats(seeds: Sequence[int]) -> pd.DataFrame:
    """Return the flow of the Mexican hat from the bottom of its groove, as `flows` does."""
    rows = []
    for seed in seeds:
        x = np.random.default_rng(seed).uniform(2, 3)
        module = HatNetwork(Hat(), 2 * on_sphere(np.array(x), np.array(x + np.pi / 2)))
        one = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([1, -1])
        try:
            flow = gradient_flow(module, *one, until=1e60, tol=1e-3)
        except StepCollapse as error:
            flow = error.trajectory
        run = decay(Problem(module, *one), flow, margin=1.0)
        early = run.log_time <= run.log_time[-1] ** 0.75
        rows.append(("Mexican hat", seed, replace(run, kept=early)))
    return pd.DataFrame(rows, columns=["model", "seed", "decay"])


def series(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the series of each `Decay` above rounding: model, seed, measure, ln t, distance."""
    return stacked({
        "model": run.model, "seed": run.seed, "measure": name, "ln t": run.decay.log_time,
        "distance": getattr(run.decay, name),
    } for run in runs.itertuples() for name in ("angle", "misalignment", "gap")
    ).query("distance > 1e-15")  # fmt: skip


def exponents(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the exponents of `flows` or `hats` that were followed, a row each.

    Columns: model; seed; angle, cosine and gap, inf where there is none; predicted, early and
    resolved, surprise and defect of the `Decay`; wide, that of the angle between 1e-4 and 1e-1.
    """
    rows = []
    for run in runs.itertuples():
        way = run.decay
        kept = last_approach(way.angle, 1e-4, 1e-1) & (way.log_time <= way.log_time[-1] ** 0.75)
        found = dict(zip(("angle", "cosine", "gap"), way.exponents, strict=True))
        found |= {"predicted": way.predicted, "early": way.early, "resolved": way.resolved}
        found |= {"surprise": way.surprise, "defect": way.order_defect}
        found["wide"] = exponent(way.log_time, way.angle, kept)
        rows.append({"model": run.model, "seed": run.seed} | found)
    return pd.DataFrame(rows)


def elsewhere(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the exponents (angle, cosine) of the linear flows against the mean of their points."""
    rows = []
    for run in runs[runs.model == "linear"].itertuples():
        mean = (run.task.y[:, None] * run.task.x).mean(0).numpy()
        angles = np.arccos(run.flow.direction @ mean / np.linalg.norm(mean))
        rows.append([
            exponent(run.decay.log_time, values, run.decay.kept)
            for values in (angles, 1 - np.cos(angles))
        ])  # fmt: skip
    return pd.DataFrame(rows, columns=["angle", "cosine"])


def table(runs: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return each model's exponents, as `interval` writes them, beside what is proven of it."""
    proven = {"linear": "angle O(ln n/ln t), so a − γ̃ too"}
    proven["deep linear"] = "share beside rank one O((ln t)^(−2/L))"
    names = {"angle": "angle", "cosine": "1 − cos", "gap": "a − γ̃"}
    names["predicted"] = "−r, from the curvature"
    return pd.DataFrame(
        {"model": name, "L": f"{runs[runs.model == name].flow.dropna().iloc[0].degree:.0f}",
         "flows": len(rows)}
        | {title: interval(rows[column]) for column, title in names.items()}
        | {"proven": proven.get(name, "nothing")}
        for name, rows in found.groupby("model", sort=False)
    )  # fmt: skip


def interval(values: Iterable[float]) -> str:
    """Return the median of some exponents and their range, as text, and how many are finite."""
    values = np.asarray(list(values), dtype=float)
    found = values[np.isfinite(values)]
    share = "" if len(found) == len(values) else f", {len(found)} of {len(values)}"
    if len(found) == 0:
        return "not seen"
    told = f"{np.median(found):.2f} ({found.min():.2f} to {found.max():.2f}){share}"
    return told.replace("-", "−")


def said_of(surprises: pd.Series) -> str:
    """Return what the page says of flows that creep, by their surprises."""
    off, worst = int((surprises > 0.05).sum()), f"{surprises.max():.2f}"
    one = f"one creeps far more slowly than its curvature predicts: its exponent is {worst} smaller"
    words = {0: "none is off by more than 0.05", 1: one}
    return words.get(off, f"{off} are off by more than 0.05, up to {worst}")


def lost(runs: pd.DataFrame) -> str:
    """Return which of the `flows` were not followed, as words."""
    names = [f"{run.model}, seed {run.seed}" for run in runs[runs.flow.isna()].itertuples()]
    if not names:
        return "All were followed to the end"
    return f"Not followed to the end: {'; '.join(names)}"
