"""Which modules are chains of links: layers, kinks, choices, averages and smooth bends in a row.

What a link takes is found in what the one before it gave by its values: with noise in the results
of layers, and at random gates, no two are the same. The chain is then compared with the module.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latephase.problem import gates, links
from latephase.problem.bends import Power, Smoothed
from latephase.problem.chain import Chain, Link
from latephase.problem.losses import other_classes
from latephase.problem.margins import Problem
from latephase.problem.rows import unfold
from latephase.problem.vectors import slots, to_numpy

if TYPE_CHECKING:
    from latephase.problem.kinked import Kinked


def as_chain(kinked: Kinked) -> Chain | None:
    """Return the same as a `Chain`, if the module is one."""
    problem, plan = kinked.problem, kinked.plan
    if len(plan.steps) != len(plan.sites) or any(site.keep is not None for site in plan.sites):
        return None
    w, few, random = kinked.nearby(3), np.arange(2) % problem.n, np.random.default_rng(3)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        calls = kinked.run(kinked.tensor(w), few, random.random(kinked.K), True, noise)[1]
        try:
            found = _Recognition(kinked).links(calls.events)
        except _NoChainError:
            return None
        seen = kinked.run(kinked.tensor(w), np.arange(problem.n), None, True)[1].events
    first = next(one for one in seen if isinstance(one, gates.Layer) and one.trained)
    inputs = to_numpy(first.input).reshape(problem.n, -1)
    chain = Chain(inputs, _signs(problem), found, problem.jacobian_bytes)
    return chain if _agrees(kinked, chain, w) else None


class _NoChainError(Exception):
    """The module is no chain."""


class _Recognition:
    """What has been found of a chain: its links, and the values that the last one gave."""

    def __init__(self, kinked: Kinked) -> None:
        self.problem, self.sites = kinked.problem, kinked.plan.sites
        self.found: list[Link] = []
        self.given = np.zeros((2, 0))

    def links(self, events: list) -> list[Link]:
        """Return the links of what a module called; raises `_NoChainError`."""
        trained = []
        for event in events:
            if isinstance(event, gates.Layer):
                # Before the first trained layer: part of what the data are.
                if self.found or event.trained:
                    self._layer(event)
                    trained += [event.weight] if isinstance(event.weight, int) else []
            elif isinstance(event, gates.Average):
                self._average(event)
            elif not self.found:
                raise _NoChainError
            elif isinstance(event, gates.Bend):
                self._bend(event)
            else:
                self._choice(event)
        if sorted(trained) != [*range(len(self.problem.sizes))]:
            raise _NoChainError
        if not isinstance(self.found[-1], links.Dense):
            raise _NoChainError
        return self.found

    def _add(self, link: Link, *given: Tensor) -> None:
        self.found.append(link)
        self.given = np.concatenate([_flat(one) for one in given], 1)

    def _layer(self, event: gates.Layer) -> None:
        if event.bias is not None or (event.name == "linear" and event.input.ndim != 2):
            raise _NoChainError
        if self.found:
            self._take(event.input)
        index, sizes = event.weight, self.problem.sizes
        if isinstance(index, int):
            end = sum(sizes[: index + 1])
            weight, count = slice(end - sizes[index], end), sizes[index]
        else:
            weight = to_numpy(index).reshape(len(index), -1)
            count = weight.size
        if event.name == "linear":
            inside = event.input.shape[1]
            shape = count // inside, inside
            self._add(links.Dense(weight, shape, event.transposed), event.output)
            return
        shape = event.output.shape[1], count // event.output.shape[1]
        gather = _under(event)
        self._add(links.Convolution(weight, shape, gather=gather), event.output)

    def _bend(self, event: gates.Bend) -> None:
        site = self.sites[event.site]
        self._take(event.z)
        shape = event.z.shape[1:]
        low, high = (_plain(bound, shape) for bound in (event.low, event.high))
        self._add(links.Bend(site.name, site.where, site.shape, low, high), event.output)

    def _choice(self, event: gates.Choice) -> None:
        site, width = self.sites[event.site], self.given.shape[1]
        rest = event.output[..., :0] if event.rest is None else event.rest
        index = np.concatenate([self._places(one) for one in (event.a, event.b, rest)])
        gather = links.Gather(index, width)
        self._add(links.Choice(site.name, site.where, site.shape, gather), event.output, rest)

    def _average(self, event: gates.Average) -> None:
        """Add an average, if it is one of what the last link gave."""
        if not self.found or event.input.shape[:1] != event.output.shape[:1]:
            return
        shape = event.input.shape[1:]
        width = math.prod(shape)
        if event.input.shape[0] != 2 or 8 * width**2 > self.problem.jacobian_bytes:
            return
        try:
            self._take(event.input)
        except _NoChainError:
            return
        one = torch.eye(width).to(event.input).reshape(width, *shape)
        matrix = to_numpy(event.again(one)).reshape(width, -1).T
        rows, columns = np.nonzero(matrix)
        places, most = slots(rows, len(matrix))
        index, coefficients = np.full(len(matrix) * most, width), np.zeros(len(matrix) * most)
        index[places], coefficients[places] = columns, matrix[rows, columns]
        mixed = links.Mixed(links.Gather(index, width), coefficients.reshape(-1, most))
        self._add(mixed, event.output)

    def _take(self, wanted: Tensor) -> None:
        """Add what makes these values of those that the last link gave."""
        given, values = self.given, _flat(wanted)
        if np.array_equal(given, values):
            return
        if (smooth := self._smooth(values)) is not None:
            self._add(smooth, wanted)
            return
        index = self._places(wanted)
        one = np.ones((len(index), 1))
        self._add(links.Mixed(links.Gather(index, given.shape[1]), one), wanted)

    def _places(self, wanted: Tensor) -> np.ndarray:
        """Return where these values stand among those that the last link gave."""
        given, values = self.given, _flat(wanted)
        order = np.argsort(given[0])
        at = np.searchsorted(given[0], values[0], sorter=order)
        index = order[np.minimum(at, len(order) - 1)]
        if not np.array_equal(given[:, index], values):
            raise _NoChainError
        return index

    def _smooth(self, after: np.ndarray) -> Power | Smoothed | None:
        """Return the σ whose values these are, None where it is none of these."""
        if self.given.shape != after.shape:
            return None
        epsilon = self.problem.kink_smoothing
        known = [Power(2), Power(3)] + ([] if epsilon is None else [Smoothed(epsilon)])
        # Products in another order than the module's round otherwise.
        near = 1e-12 * np.abs(after).max(initial=0.0)
        return next(
            (one for one in known if np.abs(one.at(self.given)[0] - after).max() <= near), None
        )


def _under(event: gates.Layer) -> links.Gather:
    """Return the entries of a convolution's input that stand under its kernel."""
    inputs = event.input[:1]
    if event.options[3] != 1 or inputs.ndim != event.output.ndim or len(event.input) != 2:
        raise _NoChainError
    places = torch.arange(1.0, inputs.numel() + 1.0, dtype=torch.float64).reshape(inputs.shape)
    try:
        under = unfold(event, places)
    except NotImplementedError as error:
        raise _NoChainError from error
    index = to_numpy(under).astype(int) - 1
    return links.Gather(np.where(index < 0, inputs.numel(), index), inputs.numel())


