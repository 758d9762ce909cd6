"""Rows of what a run shows, as tidy frames, and neural-tangent predictors to compare limits with.

A run is a row of a frame with columns model, seed, net, task and flow, as `itertuples` gives it.
The tangent predictor has the largest margin in the features ∂Φ/∂W at a fixed W: what a network
would converge to if its features stayed those of its start.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from experiments.frames import by_seed, gather, seedwise  # noqa: F401  (for the chapter)
from latephase.flow.errors import NotSeparated
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory
from latephase.measures import settling
from latephase.measures.max_margin import hard_margin
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle, unit
from latephase.training.descent import gradient_descent
from latephase.zoo import networks
from latephase.zoo.tasks import with_contradictions

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


def squared_relu_tangent_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the tangent kernel of infinitely many squared ReLUs with fixed outer weights.

    ⟨a, b⟩ · E[relu⟨w, a⟩ relu⟨w, b⟩] over standard Gaussian w, up to a factor: a [m, d], b [n, d].
    The expectation is the arc-cosine kernel of order one,
    ‖a‖‖b‖ (sin t + (π - t) cos t)/(2π) with t the angle between a and b.
    """
    inner = a @ b.T
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    cosine = np.clip(inner / lengths, -1.0, 1.0)
    t = np.arccos(cosine)
    return inner * lengths * (np.sin(t) + (np.pi - t) * cosine) / (2.0 * np.pi)


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


def distances(run, points: np.ndarray) -> pd.DataFrame:
    """Return how far predictors are at points [m, d] from the tangent predictor of run.net.

    Those of the run's network in training, and of the kernel machine of infinite width.
    """
    x, y, kernel = run.task.x.numpy(), run.task.y.numpy(), squared_relu_tangent_kernel
    alpha = run.flow.smoothed_margin
    seen = [outputs(run, level, torch.from_numpy(points)) for level in alpha]
    infinite = kernel_predictor(kernel(x, x), y, kernel(points, x))
    return _from_tangent(run, points, [*alpha, np.nan], [*seen, infinite]).assign(
        network=["in training"] * len(seen) + ["of infinite width"]
    )


def linearized(run, points: np.ndarray) -> pd.DataFrame:
    """Return the same for run.net linearized, by a flow to the run's levels; run.rng draws it."""
    features, levels = tangent_features(run.net, run.task.x), run.flow.smoothed_margin
    start = networks.linear(features.shape[1], generator=run.rng)
    settings = {"at": [float(f"{level:.3g}") for level in levels], "tol": run.flow.settings["tol"]}
    flow = gradient_flow(start, features / np.abs(features).max(), run.task.y, **settings)
    seen = flow.direction @ tangent_features(run.net, points).T
    return _from_tangent(run, points, flow.smoothed_margin, seen).assign(network="linearized")


def _from_tangent(run, points: np.ndarray, alpha, seen) -> pd.DataFrame:
    lazy = tangent_predictor(run.net, run.task.x, run.task.y, points)
    away = [function_distance(f, lazy) for f in seen]
    return pd.DataFrame({"width": run.width, "seed": run.seed, ALPHA: alpha, "distance": away})


def turns(flow: Trajectory) -> list[float]:
    """Return the angles by which the direction turns in each e-fold of α, from 10 on."""
    seen = flow.direction[settling.milestones(flow.smoothed_margin, 10.0)]
    return [angle(u, v) for u, v in pairwise(seen)]


def contradicted(run) -> Trajectory | None:
    """Return a run on contradictory labels, None where the flow says that nothing fits them."""
    twins = with_contradictions(run.task)
    if run.model != "linear":
        vain = {"steps": 20, "rule": "relative", "rate": 0.1}
        return gradient_descent(run.net, twins.x, twins.y, **vain)
    try:
        return gradient_flow(run.net, twins.x, twins.y, until=1e8, tol=1e-3)
    except NotSeparated:
        return None


def thrown(run, rate: float) -> Trajectory | None:
    """Return descent with steps of a share of ‖W‖, None where one kills every neuron."""
    large = {"rule": "relative", "rate": rate, "until": 1e8, "per_efold": 2}
    try:
        return gradient_descent(run.net, run.task.x, run.task.y, **large)
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
