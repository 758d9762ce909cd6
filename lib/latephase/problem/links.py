"""What a chain is made of: layers with weights, bends and choices, averages, in NumPy.

Each takes flat values h [rows, width] of examples. `at` gives its result and its derivative there,
a linear map: `forward` takes a change of h to that of the result, `backward` slopes in the result
to slopes in h, and `of` is the same map at some of the examples, repeated at will. Dense layers and
smooth bends take several networks at once, [networks, rows, width].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from latephase.problem.vectors import slots


class Gather:
    """h[:, index], 0.0 where an index is the width; `back` is its transpose, a sum."""

    def __init__(self, index: np.ndarray, width: int) -> None:
        self.index = np.array(index, dtype=int).reshape(-1)
        self._padded = bool((self.index == width).any())
        kept = np.flatnonzero(self.index < width)
        places, times = slots(self.index[kept], width)
        # Where all is padding, one place for what never comes.
        times = max(times, 1)
        sources = np.full(width * times, len(self.index))
        sources[places] = kept
        # Of each entry of h, the entries that it went to.
        self._sources = np.ascontiguousarray(sources.reshape(width, times).T)
        self._ragged = len(kept) < width * times

    def of(self, h: np.ndarray) -> np.ndarray:
        """Return the entries [rows, index]."""
        return _with_zero(h, self._padded).take(self.index, 1)

    def back(self, slopes: np.ndarray) -> np.ndarray:
        """Return for each entry of h the sum of the slopes in where it went [rows, width]."""
        slopes = _with_zero(slopes, self._ragged)
        out = slopes.take(self._sources[0], 1)
        for more in self._sources[1:]:
            out += slopes.take(more, 1)
        return out


def _with_zero(h: np.ndarray, padded: bool) -> np.ndarray:
    return np.concatenate([h, np.zeros((len(h), 1))], 1) if padded else h


@dataclass(frozen=True)
class Dense:
    """One linear layer without bias.

    weight: the part of w that holds W [out, in], or its transpose, or a frozen W itself.
    """

    weight: slice | np.ndarray
    shape: tuple[int, int]
    transposed: bool = False

    def view(self, v: np.ndarray) -> np.ndarray:
        """Return the part of v [P] that is this layer's, [out, in]."""
        part, some = v[..., self.weight], v.shape[:-1]
        if self.transposed:
            return part.reshape(*some, *self.shape[::-1]).mT
        return part.reshape(*some, *self.shape)

    @cached_property
    def trained(self) -> bool:
        """Whether its W is part of w."""
        return isinstance(self.weight, slice)

    @property
    def numbers(self) -> int:
        """How many a row takes: of what goes in and comes out."""
        return sum(self.shape)

    def at(self, h: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, DenseAt]:
        """Return h Wᵀ and its derivative."""
        return h @ weight.mT, DenseAt(h, weight)


