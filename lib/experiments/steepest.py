"""Steepest descent of linear models in four norms, Adam, and the margins that they should reach.

A linear model with margins p = Z w, z_i = y_i x_i, exponential loss. Steepest descent in a norm
moves along the u with ‖u‖ ≤ 1 that has the largest ⟨∇α, u⟩, where α = -ln Σ e^{-p} is the smoothed
margin: along signs for ℓ∞, along one coordinate for ℓ1, along the polar factor UVᵀ of a matrix for
the spectral norm. A step of length s raises α by s‖∇α‖_* - ½ B² s² at least, B being the largest
dual norm of a z_i, since -uᵀ∇²α u is the variance of u·z under the dual variables; and
‖∇α‖_*‖w‖ ≥ ⟨∇α, w⟩ = Σ q_i p_i ≥ α. With ‖w‖ growing by s at most, α/‖w‖ falls by no more than
½ B² s²/‖w‖ where α > 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from latephase.measures.max_margin import hard_margin
from latephase.problem.vectors import angle, unit
from latephase.zoo.tasks import separable_points

# The norms, by name: of vectors, but for the last, which is of matrices [.., rows, columns].
NORMS = ("ℓ1", "ℓ2", "ℓ∞", "spectral")
_EXACT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def dual_variables(p: np.ndarray) -> np.ndarray:
    """Return q = ∂α/∂p = softmax(-p) along the last axis."""
    q = np.exp(p.min(-1, keepdims=True) - p)
    return q / q.sum(-1, keepdims=True)


def smoothed_margin(p: np.ndarray) -> np.ndarray:
    """Return α = -ln Σ exp(-p) along the last axis."""
    least = p.min(-1)
    return least - np.log(np.exp(least[..., None] - p).sum(-1))


def smoothed(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return α = -ln Σ exp(-z_i·w) [..., runs] for w [..., runs, d] and z [runs, n, d]."""
    return smoothed_margin((z @ w[..., None])[..., 0])


def length(w: np.ndarray, norm: str, shape: tuple[int, int]) -> np.ndarray:
    """Return ‖w‖ [...] of vectors [..., d]; shape: of the matrices of the spectral norm."""
    if norm == "spectral":
        return np.linalg.norm(w.reshape(*w.shape[:-1], *shape), 2, axis=(-2, -1))
    return np.linalg.norm(w, {"ℓ1": 1, "ℓ2": 2, "ℓ∞": np.inf}[norm], axis=-1)


