"""Stacks of linear layers with kinks or smooth bends between them, in NumPy: `Kinked`, but fast.

h_0 = x, z_l = h_l W_lᵀ, h_{l+1} = g_l ∘ z_l with the gain g = lo + (hi - lo) s of each kink, or
h_{l+1} = σ(z_l), a power of ReLU or a smoothed one, which has none; and outputs z_{L-1}. With δ_l
the derivative in z_l, the gradient in W_l is Σ δ_l h_lᵀ: a row of B = [J; Z] is an outer product in
each layer, so B Bᵀ = Σ_l (Δ_l Δ_lᵀ) ∘ (H_l H_lᵀ) without B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from latephase.problem.bends import Power, Smoothed
from latephase.problem.bounded import BoundedRows, Room

# The part of the bound for what `ChainPoint.normal` makes of some examples at a time.
_SHARE = 8


@dataclass(frozen=True)
class Link:
    """One linear layer without bias, and the kinks of its outputs (low = high = 1: none).

    weight: the part of w that holds W [out, in], or its transpose, or a frozen W itself. smooth:
    the power of ReLU or the smoothed ReLU behind it.
    """

    weight: slice | np.ndarray
    shape: tuple[int, int]
    low: float | np.ndarray
    high: float | np.ndarray
    name: str
    where: str
    smooth: Power | Smoothed | None = None
    transposed: bool = False

    def view(self, v: np.ndarray) -> np.ndarray:
        """Return the part of v [P] that is this link's, [out, in]."""
        part = v[self.weight]
        return part.reshape(self.shape[::-1]).T if self.transposed else part.reshape(self.shape)

    @cached_property
    def bent(self) -> bool:
        """Whether there are kinks behind it."""
        return self.name != ""

    @cached_property
    def trained(self) -> bool:
        """Whether its W is part of w."""
        return isinstance(self.weight, slice)


@dataclass(frozen=True, eq=False)
class SplitGram:
    """B Bᵀ of m margins and kinks beyond the first layer, and of F kinks of the first layer.

    A kink of example i at unit j of the first layer has the row e_j x_iᵀ there and nothing else, so
    that two of them have the product x_i · x_k at one unit and 0 at two. rest [m, m]; cross [m, F];
    inner: x xᵀ of all examples; example, unit [F].
    """

    rest: np.ndarray
    cross: np.ndarray
    inner: np.ndarray
    example: np.ndarray
    unit: np.ndarray


