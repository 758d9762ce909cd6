"""Losses with another exponential tail, and losses without one.

Where the exponential tail c e^{-z} of a loss governs, dα/dt = |ℓ'(α)| ‖∇α‖² with
‖∇α‖ ~ L a^{1/L} α^{1 - 1/L}, a being the limit of the normalized margin, so that
α = ln t + (2 - 2/L) ln α + 2 ln L + (2/L) ln a + ln c up to what tends to zero; for a linear model
of margin γ that is α = ln t + 2 ln γ + ln c.

The solver of `latephase.flow` is built on that tail. Losses without it are followed on linear
models, by the force -ℓ' alone, in steps so small that the way is the flow's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn.utils import vector_to_parameters

from experiments.discrete_time import flow_to, squared_relus, strayed
from experiments.frames import stacked
from latephase.flow.gradient_flow import gradient_flow, gradient_flows
from latephase.flow.trajectory import Trajectory
from latephase.measures.max_margin import hard_margin
from latephase.problem.losses import Loss
from latephase.problem.vectors import angle
from latephase.training import together
from latephase.zoo import tasks
from latephase.zoo.networks import deep_linear, linear


def clock(flow: Trajectory, record: int, margin: float, constant: float = 1.0) -> float:
    """Return α - ln t - (2 - 2/L) ln α - 2 ln L - (2/L) ln a - ln c at a record of a flow.

    margin: a, the limit of the normalized margin; constant: c of the loss, e^z ℓ(z) → c. Tends to
    zero.
    """
    at = flow.smoothed_margin[record], flow.log_time[record]
    return _off(*at, flow.degree, margin, constant)


def _off(alpha: float, time: float, degree: float, margin: float, constant: float = 1.0) -> float:
    """Return `clock` at α and ln t = time."""
    known = 2 * np.log(degree) + 2 / degree * np.log(margin) + np.log(constant)
    return float(alpha - time - (2 - 2 / degree) * np.log(alpha) - known)


def predictor(module: torch.nn.Module, w: np.ndarray) -> np.ndarray:
    """Return the vector [d] of a (deep) linear model with the trainable weights w [P]."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    vector_to_parameters(torch.as_tensor(w), trained)
    inputs = next(module.parameters()).shape[1]
    return module(torch.eye(inputs, dtype=torch.float64)).detach().numpy()[:, 0]


