"""What sets the pace of alignment: a second derivative of the margins, and where the flow rests.

A run is a row of a frame with columns model, seed, net, task, problem and flow.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy.optimize import least_squares

from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory
from latephase.measures import settling
from latephase.measures.alignment import saliency
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle, misalignment, unit

ALPHA = "smoothed margin α"


def paces(run) -> pd.DataFrame:
    """Return tan φ and d ln tan φ/d ln α at each record, φ the angle of W and -∇R.

    With g = Σ q_i ∇p_i at the unit vector θ, v = g/⟨θ, g⟩ - θ is the velocity dθ/d ln‖W‖, of length
    tan φ. Where the margins of all examples with q_i > 0 grow alike,

        d ln tan φ/d ln‖W‖ = κ - 1 - L tan² φ,  κ = v̂ᵀ(Σ q_i ∇²p_i)v̂/⟨θ, g⟩,
        d ln α/d ln‖W‖ = L (1 + tan² φ)

    up to terms of order 1/α (derived in the chapter). A network that is linear in its weights
    along v̂ has κ = 0 and, once tan φ is small, the pace -1/L.
    """
    tangent, pace, degree = [], [], run.flow.degree
    for w, q in zip(run.flow.direction, run.flow.dual, strict=True):
        gradient = run.problem.weighted_gradient(w, q)[1]
        radial = w @ gradient
        velocity = gradient / radial - w
        tangent.append(np.linalg.norm(velocity))
        along = velocity[:, None] / tangent[-1]
        bent = (along.T @ run.problem.curvature(w, q, along)).item() / radial
        square = tangent[-1] ** 2
        pace.append((bent - 1.0 - degree * square) / (degree * (1.0 + square)))
    columns = {"model": run.model, "seed": run.seed, ALPHA: run.flow.smoothed_margin}
    columns |= {"tan φ": tangent, "pace": pace, "linear": -1.0 / degree}
    return pd.DataFrame(columns)


def mean_paces(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the measured and the foretold mean of d ln tan φ/d ln α over a run's `paces`.

    From α = 10⁶ to the last record before tan φ < 10⁻⁵, which is what the solver's equations leave;
    foretold by the trapezoidal rule in ln α. NaN where fewer than two records are left.
    """
    late = rows[rows[ALPHA] >= 1e6]
    late = late[(late["tan φ"] > 1e-5).cummin()]
    if len(late) < 2:
        return np.nan, np.nan
    log_alpha, log_tangent = np.log(late[ALPHA].to_numpy()), np.log(late["tan φ"].to_numpy())
    length = log_alpha[-1] - log_alpha[0]
    foretold = np.trapezoid(late.pace.to_numpy(), log_alpha)
    return (log_tangent[-1] - log_tangent[0]) / length, foretold / length


def pace_gaps(rows: pd.DataFrame) -> dict:
    """Return {seed: worst gap of the `mean_paces`} of all models."""
    gaps = {}
    for (_, seed), part in rows.groupby(["model", "seed"], sort=False):
        found, foretold = mean_paces(part)
        gaps[seed] = np.fmax(gaps.get(seed, 0.0), abs(found - foretold))
    return gaps


def in_another_metric(run, levels: Sequence[float], speed: float = 4.0):
    """Return a run followed to each level in a metric in which its first layer moves faster.

    That is the flow of the weights of which the first layer is divided by √speed, on inputs that
    are multiplied by it; its first layer is then multiplied back. flow: as far as it is asked here.
    """
    net, scale = copy.deepcopy(run.net), np.sqrt(speed)
    first = next(net.parameters())
    first.data /= scale
    settings = {"until": levels[0], "tol": 1e-3, "records": 10_000}
    flow = gradient_flow(net, run.task.x * scale, run.task.y, **settings)
    for level in levels[1:]:
        flow = flow.extend(level)
    w = flow.direction.copy()
    w[:, : first.numel()] *= scale
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    forces = [run.problem.weighted_gradient(*pair)[1] for pair in zip(w, flow.dual, strict=True)]
    seen = SimpleNamespace(
        direction=w,
        dual=flow.dual,
        degree=flow.degree,
        smoothed_margin=flow.smoothed_margin,
        misalignment=np.array(list(map(misalignment, w, forces))),
    )
    return SimpleNamespace(model=run.model, seed=run.seed, problem=run.problem, flow=seen)


