"""Rows of what runs show; flows of any module and of the squared loss by scipy; ranks of layers.

A run is a row of a frame with columns model, seed, net, task, problem and flow.
The bounds are those that a deep linear network's start puts on what its layers have beside their
first singular values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp

from experiments.frames import seedwise
from experiments.pacing import ALPHA
from latephase.flow.errors import NotSeparated, StepCollapse
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory
from latephase.measures import settling
from latephase.measures.alignment import Gradients, along, saliency, with_duals_from_margins
from latephase.measures.layers import balancedness, neighbor_defect, rank_defect
from latephase.measures.max_margin import hard_margin
from latephase.problem.degree import homogeneity_degree
from latephase.problem.generalized import generalized_gradient
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle, misalignment, unit
from latephase.zoo import networks, tasks

MISALIGNMENT = "misalignment 1 − cos(W, −∇R)"


def follow(net: torch.nn.Module, task, levels: Sequence[float], **settings) -> Trajectory:
    """Return the flow to each level of α in turn, as far as the solver comes."""
    try:
        flow = gradient_flow(net, task, until=levels[0], tol=1e-3, **settings)
        for level in levels[1:]:
            flow = flow.extend(level)
    except StepCollapse as error:
        return error.trajectory
    return flow


def rectified(seed: int, rng: torch.Generator) -> Iterator[tuple]:
    """Yield model, seed, network and task of two networks of plain ReLUs."""
    points = tasks.separable_points(10, 3, margin=0.2, seed=seed)
    yield "two-layer ReLU", seed, networks.two_layer(3, 8, generator=rng, scale=0.5), points
    plane = tasks.planar_points(14, deleted=0.5, seed=seed)
    own = torch.Generator().manual_seed(seed)
    yield "three-layer ReLU", seed, networks.mlp([3, 12, 12, 1], generator=own), plane


def biased(seed: int, rng: torch.Generator, width: int, until: float) -> pd.DataFrame:
    """Return the flow to α = until of a squared-ReLU network with biases in both layers.

    A row for each step of `primal`, on points of the plane without a constant coordinate.
    """
    task = tasks.planar_points(14, deleted=0.5, seed=seed)
    net = networks.two_layer(2, width, "squared_relu", generator=rng, scale=0.5)
    inner, outer = torch.randn(width + 1, generator=rng, dtype=torch.float64).split([width, 1])
    net[0].bias, net[2].bias = torch.nn.Parameter(0.5 * inner), torch.nn.Parameter(outer)
    problem = Problem(net, task.x[:, :2], task.y)
    alpha, value = primal(problem, until=until)
    columns = {"model": "squared ReLU, biases", "seed": seed, ALPHA: alpha, MISALIGNMENT: value}
    columns["defect of homogeneity"] = homogeneity_degree(net, task.x[:, :2])[1]
    columns["defect of Euler's identity"] = off_euler(problem, 3.0)
    return pd.DataFrame(columns)


def wanderer(early: pd.Series, late: pd.Series) -> tuple[float, float, float]:
    """Return the margins of the run that gains most, early and late, and the nearest other's late.

    early, late: the margin of each run, by the same index.
    """
    which = (late / early).idxmax()
    other = min(late.drop(which), key=lambda margin: abs(margin - late[which]))
    return early[which], late[which], other


def separated(runs: pd.DataFrame, until: float, **settings) -> tuple[list, dict[int, str]]:
    """Return each run's flow to α = until, None for one that never separates, and {seed: why}."""
    flows, why = [], {}
    for run in runs.itertuples():
        try:
            flows.append(follow(run.net, run.task, [until], **settings))
        except NotSeparated as error:
            flows.append(None)
            why[run.seed] = f"{run.model}: {error}"
    return flows, why


def along_kinks(run) -> pd.DataFrame:
    """Return 1 - cos of weights and gradient at each record of a flow along kinks, two rows each.

    One for the gradient that the flow follows, and one for the one that PyTorch returns.
    """
    flow = run.flow
    ways = {
        "that the flow follows": flow.misalignment,
        "that PyTorch returns": along(run.problem, flow).misalignment,
    }
    columns = {"model": run.model, "seed": run.seed, ALPHA: flow.smoothed_margin}
    parts = [
        pd.DataFrame(columns | {MISALIGNMENT: value, "gradient": way})
        for way, value in ways.items()
    ]
    return pd.concat(parts, ignore_index=True)


