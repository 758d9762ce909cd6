"""Rows of what a run shows, as tidy frames, and predictors of lazy training to compare limits with.

A run is a row of a frame with columns model, seed, net, task and flow, as `itertuples` gives it.
The tangent predictor has the largest margin in the features ∂Φ/∂W at a fixed W: what a network
would converge to if its features stayed those of its start.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from unittest import mock

import numpy as np
import pandas as pd
import torch
from scipy import stats

from experiments.frames import by_seed, gather, seedwise  # noqa: F401  (for the chapter)
from experiments.variation_norm import largest_margin
from latephase.flow import course
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory, largest_drop
from latephase.measures import settling
from latephase.measures.max_margin import hard_margin
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle, unit
from latephase.training.descent import gradient_descent
from latephase.zoo import networks

ALPHA = "smoothed margin α"


def max_pooling(inputs: int, width: int, *, generator: torch.Generator) -> torch.nn.Sequential:
    """Return x ↦ Σ_j a_j max(relu⟨u_j, x⟩, relu⟨v_j, x⟩), of degree 2; width: u and v together."""
    look = {"bias": False, "dtype": torch.float64}
    neurons = torch.nn.Linear(inputs, width, **look), torch.nn.ReLU()
    # Pooling wants channels: one of all neurons.
    pairs = torch.nn.Unflatten(1, (1, width)), torch.nn.MaxPool1d(2), torch.nn.Flatten()
    net = torch.nn.Sequential(*neurons, *pairs, torch.nn.Linear(width // 2, 1, **look))
    networks.draw_weights(net, generator)
    return net


def tangent_features(module: torch.nn.Module, x: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return ∂Φ(x_i; W)/∂W at the module's parameters, [n, P]; one output, x [n, ...]."""
    problem = Problem(module, x, np.ones(len(x)))
    if problem.pairs != 1:
        raise ValueError(f"module: expected one output, got {problem.classes}")
    return problem.jacobian(problem.w0)


def tangent_predictor(module: torch.nn.Module, x, y, points) -> np.ndarray:
    """Return ⟨v, ∂Φ(·; W)/∂W⟩ at `points` [m], v of norm one with the largest margin on x, y.

    The limit of the flow of the network linearized at its parameters, up to a positive factor.
    """
    weights, _ = hard_margin(tangent_features(module, x), y)
    return tangent_features(module, points) @ weights


