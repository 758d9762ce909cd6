"""Gradient descent in discrete time, many runs at once, each followed to a given smoothed margin.

Runs differ in start, data and step size and share an architecture: a `torch.nn.Sequential` of
linear layers without bias and elementwise activations, as `latephase.zoo.networks` makes them. They
use the exponential loss; the risk R = Σ e^{-p_i} is formed, so that this is for the time before
the risk is small. What comes after is the flow's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latephase.problem.task import Task
from latephase.zoo.networks import SquaredReLU

RULES = ("constant", "normalized", "relative")
ORDERS = ("reshuffled", "independent")
# σ(h) and σ'(h).
_ACTIVATIONS = {
    torch.nn.Identity: lambda h: (h, np.ones_like(h)),
    SquaredReLU: lambda h: (np.maximum(h, 0.0) ** 2, 2.0 * np.maximum(h, 0.0)),
}


@dataclass(frozen=True)
class Runs:
    """Where runs passed their levels; the first axis is the run.

    w [r, P]: the point of the last step's segment with α = level; NaN where α never got there.
    steps [r]: steps taken, that one included. paths: the iterates [steps, P] of each run from the
    start on, short of the level; empty unless they were asked for.
    """

    w: np.ndarray
    steps: np.ndarray
    paths: tuple[np.ndarray, ...]


def together(
    networks: Sequence[torch.nn.Sequential], tasks: Sequence[Task]
) -> tuple[Family, np.ndarray]:
    """Return the family of networks of one architecture, a task each, and their weights [r, P]."""
    x, y = ([getattr(task, name).numpy() for task in tasks] for name in ("x", "y"))
    trainable = [[p for p in network.parameters() if p.requires_grad] for network in networks]
    w = [torch.nn.utils.parameters_to_vector(p).detach().numpy() for p in trainable]
    return Family(networks[0], np.stack(x), np.stack(y)), np.stack(w)


class Family:
    """One architecture on many data sets: x [r, n, d], y [r, n] in {-1, +1}, one for each run.

    Forward and backward passes are written out, because for networks this small they take a tenth
    of the time of autograd's.
    """

    def __init__(self, network: torch.nn.Sequential, x: np.ndarray, y: np.ndarray) -> None:
        self.network = network
        self.x, self.y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        for layer in network:
            if not isinstance(layer, torch.nn.Linear) and type(layer) not in _ACTIVATIONS:
                raise ValueError(f"network: cannot descend through {type(layer).__name__}")

    def rows(self, index: Sequence[int] | np.ndarray) -> Family:
        """Return the family of the data sets `index`, in which one may appear several times."""
        index = np.asarray(index, dtype=int)
        return Family(self.network, self.x[index], self.y[index])

    def margins(self, w: np.ndarray) -> np.ndarray:
        """Return p [r, n] at weights w [r, P]."""
        return self.y * self._forward(w)[0]

    def smoothed_margins(self, w: np.ndarray) -> np.ndarray:
        """Return α = -ln Σ e^{-p_i} [r]."""
        return _smoothed(self.margins(w))

    def push(self, w: np.ndarray, weigh: Callable) -> tuple[np.ndarray, np.ndarray]:
        """Return p [r, n] and Σ_i weigh(p)_i ∇p_i [r, P]."""
        outputs, passed = self._forward(w)
        p = self.y * outputs
        back = (weigh(p) * self.y)[..., None]
        parts = []
        for layer, (entered, kept) in zip(reversed(self.network), reversed(passed), strict=True):
            if not isinstance(layer, torch.nn.Linear):
                back = back * kept
                continue
            if layer.weight.requires_grad:
                parts.append((back.swapaxes(1, 2) @ entered).reshape(len(w), -1))
            back = back @ kept
        return p, np.concatenate(parts[::-1], axis=1)

    def _forward(self, w: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Return the outputs [r, n] and for each layer its input and its weights or slopes."""
        h, at, passed = self.x, 0, []
        for layer in self.network:
            if isinstance(layer, torch.nn.Linear):
                weight = layer.weight.detach().numpy()[None]
                if layer.weight.requires_grad:
                    end = at + layer.weight.numel()
                    weight, at = w[:, at:end].reshape(-1, *layer.weight.shape), end
                passed.append((h, weight))
                h = h @ weight.swapaxes(1, 2)
            else:
                after, slope = _ACTIVATIONS[type(layer)](h)
                passed.append((h, slope))
                h = after
        return h[..., 0], passed

    def curvatures(self, w: np.ndarray, rule: str = "constant") -> np.ndarray:
        """Return the largest eigenvalue [r] of the Hessian of R for "constant", else of ln R.

        By central differences of the gradient: exact to nine digits or so.
        """
        size = w.shape[1]
        step = 1e-5 * np.linalg.norm(w, axis=1).mean()
        weigh = _WEIGHTS[rule]
        moved = w[:, None] + step * np.concatenate([np.eye(size), -np.eye(size)])
        many = self.rows(np.repeat(np.arange(len(w)), 2 * size))
        pushes = many.push(moved.reshape(-1, size), weigh)[1].reshape(len(w), 2, size, size)
        hessian = (pushes[:, 1] - pushes[:, 0]) / (2.0 * step)
        return np.linalg.eigvalsh(0.5 * (hessian + hessian.swapaxes(1, 2)))[:, -1]

    def edges(self, path: np.ndarray, rate: float) -> np.ndarray:
        """Return η λ/2 [k] at the states [k, P] of the "relative" rule, above 1 beyond the edge.

        For a family of one data set: η is the step in ln R, λ its largest curvature.
        """
        along = self.rows(np.zeros(len(path), dtype=int))
        length = np.linalg.norm(along.push(path, _shares)[1], axis=1)
        # No step is taken where the gradient vanishes.
        size = rate * np.linalg.norm(path, axis=1) * (length > 0) / np.maximum(length, 1e-300)
        return 0.5 * size * along.curvatures(path, "relative")


