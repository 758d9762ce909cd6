"""Logistic regression by steps beyond the edge of stability, and momentum in the dual."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments.frames import seedwise, slope
from experiments.steepest import dual_variables, smoothed_margin
from latephase.measures.max_margin import hard_margin, hard_margin_dual
from latephase.problem.task import Task
from latephase.zoo.tasks import separable_points


def three_held_points(seed: int, others: int = 5) -> np.ndarray:
    """Return z [3 + others, 3], ‖z‖ < 1: three support vectors of margin 0.05, the others far off.

    Across the direction of the support vector machine the three lie around the origin, so that long
    steps throw w from one side to another. The others have margins of 0.15 or more: their part in
    the gradient is soon gone.
    """
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turn = np.array([0.0, 2.0, 4.0]) * np.pi / 3 + rng.uniform(-0.5, 0.5, 3) + rng.uniform(0, 6.28)
    radius = rng.uniform(0.6, 0.95, 3)
    held = np.column_stack([np.full(3, 0.05), radius * np.cos(turn), radius * np.sin(turn)])
    turn, radius = rng.uniform(0, 6.28, others), rng.uniform(0.2, 0.6, others)
    far = rng.uniform(0.15, 0.7, others)
    rest = np.column_stack([far, radius * np.cos(turn), radius * np.sin(turn)])
    return np.vstack([held, rest]) @ frame.T


def constant_steps(
    z: np.ndarray, rates: np.ndarray, steps: int, exponential: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return w and the risks [steps + 1, runs, d or none] of steps of constant size from w = 0.

    z [runs, n, d], rates [runs]; on the mean of ln(1 + e^{-p}), or of e^{-p}. A run whose numbers
    leave the range stays at its last finite iterate.
    """
    w, path, risks = np.zeros((len(z), z.shape[2])), [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps + 1):
            p = (z @ w[..., None])[..., 0]
            path.append(w)
            risks.append((np.exp(-p) if exponential else np.logaddexp(0.0, -p)).mean(1))
            force = np.exp(-p) if exponential else 1.0 / (1.0 + np.exp(np.minimum(p, 700.0)))
            moved = w + rates[:, None] * (force[..., None] * z).mean(1)
            w = np.where(np.isfinite(moved).all(1, keepdims=True), moved, w)
    return np.array(path), np.array(risks)


def rises(risks: np.ndarray) -> np.ndarray:
    """Return whether the risk rises in each step [steps, ...], beyond rounding."""
    return np.diff(risks, axis=0) > 1e-12 * risks[:-1]


