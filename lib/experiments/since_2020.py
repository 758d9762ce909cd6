"""Answers since 2020: unequal exponents and small starts.

Models are given by their margins: a function of W [P] that returns p [n] and the Jacobian [n, P],
for the exponential loss unless something else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp

from experiments.frames import by_seed, seedwise
from experiments.steepest import dual_variables, smoothed_margin
from latephase.flow.gradient_flow import gradient_flow
from latephase.measures.max_margin import hard_margin
from latephase.problem.task import Task
from latephase.problem.vectors import angle, unit
from latephase.zoo import networks
from latephase.zoo.tasks import separable_points

Margins = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# Three ways to write the affine function ⟨v, x⟩ + β; its names, W, and v and β of W.
AFFINE = {
    "⟨w, x⟩ + b": lambda w: (w[:-1], w[-1]),
    "a⟨w, x⟩ + b": lambda w: (w[-1] * w[:-2], w[-2]),
    "⟨w, x⟩ + ab": lambda w: (w[:-2], w[-1] * w[-2]),
}


def affine(name: str, z: np.ndarray, y: np.ndarray) -> Margins:
    """Return the margins of one of `AFFINE`, W = (w, b) or (w, b, a), for z_i = y_i x_i [n, d]."""
    biases = {"⟨w, x⟩ + b": 0, "a⟨w, x⟩ + b": 1, "⟨w, x⟩ + ab": 2}[name]

    def at(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        v, beta = AFFINE[name](w)
        p = z @ v + y * beta
        if biases == 0:
            return p, np.column_stack([z, y])
        if biases == 1:
            return p, np.column_stack([w[-1] * z, y, z @ w[:-2]])
        return p, np.column_stack([z, w[-1] * y, w[-2] * y])

    return at


def followed(margins: Margins, w: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return W [levels, P] of the flow of any model at smoothed margins, from w on.

    α is the variable, dW/d ln α = α ∇α/‖∇α‖², by an implicit method (Radau) that needs no degree.
    Up to levels[0] > 0 it is α itself.
    """

    def raised(_: float, w: np.ndarray) -> np.ndarray:
        p, jacobian = margins(w)
        push = jacobian.T @ dual_variables(p)
        return push / (push @ push)

    p = margins(w)[0]
    now = smoothed_margin(p)
    tight = {"method": "Radau", "rtol": 1e-7, "atol": 1e-7}
    start = solve_ivp(raised, (now, levels[0]), w, **tight).y[:, -1]
    at = np.log(levels)
    found = solve_ivp(
        lambda t, w: np.exp(t) * raised(t, w), (at[0], at[-1]), start, t_eval=at, **tight
    )
    if not found.success:
        raise ArithmeticError(f"the flow stopped: {found.message}")
    return found.y.T


