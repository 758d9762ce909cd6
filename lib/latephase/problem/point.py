"""Derivatives of margins and of the arguments of kinks at one point, by autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latephase.problem.bounded import BoundedRows, Room
from latephase.problem.gates import GatedCalls, Layer
from latephase.problem.rows import LayerRows
from latephase.problem.vectors import to_numpy

if TYPE_CHECKING:
    from latephase.problem.kinked import Kinked

# Rows of B that go through the module at once.
_BATCH = 1024


class Point(BoundedRows):
    """The derivatives of margins p [n] and of the arguments z_A of A active kinks, at one w.

    J [n, P] and Z_A [A, P] are their derivatives in w with the gates as constants, those of the
    active kinks closed (0), and B = [J; Z_A]. The module runs forward once, where `jacobian_bytes`
    holds the graph of all examples; else on parts of them, anew for each product.
    """

    def __init__(
        self, kinked: Kinked, w: np.ndarray, gates: np.ndarray, active: np.ndarray
    ) -> None:
        self.kinked, self.active = kinked, active
        self.gates = np.array(gates, dtype=float)
        self.gates[self.active] = 0.0
        self._leaf = kinked.tensor(w).requires_grad_(True)
        self._kept: Pass | None = None
        if len(parts := kinked.batches) == 1:
            self._kept = Pass(self, *parts[0])
            self.p, self.z = to_numpy(self._kept.p), to_numpy(self._kept.z)
        else:
            self.p, self.z = kinked.evaluate(w, self.gates)
        self.select(np.arange(len(self.p)))

    def _passes(self) -> Iterator[Pass]:
        if self._kept is not None:
            yield self._kept
            return
        for batch in self.kinked.batches:
            yield Pass(self, *batch)

    def part(self, kept: np.ndarray, kinks: np.ndarray) -> Point:
        """Return the point with these of its rows alone: of the margins kept, and of `active`."""
        of = self.kinked.at(to_numpy(self._leaf), self.gates, self.active[kinks])
        of.select(self.margins[kept])
        return of

    def units(self) -> np.ndarray:
        """Return the units of the active kinks."""
        return self.kinked.unit[self.active]

    def near(self, margins: np.ndarray) -> tuple[Point, np.ndarray | slice]:
        """Return the point with these margins alone as rows, and which margins it has: all."""
        self.select(margins)
        return self, slice(None)

    def pull(self, lam: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return g = Jᵀλ + Zᵀμ [P] and c = (hi - lo) ∂(λᵀp + μᵀz_A)/∂(output of each kink) [K]."""
        total, c = 0.0, np.zeros(self.kinked.K)
        for one in self._passes():
            gradient, c[one.kinks] = one.pull(lam, mu)
            total = total + gradient
        return total, c

    def select(self, margins: np.ndarray) -> None:
        """Keep only these margins, ascending, as rows of B."""
        super().select(margins)
        self._layers: LayerRows | None = None

    def _combine(self, w: np.ndarray) -> np.ndarray:
        if self._layers is not None:
            return to_numpy(self._layers.combine(self.kinked.tensor(w)))
        kept = len(self.margins)
        lam = np.zeros(len(self.p))
        lam[self.margins] = w[:kept]
        return sum(one.combine(lam, w[kept:]) for one in self._passes())

    def _push(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._layers is not None:
            pushed, kept = to_numpy(self._layers.push(self.kinked.tensor(v))), len(self.margins)
            return pushed[:kept], pushed[kept:]
        # The transpose of (λ, μ) ↦ Jᵀλ + Zᵀμ.
        margins, kinks = np.empty(len(self.p)), np.empty(len(self.active))
        for one in self._passes():
            margins[one.margins], kinks[one.active] = one.push(v)
        return margins[self.margins], kinks

    def curvature(self, lam: np.ndarray, mu: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return ∇²(λᵀp + μᵀz_A) v [P]."""
        return sum(one.curvature(lam, mu, v) for one in self._passes())

    def curved(self) -> bool:
        """Return whether a gradient of these margins and kinks depends on w."""
        return any(one.curved() for one in self._passes())

    @property
    def room(self) -> Room:
        """The bound on bytes, and what these rows take of it."""
        kinked = self.kinked
        return Room(kinked.problem.jacobian_bytes, kinked.P, kinked.row_bytes)

    def _gram(self) -> np.ndarray:
        if self.kinked.layered:
            self._layers = self.layer_rows(self.margins, self.active)
            return to_numpy(self._layers.gram())
        held = self.rows()
        return held @ held.T

    def split_gram(self) -> None:
        """Return None: no rows are known to be orthogonal, as they are in a `Chain`."""

    def _rows_of(self, margins: np.ndarray, kinks: np.ndarray) -> np.ndarray:
        if self.kinked.layered:
            return to_numpy(self.layer_rows(margins, kinks).rows())
        # A quarter, because reverse mode holds the pulled-back parameters once per layer use.
        problem = self.kinked.problem
        width = max(self.kinked.P, problem.pairs + self.kinked.K // problem.n)
        per_block = max(1, problem.jacobian_bytes // (4 * 8 * width))
        return np.concatenate([*self._example_rows(margins, kinks, per_block)])

    def layer_rows(self, margins: np.ndarray, active: np.ndarray) -> LayerRows:
        """Return the rows of some margins, then of some active kinks, by layers."""
        kinked = self.kinked
        found = LayerRows(kinked.problem.sizes)
        owner = np.concatenate([kinked.margin_owner[margins], kinked.owner[active]])
        batch = max(1, min(_BATCH, self.room.bound // (4 * self.room.row)))
        for start in range(0, len(owner), batch):
            rows = owner[start : start + batch]
            p, calls = kinked.run(self._leaf, rows, self.gates, record=True)
            own = margins[start : start + batch]
            kinks = active[max(0, start - len(margins)) :][: len(rows) - len(own)]
            first = torch.arange(len(own))
            total = p[first, torch.from_numpy(own % kinked.problem.pairs)].sum()
            place = kinked.place(kinks, np.arange(len(own), len(rows)), len(rows))
            total = total + kinked.flat(calls, len(rows))[torch.from_numpy(place)].sum()
            layers = [one for one in calls.events if isinstance(one, Layer) and one.trained]
            outputs = [layer.output for layer in layers]
            deltas = torch.autograd.grad(total, outputs, allow_unused=True)
            found.add(layers, deltas, len(rows))
        return found

    def _example_rows(
        self, margins: np.ndarray, kinks: np.ndarray, per_block: int
    ) -> Iterator[np.ndarray]:
        """Yield the rows of B in blocks, each row a pass of its example alone."""
        kinked, problem = self.kinked, self.kinked.problem
        plan, pairs = kinked.plan, problem.pairs
        by_site = [kinked.tensor(own) for own in kinked.by_site(self.gates)]

        def value(u: Tensor, x: Tensor, y: Tensor, gates: list[Tensor], picks: Tensor) -> Tensor:
            spread = [s.spread(own[None], 1) for s, own in zip(plan.sites, gates, strict=True)]
            calls = GatedCalls(plan, 1, spread)
            p = kinked.margins(u, x[None], y[None], calls, False)
            return (torch.cat([p.reshape(-1), kinked.flat(calls, 1)]) * picks).sum()

        leaf = self._leaf.detach()
        gradient = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0, 0, 0))
        owner = np.concatenate([kinked.margin_owner[margins], kinked.owner[kinks]])
        entry = np.concatenate([margins % pairs, pairs + kinked.unit[kinks]])
        for start in range(0, len(owner), min(per_block, _BATCH)):
            rows = slice(start, start + min(per_block, _BATCH))
            own = torch.from_numpy(owner[rows])
            picks = np.zeros((len(own), pairs + kinked.K // problem.n))
            picks[np.arange(len(own)), entry[rows]] = 1.0
            gates = [one[own] for one in by_site]
            yield to_numpy(
                gradient(leaf, problem.x[own], problem.y[own], gates, kinked.tensor(picks))
            )


class Pass:
    """A point's examples `rows`, ascending, with their graph.

    margins: slice of p; kinks: which of all; active: which of the active ones.
    """

    def __init__(self, point: Point, rows: np.ndarray, margins: slice, kinks: np.ndarray) -> None:
        self.kinked, self._leaf = point.kinked, point._leaf
        self.margins, self.kinks, self._count = margins, kinks, len(rows)
        p, self._calls = self.kinked.run(self._leaf, rows, point.gates)
        self.p, self.z = p.reshape(-1), self.kinked.flat(self._calls, self._count)
        owner = self.kinked.owner[point.active]
        self.active = np.flatnonzero((owner >= rows[0]) & (owner <= rows[-1]))
        self._index = torch.from_numpy(np.searchsorted(kinks, point.active[self.active]))
        self._outputs = [
            (site, out, span) for site, outs in enumerate(self._calls.outputs) for out, span in outs
        ]
        self._last = self._pulled = None

    def pull(self, lam: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the point's `pull` of these examples, c of their kinks alone."""
        outs = [out for _, out, _ in self._outputs]
        gradient, *slopes = self._gradients([self._leaf, *outs], self._cotangents(lam, mu))
        c = [torch.zeros_like(z) for z in self._calls.z]
        for (site, _, span), slope in zip(self._outputs, slopes, strict=True):
            c[site] = c[site] + span * slope
        flat = [
            site.flat(one, self._count).reshape(-1)
            for site, one in zip(self.kinked.plan.sites, c, strict=True)
        ]
        return to_numpy(gradient), to_numpy(torch.cat(flat)) if flat else np.zeros(0)

    def combine(self, lam: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """Return Jᵀλ + Zᵀμ of these examples."""
        return to_numpy(self._gradients([self._leaf], self._cotangents(lam, mu))[0])

    def push(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return J v of all their margins, and Z_A v."""
        if self._pulled is None:
            ones = torch.ones_like(self.p), torch.ones(len(self.active)).to(self.p)
            self._pull_with_graph(ones)
        gradient, cotangents = self._pulled
        pushed = torch.autograd.grad(
            gradient,
            cotangents,
            self.kinked.tensor(v),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return to_numpy(pushed[0]), to_numpy(pushed[1])

    def curvature(self, lam: np.ndarray, mu: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return ∇²(λᵀp + μᵀz_A) v of these examples."""
        if self._last is None or not all(map(np.array_equal, self._last, (lam, mu))):
            self._pull_with_graph(self._cotangents(lam, mu))
            self._last = lam.copy(), mu.copy()
        (product,) = torch.autograd.grad(
            self._pulled[0],
            self._leaf,
            self.kinked.tensor(v),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return to_numpy(product)

    def curved(self) -> bool:
        """Return whether a gradient of these examples' margins and kinks depends on w."""
        ones = torch.ones_like(self.p), torch.ones(len(self.active)).to(self.p)
        self._pull_with_graph(ones)
        gradient = self._pulled[0]
        found = torch.autograd.grad(
            gradient, self._leaf, torch.ones_like(gradient), retain_graph=True, allow_unused=True
        )
        return found[0] is not None

    def _cotangents(self, lam: np.ndarray, mu: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.kinked.tensor(lam[self.margins]), self.kinked.tensor(mu[self.active])

    def _gradients(self, inputs: list[Tensor], given, create_graph: bool = False):
        functions, cotangents = [self.p], [given[0]]
        if len(self.active):
            functions, cotangents = [self.p, self.z[self._index]], given
        return torch.autograd.grad(
            functions,
            inputs,
            cotangents,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    def _pull_with_graph(self, given: tuple[Tensor, Tensor]) -> None:
        given = [one.detach().requires_grad_(True) for one in given]
        (gradient,) = self._gradients([self._leaf], given, create_graph=True)
        self._last, self._pulled = None, (gradient, given)
