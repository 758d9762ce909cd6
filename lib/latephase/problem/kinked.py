"""Margins as functions of the weights and of the gates of the module's kinks.

A *kink* k is one nonsmooth scalar operation on one example, out = lo z + (hi - lo) s z (or b + s z
for max(a, b), z = a - b), with its argument z and its *gate* s in [0, 1], 1 where z > 0. With the
gates as constants the margins p and the z are smooth functions of w. Arguments and results are
float64 NumPy arrays; kinks are numbered by site, example and position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from latephase.problem.chain import Chain, Link
from latephase.problem.checks import call_with
from latephase.problem.discovery import find_plan
from latephase.problem.gates import Bend, GatedCalls, Layer
from latephase.problem.losses import other_classes, pairwise_margins
from latephase.problem.margins import Problem
from latephase.problem.rows import LayerRows
from latephase.problem.vectors import to_numpy

# Examples, or rows of B, that go through the module at once.
_BATCH = 1024


def kinked(problem: Problem) -> Kinked | Chain:
    """Return a problem's margins and kinks: a `Chain` where its module is one, else `Kinked`.

    Raises ValueError, with the name of the operation and the path of the part that calls it, for
    kinks or jumps that are not followed, for control flow on values, for kinks that belong to no
    single example, and for a module whose results differ from one call to the next.
    """
    general = Kinked(problem)
    return general.as_chain() or general


class Kinked:
    """Margins and kinks of any module: n margins, P weights, K kinks.

    sites: (operation, path of the part that calls it, shape for an example) of each. owner [K]: the
    example of each kink; site [K]: its site; unit [K]: site and position, the same number for all
    examples. feeds [sites, sites]: whether the second's arguments depend on the first's results.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem = problem.smoothed(None)
        self.n, self.P = problem.n * problem.pairs, problem.w0.size
        self.plan = find_plan(self._discover)
        self.sites = [(site.name, site.where, site.shape) for site in self.plan.sites]
        sizes = np.array([math.prod(site.shape) for site in self.plan.sites], dtype=int)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.K = problem.n * int(self._offsets[-1])
        self.parts = [slice(*ends) for ends in pairwise(problem.n * self._offsets)]
        examples = np.arange(problem.n)
        units = [np.arange(*ends) for ends in pairwise(self._offsets)]
        none = np.zeros(0, dtype=int)
        self.owner = np.concatenate([none, *(np.repeat(examples, size) for size in sizes)])
        self.unit = np.concatenate([none, *(np.tile(own, problem.n) for own in units)])
        self.site = np.repeat(np.arange(len(sizes)), problem.n * sizes)
        self.feeds = self.plan.feeds
        self.margin_owner = np.repeat(examples, problem.pairs)
        self._check()
        self.layered = self._is_layered()

    def gates(self, z: np.ndarray) -> np.ndarray:
        """Return the natural gates, 1.0 where z > 0 and 0.0 elsewhere."""
        return (z > 0).astype(float)

    def evaluate(self, w: np.ndarray, gates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return p [n] and z [K] with these gates as constants."""
        with torch.no_grad():
            p, calls = self.run(self._tensor(w), np.arange(self.problem.n), gates)
            return to_numpy(p).reshape(-1), to_numpy(self.flat(calls, self.problem.n).reshape(-1))

    def evaluate_natural(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return p [n], z [K] and the gates that z itself opens [K]."""
        p, z = self.evaluate(w, None)
        return p, z, self.gates(z)

    def at(self, w: np.ndarray, gates: np.ndarray, active: np.ndarray) -> Point:
        """Return the derivatives at w with these gates, those of the kinks `active` closed."""
        return Point(self, w, gates, np.asarray(active, dtype=int))

    def run(
        self, w: Tensor, rows: np.ndarray, gates: np.ndarray | None, record: bool = False
    ) -> tuple[Tensor, GatedCalls]:
        """Return p [rows, ·] of the examples `rows`, repeated at will, and the calls made."""
        count = len(rows)
        whole = count == self.problem.n and np.array_equal(rows, np.arange(count))
        spread = None
        if gates is not None:
            spread = [
                site.spread(self._tensor(own if whole else own[rows]), count)
                for site, own in zip(self.plan.sites, self._by_site(gates), strict=True)
            ]
        calls = GatedCalls(self.plan, count, spread)
        index = slice(None) if whole else torch.from_numpy(rows)
        x, y = self.problem.x[index], self.problem.y[index]
        return self._margins(w, x, y, calls, record), calls

    def place(self, kinks: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """Return where kinks stand in `flat` of `count` rows, each taken from the given row."""
        unit = self.unit[kinks]
        site = np.searchsorted(self._offsets, unit, side="right") - 1
        offset, size = self._offsets[site], np.diff(self._offsets)[site]
        return count * offset + rows * size + unit - offset

    def flat(self, calls: GatedCalls, examples: int) -> Tensor:
        """Return the arguments of all kinks, site by site, each [examples · size]."""
        flat = [
            site.flat(z, examples).reshape(-1)
            for site, z in zip(self.plan.sites, calls.z, strict=True)
        ]
        return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)

    def _by_site(self, values: np.ndarray) -> list[np.ndarray]:
        return [values[part].reshape(self.problem.n, -1) for part in self.parts]

    def _margins(self, w: Tensor, x: Tensor, y: Tensor, calls: GatedCalls, record: bool) -> Tensor:
        problem = self.problem
        parts = zip(w.split(problem.sizes), problem.shapes, strict=True)
        parameters = [part.reshape(shape) for part, shape in parts]
        if record:
            calls.parameters = {id(one): i for i, one in enumerate(parameters)}
        with calls:
            outputs = call_with(problem.module, problem.slots, parameters, x)
        calls.finish()
        return pairwise_margins(outputs, y).reshape(len(x), -1)

    def _discover(self, calls: GatedCalls) -> Tensor:
        problem = self.problem
        rows = torch.arange(calls.examples) % problem.n
        w = self._tensor(self._nearby(0)).requires_grad_(True)
        with calls.watching(problem.module):
            return self._margins(w, problem.x[rows], problem.y[rows], calls, False)

    def _nearby(self, seed: int) -> np.ndarray:
        return self.problem.nearby(np.random.default_rng(seed).normal(size=self.P))

    def _tensor(self, array: np.ndarray) -> Tensor:
        wide = np.ascontiguousarray(array, dtype=np.float64)
        return torch.from_numpy(wide).to(self.problem.device)

    def _check(self) -> None:
        """Raise ValueError if results change between calls, or examples act on one another."""
        w = self._nearby(1)
        p, z, _ = self.evaluate_natural(w)
        for again in (self.problem.margins(w).reshape(-1), self.problem.margins(w).reshape(-1)):
            if np.abs(p - again).max() > 1e-9 * np.abs(p).max():
                raise ValueError(
                    "module: its outputs for the same weights and data differ from call to call; "
                    "expected that nothing but the weights and the example decides them"
                )
        few = np.arange(min(3, self.problem.n))
        with torch.no_grad():
            wide = self._tensor(w)
            single = [self.flat(self.run(wide, few[i : i + 1], None)[1], 1) for i in few]
        for i, one in enumerate(single):
            mine = z[self.owner == i]
            if np.abs(mine - to_numpy(one)).max(initial=0.0) > 1e-9 * np.abs(z).max(initial=0.0):
                raise ValueError(
                    "module: what its kinks act on in an example depends on the other examples of "
                    "the batch; gates of single examples are not defined"
                )

    def _is_layered(self) -> bool:
        """Return whether all weights are those of linear layers and convolutions."""
        few = np.arange(min(3, self.n))
        w = self._nearby(2)
        point = self.at(w, self.evaluate_natural(w)[2], few[: min(3, self.K)])
        lam, mu = np.linspace(1.0, 2.0, self.n), np.linspace(1.0, 2.0, len(point.active))
        keep = np.isin(self.margin_owner, few)
        expected = point.pull(np.where(keep, lam, 0.0), mu)[0]
        try:
            rows = point.layer_rows(np.flatnonzero(keep)).rows()
        except (NotImplementedError, RuntimeError, StopIteration):
            return False
        came = to_numpy(rows).T @ np.concatenate([lam[keep], mu])
        return bool(np.linalg.norm(came - expected) <= 1e-9 * np.linalg.norm(expected))

    def as_chain(self) -> Chain | None:
        """Return the same as a `Chain`, if the module is one."""
        problem = self.problem
        w = self._nearby(3)
        with torch.no_grad():
            _, calls = self.run(self._tensor(w), np.arange(problem.n), None, record=True)
        if len(self.plan.steps) != len(self.plan.sites) or not calls.events:
            return None
        ends = np.cumsum(problem.sizes)
        links, trained = [], []
        for event in calls.events:
            if isinstance(event, Bend):
                if not links or links[-1].bent:
                    return None
                site = self.plan.sites[event.site]
                low, high = (_plain(bound) for bound in (event.low, event.high))
                links[-1] = replace(links[-1], low=low, high=high, name=site.name, where=site.where)
                continue
            if event.name != "linear" or event.bias is not None or event.input.ndim != 2:
                return None
            shape = event.output.shape[1], event.input.shape[1]
            if isinstance(event.weight, int):
                end = ends[event.weight]
                weight = slice(end - problem.sizes[event.weight], end)
                trained.append(event.weight)
            elif links:
                weight = to_numpy(event.weight)
            else:
                # Before the first trained layer: part of what the data are.
                continue
            if not links:
                inputs = to_numpy(event.input)
            links.append(Link(weight, shape, 1.0, 1.0, "", ""))
        if sorted(trained) != [*range(len(problem.sizes))] or links[-1].bent:
            return None
        if any(below.shape[0] != link.shape[1] for below, link in pairwise(links)):
            return None
        chain = Chain(inputs, _signs(problem), links)
        return chain if self._agrees(chain, w) else None

    def _agrees(self, chain: Chain, w: np.ndarray) -> bool:
        """Return whether margins, kinks and gradients of a chain are these."""
        if (chain.K, chain.P) != (self.K, self.P):
            return False
        lam, none = np.linspace(1.0, 2.0, self.n), np.zeros(0)
        p, z, gates = self.evaluate_natural(w)
        mine, other = self.at(w, gates, none), chain.at(w, gates, none)
        pairs = [(p, other.p), (z, other.z)]
        pairs += zip(mine.pull(lam, none), other.pull(lam, none), strict=True)
        return all(
            np.abs(a - b).max(initial=0.0) <= 1e-9 * np.abs(a).max(initial=0.0) for a, b in pairs
        )


class Point:
    """The derivatives of margins p [n] and of the arguments z_A of A active kinks, at one w.

    J [n, P] and Z_A [A, P] are their Jacobians with the gates as constants, those of the active
    kinks closed (0), and B = [J; Z_A]. The module runs forward once.
    """

    def __init__(
        self, kinked: Kinked, w: np.ndarray, gates: np.ndarray, active: np.ndarray
    ) -> None:
        self.kinked, self.active = kinked, active.astype(int)
        self.gates = np.array(gates, dtype=float)
        self.gates[self.active] = 0.0
        self._leaf = kinked._tensor(w).requires_grad_(True)
        count = kinked.problem.n
        p, self._calls = kinked.run(self._leaf, np.arange(count), self.gates)
        self._p, self._z = p.reshape(-1), kinked.flat(self._calls, count)
        self.p, self.z = to_numpy(self._p), to_numpy(self._z)
        self._index = torch.from_numpy(self.active)
        self._outputs = [
            (site, out, span) for site, outs in enumerate(self._calls.outputs) for out, span in outs
        ]
        self._last = self._pulled = None

    def pull(self, lam: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return g = Jᵀλ + Zᵀμ [P] and c = (hi - lo) ∂(λᵀp + μᵀz_A)/∂(output of each kink) [K]."""
        given = self._cotangents(lam, mu)
        outs = [out for _, out, _ in self._outputs]
        gradient, *slopes = self._gradients([self._leaf, *outs], given)
        count = self.kinked.problem.n
        c = [torch.zeros_like(z) for z in self._calls.z]
        for (site, _, span), slope in zip(self._outputs, slopes, strict=True):
            c[site] = c[site] + span * slope
        flat = [
            site.flat(one, count).reshape(-1)
            for site, one in zip(self.kinked.plan.sites, c, strict=True)
        ]
        return to_numpy(gradient), to_numpy(torch.cat(flat)) if flat else np.zeros(0)

    def push(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return J v [n] and Z_A v [A]: the transpose of the map (λ, μ) ↦ Jᵀλ + Zᵀμ."""
        if self._pulled is None:
            self._pull_with_graph(np.ones(len(self.p)), np.ones(len(self.active)))
        gradient, cotangents = self._pulled
        pushed = torch.autograd.grad(
            gradient,
            cotangents,
            self.kinked._tensor(v),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return to_numpy(pushed[0]), to_numpy(pushed[1])

    def curvature(self, lam: np.ndarray, mu: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return ∇²(λᵀp + μᵀz_A) v [P]."""
        if self._last is None or not all(map(np.array_equal, self._last, (lam, mu))):
            self._pull_with_graph(lam, mu)
        gradient, _ = self._pulled
        if not gradient.requires_grad:
            return np.zeros(self.kinked.P)
        (product,) = torch.autograd.grad(
            gradient,
            self._leaf,
            self.kinked._tensor(v),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return to_numpy(product)

    def gram(self, scale: np.ndarray | None = None) -> np.ndarray:
        """Return B Bᵀ, rows and columns times `scale` where given, [n + A, n + A]."""
        if self.kinked.layered:
            gram = to_numpy(self.layer_rows(np.arange(len(self.p))).gram())
        else:
            rows = self.rows()
            gram = rows @ rows.T
        return gram if scale is None else scale[:, None] * gram * scale

    def rows(self) -> np.ndarray:
        """Return B = [J; Z_A], [n + A, P]; ValueError where it exceeds `jacobian_bytes`."""
        problem, count = self.kinked.problem, len(self.p) + len(self.active)
        if 8 * count * self.kinked.P > problem.jacobian_bytes:
            raise ValueError(
                f"jacobian_bytes: gradients of {len(self.p)} margins and {len(self.active)} active "
                f"kinks in {self.kinked.P} weights need {8 * count * self.kinked.P} bytes, the "
                f"bound is {problem.jacobian_bytes}"
            )
        margins = np.arange(len(self.p))
        if self.kinked.layered:
            return to_numpy(self.layer_rows(margins).rows())
        blocks = self._example_rows(max(1, problem.jacobian_bytes // (4 * 8 * self.kinked.P)))
        return np.concatenate([*blocks])

    def layer_rows(self, margins: np.ndarray) -> LayerRows:
        """Return the rows of some margins, then of the active kinks, by layers."""
        kinked = self.kinked
        found = LayerRows(kinked.problem.sizes)
        owner = np.concatenate([kinked.margin_owner[margins], kinked.owner[self.active]])
        for start in range(0, len(owner), _BATCH):
            rows = owner[start : start + _BATCH]
            p, calls = kinked.run(self._leaf, rows, self.gates, record=True)
            own = margins[start : start + _BATCH]
            kinks = self.active[max(0, start - len(margins)) :][: len(rows) - len(own)]
            first = torch.arange(len(own))
            total = p[first, torch.from_numpy(own % kinked.problem.pairs)].sum()
            place = kinked.place(kinks, np.arange(len(own), len(rows)), len(rows))
            total = total + kinked.flat(calls, len(rows))[torch.from_numpy(place)].sum()
            layers = [one for one in calls.events if isinstance(one, Layer) and one.trained]
            outputs = [layer.output for layer in layers]
            deltas = torch.autograd.grad(total, outputs, allow_unused=True)
            found.add(layers, deltas, len(rows))
        return found

    def _example_rows(self, per_block: int) -> Iterator[np.ndarray]:
        """Yield the rows of B in blocks, each row a pass of its example alone."""
        kinked, problem = self.kinked, self.kinked.problem
        plan, pairs = kinked.plan, problem.pairs
        by_site = [kinked._tensor(own) for own in kinked._by_site(self.gates)]

        def value(u: Tensor, x: Tensor, y: Tensor, gates: list[Tensor], picks: Tensor) -> Tensor:
            spread = [s.spread(own[None], 1) for s, own in zip(plan.sites, gates, strict=True)]
            calls = GatedCalls(plan, 1, spread)
            p = kinked._margins(u, x[None], y[None], calls, False)
            return (torch.cat([p.reshape(-1), kinked.flat(calls, 1)]) * picks).sum()

        gradient = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0, 0, 0))
        owner = np.concatenate([kinked.margin_owner, kinked.owner[self.active]])
        margins = np.arange(len(self.p)) % pairs
        entry = np.concatenate([margins, pairs + kinked.unit[self.active]])
        for start in range(0, len(owner), min(per_block, _BATCH)):
            rows = slice(start, start + min(per_block, _BATCH))
            own = torch.from_numpy(owner[rows])
            width = pairs + kinked.K // problem.n
            picks = kinked._tensor(np.eye(width)[entry[rows]])
            gates = [one[own] for one in by_site]
            yield to_numpy(
                gradient(self._leaf.detach(), problem.x[own], problem.y[own], gates, picks)
            )

    def _cotangents(self, lam: np.ndarray, mu: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.kinked._tensor(lam), self.kinked._tensor(mu)

    def _gradients(self, inputs: list[Tensor], given, create_graph: bool = False):
        functions, cotangents = [self._p], [given[0]]
        if len(self.active):
            functions, cotangents = [self._p, self._z[self._index]], given
        return torch.autograd.grad(
            functions,
            inputs,
            cotangents,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    def _pull_with_graph(self, lam: np.ndarray, mu: np.ndarray) -> None:
        given = [one.requires_grad_(True) for one in self._cotangents(lam, mu)]
        (gradient,) = self._gradients([self._leaf], given, create_graph=True)
        self._last, self._pulled = (lam.copy(), mu.copy()), (gradient, given)


def _plain(bound: float | Tensor) -> float | np.ndarray:
    return to_numpy(bound).reshape(-1) if isinstance(bound, Tensor) else float(bound)


def _signs(problem: Problem) -> np.ndarray:
    """Return S [n·pairs, outputs]: margin r is S[r] · outputs of example r // pairs."""
    y = problem.y.cpu()
    if problem.classes == 1:
        return to_numpy(y)[:, None].astype(float)
    basis = torch.eye(problem.classes, dtype=torch.float64)
    apart = basis[y][:, None] - basis[other_classes(y, problem.classes)]
    return to_numpy(apart).reshape(-1, problem.classes)
