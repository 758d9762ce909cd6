"""Descent of many runs of a small network at once, arrays with the run in front.

Runs differ in start, data and rate and share an architecture: a `torch.nn.Sequential` of linear
layers without bias and elementwise activations, as `latephase.zoo.networks` makes them. Forward
and backward passes are written out: `torch.func.vmap` of the same network takes five to twelve
times as long for networks this small (benchmarks/seeds.py).

For linear models this is the primal-dual form of Ji and Telgarsky (2021): with rows z_i = y_i x_i
and q = softmax(-Zw), w ← w + s Zᵀq is mirror ascent in q for the dual of margin maximization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latephase.problem.task import Task
from latephase.training.rules import FIRST_ORDER, Rule, checked_rule

ORDERS = ("reshuffled", "independent")
# σ(h) and σ'(h) of the activations that are known, which are recognized by their values.
_ACTIVATIONS = (
    (lambda h: h, np.ones_like),
    (lambda h: np.maximum(h, 0.0) ** 2, lambda h: 2.0 * np.maximum(h, 0.0)),
)
_PROBE = np.linspace(-2.0, 2.0, 9)


class Family:
    """One architecture on many data sets: x [r, n, d], y [r, n] in {-1, +1}, one for each run.

    Raises ValueError for a layer it cannot pass through: linear layers without bias, the identity
    and squared ReLUs are known.
    """

    def __init__(self, network: torch.nn.Sequential, x: np.ndarray, y: np.ndarray) -> None:
        self.network = network
        self.x, self.y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        self.activations = [_activation(layer) for layer in network]

    def rows(self, index: Sequence[int] | np.ndarray) -> Family:
        """Return the family of the data sets `index`, in which one may appear several times."""
        index = np.asarray(index, dtype=int)
        return Family(self.network, self.x[index], self.y[index])

    def margins(self, w: np.ndarray) -> np.ndarray:
        """Return p [r, n] at weights w [r, P]."""
        return self.margins_and_pull_back(w)[0]

    def smoothed_margins(self, w: np.ndarray) -> np.ndarray:
        """Return α = -ln Σ e^{-p_i} [r]."""
        return -shares(self.margins(w))[1]

    def margins_and_pull_back(self, w: np.ndarray) -> tuple[np.ndarray, Callable]:
        """Return p [r, n], and the function from weights [r, n] to Σ_i weights_i ∇p_i [r, P]."""
        h, at, passed = self.x, 0, []
        for layer, activation in zip(self.network, self.activations, strict=True):
            if activation is None:
                weight = layer.weight.detach().numpy()[None]
                if layer.weight.requires_grad:
                    end = at + layer.weight.numel()
                    weight, at = w[:, at:end].reshape(-1, *layer.weight.shape), end
                passed.append((h, weight))
                h = h @ weight.swapaxes(1, 2)
            else:
                value, slope = activation
                passed.append((h, slope(h)))
                h = value(h)

        def pull_back(weights: np.ndarray) -> np.ndarray:
            back, parts = (weights * self.y)[..., None], []
            for layer, (entered, kept) in zip(
                reversed(self.network), reversed(passed), strict=True
            ):
                if not isinstance(layer, torch.nn.Linear):
                    back = back * kept
                    continue
                if layer.weight.requires_grad:
                    parts.append((back.swapaxes(1, 2) @ entered).reshape(len(w), -1))
                back = back @ kept
            return np.concatenate(parts[::-1], axis=1)

        return self.y * h[..., 0], pull_back


def _activation(layer: torch.nn.Module) -> tuple[Callable, Callable] | None:
    """Return σ and σ' of an activation, None for a linear layer without bias."""
    if isinstance(layer, torch.nn.Linear) and layer.bias is None:
        return None
    if not list(layer.parameters()):
        values = layer(torch.from_numpy(_PROBE)).numpy()
        for value, slope in _ACTIVATIONS:
            if np.array_equal(values, value(_PROBE)):
                return value, slope
    raise ValueError(f"network: cannot descend through {layer}")


def family(
    networks: Sequence[torch.nn.Sequential], tasks: Sequence[Task]
) -> tuple[Family, np.ndarray]:
    """Return the family of networks of one architecture, a task each, and their weights [r, P]."""
    x, y = ([getattr(task, name).numpy() for task in tasks] for name in ("x", "y"))
    trainable = [[p for p in network.parameters() if p.requires_grad] for network in networks]
    w = [torch.nn.utils.parameters_to_vector(p).detach().numpy() for p in trainable]
    return Family(networks[0], np.stack(x), np.stack(y)), np.stack(w)


def linear_family(z: np.ndarray) -> Family:
    """Return the family of linear models on rows z [r, n, d], whose margins are z w."""
    layer = torch.nn.Linear(z.shape[-1], 1, bias=False)
    return Family(torch.nn.Sequential(layer), z, np.ones(z.shape[:-1]))