def across(w: np.ndarray, direction: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the distance [...] from v of the part of w [..., d] across a unit direction."""
    return np.linalg.norm(w - (w @ direction)[..., None] * direction - v, axis=-1)


def potential_minimizer(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the support vector machine's direction [d] and the minimizer v [d] across it.

    v minimizes Σ exp(-z_i·v) over the support vectors, among the vectors across the direction: the
    place where that component of gradient descent comes to rest. By Newton's method.
    """
    direction, _ = hard_margin(z, np.ones(len(z)))
    support = z[hard_margin_dual(z, np.ones(len(z))) > 0.0]
    beside = np.linalg.svd(direction[None])[2][1:]
    held = support @ beside.T
    # Only in the span of the support vectors is the potential strictly convex.
    span = np.linalg.svd(held, full_matrices=False)
    basis = span[2][span[1] > 1e-9 * span[1].max()]
    held = held @ basis.T
    v = np.zeros(held.shape[1])
    for _ in range(100):
        force = np.exp(-held @ v)
        step = np.linalg.solve((held.T * force) @ held, held.T @ force)
        v = v + step / max(1.0, np.abs(held @ step).max())
        if np.linalg.norm(step) <= 1e-13 * max(1.0, np.linalg.norm(v)):
            break
    return direction, v @ basis @ beside


class Linear:
    """Margins Z w, started at w = 0."""

    def __init__(self, z: np.ndarray) -> None:
        self.z, self.start, self.degree = z, np.zeros(z.shape[1]), 1

    def __call__(self, w: np.ndarray) -> tuple[np.ndarray, Callable, float]:
        """Return p [n], q ↦ Σ q_i ∇p_i, and the largest ‖∇p_i‖."""
        return self.z @ w, lambda q: q @ self.z, float(np.linalg.norm(self.z, axis=1).max())


class SquaredReLUs:
    """Margins y_i Σ_j ±relu(⟨w_j, x_i⟩)²/√width of neurons with fixed signs; degree 2."""

    def __init__(self, task: Task, width: int, seed: int) -> None:
        self.x, self.y = task.x.numpy(), task.y.numpy()
        self.signs = np.where(np.arange(width) % 2, 1.0, -1.0) / width**0.5
        self.start = 0.5 * np.random.default_rng(seed).standard_normal(width * self.x.shape[1])
        self.degree = 2

    def __call__(self, w: np.ndarray) -> tuple[np.ndarray, Callable, float]:
        """Return p [n], q ↦ Σ q_i ∇p_i, and the largest ‖∇p_i‖."""
        active = np.maximum(self.x @ w.reshape(len(self.signs), -1).T, 0.0)
        sizes = 2.0 * np.linalg.norm(active * self.signs, axis=1) * np.linalg.norm(self.x, axis=1)

        def pull_back(q: np.ndarray) -> np.ndarray:
            return 2.0 * (((q * self.y)[:, None] * active * self.signs).T @ self.x).ravel()

        return self.y * (active**2 @ self.signs), pull_back, float(sizes.max())


def separated(model: SquaredReLUs, alpha: float = 1.0, steps: int = 20_000) -> np.ndarray:
    """Return w where normalized descent from the model's start first has a smoothed margin."""
    w = model.start
    for _ in range(steps):
        p, pull_back, size = model(w)
        if smoothed_margin(p) >= alpha:
            return w
        w = w + 0.5 * pull_back(dual_variables(p)) / size**2
    raise ArithmeticError(f"not separated after {steps} steps")


def momentum_descent(
    model: Linear | SquaredReLUs, w: np.ndarray, kind: str, steps: int, rate: float = 1.0
) -> np.ndarray:
    """Return W [steps, P] from w on by steps of one of three kinds, in units of B = max ‖∇p_i‖.

    "constant": W ← W - rate ∇R/B², R the mean of exponentials. "normalized": W ← W - rate ∇R/(RB²).
    "momentum": Nesterov's method with an entropic distance on the dual problem of a linear model,
    min ½‖Σ q_i z_i‖² over q ≥ 0, Σ q = 1: with λ = 2/(t + 2), g = Σ q_i ∇p_i/B for the dual
    variables q = softmax(-p), and m the weighted mean of former g, W ← W + rate ν/(λB) with
    ν = (1 - λ)m + λg. These are normalized gradients with momentum.
    """
    p, pull_back, size = model(w)
    mean, path = pull_back(np.full(len(p), 1.0 / len(p))) / size, []
    for t in range(steps):
        p, pull_back, size = model(w)
        if kind == "constant":
            w = w + rate * pull_back(np.exp(-p)) / len(p) / size**2
        else:
            step = g = pull_back(dual_variables(p)) / size
            if kind == "momentum":
                share = 2.0 / (t + 2.0)
                step = (1.0 - share) / share * mean + g
            w = w + rate * step / size
            if kind == "momentum":
                p, pull_back, size = model(w)
                g = pull_back(dual_variables(p)) / size
                mean = (1.0 - share) * mean + share * g
        path.append(w)
    return np.array(path)


def margins_along(model: Linear | SquaredReLUs, path: np.ndarray) -> np.ndarray:
    """Return min p/‖W‖^L [steps]."""
    lengths = np.linalg.norm(path, axis=1) ** model.degree
    return np.array([model(w)[0].min() for w in path]) / lengths


def certified_gaps(model: Linear | SquaredReLUs, path: np.ndarray) -> np.ndarray:
    """Return ‖∇α‖/(L‖W‖^(L-1)) over the normalized margin, less one [steps].

    Zero where weights and gradient align on one margin: no knowledge of the limit is needed.
    """
    found = []
    for w in path:
        p, pull_back, _ = model(w)
        push = np.linalg.norm(pull_back(dual_variables(p))) / model.degree
        found.append(push * np.linalg.norm(w) / p.min() - 1.0)
    return np.array(found)


def logistic_runs(
    seeds: Sequence[int], rates: Sequence[float], steps: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (rows along the way, a row for each seed and step) of logistic descent.

    The former, on a geometric grid: seed, step η, steps, "risk", "distance to the minimizer". The
    latter: seed, step η, "distance"; "rose at", η times the least risk that rose, ∞ where none
    did; "edge", η λ/2 at the start, λ the largest curvature; "exponential", the distance with the
    exponential loss; "longer", as "rose at", of points ten times as long and steps a hundredth.
    """
    z = np.repeat([three_held_points(seed) for seed in seeds], len(rates), axis=0)
    eta = np.tile(rates, len(seeds))
    limits = [potential_minimizer(one) for one in z]
    path, risks = constant_steps(z, eta, steps)
    thrown = constant_steps(z, eta, 100, exponential=True)[0][-1]
    longer = constant_steps(10.0 * z, eta / 100.0, steps // 10)[1]
    grid = np.unique(np.append(0, np.geomspace(1, steps, 150).astype(int)))
    along, ends = [], []
    for k, (limit, rate) in enumerate(zip(limits, eta, strict=True)):
        seed, name = seeds[k // len(rates)], f"{rate:g}"
        apart, up = across(path[grid, k], *limit), rises(risks[:, k])
        along.append(pd.DataFrame({
            "seed": seed, "step η": name, "steps": grid, "risk": risks[grid, k],
            "distance to the minimizer": apart,
        }))  # fmt: skip
        curvature = np.linalg.eigvalsh(z[k].T @ z[k] / len(z[k]))[-1] / 4.0
        ends.append({
            "seed": seed, "step η": name, "distance": apart[-1],
            "rose at": rate * np.min(risks[:-1, k][up], initial=np.inf),
            "edge": 0.5 * rate * curvature,
            "exponential": across(thrown[k], *limit),
            "longer": rate / 100.0 * np.min(longer[:-1, k][rises(longer[:, k])], initial=np.inf),
        })  # fmt: skip
    return pd.concat(along, ignore_index=True), pd.DataFrame(ends)


def phases(seeds: Sequence[int], rates: np.ndarray, steps: int) -> pd.DataFrame:
    """Return when the risk of logistic descent rises for the last time: a row a seed and step η.

    "last step that rose": its number, of `steps` from w = 0 on; 0 where the risk never rises.
    """
    z = np.repeat([three_held_points(seed) for seed in seeds], len(rates), axis=0)
    eta = np.tile(rates, len(seeds))
    up = rises(constant_steps(z, eta, steps)[1])
    last = (up * np.arange(1, steps + 1)[:, None]).max(0)
    return pd.DataFrame(
        {"seed": np.repeat(seeds, len(rates)), "step η": eta, "last step that rose": last}
    )


def momentum_runs(seed: int, steps: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return (rows of margin gaps along the steps, numbers of one seed).

    Rows: seed, model, rule, steps, "gap": of "linear", 1 - margin/γ; of "squared ReLU",
    `certified_gaps` from one separated start. Numbers: "constant", "normalized", "momentum", the
    slopes of ln gap against ln t from t = 100 on, of the linear model; "network" and "twice", the
    gaps of the network at the end, over that of normalized steps, with momentum and with steps of
    twice the length.
    """
    task = separable_points(20, 3, margin=0.15, seed=seed)
    line = Linear(task.y.numpy()[:, None] * task.x.numpy())
    net = SquaredReLUs(separable_points(14, 5, margin=0.2, seed=seed), 20, seed)
    gamma, start = hard_margin(task)[1], separated(net)
    t = np.arange(1, steps + 1)
    grid = np.unique(np.geomspace(1, steps, 80).astype(int))
    rows, found, ends = [], {"seed": seed}, {}
    for rule in ("constant", "normalized", "momentum"):
        gaps = 1.0 - margins_along(line, momentum_descent(line, line.start, rule, steps)) / gamma
        late = t >= 100
        found[rule] = slope(t[late], gaps[late])
        rows += [(seed, "linear", rule, count, gaps[count - 1]) for count in grid]
        if rule != "constant":
            path = momentum_descent(net, start, rule, steps)[grid - 1]
            gaps = certified_gaps(net, path)
            ends[rule] = gaps[-1]
            rows += [(seed, "squared ReLU", rule, *pair) for pair in zip(grid, gaps, strict=True)]
    twice = momentum_descent(net, start, "normalized", steps, rate=2.0)[-1:]
    found["network"] = float(ends["momentum"] / ends["normalized"])
    found["twice"] = float(certified_gaps(net, twice)[0] / ends["normalized"])
    return pd.DataFrame(rows, columns=["seed", "model", "rule", "steps", "gap"]), found


def verdicts(ends: pd.DataFrame, paces: pd.DataFrame) -> dict:
    """Return {claim: value and controls} of `logistic_runs` and `momentum_runs`."""
    names = ends["step η"].unique()
    settled = ends[ends["step η"] != names[-1]]
    thrown = settled[settled["step η"] != names[0]]
    return {
        "large-steps-component": {
            "value": seedwise(settled.seed, settled.distance, max),
            "control": {"exponential loss": seedwise(thrown.seed, thrown.exponential)},
        },
        "large-steps-rises": {
            "value": seedwise(ends.seed, ends["rose at"], min),
            "control": {"points ten times as long": seedwise(ends.seed, ends.longer, min)},
        },
        "accelerated-margin": {
            "value": paces.momentum,
            "control": {"without momentum": paces.normalized, "constant steps": paces.constant},
        },
        "accelerated-network": {
            "value": paces.network,
            "control": {"twice the step": paces.twice},
        },
    }