class Chain:
    """Margins and kinks of a chain of links, with the methods and values of `Kinked`.

    x: inputs [n, in]. signs [n·pairs, outputs]: row r of the margins p is signs[r] · outputs of
    example r // pairs. bound: bytes that what is made of rows of B may take.
    """

    def __init__(self, x: np.ndarray, signs: np.ndarray, links: list[Link], bound: int) -> None:
        self.x, self.signs, self.links = x, signs, links
        self.n, self.pairs = len(signs), len(signs) // len(x)
        # What `among` returned last.
        self._some: tuple | None = None
        self._by_example = signs.reshape(len(x), self.pairs, -1)
        self._logits = _differences(signs, self.pairs)
        self.P = sum(link.shape[0] * link.shape[1] for link in links if link.trained)
        self.sites = [(link.name, link.where, link.shape[:1]) for link in links if link.bent]
        examples, start, units = len(x), 0, 0
        self.parts, lows, spans, owners, owned, site = [], [], [], [], [], []
        for i, link in enumerate(links):
            width = link.shape[0] if link.bent else 0
            self.parts.append(slice(start, start + examples * width))
            ones = np.ones((examples, width))
            lows.append((link.low * ones).reshape(-1))
            spans.append(((link.high - np.asarray(link.low)) * ones).reshape(-1))
            owners.append(np.repeat(np.arange(examples), width))
            owned.append(np.tile(units + np.arange(width), examples))
            site.append(np.full(examples * width, i))
            start, units = start + examples * width, units + width
        self.K = start
        self.low, self.span = np.concatenate(lows), np.concatenate(spans)
        self.owner, self.unit = np.concatenate(owners), np.concatenate(owned)
        self._link_of = np.concatenate(site)
        bends = [i for i, link in enumerate(links) if link.bent]
        self.site = np.searchsorted(bends, self._link_of)
        self.feeds = np.triu(np.ones((len(bends), len(bends)), dtype=bool), 1)
        self.margin_owner = np.repeat(np.arange(examples), self.pairs)
        trained = [i for i, link in enumerate(links) if link.trained]
        self.curved = len(trained) > 1 or any(one.smooth for one in links[trained[0] :])
        # A row's δ and h of all layers, twice; what all examples have in common, once and a half.
        self.room = Room(bound, self.P, 16 * sum(sum(link.shape) for link in links))
        self.squared = 12 * examples**2 <= bound

    @cached_property
    def _input_gram(self) -> np.ndarray:
        return self.x @ self.x.T

    def weights(self, w: np.ndarray) -> list[np.ndarray]:
        """Return the layers' matrices, views of w [P] or frozen ones."""
        return [link.view(w) if link.trained else link.weight for link in self.links]

    def gates(self, z: np.ndarray) -> np.ndarray:
        """Return the natural gates, 1.0 where z > 0 and 0.0 elsewhere."""
        return (z > 0).astype(float)

    def evaluate(self, w: np.ndarray, gates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return p [n·pairs] and z [K] with these gates as constants."""
        point = ChainPoint(self, w, gates, np.zeros(0, dtype=int))
        return point.p, point.z

    def evaluate_natural(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return p [n·pairs], z [K] and the gates that z itself opens [K]."""
        point = ChainPoint(self, w, None, np.zeros(0, dtype=int))
        return point.p, point.z, point.gates

    def at(self, w: np.ndarray, gates: np.ndarray, active: np.ndarray) -> ChainPoint:
        """Return the derivatives at w with these gates, those of the kinks `active` closed."""
        return ChainPoint(self, w, gates, np.array(active, dtype=int))

    def among(self, examples: np.ndarray) -> tuple[Chain, np.ndarray]:
        """Return the chain of these examples alone, ascending, and which of the kinks it has."""
        if self._some is None or not np.array_equal(self._some[0], examples):
            signs = self._by_example[examples].reshape(-1, self.signs.shape[1])
            kinks = np.flatnonzero(np.isin(self.owner, examples))
            some = Chain(self.x[examples], signs, self.links, self.room.bound)
            self._some = examples, some, kinks
        return self._some[1:]

    def margins(self, outputs: np.ndarray) -> np.ndarray:
        """Return p [n·pairs] of outputs [n, ·]."""
        if self._logits is not None:
            of_label, of_other = (outputs.reshape(-1).take(at) for at in self._logits)
            return of_label - of_other
        return np.einsum("npk,nk->np", self._by_example, outputs).reshape(-1)

    def output_slopes(self, weights: np.ndarray) -> np.ndarray:
        """Return ∂(λᵀp)/∂outputs [n, ·] for λ [n·pairs]."""
        if self._logits is not None:
            count = len(self.x) * self.signs.shape[1]
            of_label, of_other = (np.bincount(at, weights, count) for at in self._logits)
            return (of_label - of_other).reshape(len(self.x), -1)
        return np.einsum("np,npk->nk", weights.reshape(-1, self.pairs), self._by_example)


class ChainPoint(BoundedRows):
    """The derivatives of margins p and active kinks z_A at one w, as `Kinked.at` returns them."""

    def __init__(self, chain: Chain, w, gates, active) -> None:
        self.chain, self.active, self.room = chain, active, chain.room
        self._w = np.array(w, dtype=float)
        self.weights = chain.weights(self._w)
        natural = gates is None
        self.gates = np.zeros(chain.K) if natural else np.array(gates, dtype=float)
        self.gates[active] = 0.0
        self.z = np.empty(chain.K)
        self.gain = np.empty(chain.K) if natural else chain.low + chain.span * self.gates
        self.inputs = [chain.x]
        # Of each smooth σ, its derivatives.
        self.smooth: list = [None] * len(chain.links)
        parts = zip(chain.links, chain.parts, self.weights, strict=True)
        for i, (link, part, weight) in enumerate(parts):
            z = self.inputs[-1] @ weight.T
            if link.smooth:
                z, self.smooth[i] = link.smooth.at(z)
            if link.bent:
                flat = z.reshape(-1)
                self.z[part] = flat
                if natural:
                    self.gates[part] = flat > 0
                    self.gain[part] = chain.low[part] + chain.span[part] * self.gates[part]
                z = self.gain[part].reshape(z.shape) * z
            self.inputs.append(z)
        self.p = chain.margins(self.inputs.pop())
        self.margins = np.arange(chain.n)
        self._last = self._deltas = None

    def part(self, kept: np.ndarray, kinks: np.ndarray) -> ChainPoint:
        """Return the point with these of its rows alone: of the margins kept, and of `active`."""
        of = self.chain.at(self._w, self.gates, self.active[kinks])
        of.select(self.margins[kept])
        return of

    def units(self) -> np.ndarray:
        """Return the units of the active kinks."""
        return self.chain.unit[self.active]

    def near(self, margins: np.ndarray) -> tuple[ChainPoint, np.ndarray | slice]:
        """Return the point with these margins alone as rows, and which margins it has.

        Where they and the active kinks are of half the examples or fewer, it has no others.
        """
        chain, pairs = self.chain, self.chain.pairs
        held = np.zeros(len(chain.x), dtype=bool)
        held[chain.margin_owner[margins]] = held[chain.owner[self.active]] = True
        examples = np.flatnonzero(held)
        if 2 * len(examples) > len(held):
            self.select(margins)
            return self, slice(None)
        some, kinks = chain.among(examples)
        point = some.at(self._w, self.gates[kinks], np.searchsorted(kinks, self.active))
        own = (pairs * examples[:, None] + np.arange(pairs)).reshape(-1)
        point.select(np.searchsorted(own, margins))
        return point, own

    def pull(self, lam: np.ndarray, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return g = Jᵀλ + Zᵀμ [P] and c = (hi - lo) ∂(λᵀp + μᵀz_A)/∂(output of each kink) [K]."""
        deltas, c = self._pulled(lam, mu)
        return self._gathered(lambda i: deltas[i].T @ self.inputs[i]), c

    def _push(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, _, dz, outputs = self._pushed(self.chain.weights(v))
        return self.chain.margins(outputs)[self.margins], dz[self.active]

    def _combine(self, w: np.ndarray) -> np.ndarray:
        kept = len(self.margins)
        lam = np.zeros(self.chain.n)
        lam[self.margins] = w[:kept]
        deltas, _ = self._backward(lam, w[kept:])
        return self._gathered(lambda i: deltas[i].T @ self.inputs[i])

    def curvature(self, lam: np.ndarray, mu: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return ∇²(λᵀp + μᵀz_A) v [P]."""
        deltas, _ = self._pulled(lam, mu)
        moved = self.chain.weights(v)
        dh, dz, _, _ = self._pushed(moved)
        last = len(deltas) - 1
        change: list = [None] * len(deltas)
        for i in range(last, 0, -1):
            above = None if change[i] is None else change[i] @ self.weights[i]
            if self.chain.links[i].trained:
                own = deltas[i] @ moved[i]
                above = own if above is None else above + own
            change[i - 1] = None if above is None else self._backed(i - 1, above)
            if self.smooth[i - 1] is not None and dz[i - 1] is not None:
                own = self.smooth[i - 1].bent(deltas[i] @ self.weights[i], dz[i - 1])
                change[i - 1] = own if above is None else change[i - 1] + own

        def part(i: int) -> np.ndarray | float:
            total = 0.0 if dh[i] is None else deltas[i].T @ dh[i]
            return total if change[i] is None else total + change[i].T @ self.inputs[i]

        return self._gathered(part)

    def split_gram(self) -> SplitGram | None:
        """Return B Bᵀ with the rows of the first layer's kinks apart; `active` ascending.

        None of more examples than `jacobian_bytes` holds the products of.
        """
        chain, active = self.chain, self.active
        if not chain.squared:
            return None
        first = int(np.searchsorted(active, chain.parts[0].stop))
        order, owner, rows = self._layers(self.margins, active[first:])
        example, unit = np.divmod(active[:first], chain.links[0].shape[0])
        cross = np.empty((len(owner), first))
        cross[order] = rows[0].take(unit, 1) * chain._input_gram.take(owner, 0).take(example, 1)
        return SplitGram(self._product(order, owner, rows), cross, chain._input_gram, example, unit)

    def _gram(self) -> np.ndarray:
        return self._product(*self._layers(self.margins, self.active))

    def squares(self) -> np.ndarray:
        """Return the diagonal of B Bᵀ."""
        order, owner, rows = self._layers(self.margins, self.active)
        squares = np.zeros(len(owner))
        for delta, inputs, link in zip(rows, self.inputs, self.chain.links, strict=True):
            if link.trained:
                lengths = np.einsum("ij,ij->i", inputs, inputs)[owner[: len(delta)]]
                squares[: len(delta)] += np.einsum("ij,ij->i", delta, delta) * lengths
        out = np.empty_like(squares)
        out[order] = squares
        return out

    def crowded(self) -> bool:
        """Return whether examples have at least two rows each, so that `normal` costs less."""
        rows, examples = self.count(), len(self.chain.x)
        # All are padded to the most that one has.
        return 2 * examples <= rows and examples * np.bincount(self._owner()).max() <= 2 * rows

    def normal(self, compliance: Any) -> np.ndarray:
        """Return Bᵀ E⁻¹ B [P, P], E the `Compliance` of these rows.

        The rows of an example have its h in common: in two layers, Σ_r δ_r (E⁻¹ δ)_rᵀ comes first,
        and then the product with h hᵀ.
        """
        chain, owner = self.chain, self._owner()
        trained = [link.shape for link in chain.links if link.trained]
        outputs, inputs = (max(sizes) for sizes in zip(*trained, strict=True))
        numbers = 4 * np.bincount(owner).max() * sum(size for size, _ in trained)
        numbers += outputs**2 + inputs**2
        count = max(1, self.room.bound // (8 * _SHARE * int(numbers)))
        out = np.zeros((chain.P, chain.P))
        for start in range(0, len(chain.x), count):
            examples = slice(start, min(start + count, len(chain.x)))
            chosen = np.flatnonzero((owner >= examples.start) & (owner < examples.stop))
            self._add_normal(out, examples, chosen, compliance.among(chosen))
        return out

    def _owner(self) -> np.ndarray:
        return np.concatenate(
            [self.chain.margin_owner[self.margins], self.chain.owner[self.active]]
        )

    def _add_normal(self, out, examples: slice, chosen: np.ndarray, compliance: Any) -> None:
        """Add to `normal` what comes of the rows `chosen`, all rows of some examples."""
        margins, links = len(self.margins), self.chain.links
        kinks = chosen[chosen >= margins] - margins
        order, owner, rows = self._layers(
            self.margins[chosen[chosen < margins]], self.active[kinks]
        )
        count = examples.stop - examples.start
        places, width = slots(owner[np.argsort(order)] - examples.start, count)

        def by_example(whole: np.ndarray) -> np.ndarray:
            padded = np.zeros((count * width, whole.shape[1]))
            padded[places] = whole
            return padded.reshape(count, width, -1)

        delta, weighed, trained = {}, {}, [i for i, link in enumerate(links) if link.trained]
        for i in trained:
            whole = np.zeros((len(owner), rows[i].shape[1]))
            whole[order[: len(rows[i])]] = rows[i]
            delta[i], weighed[i] = by_example(whole), by_example(compliance.over(whole))
        for i in trained:
            for j in trained[: trained.index(i) + 1]:
                block = self._coupled(i, j, examples, np.matmul(delta[i].mT, weighed[j]))
                out[links[i].weight, links[j].weight] += block
                if i != j:
                    out[links[j].weight, links[i].weight] += block.T

    def _coupled(self, i: int, j: int, examples: slice, products: np.ndarray) -> np.ndarray:
        """Return the block of layers i and j, of products [examples, out, out] of their δ."""
        first, second = self.chain.links[i], self.chain.links[j]
        h, k = self.inputs[i][examples], self.inputs[j][examples]
        both = (h[:, :, None] * k[:, None, :]).reshape(len(h), -1)
        block = products.reshape(len(h), -1).T @ both
        block = block.reshape(*products.shape[1:], h.shape[1], k.shape[1])
        axes = (2, 0) if first.transposed else (0, 2)
        axes += (3, 1) if second.transposed else (1, 3)
        return block.transpose(axes).reshape(math.prod(first.shape), -1)

    def _inner(self, i: int, examples: np.ndarray) -> np.ndarray:
        """Return H Hᵀ of layer i's inputs of these examples, repeated at will."""
        # All products of examples pay where rows outnumber them.
        if not self.chain.squared or len(examples) <= len(self.chain.x):
            inputs = self.inputs[i][examples]
            return inputs @ inputs.T
        inner = self.chain._input_gram if i == 0 else self.inputs[i] @ self.inputs[i].T
        return inner.take(examples, 0).take(examples, 1)

    def _product(self, order: np.ndarray, owner: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
        gram = np.zeros((len(owner), len(owner)))
        for i, delta in enumerate(rows):
            if self.chain.links[i].trained:
                # The rows that reach layer i stand first.
                block = self._inner(i, owner[: len(delta)])
                block *= delta @ delta.T
                gram[: len(delta), : len(delta)] += block
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        if not np.array_equal(order, np.arange(len(order))):
            gram = gram.take(back, 0).take(back, 1)
        return gram

    def _rows_of(self, margins: np.ndarray, kinks: np.ndarray) -> np.ndarray:
        order, owner, rows = self._layers(margins, kinks)
        out = np.zeros((len(owner), self.chain.P))
        for i, delta in enumerate(rows):
            link = self.chain.links[i]
            if link.trained:
                inputs = self.inputs[i][owner[: len(delta)]]
                left, right = (inputs, delta) if link.transposed else (delta, inputs)
                block = left[:, :, None] * right[:, None, :]
                flat = block.reshape(len(delta), math.prod(link.shape))
                out[order[: len(delta)], link.weight] = flat
        return out

    def _backed(self, i: int, slopes: np.ndarray) -> np.ndarray:
        """Return slopes in what layer i passes on as slopes in its z."""
        smooth = self.smooth[i]
        return self._gained(i, slopes) if smooth is None else smooth.backward(slopes)

    def _gained(self, i: int, slopes: np.ndarray) -> np.ndarray:
        if not self.chain.links[i].bent:
            return slopes
        return self.gain[self.chain.parts[i]].reshape(slopes.shape) * slopes

    def _gathered(self, part) -> np.ndarray:
        """Return the vector [P] whose piece for layer i is part(i)."""
        out = np.empty(self.chain.P)
        for i, link in enumerate(self.chain.links):
            if link.trained:
                link.view(out)[...] = part(i)
        return out

    def _pulled(self, lam: np.ndarray, mu: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return δ_l of each layer [n, out] and c [K]; remembered, for curvature asks again."""
        if self._last is None or not all(map(np.array_equal, self._last, (lam, mu))):
            self._last, self._deltas = (lam.copy(), mu.copy()), self._backward(lam, mu)
        return self._deltas

    def _backward(self, lam: np.ndarray, mu: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        chain = self.chain
        spread = np.zeros(chain.K)
        spread[self.active] = mu
        c = np.empty(chain.K)
        deltas = [chain.output_slopes(lam)]
        for i in range(len(chain.links) - 1, 0, -1):
            slopes = deltas[-1] @ self.weights[i]
            if chain.links[i - 1].bent:
                part = chain.parts[i - 1]
                c[part] = slopes.reshape(-1)
                slopes = self._gained(i - 1, slopes) + spread[part].reshape(slopes.shape)
            else:
                slopes = self._backed(i - 1, slopes)
            deltas.append(slopes)
        return deltas[::-1], chain.span * c

    def _pushed(self, moved: list[np.ndarray]):
        """Return dh and dz of each layer (None: none), dz [K] and the change of the outputs."""
        dh: list = [None]
        changes, dz = [], np.empty(self.chain.K)
        for i, link in enumerate(self.chain.links):
            change = None if dh[i] is None else dh[i] @ self.weights[i].T
            if link.trained:
                own = self.inputs[i] @ moved[i].T
                change = own if change is None else change + own
            if link.bent:
                dz[self.chain.parts[i]] = 0.0 if change is None else change.reshape(-1)
            changes.append(change)
            if change is not None:
                smooth = self.smooth[i]
                change = self._gained(i, change) if smooth is None else smooth.forward(change)
            dh.append(change)
        outputs = dh.pop()
        return dh, changes, dz, outputs

    def _layers(
        self, kept: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Return (rows in the order used here, their examples, Δ_i of the rows that reach i)."""
        chain, margins = self.chain, len(kept)
        link_of = chain._link_of[active]
        # From the last layer down, so that the rows that reach a layer stand first.
        kinks = np.argsort(-link_of, kind="stable")
        order = np.concatenate([np.arange(margins), margins + kinks])
        owner = np.concatenate([chain.margin_owner[kept], chain.owner[active[kinks]]])
        rows = [chain.signs[kept]]
        for i in range(len(chain.links) - 1, 0, -1):
            slopes = rows[-1] @ self.weights[i]
            if self.smooth[i - 1] is not None:
                slopes = self.smooth[i - 1].of(owner[: len(slopes)]).backward(slopes)
            elif chain.links[i - 1].bent:
                part = chain.parts[i - 1]
                slopes = self.gain[part].reshape(len(chain.x), -1)[owner[: len(slopes)]] * slopes
                new = active[kinks[link_of[kinks] == i - 1]] - part.start
                width = slopes.shape[1]
                own = np.zeros((len(new), width))
                own[np.arange(len(new)), new % width] = 1.0
                slopes = np.concatenate([slopes, own])
            rows.append(slopes)
        return order, owner, rows[::-1]


def _differences(signs: np.ndarray, pairs: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return which of all outputs each margin is the difference of; None where it is none."""
    of_label, of_other = signs == 1.0, signs == -1.0
    single = (of_label.sum(1) == 1) & (of_other.sum(1) == 1) & ((signs != 0.0).sum(1) == 2)
    if not single.all():
        return None
    first = np.arange(len(signs)) // pairs * signs.shape[1]
    return first + of_label.argmax(1), first + of_other.argmax(1)


def slots(owner: np.ndarray, owners: int) -> tuple[np.ndarray, int]:
    """Return where each row stands if every owner has room for as many, and how many those are.

    owner: whose each row is, of 0 to owners - 1.
    """
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=owners)
    width = int(counts.max())
    place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner[order]]
    found = np.empty_like(order)
    found[order] = owner[order] * width + place
    return found, width