def polynomial(power: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return -ℓ' of ℓ(z) = (1 + z)^-power, continued below z = 0 by its tangent."""
    return lambda p: power * (1.0 + np.maximum(p, 0.0)) ** (-power - 1.0)


def hinge(p: np.ndarray) -> np.ndarray:
    """Return -ℓ' of ℓ(z) = max(0, 1 - z)."""
    return np.where(p < 1.0, 1.0, 0.0)


def squared(p: np.ndarray) -> np.ndarray:
    """Return -ℓ' of ℓ(z) = (1 - z)²/2."""
    return 1.0 - p


def polynomial_limit(z: np.ndarray, power: float) -> np.ndarray:
    """Return the unit vector [d] that minimizes Σ (z_i·u)^-power over those with Zu > 0.

    The direction to which a loss with that tail leads. The sum being homogeneous, it is also the
    direction of the minimizer of Σ (z_i·w)^-power + ½‖w‖², which is strictly convex: by Newton's
    method within Zw > 0. Raises ValueError where Zu > 0 has no solution.
    """
    direction, margin = hard_margin(z, np.ones(len(z)))
    w = direction / margin

    def value(w: np.ndarray) -> float:
        p = z @ w
        return np.sum(p**-power) + 0.5 * w @ w if p.min() > 0.0 else np.inf

    for _ in range(200):
        p = z @ w
        gradient = w - power * z.T @ p ** (-power - 1.0)
        hessian = np.eye(len(w)) + power * (power + 1.0) * (z.T * p ** (-power - 2.0)) @ z
        step = -np.linalg.solve(hessian, gradient)
        while value(w + step) > value(w) and np.linalg.norm(step) > 1e-13 * np.linalg.norm(w):
            step = 0.5 * step
        w = w + step
        if np.linalg.norm(step) <= 1e-13 * np.linalg.norm(w):
            break
    return w / np.linalg.norm(w)


# c of the losses that have another than 1.
CONSTANTS = {"heavier": 5.0, "cross-entropy": 2.0}
# Polynomial tails by their power.
POWERS = {k: f"(1 + z)$^{{-{k}}}$" for k in (1, 4)}


# Runs of the page. A start is a row: seed, task, z = yx [n, d], network (linear, at its late
# start), pair (of two outputs, likewise), w [d] of that start, svm [d] and its margin.


def starts(seeds: Sequence[int]) -> pd.DataFrame:
    """Return a late start for each seed: where the flow of small weights has α = 0.45."""
    rows = []
    for seed in seeds:
        draw = squared_relus(seed)[2]
        task = tasks.separable_points(20, 4, margin=0.1, seed=seed)
        network = linear(4, generator=draw, scale=0.1)
        gradient_flow(network, task.x, task.y, until=0.45, tol=1e-3).write_to(network)
        w, pair = network[0].weight.detach().numpy()[0].copy(), linear(4, 2, generator=draw)
        vector_to_parameters(torch.from_numpy(np.outer([-0.5, 0.5], w).ravel()), pair.parameters())
        z = task.y.numpy()[:, None] * task.x.numpy()
        rows.append((seed, task, z, network, pair, w, *hard_margin(task.x, task.y)))
    columns = ["seed", "task", "z", "network", "pair", "w", "svm", "margin"]
    return pd.DataFrame(rows, columns=columns)


def tails(begun: pd.DataFrame, losses: Mapping[str, Loss | str], until: float) -> pd.DataFrame:
    """Return flows under losses with an exponential tail, from each start, to α = until.

    losses: by name, and cross-entropy of two outputs besides. Columns: loss; seed; tail; log_time
    [k]; path [k, d]; clock, off at α = 1000; early, ln t where α = 2.
    """
    far, rows = {"until": until, "tol": 1e-2, "records": 1000}, []
    for start in begun.itertuples():
        x, y = start.task.x, start.task.y
        flows = {
            name: gradient_flow(start.network, x, y, loss=loss, **far)
            for name, loss in losses.items()
        }
        pair = gradient_flow(start.pair, x, (y + 1) // 2, loss="cross_entropy", **far)
        paths = {name: flow.direction for name, flow in flows.items()}
        paths["cross-entropy"] = pair.direction[:, 4:] - pair.direction[:, :4]
        for name, flow in (flows | {"cross-entropy": pair}).items():
            at = np.argmax(flow.smoothed_margin >= 1e3)
            off = abs(clock(flow, at, start.margin, CONSTANTS.get(name, 1.0)))
            early = np.interp(2.0, flow.smoothed_margin[1:], flow.log_time[1:])
            rows.append((name, start.seed, True, flow.log_time, paths[name], off, early))
    columns = ["loss", "seed", "tail", "log_time", "path", "clock", "early"]
    return _measured(begun, pd.DataFrame(rows, columns=columns))


def others(begun: pd.DataFrame) -> pd.DataFrame:
    """Return flows under losses without an exponential tail, by 4000 small steps, likewise.

    own: the angle at the end to `polynomial_limit`, from there to the SVM, and from the end to that
    of the other power; clock: `off_clock`, of the power 4; finite: the distance from the
    least-squares solution over its norm; moved: from the start.
    """
    z = np.stack([*begun.z])
    curvature = np.linalg.norm(z, 2, axis=(1, 2)) ** 2
    forces = {
        POWERS[1]: (0.005, {"force": polynomial(1), "rule": "relative"}),
        POWERS[4]: (0.005, {"force": polynomial(4), "rule": "relative"}),
        "hinge": (0.05 / curvature, {"force": hinge}),
        "squared": (0.5 / curvature, {"force": squared}),
    }
    lines, late, rows = together.linear_family(z), np.stack([*begun.w]), []
    for name, (rate, how) in forces.items():
        run = together.descend(lines, late, rate, **how, steps=4000, keep=range(1, 4001))
        power = next((k for k, word in POWERS.items() if word == name), None)
        for k, start in enumerate(begun.itertuples()):
            path = run.w[:, k]
            least = np.linalg.lstsq(start.z, np.ones(len(start.z)), rcond=None)[0]
            row = {"loss": name, "seed": start.seed, "tail": False}
            row |= {"log_time": np.log(run.passed[:, k]), "path": path}
            row["finite"] = np.linalg.norm(path[-1] - least) / np.linalg.norm(least)
            row["moved"] = np.linalg.norm(path[-1] - start.w)
            if power:
                limit = polynomial_limit(start.z, power)
                row |= {"own": angle(path[-1], limit), "own to SVM": angle(start.svm, limit)}
                other = next(k for k in POWERS if k != power)
                row["to other"] = angle(path[-1], polynomial_limit(start.z, other))
            if power == 4:
                row["clock"] = off_clock(path @ start.z.T, run.passed[:, k], start.margin, 1.0)
            rows.append(row)
    return _measured(begun, pd.DataFrame(rows))


def _measured(begun: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs with the angle to the SVM and the margin in units of its, at their ends."""
    angles, margins = [], []
    for run in runs.itertuples():
        start, w = begun[begun.seed == run.seed].iloc[0], run.path[-1]
        angles.append(angle(w, start.svm))
        margins.append((start.z @ w).min() / np.linalg.norm(w) / start.margin)
    return runs.assign(angle=angles, margin=margins)


def angles(begun: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the way to the SVM of the first start, from ln t = 1 on: loss, ln t, angle.

    Of `others` sixty records, and once more the last, by which each rests, or nearly so.
    """
    svm, rows = begun.svm[0], []
    for run in runs[runs.seed == begun.seed[0]].itertuples():
        kept = np.flatnonzero(run.log_time > 1)
        if not run.tail:
            few = np.unique(np.geomspace(1, len(run.log_time), 60).astype(int)) - 1
            kept = few[run.log_time[few] > 1]
        time, found = run.log_time[kept], [angle(run.path[k], svm) for k in kept]
        if not run.tail:
            time, found = [*time, 1e4], [*found, found[-1]]
        rows.append({"loss": run.loss, "ln t": time, "angle to the SVM (radians)": found})
    return stacked(rows)


def off_clock(p: np.ndarray, time: np.ndarray, margin: float, degree: float) -> float:
    """Return how far the `clock` is off under (1 + z)^-4, at the first state with α ≥ 1000.

    p [k, n]: margins at the times t [k]; α = R^(-1/4) - 1 is that of this loss, for which c = 1.
    """
    alpha = np.sum((1.0 + np.maximum(p, 0.0)) ** -4.0, axis=1) ** -0.25 - 1.0
    first = np.argmax(alpha >= 1e3)
    if alpha[first] < 1e3:
        raise RuntimeError(f"α = {alpha[-1]:.3g} at the last step, where 1000 is asked")
    return abs(_off(alpha[first], np.log(time[first]), degree, margin))


_POWER = {"rule": "relative", "force": polynomial(4), "steps": 4000}
_KEPT = range(1, _POWER["steps"] + 1)


def deep_runs(begun: pd.DataFrame, losses: Mapping[str, Loss]) -> pd.DataFrame:
    """Return flows of two linear layers on the points of the starts, a row each.

    losses: the steeper and the heavier one. angle, to the SVM, and clock, off at α = 1000: the
    larger of the two; polynomial: the angle under (1 + z)^-4, and `off_clock`: how far that is off.
    """
    draws = [torch.Generator().manual_seed(seed) for seed in begun.seed]
    deep = [deep_linear([4, 3, 1], generator=draw, scale=0.8) for draw in draws]
    family, first = together.family(deep, [*begun.task])
    slow = together.descend(family, first, 0.005, **_POWER, keep=_KEPT)
    margins = np.stack([family.margins(w) for w in slow.w])
    ends_at, points = {"at": [1e3, 1e12], "tol": 1e-2}, [*begun.task]
    flows = {name: gradient_flows(deep, points, loss=of, **ends_at) for name, of in losses.items()}
    rows = []
    for k, (net, start) in enumerate(zip(deep, begun.itertuples(), strict=True)):
        row = {"seed": start.seed, "polynomial": angle(predictor(net, slow.end[k]), start.svm)}
        about = start.margin / 2, 2.0
        row["off_clock"] = off_clock(margins[:, k], slow.passed[:, k], *about)
        ends, clocks = [], []
        for name in losses:
            flow = flows[name][k]
            clocks.append(abs(clock(flow, 0, start.margin / 2, CONSTANTS.get(name, 1.0))))
            ends.append(angle(predictor(net, flow.direction[-1]), start.svm))
        rows.append(row | {"angle": max(ends), "clock": max(clocks)})
    return pd.DataFrame(rows)


def relu_runs(seeds: Sequence[int], heavier: Loss, until: float) -> pd.DataFrame:
    """Return how far squared ReLUs end from where the exponential loss does, over the way there.

    same: under the heavier loss; other: under (1 + z)^-4. From α = 2 on.
    """
    nets, hard, _ = zip(*map(squared_relus, seeds), strict=True)
    family, begin = together.family(nets, hard)
    late = flow_to(family, begin, level=2.0)[-1]
    settings = {"until": until, "tol": 3e-3, "records": 4}
    for network, w in zip(nets, late, strict=True):
        vector_to_parameters(torch.from_numpy(w), network.parameters())
    ends = {}
    for name, loss in (("exponential", "exponential"), ("heavier", heavier)):
        flows = gradient_flows(nets, hard, loss=loss, **settings)
        ends[name] = [flow.direction[-1] for flow in flows]
    slow = together.descend(family, late, 0.005, **_POWER).end
    same, other = (strayed(one, ends["exponential"], late) for one in (ends["heavier"], slow))
    return pd.DataFrame({"seed": seeds, "same": same, "other": other})