def gaps_in_another_metric(runs: pd.DataFrame) -> dict:
    """Return `pace_gaps` of runs `in_another_metric`, to α = 10¹²."""
    levels = np.geomspace(1e6, 1e12, 25)
    elsewhere = [in_another_metric(run, levels) for run in runs.itertuples()]
    return pace_gaps(pd.concat(map(paces, elsewhere)))


def exponents(problem: Problem, w: np.ndarray, dual: np.ndarray, degree: float) -> np.ndarray:
    """Return the exponents μ, in descending order, of perturbations of a KKT direction w [P].

    A tangent d in which the margins of all examples with q_i > 0 grow alike and which is an
    eigenvector of Σ q_i ∇²p_i, projected on all such d, with eigenvalue c, changes like α^μ with
    μ = (c/⟨w, g⟩ - 1)/L, g = Σ q_i ∇p_i. Some μ > 0 makes w a saddle of the margin.
    """
    gradient = problem.weighted_gradient(w, dual)[1]
    held = problem.jacobian(w, np.flatnonzero(dual > 0.0)) - gradient
    _, sizes, right = np.linalg.svd(np.vstack([w * (w @ gradient), held]))
    free = right[np.sum(sizes > 1e-7 * sizes[0]) :].T
    curvatures = np.linalg.eigvalsh(free.T @ problem.hessian(w, dual) @ free)[::-1]
    return (curvatures / (w @ gradient) - 1.0) / degree


@dataclass(frozen=True, eq=False)
class Rest:
    """Where the equations of `rest` are met best: exactly, or as far as there is a solution.

    direction [P] the unit vector; residual ‖Σ q_i ∇p_i - L m θ‖/(L m), zero at a KKT point;
    exponents the `exponents` there; is_limit whether it is a KKT point of which the margin has a
    strict local maximum: q ≥ 0, no other margin smaller, all exponents negative.
    """

    direction: np.ndarray
    residual: float
    exponents: np.ndarray
    is_limit: bool


