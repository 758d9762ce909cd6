"""Where flows end beside the largest margin there is: on the circle, by lines, and in a trap.

Runs are rows of frames; a column named as an axis holds an array with an entry for each record.
The largest margin of any network of squared ReLUs is found by linear programming.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linprog

from experiments import frames
from experiments.directional_convergence import unguarded
from latephase.flow.gradient_flow import gradient_flow, gradient_flows
from latephase.flow.trajectory import Trajectory, largest_drop
from latephase.measures.max_margin import hard_margin, hard_margin_dual
from latephase.problem.generalized import generalized_gradient
from latephase.problem.kkt import kkt_residual, tangent_curvature
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle
from latephase.training import together
from latephase.training.descent import gradient_descent
from latephase.zoo.networks import deep_linear, diagonal, two_layer
from latephase.zoo.tasks import planar_points, sector_points, separable_points

ALPHA, MISSING = "smoothed margin α", "share of the global margin missing"
TURNED, GAP = "angle to the SVM direction (radians)", "|margin / ($γ L^{-L/2}$) − 1|"
SPREAD, DISTANCE = "dual mass off the SVM's support", "Σ|q − q of the SVM|"
NARROW = "one of each sign"
LAW = "error · (ln t + c) / C"
# Of the directions among which linear programs choose, and of the bins in which masses are shown.
_AROUND = 2 * np.pi * np.arange(4000) / 4000
GRID = np.stack([np.cos(_AROUND), np.sin(_AROUND)], axis=1)
EDGES = np.linspace(0, 2 * np.pi, 91) - np.pi / 90
# Φ = u₁v₁x₁ + u₂v₂x₂ with one example, whose flow can be trapped: the margins of (u₁, u₂, v₁, v₂).
ONE = torch.tensor([[1.0, 2.0]], dtype=torch.float64), [1]
TRAP = Problem(diagonal([1, 0], [1, 0]), *ONE)
# A metric in which the second coordinate's weights move slower, and the example in its weights.
SLOWER = 0.75
METRIC = np.sqrt([1.0, SLOWER])
SLOW = ONE[0] * torch.tensor([1.0, SLOWER], dtype=torch.float64), ONE[1]


def circle_masses(vectors: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the sum of ‖w_j‖² over the vectors [m, 2] whose angle lies in each bin, [bins].

    edges [bins + 1]: ascending angles in radians that cover the circle once, from any angle on.
    """
    angles = np.arctan2(vectors[:, 1], vectors[:, 0])
    turned = (angles - edges[0]) % (2.0 * np.pi) + edges[0]
    return np.histogram(turned, bins=edges, weights=(vectors**2).sum(axis=1))[0]


@dataclass(frozen=True, eq=False)
class VariationMargin:
    """Solution of `variation_margin`: mass [2, k] of the neurons +, -; dual [n]; both sum to 1."""

    margin: float
    mass: np.ndarray
    dual: np.ndarray


