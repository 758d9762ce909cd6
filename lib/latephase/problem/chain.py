"""Stacks of layers with kinks, choices or smooth bends between them, in NumPy: `Kinked`, but fast.

h_0 = x, h_{l+1} = f_l(h_l) for the links f_l (`latephase.problem.links`), and outputs h_L. With δ_l
the slopes in a dense layer's result, its gradient is Σ δ_l h_lᵀ: a row of B = [J; Z] is an outer
product there, so B Bᵀ = Σ_l (Δ_l Δ_lᵀ) ∘ (H_l H_lᵀ) without B. A convolution's is summed over
positions first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import numpy as np

from latephase.problem.bends import Power, Smoothed
from latephase.problem.bounded import BoundedRows, Room
from latephase.problem.links import Bend, Choice, Convolution, Dense, Mixed
from latephase.problem.vectors import slots

# The part of the bound for what `ChainPoint.normal` makes of some examples at a time.
_SHARE = 8

Link = Dense | Convolution | Bend | Choice | Mixed | Power | Smoothed


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
    """Margins and kinks of a chain of links, the first a trained layer; otherwise as `Kinked`.

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
        self.weighted = [i for i, link in enumerate(links) if isinstance(link, Dense)]
        self.trained = [i for i in self.weighted if links[i].trained]
        self.P = sum(math.prod(links[i].shape) for i in self.trained)
        self.kinked = [i for i, link in enumerate(links) if isinstance(link, Bend | Choice)]
        own = [links[i] for i in self.kinked]
        self.sites = [(link.name, link.where, link.shape) for link in own]
        sizes, none = [link.size for link in own], np.zeros(0, dtype=int)
        units, examples = np.cumsum([0, *sizes]), np.arange(len(x))
        self.K = len(x) * int(units[-1])
        # Of each link, which of the kinks are its own.
        self.parts: list[slice | None] = [None] * len(links)
        for i, ends in zip(self.kinked, pairwise(len(x) * units), strict=True):
            self.parts[i] = slice(*map(int, ends))
        self.owner = np.concatenate([none, *(np.repeat(examples, size) for size in sizes)])
        tiles = [np.tile(np.arange(*ends), len(x)) for ends in pairwise(units)]
        self.unit = np.concatenate([none, *tiles])
        self.site = np.repeat(np.arange(len(own)), len(x) * np.array(sizes, dtype=int))
        self.feeds = np.triu(np.ones((len(own), len(own)), dtype=bool), 1)
        self.margin_owner = np.repeat(examples, self.pairs)
        smooth = any(isinstance(link, Power | Smoothed) for link in links)
        self.curved = len(self.trained) > 1 or smooth
        # A row's slopes and h of all layers, twice; what all examples share, once and a half.
        numbers = sum(links[i].numbers for i in self.weighted)
        self.room = Room(bound, self.P, 16 * numbers)
        self.squared = 12 * len(x) ** 2 <= bound
        self.convolved = any(isinstance(link, Convolution) for link in links)

    @cached_property
    def _input_gram(self) -> np.ndarray:
        return self.x @ self.x.T

    def weights(self, w: np.ndarray) -> dict[int, np.ndarray]:
        """Return the matrices of the links that have one, views of w [P] or frozen ones."""
        links = self.links
        return {i: links[i].view(w) if links[i].trained else links[i].weight for i in self.weighted}

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
        weights, natural = chain.weights(self._w), gates is None
        self.gates = np.zeros(chain.K) if natural else np.array(gates, dtype=float)
        self.gates[active] = 0.0
        self.z = np.empty(chain.K)
        # What each link takes, and its derivative there.
        self.inputs, self.maps, h = [], [], chain.x
        for i, (link, part) in enumerate(zip(chain.links, chain.parts, strict=True)):
            self.inputs.append(h)
            if part is not None:
                z, taken = link.split(h)
                self.z[part] = z.reshape(-1)
                if natural:
                    self.gates[part] = self.z[part] > 0
                h, there = link.at(z, taken, self.gates[part].reshape(z.shape))
            elif i in weights:
                h, there = link.at(h, weights[i])
            else:
                h, there = link.at(h)
            self.maps.append(there)
        self.p = chain.margins(h)
        self.margins = np.arange(chain.n)
        self._last = self._slopes = None

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
        slopes, c = self._pulled(lam, mu)
        return self._gradient(slopes), c

    def _push(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, dz, outputs = self._pushed(self.chain.weights(v))
        return self.chain.margins(outputs)[self.margins], dz[self.active]

    def _combine(self, w: np.ndarray) -> np.ndarray:
        kept = len(self.margins)
        lam = np.zeros(self.chain.n)
        lam[self.margins] = w[:kept]
        return self._gradient(self._backward(lam, w[kept:])[0])

    def _gradient(self, slopes: list[np.ndarray]) -> np.ndarray:
        out, chain = np.empty(self._w.shape), self.chain
        for i in chain.trained:
            chain.links[i].view(out)[...] = self.maps[i].gradient(slopes[i])
        return out

    def curvature(self, lam: np.ndarray, mu: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return ∇²(λᵀp + μᵀz_A) v [P]."""
        slopes, _ = self._pulled(lam, mu)
        chain, moved = self.chain, self.chain.weights(v)
        dh, _, _ = self._pushed(moved)
        out, change = np.empty(v.shape), None
        for i in range(len(chain.links) - 1, -1, -1):
            link, there = chain.links[i], self.maps[i]
            trained = i in chain.trained
            if trained:
                total = 0.0 if dh[i] is None else there.gradient(slopes[i], dh[i])
                link.view(out)[...] = total if change is None else total + there.gradient(change)
            if i == 0:
                break
            below = None if change is None else there.backward(change)
            own = None
            if trained:
                own = there.backward(slopes[i], moved[i])
            elif isinstance(link, Power | Smoothed) and dh[i] is not None:
                own = there.bent(slopes[i], dh[i])
            change = below if own is None else own if below is None else below + own
        return out

    def split_gram(self) -> SplitGram | None:
        """Return B Bᵀ with the rows of the first layer's kinks apart; `active` ascending.

        None where the chain does not begin with a dense layer and a bend, or of more examples than
        `jacobian_bytes` holds the products of.
        """
        chain, active = self.chain, self.active
        bent = chain.kinked[:1] == [1] and isinstance(chain.links[1], Bend)
        if not (chain.squared and bent) or isinstance(chain.links[0], Convolution):
            return None
        first = int(np.searchsorted(active, chain.parts[1].stop))
        order, owner, rows = self._layers(self.margins, active[first:])
        example, unit = np.divmod(active[:first], chain.links[1].size)
        cross = np.empty((len(owner), first))
        cross[order] = rows[0].take(unit, 1) * chain._input_gram.take(owner, 0).take(example, 1)
        return SplitGram(self._product(order, owner, rows), cross, chain._input_gram, example, unit)

    def _gram(self) -> np.ndarray:
        gram = self._product(*self._layers(self.margins, np.sort(self.active)))
        if (np.diff(self.active) > 0).all():
            return gram
        places = np.argsort(np.argsort(self.active))
        back = np.concatenate([np.arange(len(self.margins)), len(self.margins) + places])
        return gram[np.ix_(back, back)]

    def squares(self) -> np.ndarray:
        """Return the diagonal of B Bᵀ."""
        order, owner, rows = self._layers(self.margins, self.active)
        squares = np.zeros(len(owner))
        for i, slopes in rows.items():
            squares[: len(slopes)] += self.maps[i].squares(slopes, owner[: len(slopes)])
        out = np.empty_like(squares)
        out[order] = squares
        return out

    def crowded(self) -> bool:
        """Return whether examples have at least two rows each, so that `normal` costs less."""
        rows, examples = self.count(), len(self.chain.x)
        if self.chain.convolved or 2 * examples > rows:
            return False
        # All are padded to the most that one has.
        return examples * np.bincount(self._owner()).max() <= 2 * rows

    def normal(self, compliance: Any) -> np.ndarray:
        """Return Bᵀ E⁻¹ B [P, P], E the `Compliance` of these rows.

        The rows of an example have its h in common: in two layers, Σ_r δ_r (E⁻¹ δ)_rᵀ comes first,
        and then the product with h hᵀ.
        """
        chain, owner = self.chain, self._owner()
        trained = [chain.links[i].shape for i in chain.trained]
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

        delta, weighed, trained = {}, {}, self.chain.trained
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

    def _product(self, order: np.ndarray, owner: np.ndarray, rows: dict) -> np.ndarray:
        """Return B Bᵀ of the margins kept and of kinks in ascending order, by their `_layers`."""
        gram, margins = np.zeros((len(owner), len(owner))), len(self.margins)
        for i, slopes in rows.items():
            # Of kinks in ascending order those that reach layer i stand last.
            sort = np.argsort(order[: len(slopes)])
            slopes, reaching = slopes[sort], owner[sort]
            if isinstance(self.chain.links[i], Convolution):
                own = self.maps[i].rows(slopes, reaching)
                own = own.reshape(len(slopes), math.prod(own.shape[1:]))
                block = own @ own.T
            else:
                block = self._inner(i, reaching)
                block *= slopes @ slopes.T
            last = len(owner) - (len(slopes) - margins)
            places = [(slice(margins), slice(margins)), (slice(last, None), slice(margins, None))]
            for (to, of), (across, beside) in product(places, places):
                gram[to, across] += block[of, beside]
        return gram

    def _rows_of(self, margins: np.ndarray, kinks: np.ndarray) -> np.ndarray:
        order, owner, rows = self._layers(margins, kinks)
        out = np.zeros((len(owner), self.chain.P))
        for i, slopes in rows.items():
            link = self.chain.links[i]
            block = self.maps[i].rows(slopes, owner[: len(slopes)])
            block = block.mT if link.transposed else block
            flat = block.reshape(len(slopes), math.prod(link.shape))
            out[order[: len(slopes)], link.weight] = flat
        return out

    def _pulled(self, lam: np.ndarray, mu: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return slopes in each link's result and c [K]; remembered, for curvature asks again."""
        if self._last is None or not all(map(np.array_equal, self._last, (lam, mu))):
            self._last, self._slopes = (lam.copy(), mu.copy()), self._backward(lam, mu)
        return self._slopes

    def _backward(self, lam: np.ndarray, mu: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        chain, examples = self.chain, len(self.chain.x)
        spread, c = np.zeros(chain.K), np.empty(chain.K)
        spread[self.active] = mu
        slopes = [chain.output_slopes(lam)]
        for i in range(len(chain.links) - 1, 0, -1):
            own, part, link = slopes[-1], chain.parts[i], chain.links[i]
            if part is None:
                slopes.append(self.maps[i].backward(own))
            else:
                c[part] = (link.span * own[:, : link.size]).reshape(-1)
                mu = spread[part].reshape(examples, link.size)
                slopes.append(self.maps[i].backward(own, mu))
        return slopes[::-1], c

    def _pushed(self, moved: dict[int, np.ndarray]):
        """Return dh of each link's input (None: none), dz [K] and the change of the outputs."""
        chain, change = self.chain, None
        dh, dz = [], np.zeros(chain.K)
        for i, (link, there) in enumerate(zip(chain.links, self.maps, strict=True)):
            dh.append(change)
            if change is not None:
                if (part := chain.parts[i]) is not None:
                    moving, change = link.split(change)
                    dz[part] = moving.reshape(-1)
                change = there.forward(change)
            if i in chain.trained:
                own = there.moved(moved[i])
                change = own if change is None else change + own
        return dh, dz, change

    def _layers(
        self, kept: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Return (rows in the order used here, their examples, slopes of those that reach layer i).

        These are by the trained layers' i, in their results.
        """
        chain, margins = self.chain, len(kept)
        site = chain.site[active]
        # From the last link down, so that the rows that reach a layer stand first.
        kinks = np.argsort(-site, kind="stable")
        order = np.concatenate([np.arange(margins), margins + kinks])
        owner = np.concatenate([chain.margin_owner[kept], chain.owner[active[kinks]]])
        slopes, rows = chain.signs[kept], {}
        for i in range(len(chain.links) - 1, -1, -1):
            if i in chain.trained:
                rows[i] = slopes
            if i == 0:
                break
            slopes = self.maps[i].of(owner[: len(slopes)]).backward(slopes)
            if (part := chain.parts[i]) is not None:
                link = chain.links[i]
                new = active[kinks[site[kinks] == chain.kinked.index(i)]] - part.start
                picks = np.zeros((len(new), link.size))
                picks[np.arange(len(new)), new % link.size] = 1.0
                slopes = np.concatenate([slopes, link.slopes(picks)])
        return order, owner, rows


def _differences(signs: np.ndarray, pairs: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return which of all outputs each margin is the difference of; None where it is none."""
    of_label, of_other = signs == 1.0, signs == -1.0
    single = (of_label.sum(1) == 1) & (of_other.sum(1) == 1) & ((signs != 0.0).sum(1) == 2)
    if not single.all():
        return None
    first = np.arange(len(signs)) // pairs * signs.shape[1]
    return first + of_label.argmax(1), first + of_other.argmax(1)