def shares(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return q = softmax(-p) [r, n] and ln Σ e^{-p_i} [r]: -∇ln R = Σ q_i ∇p_i."""
    smallest = p.min(axis=1, keepdims=True)
    losses = np.exp(smallest - p)
    total = losses.sum(axis=1, keepdims=True)
    return losses / total, (np.log(total) - smallest)[:, 0]


@dataclass(frozen=True, eq=False)
class Descents:
    """Runs of `descend`: r runs on n examples, k numbers of steps of which iterates were kept.

    end [r, P]: the point of the last step's segment with α = level, NaN where α never got there;
    without levels the last iterate. taken [r]: steps taken, that one included.
    steps [k]; w [k, r, P]; passed [k, r]: Σ s over the steps before, under a force the time. NaN
    behind a run's end.
    """

    end: np.ndarray
    taken: np.ndarray
    steps: np.ndarray
    w: np.ndarray
    passed: np.ndarray

    def path(self, run: int) -> np.ndarray:
        """Return the iterates kept of one run, short of its level."""
        return self.w[~np.isnan(self.passed[:, run]), run]


def descend(
    family: Family,
    w: np.ndarray,
    rates: np.ndarray | float,
    levels: np.ndarray | float | None = None,
    *,
    rule: str = "constant",
    force: Callable[[np.ndarray], np.ndarray] | None = None,
    momentum: float = 0.0,
    batch: int | None = None,
    order: str = "reshuffled",
    seed: int = 0,
    steps: int = 100_000,
    keep: Collection[int] = (),
) -> Descents:
    """Return runs of descent from w [r, P], each with its rate [r], each to its α = level [r].

    The loss is the exponential one, its risk R = Σ e^{-p_i} never formed.

    rule: one of `latephase.training.rules.FIRST_ORDER`, W ← W - s ∇ln R.
    force: -ℓ' of another loss, of margins [r, n]. Its risk is not known: W ← W - s ∇R with
        s = rate for "constant", rate ‖W‖/‖∇R‖ for "relative"; no other rule, level or batch.
    momentum: μ in Δ ← μ Δ - (step above), W ← W + Δ.
    batch: examples in a step, whose part of the risk is multiplied by n/batch; it must divide n.
        order: "reshuffled", every epoch a new permutation cut into batches, or "independent", each
        batch drawn for itself; determined by `seed`.
    steps: after so many a run is given up, as it is when a number overflows.
    keep: numbers of steps after which the iterates are kept; 0 is the start.

    Raises ValueError for an unknown rule or order and for a batch that does not divide n.
    """
    r, n = family.y.shape
    checked_rule(rule, FIRST_ORDER if force is None else ("constant", "relative"))
    if order not in ORDERS or (batch is not None and n % batch):
        raise ValueError(
            f"expected an order of {ORDERS} and a batch that divides {n}, got {order!r}, {batch}"
        )
    if force is not None and not levels is batch is None:
        raise ValueError("force: its risk is not known, so there are neither levels nor batches")
    keep, point = frozenset(keep), np.array(w, dtype=np.float64)
    goal = math.inf if levels is None else levels
    rates, goal = (np.broadcast_to(a, r).astype(np.float64) for a in (rates, goal))
    end, taken, kept = np.full(point.shape, math.nan), np.full(r, steps), []
    generator, places = np.random.default_rng(seed), np.tile(np.arange(n), (r, 1))
    active, before, velocity, passed = np.arange(r), point, np.zeros_like(point), np.zeros(r)

    def of_all(values: np.ndarray) -> np.ndarray:
        """Return values of the active runs as those of all, NaN for the others."""
        full = np.full((r, *values.shape[1:]), math.nan)
        full[active] = values
        return full

    # A run may leave the range of numbers, or the reach of its examples; it is then given up.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for step in range(steps + 1):
            p, pull_back = family.margins_and_pull_back(point)
            dual, log_risk = shares(p) if force is None else (force(p), np.zeros(len(p)))
            arrived = -log_risk >= goal
            left = ~arrived & np.isfinite(p).all(axis=1)
            if not left.all():
                now = np.flatnonzero(arrived)
                if len(now):
                    segment = before[now], point[now]
                    end[active[now]] = _crossing(family.rows(now), *segment, goal[now])
                taken[active[~left]] = step
                family, active = family.rows(np.flatnonzero(left)), active[left]
                point, velocity, passed, rates, goal = (
                    values[left] for values in (point, velocity, passed, rates, goal)
                )
                if not len(active):
                    break
                p, pull_back = family.margins_and_pull_back(point)
                dual, log_risk = dual[left], log_risk[left]
            if step in keep:
                kept.append((step, of_all(point), of_all(passed)))
            if step == steps:
                break
            if batch is not None:
                turn = step % (n // batch) if order == "reshuffled" else 0
                if turn == 0:
                    places = generator.permuted(places, axis=1)
                seen = np.where(places[active] // batch == turn, p, math.inf)
                dual, log_risk = shares(seen)
                log_risk = log_risk + math.log(n / batch)
            push = pull_back(dual)
            stepping, norms = Rule(rule, rates), (None, None)
            if stepping.needs_norms:
                norms = [np.linalg.norm(vectors, axis=1) for vectors in (push, point)]
            size = stepping.factor(log_risk, *norms)
            passed = passed + size
            velocity = momentum * velocity + size[:, None] * push
            before, point = point, point + velocity
    if levels is None:
        end[active] = point
    columns = (
        [np.array(column) for column in zip(*kept, strict=True)] if kept else [np.empty(0)] * 3
    )
    return Descents(end, taken, *columns)


def _crossing(family: Family, start: np.ndarray, end: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return points [k, P] with α = level between start and end, α(start) < level ≤ α(end).

    By bisection, to the last bit of the share of the way.
    """
    low, high = np.zeros(len(start)), np.ones(len(start))
    for _ in range(53):
        middle = 0.5 * (low + high)
        reached = family.smoothed_margins(start + middle[:, None] * (end - start)) >= levels
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return start + high[:, None] * (end - start)