def variation_margin(x, y, directions) -> VariationMargin:
    """Return the largest margin of infinitely many squared ReLUs with the given directions.

    A network Φ = Σ_j s_j relu(⟨w_j, x⟩)², s_j = ±1, ‖W‖² = Σ ‖w_j‖², is linear in the masses
    m_j = ‖w_j‖²: Φ = Σ_j s_j m_j relu(⟨d_j, x⟩)², d_j = w_j/‖w_j‖. Hence the linear program

        max t  subject to  y_i Σ_{s,k} s m_{sk} relu(⟨d_k, x_i⟩)² ≥ t,  Σ m = 1,  m ≥ 0,

    whose value, over all directions d, is the global maximum of min_i p_i over ‖W‖ = 1 for
    networks of any width (the margin in variation, or F1, norm). directions: [k, d], scaled to
    unit length here. With a finite grid the value is a lower bound; it is recomputed from the
    masses, so that it holds whatever the simplex method's rounding. It may be negative.
    Raises ValueError for arrays that do not fit together or are not finite.
    """
    x, y, d = (np.asarray(array, dtype=np.float64) for array in (x, y, directions))
    shapes = [list(array.shape) for array in (x, y, d)]
    if x.ndim != 2 or y.shape != (len(x),) or d.ndim != 2 or d.shape[1] != x.shape[1]:
        raise ValueError(f"expected x [n, d], y [n] and directions [k, d], got shapes {shapes}")
    lengths = np.linalg.norm(d, axis=1, keepdims=True)
    if not (np.isfinite(x).all() and set(y.tolist()) <= {-1.0, 1.0} and (lengths > 0).all()):
        raise ValueError("expected finite x, labels -1 and +1, and directions other than 0")
    features = y[:, None] * np.maximum(x @ (d / lengths).T, 0.0) ** 2
    features = np.hstack([features, -features])
    count = features.shape[1]
    solved = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.hstack([-features, np.ones((len(x), 1))]),
        b_ub=np.zeros(len(x)),
        A_eq=np.append(np.ones(count), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0.0, None)] * count + [(None, None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solved.status != 0:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    mass = np.maximum(solved.x[:-1], 0.0)
    mass /= mass.sum()
    dual = np.maximum(-solved.ineqlin.marginals, 0.0)
    return VariationMargin(float((features @ mass).min()), mass.reshape(2, -1), dual / dual.sum())


def planar_variation_bound(x, y, dual) -> float:
    """Return max over all unit d of |Σ q_i y_i relu(⟨d, x_i⟩)²|, exactly; x [n, 2], q = `dual`.

    By duality an upper bound on the margin of every network of `variation_margin`, whatever
    q ≥ 0, Σq = 1: the margin is at most a weighted mean of margins, which is linear in the masses.
    Between the directions at which an example switches on or off the function is dᵀAd,
    A = Σ_{on} q_i y_i x_i x_iᵀ, whose extrema are eigenvectors; all are tried.
    """
    x, y, q = (np.asarray(array, dtype=np.float64) for array in (x, y, dual))
    shapes = [list(array.shape) for array in (x, y, q)]
    if x.ndim != 2 or x.shape[1] != 2 or y.shape != (len(x),) or q.shape != y.shape:
        raise ValueError(f"expected x [n, 2], y [n] and dual [n], got shapes {shapes}")
    if not (q.min() >= 0.0 and abs(q.sum() - 1.0) < 1e-9):
        raise ValueError(f"dual: expected q ≥ 0 with sum 1, got {q.min():g} and {q.sum():.9g}")
    angles = np.arctan2(x[:, 1], x[:, 0])
    switches = np.sort(np.concatenate([angles - np.pi / 2, angles + np.pi / 2]) % (2 * np.pi))
    middles = 0.5 * (switches + np.append(switches[1:], switches[0] + 2 * np.pi))
    on = np.stack([np.cos(middles), np.sin(middles)], axis=1) @ x.T > 0.0
    weighted = (q * y)[:, None, None] * x[:, :, None] * x[:, None, :]
    vectors = np.linalg.eigh(np.einsum("ai,ijk->ajk", on, weighted))[1]
    vectors = vectors.swapaxes(1, 2).reshape(-1, 2)
    edges = np.stack([np.cos(switches), np.sin(switches)], axis=1)
    tried = np.concatenate([vectors, -vectors, edges])
    return float(np.abs(np.maximum(tried @ x.T, 0.0) ** 2 @ (q * y)).max())


def sets_of_points(seeds: Sequence[int]) -> pd.DataFrame:
    """Return points in six sectors and in two half-planes: a row with kind, seed and task each.

    program: the `VariationMargin` over 4000 directions; bound: of its dual, on the margin of any
    network; bracket, coarse: what the program lacks of the bound, and one over 24 directions.
    """
    rows = []
    for kind, (sectors, gap) in {"sectors": (3, 0.2), "half-planes": (1, 0.1)}.items():
        for seed in seeds:
            task = sector_points(24, sectors, gap, seed=seed)
            found = [variation_margin(task.x, task.y, grid) for grid in (GRID, GRID[::167])]
            bounds = [planar_variation_bound(task.x, task.y, one.dual) for one in found]
            lacking = [1 - one.margin / bound for one, bound in zip(found, bounds, strict=True)]
            rows.append((kind, seed, task, found[0], bounds[0], *lacking))
    columns = ["kind", "seed", "task", "program", "bound", "bracket", "coarse"]
    return pd.DataFrame(rows, columns=columns)


@unguarded()
def on_circle(points: pd.DataFrame, neurons: int, until: float) -> pd.DataFrame:
    """Return flows of squared ReLUs with fixed signs on `sets_of_points`, a row each.

    Of so many neurons, and on half-planes of one of each sign, started along the means of the
    classes. Columns: those of the points, neurons, flow, α and the share of the bound that the
    margin lacks.
    """
    kind, rows = {"activation": "squared_relu", "fixed_signs": True}, []
    for point in points.to_dict("records"):
        task, rng = point["task"], torch.Generator().manual_seed(point["seed"])
        nets = {f"{neurons}": two_layer(2, neurons, generator=rng, scale=4.0, **kind)}
        if point["kind"] == "half-planes":
            nets[NARROW] = two_layer(2, 2, generator=rng, **kind)
            means = [task.x[task.y == sign].mean(0) for sign in (1, -1)]
            nets[NARROW][0].weight.data = torch.stack(means)
        rows += [point | {"neurons": name, "net": net} for name, net in nets.items()]
    nets, points = ([row[name] for row in rows] for name in ("net", "task"))
    flows = gradient_flows(nets, points, until=until, records=10_000, tol=1e-3)
    for row, flow in zip(rows, flows, strict=True):
        # Outputs are divided by the square root of the width, which no program knows of.
        reached = flow.normalized_margin * len(row.pop("net")[0].weight) ** 0.5
        row |= {"model": "squared ReLU, fixed signs", "flow": flow}
        row |= {ALPHA: flow.smoothed_margin, MISSING: 1 - reached / row["bound"]}
    return pd.DataFrame(rows)


def masses(run, level: float) -> pd.DataFrame:
    """Return masses of neurons, a row for each bin and sign: of a run near α = level, and wanted.

    Wanted are those of the linear program.
    """
    plus, minus = run.flow.at(level).direction.reshape(2, -1, 2)
    wanted = [np.sqrt(mass)[:, None] * GRID for mass in run.program.mass]
    both = [[circle_masses(w, EDGES) for w in pair] for pair in ((plus, minus), wanted)]
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    return pd.DataFrame({
        ALPHA: run.flow.at(level).smoothed_margin,
        "sign": np.repeat(["+", "−"], len(middles)),
        "angle (radians)": np.tile(middles, 2),
        "mass": np.ravel(both[0]),
        "mass of the program": np.ravel(both[1]),
    })  # fmt: skip


def duals(run, level: float) -> pd.DataFrame:
    """Return dual variables, a row for each example by its angle: near α = level, and wanted."""
    order = np.argsort(np.arctan2(*run.task.x.numpy().T[::-1]))
    record = run.flow.at(level)
    return pd.DataFrame({
        ALPHA: record.smoothed_margin,
        "example, by angle": range(len(order)),
        "dual variable q": record.dual[order],
        "dual variable of the program": run.program.dual[order],
    })  # fmt: skip


@unguarded()
def lines(seeds: Sequence[int], depths: Sequence[int], until: float, tol: float) -> pd.DataFrame:
    """Return flows of linear and deep linear networks on twenty points of R⁴, a row each.

    Columns: model, depth, seed, task, svm (direction, margin γ, dual), flow, and arrays: α, the
    angle of the predictor to the SVM, the relative error of γ L^{-L/2}, the dual variables' mass
    off the SVM's support, and their distance to its dual.
    """
    rows, unit_vectors = [], torch.eye(4, dtype=torch.float64)
    for depth in depths:
        for seed in seeds:
            task = separable_points(20, 4, margin=0.2, seed=seed)
            rng = torch.Generator().manual_seed(seed)
            net = deep_linear([4] + [3] * (depth - 1) + [1], generator=rng, scale=0.5)
            flow = gradient_flow(net, task, until=until, records=10_000, tol=tol)
            svm, margin = hard_margin(task)
            dual = hard_margin_dual(task)
            states = [flow.write_to(net, k, normalized=True)(unit_vectors)[:, 0].detach().numpy()
                      for k in range(len(flow))]  # fmt: skip
            rows.append({
                "model": "deep linear" if depth > 1 else "linear",
                "depth": depth,
                "seed": seed,
                "task": task,
                "svm": (svm, margin, dual),
                "flow": flow,
                ALPHA: flow.smoothed_margin,
                TURNED: np.array([angle(state, svm) for state in states]),
                GAP: np.abs(flow.normalized_margin / (margin * depth ** (-depth / 2)) - 1),
                SPREAD: flow.dual[:, dual == 0].sum(axis=1),
                DISTANCE: np.abs(flow.dual - dual).sum(axis=1),
            })  # fmt: skip
    return pd.DataFrame(rows)


def elsewhere(run: pd.Series) -> pd.Series:
    """Return what a row of `lines` is compared with.

    turn: the angle of the least squares fit to the SVM; underflow, short: the run's angle, and the
    error of its margin, where its risk underflows; recomputed: the distance of the dual variables
    computed from the last margins; even: equal ones' mass off the support.
    """
    (svm, _, dual), task, flow = (run[name] for name in ("svm", "task", "flow"))
    x, y = task.x.numpy(), task.y.numpy()
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    p = flow.margins[-1] * np.exp(flow.degree * flow.log_norm[-1])
    q = np.exp(p.min() - p)
    return pd.Series({
        "turn": angle(fit, svm),
        "underflow": run[TURNED][flow.at(745.0).index],
        "short": run[GAP][flow.at(745.0).index],
        "recomputed": np.abs(q / q.sum() - dual).sum(),
        "even": (dual == 0).mean(),
    })  # fmt: skip


@unguarded()
def curved(seeds: Sequence[int], hidden: int, until: float) -> pd.DataFrame:
    """Return flows of two-layer networks with squared and with plain ReLUs, a row each.

    Columns: model, seed, net, task, flow, and arrays: α, the KKT residuals ε and δ, and the larger.
    """
    models = {"squared ReLU": ("squared_relu", 0.5, (20, 6, 0.5)),
              "two-layer ReLU": ("relu", 1.0, (12, 4, 0.6))}  # fmt: skip
    rows = []
    for model, (activation, scale, (count, neurons, deleted)) in models.items():
        for seed in seeds:
            task = planar_points(count, neurons=neurons, deleted=deleted, seed=seed)
            rng = torch.Generator().manual_seed(seed)
            net = two_layer(3, hidden, activation, generator=rng, scale=scale)
            flow = gradient_flow(net, task, until=until, records=10_000, tol=1e-3)
            rows.append((model, seed, net, task, flow, *residuals(flow)))
    columns = ["model", "seed", "net", "task", "flow", ALPHA, "ε", "δ", "larger"]
    return pd.DataFrame(rows, columns=columns)


def residuals(flow: Trajectory) -> tuple[np.ndarray, ...]:
    """Return α, the KKT residuals ε and δ, and the larger of them, [records] each."""
    both = flow.kkt_stationarity, flow.kkt_complementarity
    return flow.smoothed_margin, *both, np.maximum(*both)


def unweighted(run) -> float:
    """Return the larger KKT residual at a run's last weights with equal dual variables."""
    w, equal = run.flow.direction[-1], np.full(len(run.task), 1 / len(run.task))
    # With equal weights, too, the gates of kinks are those of least norm.
    pulled = generalized_gradient(run.net, run.task, w=w, kink_tol=1e-5, dual=equal)
    p = Problem(run.net, run.task.x, run.task.y).margins(w)
    return max(kkt_residual(w, pulled.gradient, p, equal, run.flow.degree))


@unguarded()
def trap_runs(seeds: Sequence[int], until: float) -> pd.DataFrame:
    """Return flows about the trap, a row each with start, seed and flow.

    trapped: u₁ = v₁ > 0 and u₂ = v₂ = 0; unequal factors: u₁ ≠ v₁, to α = 10; moved: the first, by
    a thousandth in a random direction; another metric: the moved, u₂ and v₂ slower by `SLOWER`,
    that is Φ = u₁v₁x₁ + SLOWER u₂v₂x₂ in weights of which u₂ and v₂ are divided by its root.
    """
    far, rows = {"until": until, "records": 10_000, "tol": 1e-3}, []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        a, b = rng.uniform(0.5, 2.0, 2)
        moved = 1e-3 * rng.standard_normal((2, 2)) + [a, 0]
        starts = {"trapped": ([a, 0], [a, 0], ONE, far), "moved": (*moved, ONE, far),
                  "unequal factors": ([a, 0], [b, 0], ONE, {"until": 10.0}),
                  "another metric": (*(moved / METRIC), SLOW, far)}  # fmt: skip
        for start, (u, v, data, settings) in starts.items():
            rows.append((start, seed, gradient_flow(diagonal(u, v), *data, **settings)))
    return pd.DataFrame(rows, columns=["start", "seed", "flow"])


def off_trap(flow: Trajectory) -> float:
    """Return the largest of ε, δ and |margin - 1/2| at a flow's end."""
    last = flow.record()
    return max(last.kkt_stationarity, last.kkt_complementarity, abs(last.normalized_margin - 0.5))


def between() -> float:
    """Return the same halfway from the trap to the maximum, at (1, 1, 1, 1)/2."""
    w = np.ones(4) / 2
    p, pulled = TRAP.weighted_gradient(w, np.ones(1))
    return max(*kkt_residual(w, pulled, p, np.ones(1), 2.0), abs(p[0] - 0.5))


def steepest(w: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the largest curvature of the margin on the sphere at a unit W, and its tangent."""
    values, tangents = tangent_curvature(TRAP.hessian(w, np.ones(1)), w, TRAP.margins(w)[0], 2.0)
    return values[-1], tangents[:, -1]


def misses(
    flows: Sequence[Trajectory],
    unstable: np.ndarray,
    exponent: float,
    metric: Sequence[float] = (1.0, 1.0),
) -> list[float]:
    """Return how far the foretold ln α of each departure is off, relative to the wait for it.

    A flow departs where the share of its direction along `unstable` reaches a tenth; foretold from
    that at the first α ≥ 10, as if it grew like α^exponent. metric: what the weights (u₁, u₂) and
    (v₁, v₂) of the flows are to be multiplied by.
    """
    found = []
    for flow in flows:
        w, log_alpha = flow.direction * np.tile(metric, 2), np.log(flow.smoothed_margin)
        share = np.abs(w @ unstable) / np.linalg.norm(w, axis=1)
        start, end = np.argmax(flow.smoothed_margin >= 10), np.argmax(share >= 0.1)
        pair = slice(end - 1, end + 1)
        left = np.interp(np.log(0.1), np.log(share[pair]), log_alpha[pair])
        foretold = np.log(0.1 / share[start]) / exponent
        found.append(abs(foretold / (left - log_alpha[start]) - 1))
    return found


def along_circle(curvature: float, tangent: np.ndarray) -> pd.DataFrame:
    """Return the margin on the great circle from the trap along a tangent, and its parabola."""
    s, trap = np.linspace(-np.pi / 4, 3 * np.pi / 4, 200), np.array([1, 0, 1, 0]) / np.sqrt(2)
    arc = np.cos(s)[:, None] * trap + np.sin(s)[:, None] * tangent
    return pd.DataFrame({
        "angle along a great circle": s,
        "margin of the unit vector": [TRAP.margins(w)[0] for w in arc],
        "its parabola": 0.5 + curvature / 2 * s**2,
    })  # fmt: skip


def by_hand(nudges: Sequence[float]) -> pd.DataFrame:
    """Return flows from u = v = (1, η), a row for each record: η, α, normalized margin, exact one.

    With s = (√(1 + 8η²α) - 1)/4 the normalized margin is (1 + 2s)/(2 + 2s).
    """
    parts = []
    for eta in nudges:
        flow = gradient_flow(diagonal([1, eta], [1, eta]), *ONE, until=1e12, records=10_000)
        s = (np.sqrt(1 + 8 * eta**2 * flow.smoothed_margin) - 1) / 4
        columns = {"η": f"{eta:g}", ALPHA: flow.smoothed_margin}
        columns |= {"normalized margin": flow.normalized_margin, "exact": (1 + 2 * s) / (2 + 2 * s)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def descents(runs: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Return descent on linear models from w = 0 on the tasks of runs with one rule and the other.

    A row for each rule, seed and record: the steps t, the error of the direction, Ση̂ in units of
    (ln n + 1)/γ², the share of γ that the margin lacks, by how much of γ it exceeds its bound, and
    the same with t taken for Ση̂, and the error beside its `logarithmic_law`.
    """
    svm, gamma = (np.stack(parts) for parts in list(zip(*runs.svm, strict=True))[:2])
    z = np.stack([task.y.numpy()[:, None] * task.x.numpy() for task in runs.task])
    marks = ten(steps)
    laws = [(law.constant, law.shift) for law in map(logarithmic_law, z)]
    allowed, models = (np.log(z.shape[1]) + 1) / gamma, together.linear_family(z)
    # Steps η = 1/R, and the constant η = 1 on the mean risk.
    rules = {
        "normalized steps": ("logarithmic", 1.0),
        "constant steps": ("constant", 1 / z.shape[1]),
    }
    parts = []
    for name, (rule, rate) in rules.items():
        zero = np.zeros((len(z), z.shape[-1]))
        run = together.descend(models, zero, rate, rule=rule, steps=steps, keep=marks)
        unit = run.w / np.linalg.norm(run.w, axis=-1, keepdims=True)
        reached = (z @ unit[..., None])[..., 0].min(axis=-1)
        counted = np.repeat(run.steps[:, None], len(z), axis=1)
        columns = {
            "steps t": counted,
            "‖w/‖w‖ − SVM direction‖": np.linalg.norm(unit - svm, axis=-1),
            "Σ$\\hat{η}$ γ² / (ln n + 1)": run.passed * gamma / allowed,
            "share of γ missing": 1 - reached / gamma,
            "above the bound": (reached - gamma + allowed / run.passed) / gamma,
            "above the bound for t": (reached - gamma + allowed / counted) / gamma,
        }
        columns[LAW] = beside(columns["‖w/‖w‖ − SVM direction‖"], counted, *zip(*laws, strict=True))
        seeds = np.tile(runs.seed, len(counted))
        columns = {key: values.ravel() for key, values in columns.items()}
        parts.append(pd.DataFrame({"rule": name, "seed": seeds} | columns))
    return pd.concat(parts, ignore_index=True)


def ten(steps: int) -> np.ndarray:
    """Return ten numbers of steps a decade, from the first to the last."""
    return np.geomspace(1, steps, 1 + round(10 * np.log10(steps))).round().astype(int)


def beside(error: np.ndarray, t: np.ndarray, constant, shift) -> np.ndarray:
    """Return error (ln t + c)/C for each set of points, arrays [records, sets]; C, c [sets]."""
    return error * (np.log(t) + np.array(shift)) / np.array(constant)


@dataclass(frozen=True, eq=False)
class LogarithmicLaw:
    """What the support vectors say of descent with constant steps, as `logarithmic_law` has it.

    constant, shift: C and c; direction [d] of the machine; held [n], which examples hold the
    margin; slowest: the power of 1/t at which the start is forgotten, 0 where they do not span.
    """

    constant: float
    shift: float
    direction: np.ndarray
    held: np.ndarray
    slowest: float


def logarithmic_law(z: np.ndarray) -> LogarithmicLaw:
    """Return the law C/(ln t + c) of the error ‖w/‖w‖ - u‖ after t steps η = 1 on the mean risk.

    Rows z [n, d]. Soudry et al.: w = ŵ ln t + w̃ + o(1) with ŵ = u/γ = Σ μ_i z_i, the least vector
    with all ⟨ŵ, z_i⟩ ≥ 1. Then dw/dt = Σ e^{-⟨w, z_i⟩} z_i/n is ŵ/t if e^{-⟨w̃, z_i⟩} = n μ_i for
    each support vector, which gives w̃ in their span. Across u, w is as long as w̃ is there, along u
    it is (ln t + γ⟨w̃, u⟩)/γ: C = γ‖w̃ - ⟨w̃, u⟩u‖ and c = γ⟨w̃, u⟩, up to the error's square. What a
    start has left falls like t^-λ, λ being the eigenvalues of Σ μ_i z_i z_iᵀ, of which u has 1.
    """
    ones = np.ones(len(z))
    u, gamma = hard_margin(z, ones)
    dual = hard_margin_dual(z, ones) / gamma**2
    held = dual > 0.0
    w = np.linalg.lstsq(z[held], -np.log(len(z) * dual[held]), rcond=None)[0]
    constant = gamma * np.linalg.norm(w - (w @ u) * u)
    slowest = np.linalg.eigvalsh((z.T * dual) @ z)[0]
    return LogarithmicLaw(float(constant), float(gamma * (w @ u)), u, held, float(slowest))


def held_sets(seeds: Sequence[int]) -> list[np.ndarray]:
    """Return a set of twenty rows [20, 4] for each seed on which the law is seen early.

    Drawn until four rows hold the margin and no part of the start is forgotten more slowly than
    1/t; the other rows are moved out to three times their place.
    """
    sets = []
    for seed in seeds:
        for draw in itertools.count():
            task = separable_points(20, 4, margin=0.2, seed=1000 * seed + draw)
            z = task.y.numpy()[:, None] * task.x.numpy()
            law = logarithmic_law(z)
            if law.held.sum() == 4 and law.slowest > 1.0 - 1e-9:
                break
        sets.append(np.where(law.held[:, None], z, 3.0 * z))
    return sets


def constant_steps(seeds: Sequence[int], steps: int) -> pd.DataFrame:
    """Return the error beside its law on `held_sets`, from w = 0 with η = 1 on the mean risk.

    A row for each seed and record; "at rest": the same of the least-squares solution.
    """
    z = np.stack(held_sets(seeds))
    laws, marks = [logarithmic_law(one) for one in z], ten(steps)
    start, rate = np.zeros((len(z), z.shape[-1])), 1 / z.shape[1]
    run = together.descend(together.linear_family(z), start, rate, steps=steps, keep=marks)
    rest = [np.linalg.lstsq(one, np.ones(len(one)), rcond=None)[0] for one in z]
    u = np.stack([law.direction for law in laws])
    about = [law.constant for law in laws], [law.shift for law in laws]
    counted = np.repeat(run.steps[:, None], len(z), axis=1)
    columns = {"seed": np.tile(seeds, len(run.steps)), "steps t": counted.ravel()}
    for name, w in ((LAW, run.w), ("at rest", np.array(rest))):
        error = np.linalg.norm(w / np.linalg.norm(w, axis=-1, keepdims=True) - u, axis=-1)
        columns[name] = beside(error, counted, *about).ravel()
    return pd.DataFrame({"rule": "constant steps"} | columns)


def off_law(rows: pd.DataFrame, rule: str, column: str = LAW) -> dict:
    """Return for each seed by how much `beside` is off one at most, over the last decade of t."""
    late = rows[(rows.rule == rule) & (rows["steps t"] >= rows["steps t"].max() / 10)]
    return frames.seedwise(late.seed, np.abs(late[column] - 1.0), max)


def last_decade(rows: pd.DataFrame) -> float:
    """Return the slope of the logarithms of error and t over the last decade of t."""
    t, error = rows.iloc[:, 2], rows.iloc[:, 3]
    late = t >= t.max() / 10
    return frames.slope(t[late], error[late])


def torn(flow: Trajectory, plain: np.ndarray) -> float:
    """Return the largest violation of γ̃ ≤ plain ≤ γ̃ + ln n/‖W‖^L, over γ̃; plain [records]."""
    tilde = flow.normalized_smoothed_margin
    lowest = plain - np.log(flow.margins.shape[1]) * np.exp(-flow.degree * flow.log_norm)
    return float(np.max((np.maximum(tilde - plain, lowest - tilde) / tilde)[tilde > 0]))


def monotone(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs with drop, the largest one of γ̃, apart, as `torn`, and γ̃ over its last value."""
    tilde = [flow.normalized_smoothed_margin for flow in runs.flow]
    return runs.assign(**{
        "drop": list(map(largest_drop, tilde)),
        "apart": [torn(flow, flow.normalized_margin) for flow in runs.flow],
        ALPHA: [flow.smoothed_margin for flow in runs.flow],
        "γ̃ relative to its last value": [one / one[-1] for one in tilde],
    })  # fmt: skip


def loose(run, rounded: Trajectory) -> float:
    """Return `torn` of the α of a flow with rounded kinks and the margins of the run's network."""
    kinked = Problem(run.net, run.task.x, run.task.y)
    return torn(rounded, np.array([kinked.margins(w).min() for w in rounded.direction]))


def thrown(run) -> float:
    """Return the largest drop of γ̃ under steps of a twentieth of ‖W‖ from a run's start."""
    large = {"until": 1e3, "rule": "relative", "rate": 0.05}
    return gradient_descent(run.net, run.task.x, run.task.y, **large).settings["margin_drop"]