def affine_limit(name: str, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the unit vector (v, β) [d + 1] that theory foretells for one of `AFFINE`.

    ⟨w, x⟩ + b: the largest margin with b counted in the norm. ⟨w, x⟩ + ab: that with b not counted,
    min ‖v‖² with all margins 1 or more, which is the distance of the convex hulls of the classes,
    hence the largest margin on the differences of their points. a⟨w, x⟩ + b: the largest margin
    without b, which is for data that are separable through the origin.
    """
    n, d = z.shape
    if name == "⟨w, x⟩ + b":
        return hard_margin(np.column_stack([z, y]), np.ones(n))[0]
    if name == "⟨w, x⟩ + ab":
        plus, minus = z[y > 0], z[y < 0]
        pairs = (plus[:, None] + minus[None]).reshape(-1, d)
        v = hard_margin(pairs, np.ones(len(pairs)))[0]
        return unit(np.append(v, 0.5 * ((minus @ v).min() - (plus @ v).min())))
    return np.append(hard_margin(z, np.ones(n))[0], 0.0)


def affine_direction(name: str, w: np.ndarray) -> np.ndarray:
    """Return the unit vector (v, β) [d + 1] of W."""
    return unit(np.append(*AFFINE[name](w)))


def affine_runs(seed: int, levels: Sequence[float]) -> pd.DataFrame:
    """Return angles (rad) of (v, β) to the limit of each way to write ⟨v, x⟩ + β, at α's.

    Columns: seed, way, α, "angle to its limit (rad)", and "wrong limit (rad)": to the limit with a
    bias for a⟨w, x⟩ + b, to the one through the origin for the others. Fourteen points in four
    dimensions, separable through the origin, better so with a bias.
    """
    task = unbalanced(separable_points(14, 4, margin=0.3, seed=seed), 4.0)
    y = task.y.numpy().astype(float)
    z = y[:, None] * task.x.numpy()
    limits, rows = {name: affine_limit(name, z, y) for name in AFFINE}, []
    for name in AFFINE:
        start = np.append(np.full(z.shape[1], 0.1), [0.0] if name == "⟨w, x⟩ + b" else [0.2, 0.5])
        wrong = limits["⟨w, x⟩ + ab" if name == "a⟨w, x⟩ + b" else "a⟨w, x⟩ + b"]
        path = followed(affine(name, z, y), start, np.asarray(levels))
        for alpha, w in zip(levels, path, strict=True):
            at = affine_direction(name, w)
            rows.append((seed, name, alpha, angle(at, limits[name]), angle(at, wrong)))
    columns = ["seed", "way", "smoothed margin α", "angle to its limit (rad)", "wrong limit (rad)"]
    return pd.DataFrame(rows, columns=columns)


def boundaries(seed: int) -> tuple[Task, pd.DataFrame]:
    """Return planar points and, for each way, the line where ⟨v, x⟩ + β = 0 at its limit."""
    task = unbalanced(separable_points(14, 2, margin=0.3, seed=seed), 2.0)
    y = task.y.numpy().astype(float)
    rows = []
    for name in AFFINE:
        *v, beta = affine_limit(name, y[:, None] * task.x.numpy(), y)
        foot, along = -beta * np.array(v) / np.dot(v, v), np.array([-v[1], v[0]])
        for t in (-4.0, 4.0):
            rows.append((name, *(foot + t * along / np.linalg.norm(along))))
    return task, pd.DataFrame(rows, columns=["way", "first input", "second input"])


def small_start(task: Task, seed: int, scale: float, slope: float, until: float) -> dict:
    """Return where the flow of eight leaky ReLUs ends: its margin, and how it predicts.

    "margin": least p/‖W‖² at α = until, over (1 + slope)/4 times a linear model's largest margin;
    "off": the part of the outputs on random points, relative, that the linear predictor nearest to
    them leaves; "network".
    """
    inputs = task.x.shape[1]
    rng = torch.Generator().manual_seed(seed)
    network = networks.two_layer(inputs, 8, "leaky_relu", generator=rng, scale=scale)
    network[1].negative_slope = slope
    flow = gradient_flow(network, task, until=until, tol=1e-2, records=4)
    flow.write_to(network, -1, normalized=True)
    points = torch.randn(200, inputs, generator=rng, dtype=torch.float64)
    outputs = network(points).detach().numpy()[:, 0]
    linear = np.linalg.lstsq(points.numpy(), outputs, rcond=None)[0]
    return {
        "margin": float(flow.normalized_margin[-1] / ((1.0 + slope) / 4.0 * hard_margin(task)[1])),
        "off": float(np.linalg.norm(outputs - points.numpy() @ linear) / np.linalg.norm(outputs)),
        "network": network,
    }


def unbalanced(task: Task, scale: float = 1.0) -> Task:
    """Return the task with x of one class 3/2 `scale` times as long, of the other ½ `scale` times.

    It stays separable through the origin, and more so with a bias.
    """
    factor = torch.where(task.y > 0, 1.5 * scale, 0.5 * scale)
    return replace(task, x=factor[:, None] * task.x, name=f"{task.name}, unbalanced")


def mirrored(task: Task) -> Task:
    """Return the task with -x, of the other label, for each x."""
    x, y = torch.cat([task.x, -task.x]), torch.cat([task.y, -task.y])
    return replace(task, x=x, y=y, name=f"{task.name}, and its mirror image")


def start_runs(seeds: Sequence[int]) -> pd.DataFrame:
    """Return a row for each run of `small_start`: seed, case, task, and what that returns.

    Four points of the plane with their mirror image, from a small start; and for the first two
    seeds from a large one, and on the four points alone.
    """
    rows = []
    for k, seed in enumerate(seeds):
        half = separable_points(4, 2, margin=0.3, seed=seed)
        cases = {"small start": (mirrored(half), 1e-4)}
        if k < 2:
            cases |= {"large start": (mirrored(half), 5.0), "half the data": (half, 1e-4)}
        for name, (task, scale) in cases.items():
            end = small_start(task, seed, scale, 0.2, 100.0)
            rows.append({"seed": seed, "case": name, "task": task} | end)
    return pd.DataFrame(rows)


def surface(network: torch.nn.Module, side: np.ndarray) -> pd.DataFrame:
    """Return the network's outputs on the square of coordinates `side` [k], k² rows."""
    first, second = (c.ravel() for c in np.meshgrid(side, side))
    with torch.no_grad():
        outputs = network(torch.from_numpy(np.column_stack([first, second])))[:, 0]
    return pd.DataFrame({"first input": first, "second input": second, "output": outputs.numpy()})


def verdicts(affine: pd.DataFrame, starts: pd.DataFrame) -> dict:
    """Return {claim: value and controls} of `affine_runs` and `start_runs`."""
    last = affine[affine.iloc[:, 2] == affine.iloc[:, 2].max()]
    wrong = by_seed(last, "way", "wrong limit (rad)").loc
    starts = starts.assign(off_by=np.abs(starts.margin - 1.0))
    of_case = {case: seedwise(rows.seed, rows.off_by, max) for case, rows in starts.groupby("case")}
    return {
        "affine-limits": {
            "value": by_seed(last, "way", "angle to its limit (rad)").max(),
            "control": {
                "a bias where none should be": wrong["a⟨w, x⟩ + b"],
                "no bias where one should be": wrong["⟨w, x⟩ + ab"],
            },
        },
        "small-start-margin": {
            "value": [*of_case["small start"].values()],
            "control": {
                "a large start": of_case["large start"],
                "without the mirror image": of_case["half the data"],
            },
        },
    }