def least_norm(run) -> float:
    """Return 1 - cos of the last weights of a flow and the generalized gradient of least norm."""
    last = run.flow.record()
    # The flow keeps sliding kinks within a hundredth of its tolerance, 1e-3.
    found = generalized_gradient(run.net, run.task, w=last.direction, kink_tol=1e-5, dual=last.dual)
    return misalignment(last.direction, found.gradient)


def of_kinks(runs: pd.DataFrame) -> dict[str, tuple[dict, dict]]:
    """Return for each claim on ReLU networks {seed: value} and its controls.

    runs: with 1 - cos(W, g) at the end for each gradient g of `along_kinks` and, as least, for
    the one of least norm.
    """
    least, returned = (
        seedwise(runs.seed, runs[name], max) for name in ("least", "that PyTorch returns")
    )
    return {
        "least-norm": (least, {"automatic differentiation": returned}),
        "automatic-differentiation": (returned, {"least norm": least}),
    }


def told(why: dict[int | str, str], none: str, lead: str) -> str:
    """Return the starts that were lost and why as a sentence that begins with `lead`, or `none`."""
    listed = "; ".join(f"start {start} ({reason})" for start, reason in why.items())
    return f"{lead} {listed}." if why else none


def seen(run) -> Gradients:
    """Return the gradients along the run's flow."""
    return along(run.problem, run.flow)


def off_euler(problem: Problem, degree: float) -> float:
    """Return |⟨W, ∇α⟩/(L Σ q_i p_i) - 1| at the problem's weights, L being `degree`."""
    _, p, log_dual, gradient = problem.smoothed_margin(problem.w0)
    return float(abs(problem.w0 @ gradient / (degree * np.sum(np.exp(log_dual) * p)) - 1.0))


def recomputed(run) -> float:
    """Return the last misalignment with duals computed from the margins."""
    return with_duals_from_margins(run.problem, run.flow)


def off_svm(runs: pd.DataFrame, level: float) -> list[float]:
    """Return the gradient's angle to the SVM of each linear run, at its first α ≥ level."""
    found = []
    for run in runs.itertuples():
        first = settling.milestones(run.flow.smoothed_margin, level)[0]
        found.append(angle(run.seen.gradient[first], hard_margin(run.task.x, run.task.y)[0]))
    return found


def records(run) -> pd.DataFrame:
    """Return a row for each record of the flow, from the `Gradients` in run.seen."""
    seen = run.seen
    columns = {
        "model": run.model,
        "seed": run.seed,
        ALPHA: seen.smoothed_margin,
        "log₁₀ α": np.log10(np.maximum(seen.smoothed_margin, 1e-9)),
        MISALIGNMENT: seen.misalignment,
        "path of the gradient ahead (rad)": seen.gradient_length[-1] - seen.gradient_length,
        "dual potential J": seen.potential,
        "normalized smoothed margin γ̃": seen.margin,
        "certificate (J − γ̃)/γ̃": seen.gap(),
        "defect of Euler's identity": seen.euler_defect(),
    }
    return pd.DataFrame(columns)


def directions(run) -> pd.DataFrame:
    """Return the directions of weights and gradient in the plane that holds most of both."""
    both = np.concatenate([run.flow.direction, run.seen.gradient])
    plane = pd.DataFrame(settling.leading_plane(both)[0])
    plane = plane.set_axis(["first principal component", "second principal component"], axis=1)
    names = np.repeat(["W/‖W‖", "−∇R/‖∇R‖"], len(run.flow))
    alpha = np.tile(run.flow.smoothed_margin, 2)
    return plane.assign(direction=names, model=run.model, seed=run.seed, **{ALPHA: alpha})


def saliency_maps(run) -> tuple[np.ndarray, np.ndarray]:
    """Return (α [k], ∇_x Φ/‖W‖^L [k, images, pixels]) at the start and in each decade of α."""
    alpha = run.flow.smoothed_margin
    at = np.unique([0, *settling.milestones(alpha, 10.0, 10.0)])
    net = copy.deepcopy(run.net)
    maps = [saliency(run.flow.write_to(net, k, normalized=True), run.task.x) for k in at]
    return alpha[at], np.array(maps).reshape(len(at), len(run.task), -1)