def _smoothed(p: np.ndarray) -> np.ndarray:
    smallest = p.min(axis=1)
    return smallest - np.log(np.exp(smallest[:, None] - p).sum(axis=1))


def _losses(p: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(-p, 300.0))


def _shares(p: np.ndarray) -> np.ndarray:
    losses = np.exp(p.min(axis=1, keepdims=True) - p)
    return losses / losses.sum(axis=1, keepdims=True)


# What each example weighs in -∇R and in -∇ln R.
_WEIGHTS = {"constant": _losses, "normalized": _shares, "relative": _shares}


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1, keepdims=True)


def descend(
    family: Family,
    w: np.ndarray,
    rates: np.ndarray,
    levels: np.ndarray,
    *,
    rule: str = "constant",
    momentum: float = 0.0,
    batch: int | None = None,
    order: str = "reshuffled",
    seed: int = 0,
    steps: int = 100_000,
    keep: bool = False,
) -> Runs:
    """Return runs of descent from w [r, P], each with its rate [r] to its α = level [r].

    rule: "constant", W ← W - rate ∇R; "normalized", W ← W - rate ∇R/R;
        "relative", a step of rate ‖W‖ along -∇R.
    momentum: μ in Δ ← μ Δ - (step above), W ← W + Δ.
    batch: examples in a step, whose part of the step is multiplied by n/batch; it must divide n.
        order: "reshuffled", every epoch a new permutation cut into batches, or "independent", each
        batch drawn for itself; determined by `seed`.
    steps: after so many a run is given up, as it is when a number overflows.
    keep: whether to return the paths.

    Raises ValueError for an unknown rule or order and for a batch that does not divide n.
    """
    r, n = family.y.shape
    if rule not in RULES or order not in ORDERS:
        raise ValueError(f"expected a rule of {RULES} and an order of {ORDERS}")
    if batch is not None and n % batch:
        raise ValueError(f"batch: expected a divisor of {n}, got {batch}")
    point, rates, levels = (np.array(a, dtype=np.float64) for a in (w, rates, levels))
    ends, taken = np.full(point.shape, math.nan), np.full(r, steps)
    paths: list[list[np.ndarray]] = [[] for _ in range(r)]
    generator, places = np.random.default_rng(seed), np.tile(np.arange(n), (r, 1))
    active, velocity, mask = np.arange(r), np.zeros_like(point), 1.0
    before = point
    for step in range(steps):
        if batch is not None:
            turn = step % (n // batch) if order == "reshuffled" else 0
            if turn == 0:
                places = generator.permuted(places, axis=1)
            mask = np.where(places[active] // batch == turn, n / batch, 0.0)
        # A run may leave the range of numbers; it is then given up.
        with np.errstate(over="ignore", invalid="ignore"):
            p, push = family.push(point, lambda p, mask=mask: mask * _WEIGHTS[rule](p))
            alpha = _smoothed(p)
        arrived, lost = alpha >= levels, ~np.isfinite(alpha)
        if (arrived | lost).any():
            now = np.flatnonzero(arrived)
            if len(now):
                segment = before[now], point[now]
                ends[active[now]] = _crossing(family.rows(now), *segment, levels[now])
            left = np.flatnonzero(~(arrived | lost))
            taken[np.delete(active, left)] = step
            active, family = active[left], family.rows(left)
            point, push, velocity, rates, levels = (
                a[left] for a in (point, push, velocity, rates, levels)
            )
            if not len(active):
                break
        if keep:
            for k, row in zip(active, point, strict=True):
                paths[k].append(row)
        sizes = rates[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            if rule == "relative":  # where no example reaches a neuron any more, the run is lost
                sizes = sizes * _length(point) / _length(push)
            velocity = momentum * velocity + sizes * push
        before, point = point, point + velocity
    return Runs(ends, taken, tuple(np.array(path) for path in paths) if keep else ())


def flow_to(family: Family, w: np.ndarray, level: float, steps: int = 400) -> np.ndarray:
    """Return states [steps + 1, r, P] of the flow from w [r, P] to α = level.

    α itself is the variable, dW/dα = ∇α/‖∇α‖², so that every run lands on the level; by the
    classical method of order 4.
    """
    states = [np.array(w, dtype=np.float64)]
    length = ((level - family.smoothed_margins(states[0])) / steps)[:, None]

    def velocity(point: np.ndarray) -> np.ndarray:
        _, push = family.push(point, _shares)
        return push / _length(push) ** 2

    for _ in range(steps):
        w = states[-1]
        first = velocity(w)
        second = velocity(w + 0.5 * length * first)
        third = velocity(w + 0.5 * length * second)
        fourth = velocity(w + length * third)
        states.append(w + length / 6.0 * (first + 2.0 * second + 2.0 * third + fourth))
    return np.array(states)


def departures(
    family: Family,
    flow: np.ndarray,
    shares: np.ndarray,
    *,
    rule: str = "constant",
    draws: int = 1,
    **settings: object,
) -> np.ndarray:
    """Return where descent gets [draws, r, shares, P] that goes as far as the flow.

    flow: what `flow_to` returned; descent has the same starts and ends at the same α. The step is
    a share of the stability edge 2/λ, where λ is the largest curvature that the flow meets; with
    momentum μ times 1 - μ. draws: of the batches. settings: momentum, batch and order of `descend`.
    """
    start, end = flow[0], flow[-1]
    level, r = family.smoothed_margins(end), len(end)
    along = flow[:: max(1, len(flow) // 50)]
    which = np.tile(np.arange(r), len(along))
    curvature = family.rows(which).curvatures(along.reshape(-1, start.shape[1]), rule)
    step = 2.0 / curvature.reshape(len(along), r).max(axis=0)
    step = step * (1.0 - settings.get("momentum", 0.0))
    index = np.tile(np.repeat(np.arange(r), len(shares)), draws)
    rates = step[index] * np.tile(shares, r * draws)
    runs = descend(family.rows(index), start[index], rates, level[index], rule=rule, **settings)
    return runs.w.reshape(draws, r, len(shares), -1)


def apart(ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the angles [r, shares] of `departures` to others [r, P], root mean square of draws."""
    ends, others = _units(ends), _units(others)[:, None]
    angles = 2.0 * np.arcsin(np.minimum(0.5 * np.linalg.norm(ends - others, axis=-1), 1.0))
    return np.sqrt((angles**2).mean(axis=0))


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _crossing(family: Family, start: np.ndarray, end: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return points [k, P] with α = level between start and end, α(start) < level ≤ α(end).

    By the Illinois variant of false position, twelve times.
    """
    low, high, before = np.zeros(len(start)), np.ones(len(start)), np.zeros(len(start))
    below = family.smoothed_margins(start) - levels
    above = np.maximum(family.smoothed_margins(end) - levels, 0.0)
    for _ in range(12):
        share = high - (high - low) * above / np.maximum(above - below, 1e-300)
        value = family.smoothed_margins(start + share[:, None] * (end - start)) - levels
        # An end that stays for the second time counts half.
        side = np.sign(value)
        stays = np.where(side == before, 0.5, 1.0)
        low, high = np.where(side < 0, share, low), np.where(side < 0, high, share)
        below, above = (
            np.where(side < 0, value, stays * below),
            np.where(side < 0, stays * above, value),
        )
        before = side
    return start + share[:, None] * (end - start)