def kernel_predictor(gram: np.ndarray, y: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Return the values [m] of the maximum-margin function of a kernel, of norm one.

    gram: k(x_i, x_j) [n, n]; cross: k(point, x_j) [m, n]. Directions in which the Gram matrix is
    below 1e-12 of its largest eigenvalue are left out.
    """
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    weights, _ = hard_margin(vectors * np.sqrt(values), y)
    return cross @ (vectors @ (weights / np.sqrt(values)))


def relu_tangent_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the tangent kernel of infinitely many ReLUs, as `networks` draws them, up to a factor.

    E[relu⟨w, a⟩ relu⟨w, b⟩] over standard Gaussian w, a [m, d], b [n, d]: the part of the outer
    weights, beside which that of the inner ones falls like one over the width. It is
    the arc-cosine kernel of order one, ‖a‖‖b‖ (sin t + (π - t) cos t)/(2π), t the angle of a and b.
    """
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    cosine = np.clip(a @ b.T / lengths, -1.0, 1.0)
    t = np.arccos(cosine)
    return lengths * (np.sin(t) + (np.pi - t) * cosine) / (2.0 * np.pi)


def function_distance(f: np.ndarray, g: np.ndarray) -> float:
    """Return ‖f/‖f‖ - g/‖g‖‖ of two functions given by their values at the same points.

    0 for the same function up to a positive factor, √2 for orthogonal ones, 2 for opposite ones.
    """
    return float(np.linalg.norm(unit(np.ravel(f)) - unit(np.ravel(g))))


def outputs(run, level: float, points: torch.Tensor) -> np.ndarray:
    """Return what a run's network, at norm one, puts out at points [m, ...] when α = level, [m]."""
    net, record = copy.deepcopy(run.net), run.flow.at(level).index
    with torch.no_grad():
        return run.flow.write_to(net, record, normalized=True)(points).numpy().ravel()


def program(run, points: np.ndarray) -> np.ndarray:
    """Return the predictor of largest margin of all networks of a run's kind, at points [m, 3].

    Of two layers of squared ReLUs with fixed signs where the outer weights are not trained, of
    plain ReLUs otherwise: see `variation_norm`.
    """
    power = 1 if run.net[-1].weight.requires_grad else 2
    return largest_margin(run.task.x.numpy(), run.task.y.numpy(), power)(points)


def lazy(run, points: np.ndarray) -> np.ndarray:
    """Return the support vector machine of the infinitely wide tangent kernel, at points [m, d]."""
    x, kernel = run.task.x.numpy(), relu_tangent_kernel
    return kernel_predictor(kernel(x, x), run.task.y.numpy(), kernel(points, x))


def linearized(run, neurons: int, points: np.ndarray) -> np.ndarray:
    """Return the limit of the linearization of a network of a run's kind with so many neurons."""
    rng = torch.Generator().manual_seed(run.seed)
    look = {"scale": 3.0, "generator": rng}
    if not run.net[-1].weight.requires_grad:
        look |= {"activation": "squared_relu", "fixed_signs": True}
    net = networks.two_layer(3, neurons, **look)
    return tangent_predictor(net, run.task.x, run.task.y, torch.from_numpy(points))


def distances(run, points: np.ndarray) -> pd.DataFrame:
    """Return how far a run's network is from two predictors at points, and they from each other.

    From that of the linear program, and from that of the tangent kernel of infinite width.
    """
    best, kernel = program(run, points), lazy(run, points)
    alpha = run.flow.smoothed_margin
    seen = [outputs(run, level, torch.from_numpy(points)) for level in alpha]
    columns = {
        ALPHA: alpha,
        "distance to the program's": [function_distance(f, best) for f in seen],
        "distance to the kernel's": [function_distance(f, kernel) for f in seen],
        "between": function_distance(best, kernel),
    }
    return pd.DataFrame(columns).assign(model=run.model, seed=run.seed)


def differences(run, points: np.ndarray) -> pd.DataFrame:
    """Return predictors at points [m, 3] less that of the linear program, each of mean square one.

    A row for each point and predictor: the run's network at its first and last α, and lazy
    training's.
    """
    seen = torch.from_numpy(points)
    ends = run.flow.smoothed_margin[[0, -1]]
    of = {"just separated": outputs(run, ends[0], seen), "the limit": outputs(run, ends[1], seen)}
    of["tangent kernel"] = lazy(run, points)
    best, plane = program(run, points), pd.DataFrame(points[:, :2])
    plane.columns = ["first coordinate", "second coordinate"]
    parts = [
        plane.assign(difference=np.sqrt(len(points)) * (unit(f) - unit(best)), predictor=name)
        for name, f in of.items()
    ]
    return pd.concat(parts, ignore_index=True)


def limit_verdicts(
    rounded: pd.DataFrame, plain: pd.DataFrame, away: pd.DataFrame, points: np.ndarray
) -> dict[str, dict]:
    """Return values and controls of the claims on limits of wide networks.

    Of runs of squared ReLUs, of plain ones, and their `distances`: the last α counts.
    """
    ends, found = away.groupby(["model", "seed"], sort=False).last(), {}
    for name, runs in {"variation-norm": rounded, "relu-variation-norm": plain}.items():
        bent = [
            function_distance(linearized(run, len(run.net[0].weight), points), program(run, points))
            for run in runs.itertuples()
        ]
        value = ends.loc[runs.model.iloc[0]]["distance to the program's"]
        found[name] = {"value": value, "control": {"linearized network": bent}}
    end = ends.loc[plain.model.iloc[0]]
    broad = [
        function_distance(linearized(run, 4096, points), lazy(run, points))
        for run in plain.itertuples()
    ]
    found["not-lazy"] = {
        "value": np.abs(end["distance to the kernel's"] / end.between - 1),
        "control": {"linearized network": np.abs(broad / end.between - 1)},
    }
    return found


def logistic_measures(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs to α = 10, 2000, 10^10 and 10^20 with what is asked of them.

    drop: of γ̃; turn, early: of the direction, from 10^10 on and before; bent, bent_early: 1 - cos
    of weights and gradient at the end and at α = 10.
    """
    flows = runs.flow
    return runs.assign(
        drop=[flow.settings["margin_drop"] for flow in flows],
        turn=[angle(*flow.direction[2:]) for flow in flows],
        early=[angle(*flow.direction[[0, 2]]) for flow in flows],
        bent=[flow.misalignment[-1] for flow in flows],
        bent_early=[flow.misalignment[0] for flow in flows],
    )


def logistic_verdicts(runs: pd.DataFrame, thrown: pd.DataFrame) -> dict[str, dict]:
    """Return values and controls of the claims on the logistic loss.

    runs: as `logistic_measures` returns them; thrown: descent with large steps, as `logistic`.
    """
    worst = runs.groupby("seed", sort=False)[["drop", "turn", "early", "bent"]].max()
    drops = [flow.settings["margin_drop"] for flow in thrown.logistic]
    deep = runs[runs.model == "deep linear"]
    return {
        "logistic-margin-monotone": {
            "value": worst["drop"],
            "control": {"large steps": seedwise(thrown.seed, drops)},
        },
        "logistic-svm-limit": {
            "value": off_svm(deep, 1e20),
            "control": {"stopped at loss e^-2000": off_svm(deep, 2000.0)},
        },
        "logistic-settled": {"value": worst.turn, "control": {"stopped early": worst.early}},
        "logistic-aligned": {
            "value": worst.bent,
            "control": {"stopped early": seedwise(runs.seed, runs.bent_early)},
        },
    }


def half_interval(values: np.ndarray, level: float = 0.95) -> float:
    """Return half the length of Student's interval for the mean of values."""
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))


