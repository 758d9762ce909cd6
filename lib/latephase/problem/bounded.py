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

    Of the point: margins, active, push, combine, and _rows_of and _gram, which form B and B Bᵀ.
    """

    def rows(self) -> np.ndarray:
        """Return B = [J; Z_A]; ValueError where it exceeds `jacobian_bytes`."""
        room, count = self.room, len(self.margins) + len(self.active)
        if not room.holds(count):
            raise ValueError(
                f"jacobian_bytes: gradients of {len(self.margins)} margins and {len(self.active)} "
                f"active kinks in {room.weights} weights need {8 * count * room.weights} bytes, "
                f"the bound is {room.bound}"
            )
        return self._rows_of(self.margins, self.active)

    def gram(self) -> np.ndarray | Gram:
        """Return B Bᵀ, unformed where it exceeds `jacobian_bytes`."""
        fits = len(self.margins) + len(self.active) <= self.room.rows()
        return self._gram() if fits else Gram(self)

    def parts(self, starts: np.ndarray | None = None) -> list[slice]:
        """Return the blocks' rows; none ends between two `starts` among the margins kept."""
        n, count = len(self.margins), len(self.margins) + len(self.active)
        size = max(1, min(_BLOCK, self.room.bound // (8 * _PART * self.room.weights)))
        edges = np.arange(0, n, size)
        if starts is not None:
            edges = np.unique(starts[np.searchsorted(starts, edges, side="right") - 1])
        return [slice(*ends) for ends in pairwise([*edges, *range(n, count, size), count])]

    def block(self, part: slice) -> np.ndarray:
        """Return B[part], which the room does not have to hold whole."""
        kinks = slice(*(max(0, end - len(self.margins)) for end in (part.start, part.stop)))
        return self._rows_of(self.margins[part], self.active[kinks])

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