def dual_length(g: np.ndarray, norm: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the dual norm [...] of vectors [..., d]; that of the spectral norm is nuclear."""
    if norm == "spectral":
        return np.linalg.norm(g.reshape(*g.shape[:-1], *shape), "nuc", axis=(-2, -1))
    return length(g, {"ℓ1": "ℓ∞", "ℓ2": "ℓ2", "ℓ∞": "ℓ1"}[norm], shape)


def steepest(g: np.ndarray, norm: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the direction u [..., d] of unit norm with ⟨g, u⟩ = ‖g‖_*."""
    if norm == "ℓ∞":
        return np.sign(g)
    if norm == "ℓ2":
        return g / np.linalg.norm(g, axis=-1, keepdims=True)
    if norm == "ℓ1":
        largest = np.abs(g).argmax(-1)[..., None]
        return np.where(np.arange(g.shape[-1]) == largest, np.sign(g), 0.0)
    left, _, right = np.linalg.svd(g.reshape(*g.shape[:-1], *shape), full_matrices=False)
    return (left @ right).reshape(g.shape)


def descend(z: np.ndarray, norm: str, steps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the states w [len(steps) + 1, runs, d] of steepest descent from w = 0.

    z [runs, n, d]. Each run takes the same lengths of steps.
    """
    w = np.zeros((len(steps) + 1, len(z), z.shape[2]))
    for t, step in enumerate(steps):
        q = dual_variables((z @ w[t][..., None])[..., 0])
        w[t + 1] = w[t] + step * steepest((q[:, None] @ z)[:, 0], norm, shape)
    return w


def margins(z: np.ndarray, w: np.ndarray, norm: str, shape: tuple[int, int]) -> np.ndarray:
    """Return min_i z_i·w over ‖w‖ [..., runs] for w [..., runs, d] and z [runs, n, d]."""
    return (z @ w[..., None])[..., 0].min(-1) / length(w, norm, shape)


def falls(z: np.ndarray, w: np.ndarray, norm: str, shape: tuple[int, int]) -> np.ndarray:
    """Return by how much α/‖w‖ falls in a step at most [runs], in units of ½ B² s²/‖w‖.

    w [steps, runs, d]: a descent, s the lengths of its steps in this norm. Of steepest descent in
    this norm that is 1 at most, whatever the data; steps that end at α ≤ 0 do not count.
    """
    steps = length(np.diff(w, axis=0), norm, shape)[1:]
    alpha, norms = smoothed(z, w[1:]), length(w[1:], norm, shape)  # not from w = 0
    unit = 0.5 * (dual_length(z, norm, shape).max(-1) * steps) ** 2 / norms[1:]
    lower = alpha[:-1] / norms[:-1] - alpha[1:] / norms[1:]
    return np.where(alpha[:-1] > 0, lower / unit, -np.inf).max(0)


def largest_margin(z: np.ndarray, norm: str, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return (w of norm 1 [d], γ) that maximizes min_i z_i·w: a solver that takes no steps of ours.

    A linear program for ℓ1 and ℓ∞ (HiGHS), `hard_margin` for ℓ2, and for the spectral norm one with
    more and more cuts uᵀWv ≤ 1. For any q ≥ 0 with Σ q = 1 no w has a margin above the nuclear norm
    of Σ q_i Z_i: at the program's q that bound and the margin of w are 1e-6 apart, relative, or
    less, or ArithmeticError is raised.
    """
    n, d = z.shape
    if norm == "ℓ2":
        return hard_margin(z, np.ones(n))
    if norm == "spectral":
        return _largest_spectral(z, shape)
    if norm == "ℓ1":  # w = u - v with u, v ≥ 0, and Σ (u + v) least
        cost, rows, bounds = np.ones(2 * d), np.hstack([-z, z]), (0, None)
        fixed = -np.ones(n)
    else:  # t largest with Z w ≥ t, |w| ≤ 1
        cost, rows = np.append(np.zeros(d), -1.0), np.hstack([-z, np.ones((n, 1))])
        fixed, bounds = np.zeros(n), [(-1, 1)] * d + [(0, None)]
    found = linprog(cost, rows, fixed, bounds=bounds, method="highs-ds", options=_EXACT).x
    w = found[:d] - found[d:] if norm == "ℓ1" else found[:d]
    w = w / length(w, norm, shape)
    return w, float((z @ w).min())


def _largest_spectral(z: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """By cutting planes: t largest with Z w ≥ t and uᵀWv ≤ 1 for more and more unit u and v."""
    n, d = z.shape
    cost, cuts = np.append(np.zeros(d), -1.0), np.zeros((0, d))
    for _ in range(300):
        rows = np.block([[-z, np.ones((n, 1))], [cuts, np.zeros((len(cuts), 1))]])
        sides = np.append(np.zeros(n), np.ones(len(cuts)))
        bounds = [(-1, 1)] * d + [(0, None)]
        found = linprog(cost, rows, sides, bounds=bounds, method="highs-ds", options=_EXACT)
        w, q = found.x[:d], -found.ineqlin.marginals[:n]
        left, sizes, right = np.linalg.svd(w.reshape(shape), full_matrices=False)
        bound = dual_length(q @ z, "spectral", shape) / q.sum()
        w = w / sizes[0]
        if bound - (z @ w).min() <= 1e-6 * bound:
            return w, float((z @ w).min())
        over = sizes > 1.0
        cuts = np.vstack([cuts, np.einsum("ik,kj->kij", left, right)[over].reshape(-1, d)])
    raise ArithmeticError(f"spectral norm: γ lies between {(z @ w).min():g} and {bound:g}")


def adam(z: np.ndarray, eps: float, steps: int, memory: float = 0.95) -> np.ndarray:
    """Return w [runs, d] after steps of Adam on Σ exp(-z_i·w) from w = 0, with rates 1/√t.

    As `torch.optim.Adam` with betas (0.9, memory), to rounding: PyTorch's own takes twenty seconds
    to import. A memory of 0.999 would hold α back: the root of an average of squares falls by half
    a thousandth a step at most, however fast the gradient does.
    """
    w, mean, square = (np.zeros((len(z), z.shape[2])) for _ in range(3))
    for t in range(1, steps + 1):
        gradient = -(np.exp(-(z @ w[..., None])) * z).sum(1)
        mean += 0.1 * (gradient - mean)
        square += (1.0 - memory) * (gradient**2 - square)
        root = np.sqrt(square / (1.0 - memory**t)) + eps
        w -= t**-0.5 * mean / (1.0 - 0.9**t) / root
    return w


def slow_adam(z: np.ndarray, eps: float, levels: np.ndarray, rate: float = 0.1) -> np.ndarray:
    """Return w [levels, runs, d] of Adam with steps too small for its averages to lag, at α's.

    The averages are then the gradient g and its square, and w goes along -g/(|g| + ε), entry by
    entry. With g = -R h, h = Σ q_i z_i, that is h/(|h| + ε/R), and ε/R = ε e^α needs no small
    number. From w = 0, by steps that raise α by `rate` to first order.
    """
    w, at = np.zeros((len(z), z.shape[2])), np.zeros(len(z), dtype=int)
    found = np.full((len(levels), *w.shape), np.nan)
    log_eps = np.log(eps) if eps > 0 else -np.inf
    while (at < len(levels)).any():
        p = (z @ w[..., None])[..., 0]
        alpha = smoothed(z, w)
        h = (dual_variables(p)[:, None] @ z)[:, 0]
        # Both terms of |h| + ε e^α by the larger of 1 and ε e^α: only the direction counts.
        over = np.maximum(0.0, alpha + log_eps)[:, None]
        u = h / (np.abs(h) * np.exp(-over) + np.exp(alpha[:, None] + log_eps - over))
        w = w + u * (rate / (h * u).sum(-1, keepdims=True))
        alpha = smoothed(z, w)
        for run in np.flatnonzero(at < len(levels)):
            while at[run] < len(levels) and alpha[run] >= levels[at[run]]:
                found[at[run], run] = w[run]
                at[run] += 1
    return found


def adagrad(
    z: np.ndarray, w: np.ndarray, rate: np.ndarray, steps: int, alpha: float, adapts: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return (w, √h) [runs, d] of AdaGrad on Σ exp(-z_i·w) at a smoothed margin, from w [runs, d].

    h adds up squares of the gradient, and w moves by -rate/√h times it; rate [runs]. First `steps`
    single steps. Later gradients are so small that α would take e^α of them: as many are taken
    together as raise α by a fifth to first order, each with its square in h. Without `adapts`, √h
    is one: gradient descent, with steps over the risk while that is above one.
    """
    h, rate, root = np.zeros_like(w), rate[:, None], np.ones_like(w)
    for step in range(10**6):
        now = smoothed(z, w)
        if (now >= alpha).all():
            return w, root
        q = dual_variables((z @ w[..., None])[..., 0])
        risen, risk = (q[:, None] @ z)[:, 0], np.exp(-now)[:, None]
        if not adapts:
            risk = np.minimum(risk, 1.0)
        else:  # the square of a single step goes into h before that is taken
            root = np.sqrt(h + (risk * risen) ** 2 * (step < steps))
        along = risen / root
        leap = rate * risk if step < steps else 0.2 / (risen * along).sum(1, keepdims=True)
        leap = leap * (now < alpha)[:, None]
        w, h = w + leap * along, h + leap * risk / rate * risen**2
    raise ArithmeticError(f"AdaGrad: α is {now.min():g} after a million steps")


def paths_of_adagrad(z: np.ndarray, seeds: Sequence[int], alpha: float = 1000.0) -> pd.DataFrame:
    """Return a row for each run: seed, rule, case, "end" w/‖w‖ at α, "own", the angles to answers.

    Cases: from w = 0 with rates 0.1 ("base") and 1 ("another step"), and from a random w, twice
    normal, with 0.1 ("another start"). "own": of AdaGrad the angle to the largest margin in the
    norm (Σ √h_j w_j²)^½ with its h at the end; "euclidean": to the largest margin in ℓ2.
    """
    cases = {"base": (0.0, 0.1), "another step": (0.0, 1.0), "another start": (2.0, 0.1)}
    drawn = np.array([np.random.default_rng(seed).standard_normal(z.shape[2]) for seed in seeds])
    starts = np.concatenate([scale * drawn for scale, _ in cases.values()])
    rates = np.repeat([rate for _, rate in cases.values()], len(seeds))
    rows = []
    for rule in ("AdaGrad", "gradient descent"):
        ends, roots = adagrad(np.tile(z, (3, 1, 1)), starts, rates, 1000, alpha, rule == "AdaGrad")
        for k, (end, root) in enumerate(zip(ends, roots, strict=True)):
            points, case = z[k % len(seeds)], [*cases][k // len(seeds)]
            best = [_weighted(points, weights) for weights in (root, np.ones_like(root))]
            rows.append((seeds[k % len(seeds)], rule, case, unit(end), *(
                angle(end, one) for one in best
            )))  # fmt: skip
    return pd.DataFrame(rows, columns=["seed", "rule", "case", "end", "own", "euclidean"])


def _weighted(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the direction [d] of the largest margin over (Σ weights_j w_j²)^½."""
    return hard_margin(z / np.sqrt(weights), np.ones(len(z)))[0] / np.sqrt(weights)


def adagrad_verdicts(paths: pd.DataFrame) -> dict:
    """Return {claim: value and controls} of `paths_of_adagrad`."""
    apart = {}
    for rule, ends in paths.groupby(["rule", "seed"], sort=False)["end"]:
        base, *others = ends
        apart.setdefault(rule[0], []).append(max(angle(base, other) for other in others))
    runs = paths[paths.rule == "AdaGrad"].groupby("seed", sort=False)
    return {
        "adagrad-path": {
            "value": apart["AdaGrad"],
            "control": {"gradient descent": apart["gradient descent"]},
        },
        "adagrad-own-norm": {
            "value": runs.own.max(),
            "control": {"the Euclidean norm": runs.euclidean.min()},
        },
    }


# Weights are 3 × 3 matrices where a norm asks for matrices.
SHAPE = (3, 3)


def points(seeds: Sequence[int]) -> np.ndarray:
    """Return z [seeds, 12, 9]: unit vectors, times their labels, that a hyperplane separates."""
    tasks = [separable_points(12, 9, margin=0.5, seed=seed) for seed in seeds]
    return np.array([task.y.numpy()[:, None] * task.x.numpy() for task in tasks])


def descents(z: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return the states of steepest descent in each norm, steps 3/(B√t)."""
    decay = 3.0 / np.sqrt(np.arange(1, count + 1))
    largest = {norm: dual_length(z, norm, SHAPE).max() for norm in NORMS}
    return {norm: descend(z, norm, decay / largest[norm], SHAPE) for norm in NORMS}


def shares(z: np.ndarray, w: np.ndarray, best: np.ndarray, norm: str) -> np.ndarray:
    """Return the least margin over ‖w‖ and over the largest one, `best` [runs], as [..., runs]."""
    return margins(z, w, norm, SHAPE) / best


def shares_by_step(
    z: np.ndarray, runs: dict[str, np.ndarray], best: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Return a row for each norm, rule and step of a geometric grid: the worst run's share.

    rule: "its own", and "gradient descent" for the states of ℓ2 in another norm.
    """
    rows = []
    for norm in [name for name in NORMS if name != "ℓ2"]:
        for rule, name in (("its own", norm), ("gradient descent", "ℓ2")):
            grid = np.unique(np.geomspace(10, len(runs[name]) - 1, 60).astype(int))
            worst = shares(z, runs[name][grid], best[norm], norm).min(1)
            rows += [(norm, rule, *pair) for pair in zip(grid, worst, strict=True)]
    return pd.DataFrame(rows, columns=["norm", "descent", "steps", "margin over the largest"])


def shares_of_adam(
    z: np.ndarray, best: dict[str, np.ndarray], levels: np.ndarray, epsilons: Sequence[float]
) -> pd.DataFrame:
    """Return rows ε, α, norm, run, share of the largest margin, of `slow_adam`."""
    rows = []
    for eps in epsilons:
        states = slow_adam(z, eps, levels, rate=0.2)
        for norm in ("ℓ∞", "ℓ2"):
            share = shares(z, states, best[norm], norm)
            rows += [(f"{eps:g}", levels[k], norm, run, value)
                     for (k, run), value in np.ndenumerate(share)]  # fmt: skip
    columns = ["ε", "smoothed margin α", "norm", "run", "margin over the largest"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(
    z: np.ndarray,
    runs: dict[str, np.ndarray],
    best: dict[str, np.ndarray],
    adam: pd.DataFrame,
    stepwise: np.ndarray,
) -> dict:
    """Return {claim: value and controls} of `descents`, `shares_of_adam` and steps of Adam."""

    def missing(eps: float, norm: str, alpha: float = 1e3) -> np.ndarray:
        at = np.isclose(adam.iloc[:, 1], alpha) & (adam["ε"] == f"{eps:g}") & (adam.norm == norm)
        return 1.0 - adam[at].sort_values("run").iloc[:, 4].to_numpy()

    others = [norm for norm in NORMS if norm != "ℓ2"]
    own = [1.0 - shares(z, runs[norm][-1], best[norm], norm) for norm in others]
    gradient = [1.0 - shares(z, runs["ℓ2"][-1], best[norm], norm) for norm in others]
    watched = [falls(z, runs[norm], "ℓ2", SHAPE) for norm in ("ℓ1", "ℓ∞")]
    return {
        "steepest-margins": {
            "value": np.max(own, axis=0),
            "control": {"gradient descent": np.min(gradient, axis=0)},
        },
        "steepest-falls": {
            "value": np.max([falls(z, runs[norm], norm, SHAPE) for norm in NORMS], axis=0),
            "control": {"another norm": np.max(watched, axis=0)},
        },
        "adam-without-epsilon": {
            "value": np.maximum(missing(0.0, "ℓ∞"), 1.0 - stepwise / best["ℓ∞"]),
            "control": {
                "gradient descent": gradient[others.index("ℓ∞")],
                "with ε": missing(1e-8, "ℓ∞"),
            },
        },
        "adam-with-epsilon": {
            "value": missing(1e-8, "ℓ2"),
            "control": {
                "without ε": missing(0.0, "ℓ2"),
                "before the crossover": missing(1e-8, "ℓ2", 10.0),
            },
        },
    }