def map_turns(run) -> pd.DataFrame:
    """Return the angle by which each image's map of `saliency_maps` turns per decade of α."""
    alpha, maps = run.maps
    parts = [
        pd.DataFrame({
            "seed": run.seed,
            ALPHA: np.sqrt(alpha[k] * alpha[k + 1]),
            "image": range(len(maps[k])),
            "turn per decade of α (rad)": [
                angle(*pair) / np.log10(alpha[k + 1] / alpha[k])
                for pair in zip(maps[k], maps[k + 1], strict=True)
            ],
        })
        for k in range(len(alpha) - 1)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def layers(run, until: float) -> tuple[list, np.ndarray, list]:
    """Return (weights at the start, α [k], weights [k]) of a flow by decades of α to `until`.

    Over many decades at once the solver's own rule would damp what is left of each rank.
    """
    flow, shapes = gradient_flow(run.net, run.task, until=3.0, records=2), run.problem.shapes
    alpha, weights = [], []
    while flow.smoothed_margin[-1] < until:
        flow = flow.extend(flow.smoothed_margin[-1] * 10)
        alpha.append(flow.smoothed_margin[-1])
        w = flow.direction[-1] * np.exp(flow.log_norm[-1])
        weights.append(split_weights(w, shapes))
    return split_weights(run.problem.w0, shapes), np.array(alpha), weights


def layer_rows(run) -> pd.DataFrame:
    """Return the numbers of the first two layers, and their bounds, at each run.alpha [k]."""
    ranks = run.ranks
    kinds = {"1 − ‖W‖₂²/‖W‖_F²": (ranks.rank, ranks.rank_bound, "layer {}".format),
             "1 − ⟨v, u⟩²": (ranks.neighbor, ranks.neighbor_bound,
                             lambda k: f"layers {k}, {k + 1}")}  # fmt: skip
    parts = [
        pd.DataFrame({"model": run.model, "seed": run.seed, ALPHA: run.alpha, "value": table[:, k]})
        .assign(**{"measure": measure, "layer": name(k + 1), "measured or bound": which})
        for measure, (value, bound, name) in kinds.items()
        for which, table in (("measured", value), ("bound", bound))
        for k in (0, 1)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def moved(runs: pd.DataFrame) -> list[tuple[float, float]]:
    """Return `LowRank.used` of each run's last weights moved by a millionth, and of random ones."""
    rng, found = np.random.default_rng(0), []
    for run in runs.itertuples():
        last = run.weights[-1]
        steps = [np.linalg.norm(a) * unit(rng.normal(size=a.shape)) for a in last]
        shifted = [a + 1e-6 * b for a, b in zip(last, steps, strict=True)]
        found.append(tuple(low_rank(run.start, [w]).used() for w in (shifted, steps)))
    return found


def primal(problem: Problem, until: float, rtol: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
    """Return (α [k], 1 - cos(W, -∇R) [k]) along the flow of any module, homogeneous or not.

    By scipy's LSODA for dW/dσ = ‖W‖ ∇α/‖∇α‖ with the exact second derivatives, up to α = until.
    The dual variables come from the margins, which carry the error rtol·α: the misalignment is
    to be trusted while that is far below one. Raises RuntimeError where α does not get there.
    """

    def velocity(_: float, w: np.ndarray) -> np.ndarray:
        return np.linalg.norm(w) * unit(problem.smoothed_margin(w)[3])

    def derivative(_: float, w: np.ndarray) -> np.ndarray:
        _, _, log_dual, gradient = problem.smoothed_margin(w)
        dual, norm, jacobian = np.exp(log_dual), np.linalg.norm(w), problem.jacobian(w)
        curvature = problem.hessian(w, dual) - (jacobian.T * dual) @ jacobian
        curvature += np.outer(gradient, gradient)
        along, slope = unit(gradient), np.linalg.norm(gradient)
        across = curvature - np.outer(along, along @ curvature)
        return norm / slope * across + np.outer(along, w / norm)

    def missing(_: float, w: np.ndarray) -> float:
        return problem.smoothed_margin(w)[0] - until

    tolerances = {"rtol": rtol, "atol": rtol * float(np.linalg.norm(problem.w0))}
    states = _flow(velocity, derivative, missing, problem.w0, 1e3, **tolerances)
    found = [problem.smoothed_margin(w) for w in states]
    misaligned = [misalignment(w, one[3]) for w, one in zip(states, found, strict=True)]
    return np.array([one[0] for one in found]), np.array(misaligned)


def squared_loss(problem: Problem, fall: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Return (‖∇R‖ relative to the start [k], 1 - cos(W, -∇R) [k]) for R = ½Σ(Φ - y)².

    The flow dW/dt = -∇R from the problem's weights, labels ±1, until the gradient has fallen to
    `fall` of its norm at the start; by scipy's LSODA with the exact second derivatives. Raises
    RuntimeError where it does not.
    """

    def velocity(_: float, w: np.ndarray) -> np.ndarray:
        # (Φ - y)² = (p - 1)² with the margins p = yΦ.
        return problem.weighted_gradient(w, 1.0 - problem.margins(w))[1]

    def derivative(_: float, w: np.ndarray) -> np.ndarray:
        jacobian = problem.jacobian(w)
        return problem.hessian(w, 1.0 - problem.margins(w)) - jacobian.T @ jacobian

    start = float(np.linalg.norm(velocity(0.0, problem.w0)))

    def missing(t: float, w: np.ndarray) -> float:
        return float(np.linalg.norm(velocity(t, w))) / start - fall

    tolerances = {"rtol": 1e-4, "atol": 1e-2 * fall}
    states = _flow(velocity, derivative, missing, problem.w0, 1e12, **tolerances)
    gradients = [velocity(0.0, w) for w in states]
    misaligned = [misalignment(w, g) for w, g in zip(states, gradients, strict=True)]
    return np.linalg.norm(gradients, axis=1) / start, np.array(misaligned)


def _flow(velocity, derivative, missing, w0, longest, **tolerances) -> np.ndarray:
    """Return W [k, P] at the steps of dW/dt = velocity from w0 to where `missing` is zero."""
    missing.terminal = True
    solution = solve_ivp(
        velocity, (0.0, longest), w0, "LSODA", events=missing, jac=derivative, **tolerances
    )
    if solution.status != 1:
        left = missing(solution.t[-1], solution.y[:, -1])
        raise RuntimeError(f"the flow stopped before its end, by {left:.3g}: {solution.message}")
    return solution.y.T


@dataclass(frozen=True, eq=False)
class LowRank:
    """Rank and neighbour alignment of a deep linear network's layers, with their bounds.

    rank, rank_bound [k, L]              1 - ‖W_k‖_2²/‖W_k‖_F² and D/‖W_k‖_F²
    `neighbor`, `neighbor_bound` [k, L - 1] 1 - ⟨v_{k+1}, u_k⟩² and
                                         (D + ‖W_{k+1}(0)‖_2² + ‖W_k(0)‖_2²)/‖W_{k+1}‖_2²
    """

    rank: np.ndarray
    rank_bound: np.ndarray
    neighbor: np.ndarray
    neighbor_bound: np.ndarray

    def used(self) -> float:
        """Return the largest ratio of a value to its bound; no more than 1 along the flow."""
        ratios = self.rank / self.rank_bound, self.neighbor / self.neighbor_bound
        return float(max(ratio.max() for ratio in ratios))


def imbalance(weights: Sequence[np.ndarray]) -> float:
    """Return D, what the weights W_1, ..., W_L of a deep linear network start with.

    D = max_k ‖W_k‖_F² - ‖W_L‖_F² + Σ_k ‖W_k W_kᵀ - W_{k+1}ᵀ W_{k+1}‖_2; the differences in the sum
    do not change along the flow, so that no layer can have more than D beside its first singular
    value. (Ji and Telgarsky 2018.)
    """
    norms = [float(np.sum(weight**2)) for weight in weights]
    return max(norms) - norms[-1] + sum(balancedness(a, b) for a, b in pairwise(weights))


def low_rank(start: Sequence[np.ndarray], states: Iterable[Sequence[np.ndarray]]) -> LowRank:
    """Return the `LowRank` of the states of a flow from `start`; weights in their own units."""
    excess, first = imbalance(start), [np.linalg.norm(weight, 2) ** 2 for weight in start]
    rows = []
    for weights in states:
        pairs = list(pairwise(weights))
        above = [np.linalg.norm(upper, 2) ** 2 for _, upper in pairs]
        rows.append((
            [rank_defect(weight) for weight in weights],
            [excess / np.sum(weight**2) for weight in weights],
            [neighbor_defect(*pair) for pair in pairs],
            [(excess + a + b) / top for (a, b), top in zip(pairwise(first), above, strict=True)],
        ))  # fmt: skip
    return LowRank(*(np.array(column) for column in zip(*rows, strict=True)))


def split_weights(w: np.ndarray, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return the flat vector w [P] as weight matrices of the given shapes, in order."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(w, ends[:-1]), shapes, strict=True)]