def records(run) -> pd.DataFrame:
    """Return a row for each record of the flow."""
    flow, about = run.flow, {"model": run.model, "seed": run.seed}
    columns = {
        ALPHA: flow.smoothed_margin,
        "normalized smoothed margin γ̃": flow.normalized_smoothed_margin,
        "length still to come (rad)": settling.tails(flow.path_length),
        "distance of the direction to its limit": np.append(settling.secants(flow.direction)[1], 0),
        "1 − cos(W, −∇R)": flow.misalignment,
        "relative gap of the normalized margin": (
            1 - flow.normalized_margin / flow.normalized_margin[-1]
        ),
    }
    return pd.DataFrame(about | columns)


def angles(run) -> pd.DataFrame:
    """Return the angle to the last direction at every record before it."""
    flow = run.flow
    off = [angle(one, flow.direction[-1]) for one in flow.direction[:-1]]
    columns = {ALPHA: flow.smoothed_margin[:-1], "angle to the limit (degrees)": np.degrees(off)}
    return pd.DataFrame(columns).assign(model=run.model, seed=run.seed)


def fall(drop: float) -> str:
    """Say how far γ̃ fell: a zero in words."""
    if drop == 0:
        return "did not fall in any step"
    power = int(np.floor(np.log10(drop)))
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"fell by at most {drop / 10.0**power:.1f} × 10{raised} of itself in any step"


def left_out(starts: dict[int, str]) -> str:
    """Say which starts were left out, and why."""
    if not starts:
        return "No start had to be left out."
    which = ", ".join(map(str, starts))
    return f"Left out, as some example was silent on every neuron that could speak for it: {which}."


def lengths(run) -> pd.DataFrame:
    """Return the length of the path per decade of α, then that while α is squared, from 10 on."""
    late = run.flow.smoothed_margin > 0
    alpha, length = run.flow.smoothed_margin[late], run.flow.path_length[late]
    decades = {
        ALPHA: np.sqrt(alpha[1:]) * np.sqrt(alpha[:-1]),
        "length per decade of α (rad)": np.diff(length) / np.diff(np.log10(alpha)),
    }
    each = settling.lengths_per_squaring(length, np.log(alpha))
    squarings = {
        "squaring of α, from 10 on": np.arange(1, len(each) + 1),
        "length per squaring of α (rad)": each,
    }
    both = pd.concat([pd.DataFrame(decades), pd.DataFrame(squarings)])
    return both.assign(model=run.model, seed=run.seed)