@dataclass(frozen=True)
class DenseAt:
    """The derivative of h Wᵀ, also in W."""

    h: np.ndarray
    weight: np.ndarray

    def of(self, rows: np.ndarray) -> DenseAt:
        """Return the map, which all examples have in common."""
        return self

    def forward(self, dh: np.ndarray) -> np.ndarray:
        return dh @ self.weight.mT

    def backward(self, slopes: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Return slopes in h, of another W where one is given."""
        return slopes @ (self.weight if weight is None else weight)

    def moved(self, change: np.ndarray) -> np.ndarray:
        """Return the change of the result with W."""
        return self.h @ change.mT

    def gradient(self, slopes: np.ndarray, h: np.ndarray | None = None) -> np.ndarray:
        """Return the slope in W [out, in], of another h where one is given."""
        return slopes.mT @ (self.h if h is None else h)

    def rows(self, slopes: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Return the slope in W of each row [rows, out, in], of these examples."""
        return slopes[:, :, None] * self.h[owner][:, None, :]

    def squares(self, slopes: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Return the sums of squares of `rows` [rows]."""
        lengths = np.einsum("ij,ij->i", self.h, self.h)
        return np.einsum("ij,ij->i", slopes, slopes) * lengths[owner]


@dataclass(frozen=True)
class Convolution(Dense):
    """A convolution without bias: W [out, in] acts on what stands under it at each position.

    gather: those entries of h, [in, positions], flat.
    """

    gather: Gather | None = None

    @cached_property
    def positions(self) -> int:
        """How many W stands at."""
        return len(self.gather.index) // self.shape[1]

    @property
    def numbers(self) -> int:
        """How many a row takes: of what goes in and comes out, and of its slope in W."""
        return math.prod(self.shape) + sum(self.shape) * self.positions

    def unfolded(self, h: np.ndarray) -> np.ndarray:
        """Return what stands under W [rows, in, positions]."""
        return self.gather.of(h).reshape(len(h), self.shape[1], self.positions)

    def by_position(self, slopes: np.ndarray) -> np.ndarray:
        """Return slopes in the result as [rows, out, positions]."""
        return slopes.reshape(len(slopes), self.shape[0], self.positions)

    def at(self, h: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ConvolutionAt]:
        """Return the result [rows, out · positions] and its derivative."""
        under = self.unfolded(h)
        return (weight @ under).reshape(len(h), -1), ConvolutionAt(self, under, weight)


@dataclass(frozen=True)
class ConvolutionAt:
    """The derivative of a convolution, also in W; h as `Convolution.unfolded` returns it."""

    layer: Convolution
    h: np.ndarray
    weight: np.ndarray

    def of(self, rows: np.ndarray) -> ConvolutionAt:
        """Return the map, which all examples have in common."""
        return self

    def forward(self, dh: np.ndarray) -> np.ndarray:
        return (self.weight @ self.layer.unfolded(dh)).reshape(len(dh), -1)

    def backward(self, slopes: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Return slopes in h, of another W where one is given."""
        weight = self.weight if weight is None else weight
        under = weight.T @ self.layer.by_position(slopes)
        return self.layer.gather.back(under.reshape(len(slopes), len(self.layer.gather.index)))

    def moved(self, change: np.ndarray) -> np.ndarray:
        """Return the change of the result with W."""
        return (change @ self.h).reshape(len(self.h), -1)

    def gradient(self, slopes: np.ndarray, h: np.ndarray | None = None) -> np.ndarray:
        """Return the slope in W [out, in], of another h where one is given."""
        under = self.h if h is None else self.layer.unfolded(h)
        return (self.layer.by_position(slopes) @ under.mT).sum(0)

    def rows(self, slopes: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Return the slope in W of each row [rows, out, in], of these examples."""
        return self.layer.by_position(slopes) @ self.h[owner].mT

    def squares(self, slopes: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Return the sums of squares of `rows` [rows]."""
        rows = self.rows(slopes, owner)
        return np.einsum("ijk,ijk->i", rows, rows)


@dataclass(frozen=True)
class Bend:
    """Kinks lo z + (hi - lo) s z of all values z = h.

    shape: of an example's kinks, as their call has them.
    """

    name: str
    where: str
    shape: tuple[int, ...]
    low: float | np.ndarray = 0.0
    high: float | np.ndarray = 1.0

    @cached_property
    def size(self) -> int:
        """How many kinks an example has."""
        return math.prod(self.shape)

    @cached_property
    def span(self) -> float | np.ndarray:
        """The derivative of a kink's result in s, over z."""
        return self.high - np.asarray(self.low)

    def split(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return z [rows, size], and what `at` and `forward` take of h: all of it."""
        return h, h

    def at(self, z: np.ndarray, h: np.ndarray, gates: np.ndarray) -> tuple[np.ndarray, BendAt]:
        """Return the result with these gates, and its derivative."""
        gain = self.low + self.span * gates
        return gain * z, BendAt(gain)

    def slopes(self, mu: np.ndarray) -> np.ndarray:
        """Return the slopes in h of Σ μ z, for μ [rows, size]."""
        return mu


@dataclass(frozen=True)
class BendAt:
    """The derivative of kinks with their gates as constants."""

    gain: np.ndarray

    def of(self, rows: np.ndarray) -> BendAt:
        return BendAt(self.gain[rows])

    def forward(self, dh: np.ndarray) -> np.ndarray:
        return self.gain * dh

    def backward(self, slopes: np.ndarray, mu: np.ndarray | float = 0.0) -> np.ndarray:
        """Return slopes in h, those of Σ μ z added."""
        return self.gain * slopes + mu


@dataclass(frozen=True)
class Choice:
    """Maxima b + s z of two entries a and b of h each, z = a - b; behind them the entries `rest`.

    gather: all a, all b, the rest.
    """

    name: str
    where: str
    shape: tuple[int, ...]
    gather: Gather
    span: float = 1.0

    @cached_property
    def size(self) -> int:
        """How many kinks an example has."""
        return math.prod(self.shape)

    def split(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return z [rows, size], and what `at` and `forward` take of h."""
        entries, size = self.gather.of(h), self.size
        return entries[:, :size] - entries[:, size : 2 * size], entries

    def at(
        self, z: np.ndarray, entries: np.ndarray, gates: np.ndarray
    ) -> tuple[np.ndarray, ChoiceAt]:
        """Return the result with these gates, and its derivative."""
        there = ChoiceAt(self, gates)
        return there.forward(entries), there

    def slopes(self, mu: np.ndarray) -> np.ndarray:
        """Return the slopes in h of Σ μ z, for μ [rows, size]."""
        none = np.zeros((len(mu), len(self.gather.index) - 2 * self.size))
        return self.gather.back(np.concatenate([mu, -mu, none], 1))


@dataclass(frozen=True)
class ChoiceAt:
    """The derivative of choices with their gates as constants."""

    choice: Choice
    gates: np.ndarray

    def of(self, rows: np.ndarray) -> ChoiceAt:
        return ChoiceAt(self.choice, self.gates[rows])

    def forward(self, entries: np.ndarray) -> np.ndarray:
        size = self.choice.size
        a, b, rest = entries[:, :size], entries[:, size : 2 * size], entries[:, 2 * size :]
        chosen = b + self.gates * (a - b)
        return np.concatenate([chosen, rest], 1) if rest.shape[1] else chosen

    def backward(self, slopes: np.ndarray, mu: np.ndarray | float = 0.0) -> np.ndarray:
        """Return slopes in h, those of Σ μ z added."""
        own, rest = slopes[:, : self.choice.size], slopes[:, self.choice.size :]
        first = self.gates * own + mu
        return self.choice.gather.back(np.concatenate([first, own - first, rest], 1))


@dataclass(frozen=True)
class Mixed:
    """Fixed sums Σ_k coefficients[j, k] h[:, gather[j, k]]: averages, and other orders of h."""

    gather: Gather
    coefficients: np.ndarray

    def at(self, h: np.ndarray) -> tuple[np.ndarray, Mixed]:
        """Return the combinations and their derivative, which is itself."""
        return self.forward(h), self

    def of(self, rows: np.ndarray) -> Mixed:
        return self

    def forward(self, dh: np.ndarray) -> np.ndarray:
        entries = self.gather.of(dh).reshape(len(dh), *self.coefficients.shape)
        return np.einsum("rjk,jk->rj", entries, self.coefficients)

    def backward(self, slopes: np.ndarray) -> np.ndarray:
        shares = slopes[:, :, None] * self.coefficients
        return self.gather.back(shares.reshape(len(slopes), self.coefficients.size))
