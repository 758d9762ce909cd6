"""What a bound on bytes leaves of B = [J; Z_A]: B itself, blocks of its rows, or B Bᵀ unformed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Bytes for each entry of B Bᵀ, of which up to four stand side by side while it is made and
# factored: 32, two thirds of what may be held and the rest once more.
_GRAM = 24
# Rows of B in a block, and the part of the bound that it takes: what makes it takes some more.
_BLOCK = 1024
_PART = 8
# Entries of B up to which its products with vectors, which then take microseconds, are made of it.
_SMALL = 100_000


@dataclass(frozen=True)
class Room:
    """A bound on bytes, P, and what a row takes, in bytes, besides its products with others."""

    bound: int
    weights: int
    row: int

    def rows(self, parts: int = 1) -> int:
        """Return of how many rows B Bᵀ can be formed and factored, so many times."""
        bound = self.bound / parts
        return int((math.sqrt(self.row**2 + 4 * _GRAM * bound) - self.row) / (2 * _GRAM))

    def needed(self, count: int, parts: int = 1) -> int:
        """Return the bound for that of so many rows, in so many parts."""
        each = -(-count // parts)
        return parts * each * (_GRAM * each + self.row)

    def holds(self, count: int, copies: int = 1) -> bool:
        """Return whether B [count, P] can be held, in so many copies."""
        return 8 * count * self.weights * copies <= self.bound

    def square(self) -> bool:
        """Return whether a matrix [P, P] can be formed and factored."""
        return _GRAM * self.weights**2 <= self.bound


class BoundedRows:
    """B of the margins kept and of the active kinks of a point, as far as `room` goes.

    Of the point: margins, active, and what forms B, B Bᵀ, B v and Bᵀw: _rows_of, _gram, _push and
    _combine.
    """

    margins: np.ndarray
    active: np.ndarray
    # B of the margins kept, once `rows` has made it.
    _held: np.ndarray | None = None

    def select(self, margins: np.ndarray) -> None:
        """Keep only these margins, ascending, as rows of B."""
        self.margins, self._held = margins, None

    def count(self) -> int:
        """Return how many rows B has."""
        return len(self.margins) + len(self.active)

    def rows(self) -> np.ndarray:
        """Return B = [J; Z_A], and keep it; ValueError where it exceeds `jacobian_bytes`."""
        room, count = self.room, self.count()
        if not room.holds(count):
            raise ValueError(
                f"jacobian_bytes: gradients of {len(self.margins)} margins and {len(self.active)} "
                f"active kinks in {room.weights} weights need {8 * count * room.weights} bytes, "
                f"the bound is {room.bound}"
            )
        if self._held is None:
            self._held = self._rows_of(self.margins, self.active)
        return self._held

    def gram(self) -> np.ndarray | Gram:
        """Return B Bᵀ, unformed where it exceeds `jacobian_bytes`."""
        count = self.count()
        if count > self.room.rows():
            return Gram(self)
        if count * self.room.weights > _SMALL or not self.room.holds(count, 4):
            return self._gram()
        return self.rows() @ self.rows().T

    def push(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return J v of the margins kept and Z_A v [A]."""
        if self._held is None:
            return self._push(v)
        pushed, kept = self._held @ v, len(self.margins)
        return pushed[:kept], pushed[kept:]

    def combine(self, w: np.ndarray) -> np.ndarray:
        """Return Bᵀ w [P]."""
        return self._combine(w) if self._held is None else w @ self._held

    def parts(self, starts: np.ndarray | None = None) -> list[slice]:
        """Return the blocks' rows; none ends between two `starts` among the margins kept."""
        n, count = len(self.margins), self.count()
        size = max(1, min(_BLOCK, self.room.bound // (8 * _PART * self.room.weights)))
        edges = np.arange(0, n, size)
        if starts is not None:
            edges = np.unique(starts[np.searchsorted(starts, edges, side="right") - 1])
        return [slice(*ends) for ends in pairwise([*edges, *range(n, count, size), count])]

    def block(self, part: slice) -> np.ndarray:
        """Return B[part], which the room does not have to hold whole."""
        kinks = slice(*(max(0, end - len(self.margins)) for end in (part.start, part.stop)))
        return self._rows_of(self.margins[part], self.active[kinks])

    def crowded(self) -> bool:
        """Return whether `normal` serves, and rows share so much that it costs less than B does."""
        return False

    def squares(self) -> np.ndarray:
        """Return the diagonal of B Bᵀ."""
        blocks = map(self.block, self.parts())
        return np.concatenate([np.einsum("ij,ij->i", rows, rows) for rows in blocks])


class Gram:
    """B Bᵀ of a point as a linear map."""

    def __init__(self, point: BoundedRows) -> None:
        self.point = point

    def diagonal(self) -> np.ndarray:
        """Return the squared lengths of the rows of B."""
        return self.point.squares()

    def __matmul__(self, v: np.ndarray) -> np.ndarray:
        return np.concatenate(self.point.push(self.point.combine(v)))