def exponent(run, first: float = 1e4, last: float = 1e8) -> float:
    """Return r of length still to come ~ α^(-r) between two smoothed margins, up to the last."""
    length = run.flow.path_length
    ahead = [length[-1] - run.flow.at(alpha).path_length for alpha in (first, last)]
    return float(np.log(ahead[0] / ahead[1]) / np.log(last / first))


def rate_of_turns(turned: np.ndarray) -> float:
    """Return r of turn ~ α^(-r), by least squares, of the turns in successive e-folds of α."""
    return -float(np.polyfit(np.arange(len(turned)), np.log(turned), 1)[0])


def late_turn(run, distance: float = 1e-3) -> float:
    """Return the widest angle between chords to the limit that are shorter than `distance`.

    In radians; the last two records are left out, as by `secants`, and chords below 1e-13, which
    are rounding; 0 with fewer than two chords.
    """
    chords, lengths = settling.secants(run.flow.direction[:-2])
    near = chords[(lengths < distance) & (lengths > 1e-13)]
    return settling.widest_angle(near) if len(near) > 1 else 0.0


def secants(run, left_out: int = 2) -> pd.DataFrame:
    """Return angle and length of the chords to the last record but `left_out`.

    The angle is that in the plane in which they turn most, with the last chord at its place.
    """
    chords, distance = settling.secants(run.flow.direction[:-left_out])
    plane, _ = settling.leading_plane(chords)
    plane += chords[-1] @ np.linalg.svd(chords - chords.mean(0))[2][:2].T
    columns = {
        "model": run.model,
        "seed": run.seed,
        "angle of the secant (rad)": np.arctan2(plane[:, 1], plane[:, 0]),
        "distance to the limit": distance,
        ALPHA: run.flow.smoothed_margin[: -left_out - 1],
    }
    return pd.DataFrame(columns)


def distributions(run) -> pd.DataFrame:
    """Return the normalized margin of every example at α = 10, 100, 10⁴ and 10⁸."""
    at = {"10": 10.0, "100": 100.0, "10⁴": 1e4, "10⁸": 1e8}
    margins = {alpha: run.flow.at(level).margins for alpha, level in at.items()}
    frame = pd.DataFrame(margins).melt(var_name="α", value_name="normalized margin p/‖W‖ᴸ")
    return frame.assign(model=run.model, seed=run.seed)


def endings(run) -> pd.DataFrame:
    """Return what an experiment that ends at a loss sees, and what it lacks of the limit."""
    flow, losses = run.flow, {"10⁻¹⁰": 23.0, "10⁻³⁰⁰": 691.0, "e⁻²⁰⁰⁰": 2000.0}
    then = [flow.at(alpha) for alpha in losses.values()]
    margins = np.array([one.normalized_margin for one in then]) / flow.normalized_margin[-1]
    columns = {
        "model": run.model,
        "seed": run.seed,
        "loss at the end": [*losses],
        "α": [*losses.values()],
        "angle to the limit (rad)": [angle(one.direction, flow.direction[-1]) for one in then],
        "margin short of its limit (%)": 100 * (1 - margins),
        "cos(W, −∇R)": [one.alignment for one in then],
    }
    return pd.DataFrame(columns)


def turns(flow: Trajectory) -> list[float]:
    """Return the angles by which the direction turns in each e-fold of α, from 10 on."""
    seen = flow.direction[settling.milestones(flow.smoothed_margin, 10.0)]
    return [angle(u, v) for u, v in pairwise(seen)]


@contextmanager
def unguarded() -> Iterator[None]:
    """Switch off the solver's refusal of steps that lower α/‖W‖^L, so that it could be lowered."""
    with mock.patch.object(course, "TUNING", replace(course.TUNING, monotone=np.inf)):
        yield