def rest(problem: Problem, w: np.ndarray, dual: np.ndarray, degree: float) -> Rest:
    """Return the KKT point of the margin nearest to a state of a flow, or what is next to one.

    Solves Σ q_i ∇p_i(θ) = L m θ, p_i(θ) = m, ‖θ‖ = 1, Σ q_i = 1 for θ, q and m, over the examples
    that hold a millionth of the dual variables, by Levenberg and Marquardt's method with exact
    derivatives, from θ = w and q = `dual`. No flow is involved.
    """
    chosen, size = np.flatnonzero(dual > 1e-6), len(w)

    def split(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        q = np.zeros_like(dual)
        q[chosen] = z[size:-1]
        return z[:size], q, z[-1]

    def defect(z: np.ndarray) -> np.ndarray:
        theta, q, m = split(z)
        p, gradient = problem.weighted_gradient(theta, q)
        ends = 0.5 * (theta @ theta - 1.0), q.sum() - 1.0
        return np.concatenate([gradient - degree * m * theta, p[chosen] - m, ends])

    def derivative(z: np.ndarray) -> np.ndarray:
        theta, q, m = split(z)
        rows, n = problem.jacobian(theta, chosen), len(chosen)
        found = np.zeros((size + n + 2, size + n + 1))
        found[:size, :size] = problem.hessian(theta, q) - degree * m * np.eye(size)
        found[:size, size:-1], found[size:-2, :size] = rows.T, rows
        found[:size, -1], found[size:-2, -1] = -degree * theta, -1.0
        found[-2, :size], found[-1, size:-1] = theta, 1.0
        return found

    start = np.concatenate([w, dual[chosen] / dual[chosen].sum(), [dual @ problem.margins(w)]])
    tightest = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
    solution = least_squares(defect, start, derivative, method="lm", max_nfev=2000, **tightest)
    theta, q, m = split(solution.x)
    residual = float(np.linalg.norm(solution.fun[:size]) / (degree * abs(m)))
    found = exponents(problem, unit(theta), q, degree)
    least = problem.margins(theta).min() - m
    feasible = q.min() >= 0.0 and least >= -1e-9 * abs(m) and residual < 1e-9
    return Rest(unit(theta), residual, found, bool(feasible and found[0] < 0.0))


def pace_lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the measured and the foretold pace of a run's `paces`, where tan φ is resolved.

    Foretold at the records, measured between each two of them.
    """
    late = rows[(rows[ALPHA] >= 1e6) & (rows["tan φ"] > 1e-5)]
    log_alpha, log_tangent = np.log(late[ALPHA].to_numpy()), np.log(late["tan φ"].to_numpy())
    lines = {
        "foretold by κ": (log_alpha, late.pace.to_numpy()),
        "measured": (
            0.5 * (log_alpha[1:] + log_alpha[:-1]),
            np.diff(log_tangent) / np.diff(log_alpha),
        ),
    }
    parts = [
        pd.DataFrame({"log₁₀ α": x / np.log(10.0), "pace d ln tan φ / d ln α": y, "pace": name})
        for name, (x, y) in lines.items()
    ]
    return pd.concat(parts).assign(model=rows.model.iloc[0], seed=rows.seed.iloc[0])


def rested(run, level: float) -> Rest:
    """Return the `rest` of a run's first state with α ≥ level."""
    first = settling.milestones(run.flow.smoothed_margin, level)[0]
    return rest(run.problem, run.flow.direction[first], run.flow.dual[first], run.flow.degree)


def late_exponent(flow: Trajectory | SimpleNamespace) -> float:
    """Return the slope of ½ ln(1 - cos(W, -∇R)) against ln α from α = 1e60 to 1e90."""
    ends = [np.argmax(flow.smoothed_margin >= level) for level in (1e60, 1e90)]
    fall, length = np.log(flow.misalignment[ends]), np.log(flow.smoothed_margin[ends])
    return float(0.5 * np.diff(fall)[0] / np.diff(length)[0])


def maps_off(run, w: np.ndarray, k: int = -1) -> float:
    """Return the largest 1 - cos, over images, of the saliency maps at w [P] and at record k."""
    net, pair = copy.deepcopy(run.net), []
    for direction in (w, run.flow.direction[k]):
        torch.nn.utils.vector_to_parameters(torch.from_numpy(direction), net.parameters())
        pair.append(saliency(net, run.task.x).reshape(len(run.task), -1))
    return max(map(misalignment, *pair))


def endings(runs: pd.DataFrame, level: float) -> pd.DataFrame:
    """Return what run.rest, found at α = `level`, foretells, beside the end of run.flow.

    A row each: angle of the solution to the last direction, and of the direction at `level`; the
    largest exponent, and how far the `late_exponent` is off, relative to it, and so it is of the
    run `in_another_metric`, of the first alone; `maps_off` of the solution, and of the direction at
    α = 1000.
    """
    rows = []
    for run in runs.itertuples():
        alpha, directions = run.flow.smoothed_margin, run.flow.direction
        young, then = (settling.milestones(alpha, at)[0] for at in (1e3, level))
        rows.append({
            "seed": run.seed,
            "off": angle(run.rest.direction, directions[-1]),
            "off then": angle(directions[then], directions[-1]),
            "exponent": run.rest.exponents[0],
            "exponent off": abs(late_exponent(run.flow) / run.rest.exponents[0] - 1.0),
            "maps": maps_off(run, run.rest.direction),
            "young maps": maps_off(run, directions[young]),
        })  # fmt: skip
    first = next(runs.itertuples())
    elsewhere = late_exponent(in_another_metric(first, [1e60, 1e90]).flow)
    rows[0]["elsewhere"] = abs(elsewhere / first.rest.exponents[0] - 1.0)
    return pd.DataFrame(rows)