def _agrees(kinked: Kinked, chain: Chain, w: np.ndarray) -> bool:
    """Return whether margins, kinks and gradients of a chain are these."""
    if (chain.K, chain.P) != (kinked.K, kinked.P):
        return False
    lam, none = np.linspace(1.0, 2.0, kinked.n), np.zeros(0)
    p, z, gates = kinked.evaluate_natural(w)
    mine, other = kinked.at(w, gates, none), chain.at(w, gates, none)
    pairs = [(p, other.p), (z, other.z)]
    pairs += zip(mine.pull(lam, none), other.pull(lam, none), strict=True)
    pairs.append(tuple(point.curvature(lam, none, w[::-1].copy()) for point in (mine, other)))
    return all(
        np.abs(a - b).max(initial=0.0) <= 1e-9 * np.abs(a).max(initial=0.0) for a, b in pairs
    )


def _flat(values: Tensor) -> np.ndarray:
    return to_numpy(values.reshape(len(values), -1) if values.numel() else values.reshape(2, 0))


def _plain(bound: float | Tensor, shape: torch.Size) -> float | np.ndarray:
    """Return a slope, or those of all values of an example."""
    if not isinstance(bound, Tensor):
        return float(bound)
    return to_numpy(bound).reshape(-1) if bound.numel() == 1 else _flat(bound.expand(2, *shape))[0]


def _signs(problem: Problem) -> np.ndarray:
    """Return S [n·pairs, outputs]: margin r is S[r] · outputs of example r // pairs."""
    y = problem.y.cpu()
    if problem.classes == 1:
        return to_numpy(y)[:, None].astype(float)
    basis = torch.eye(problem.classes, dtype=torch.float64)
    apart = basis[y][:, None] - basis[other_classes(y, problem.classes)]
    return to_numpy(apart).reshape(-1, problem.classes)