def in_another_metric(run, ratio: float = 3.0) -> float:
    """Return the largest drop of α/‖W‖² along dW/dt = -∇R(W)D², D = `ratio` on the first input.

    Of two layers with fixed signs, from the run's last direction and α = 1000. With W = VD this is
    the flow of V on the inputs Dx: α/‖V‖² never falls, and W leaves the direction from which
    α/‖W‖² can only fall.
    """
    net = run.flow.write_to(copy.deepcopy(run.net), len(run.flow) - 1, normalized=True)
    scale = torch.ones_like(run.task.x[0])
    scale[0] = ratio
    size = (1e3 / run.flow.normalized_smoothed_margin[-1]) ** 0.5
    with torch.no_grad():
        net[0].weight.mul_(size / scale)
    flow = gradient_flow(net, run.task.x * scale, run.task.y, until=1e6, tol=1e-3)
    neurons = flow.direction.reshape(len(flow), -1, len(scale)) * scale.numpy()
    log_norm = flow.log_norm + np.log(np.linalg.norm(neurons, axis=(1, 2)))
    return largest_drop(flow.smoothed_margin * np.exp(-2 * log_norm))


def thrown(run, rate: float, loss: str | None = None) -> Trajectory | None:
    """Return descent with steps of a share of ‖W‖, None where one kills every neuron."""
    large = {"rule": "relative", "rate": rate, "until": 1e8, "per_efold": 2}
    try:
        return gradient_descent(run.net, run.task.x, run.task.y, loss, **large)
    except FloatingPointError:
        return None


def measured(runs: pd.DataFrame, ends) -> pd.DataFrame:
    """Return `settling.measures` of every run, until its α of `ends`, or one α for all."""
    ends = np.broadcast_to(ends, len(runs))
    rows = [settling.measures(flow, end) for flow, end in zip(runs.flow, ends, strict=True)]
    return runs[["model", "seed"]].reset_index(drop=True).join(pd.DataFrame(rows))


def parted(coarse: Trajectory, fine: Trajectory) -> float:
    """Return the length still to come at the first record of the coarse run at which they part."""
    at = [fine.at(alpha).index for alpha in coarse.smoothed_margin[:-1]]
    tails = settling.tails(coarse.path_length)[:-1], settling.tails(fine.path_length)[at]
    return settling.largest_unresolved(*tails)


def tossed(one: Trajectory, other: Trajectory) -> float:
    """Return the same of two descents, at their first records in each decade of α from 10 on."""
    at = [settling.milestones(run.smoothed_margin, 10.0, ratio=10.0) for run in (one, other)]
    tails = settling.tails(one.path_length)[at[0]], settling.tails(other.path_length)[at[1]]
    return settling.largest_unresolved(*tails)


def off_svm(runs: pd.DataFrame, level: float) -> np.ndarray:
    """Return the angle to the SVM of networks linear in three inputs, the worst at each seed."""
    off = [
        angle(outputs(run, level, torch.eye(3).double()), hard_margin(run.task.x, run.task.y)[0])
        for run in runs.itertuples()
    ]
    return by_seed(runs.assign(off=off), "model", "off").to_numpy().max(axis=0)


def in_plane(flow: Trajectory) -> pd.DataFrame:
    """Return the direction on the two axes along which it moves most."""
    plane = pd.DataFrame(settling.leading_plane(flow.direction)[0])
    plane = plane.set_axis(["first principal component", "second principal component"], axis=1)
    return plane.assign(**{ALPHA: flow.smoothed_margin})


def descended(run) -> pd.DataFrame:
    """Return γ̃ along a run, then the turn of the direction in each e-fold of α from 10 on."""
    margins = records(run).iloc[:, :4]
    turned = pd.DataFrame({"turn of the direction (rad)": turns(run.flow)})
    turned.insert(0, "e-fold of α, from 10 on", turned.index + 1)
    both = pd.concat([margins[margins[ALPHA] > 0], turned])
    return both.assign(model=run.model, seed=run.seed)
