"""The Newton matrix of an implicit stage and its inverse, the curvature apart."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import linalg

from latephase.flow.errors import StepFailed
from latephase.flow.linear import conjugate, factored, solved
from latephase.flow.tuning import TUNING
from latephase.problem.bounded import Gram
from latephase.problem.chain import SplitGram
from latephase.problem.vectors import slots


class Bordered:
    """J of the margins in `rows` [R], Z of the active kinks, and the system made of them.

    Eliminating δθ = a + Bᵀw, B = [J; Z], w = (λ δu, δμ), from the linearized equations of
    `latephase.flow.sliding` leaves

        (B Bᵀ + E) w - column δν/S = right - B a
        (B rho + rest)ᵀ w          = length - rhoᵀ a

    with E = 1/(S λ) on margins, `give` on kinks, and for a loss that is not exponential what
    couples the margins of an example. Where B has more rows than columns, B Bᵀ + E is inverted
    through I + Bᵀ E⁻¹ B, if E is large enough for that. Of many kinks in a chain's first layer,
    those of two units are orthogonal there: they are eliminated first, unit by unit.

    Within `jacobian_bytes`, I + Bᵀ E⁻¹ B is summed up from blocks of B; and of more rows than can
    be factored conjugate gradients solve for w, preconditioned by the kinks and the margins that
    are the nearest to the support, in as many blocks as it takes.

    multipliers: λ [n] and μ [A]. rest: ε² Σλ / r, on margins. excess: c'/(1 - c') of the loss's c
    at each margin [n], None for the exponential loss.
    """

    def __init__(
        self,
        point: Any,
        rows: np.ndarray,
        log_scale: float,
        multipliers: tuple[np.ndarray, np.ndarray],
        rho: np.ndarray,
        rest: float,
        give: np.ndarray,
        excess: np.ndarray | None,
        pairs: int,
    ) -> None:
        self.point, self.rows, self.rho = point, rows, rho
        # Only examples that have rows, where that is less.
        self.near, own = point.near(rows)
        self.multipliers = multipliers[0][own], multipliers[1]
        n, inverse_scale = len(rows), math.exp(-log_scale)
        self.lam = np.maximum(multipliers[0][rows], 1e-300)
        self.holds = np.zeros(len(multipliers[0]), dtype=bool)
        self.holds[rows] = True
        share = inverse_scale / self.lam
        self.column = np.concatenate([np.ones(n), np.zeros(len(give))])
        coupling = None
        if excess is not None:
            self.column[:n] += excess[rows]
            block = np.repeat(multipliers[0].reshape(-1, pairs).sum(1), pairs)
            coupling = (excess / np.maximum(block, 1e-300))[rows] * inverse_scale
        compliance = Compliance(np.concatenate([share, give]), coupling, rows // pairs)
        self.inverse = inverse_of(self.near, compliance)
        self.squares = self.inverse.squares
        self.solved_column = self.inverse(self.column)
        self.row = np.concatenate(self.near.push(rho))
        self.row[:n] += rest
        self.pivot = float(self.row @ self.solved_column)
        if self.pivot == 0.0:
            raise StepFailed("singular")

    def covers(self, rows: np.ndarray, gates: np.ndarray, active: np.ndarray) -> bool:
        """Return whether these margins have their rows here, and these kinks slide."""
        point = self.point
        slides = np.array_equal(active, point.active) and np.array_equal(gates, point.gates)
        return slides and bool(self.holds[rows].all())

    def release(self) -> None:
        """Let go of what it holds: stages solved with it still refer to it, but not to that."""
        vars(self).clear()

    def nearest(self, count: int) -> np.ndarray:
        """Return at most so many of the rows of margins, those of the largest λ, ascending."""
        if count >= len(self.rows):
            return self.rows
        return np.sort(self.rows[np.argsort(-self.lam)[: max(0, count)]])

    def solve(
        self, a: np.ndarray, right: np.ndarray | None = None, length: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return (δθ, w, δν/S) for the right sides of the equations; None are zeros."""
        pushed = np.concatenate(self.near.push(a))
        y = self.inverse(-pushed if right is None else right - pushed)
        nu = (length - float(self.rho @ a) - float(self.row @ y)) / self.pivot
        w = y + nu * self.solved_column
        return a + self.near.combine(w), w, nu

    def curved(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return `solve` of the curvature ∇²(λᵀp + μᵀz) v."""
        return self.solve(self.near.curvature(*self.multipliers, v))

    def filtered(self, error: np.ndarray) -> np.ndarray:
        """Return an error of θ as the equations let it stand, without its part along the step."""
        e = self.solve(error)[0]
        return e - (self.rho @ e) / (self.rho @ self.rho) * self.rho


class Compliance:
    """E [m, m]: `own` on the diagonal, and `coupling` between the margins of an example.

    own [m]: of n margins, then kinks. coupling [n], the same for all margins of an example, or
    None; examples [n], ascending.
    """

    def __init__(self, own: np.ndarray, coupling: np.ndarray | None, examples: np.ndarray) -> None:
        self.own, self.coupling, self.examples = own, coupling, examples

    @cached_property
    def starts(self) -> np.ndarray:
        """Where in the margins each example begins."""
        return np.flatnonzero(np.diff(self.examples, prepend=-1))

    def among(self, chosen: np.ndarray) -> Compliance:
        """Return E of these rows alone, ascending, the kinks among them."""
        margins = chosen[chosen < len(self.examples)]
        coupling = None if self.coupling is None else self.coupling[margins]
        return Compliance(self.own[chosen], coupling, self.examples[margins])

    def stiffened(self, more: np.ndarray) -> Compliance:
        """Return E with more on its diagonal."""
        return Compliance(self.own + more, self.coupling, self.examples)

    def times(self, v: np.ndarray) -> np.ndarray:
        """Return E v for v [m]."""
        out = self.own * v
        if self.coupling is not None:
            n = len(self.examples)
            out[:n] += self.coupling * self._summed(v[:n])
        return out

    def over(self, v: np.ndarray) -> np.ndarray:
        """Return E⁻¹ v for v [m] or [m, ·]."""
        column = (-1,) + (1,) * (v.ndim - 1)
        out = v / self.own.reshape(column)
        if self.coupling is not None:
            n = len(self.examples)
            coupling = self.coupling / self.own[:n]
            coupling /= 1.0 + self._summed(coupling)
            out[:n] -= coupling.reshape(column) * self._summed(out[:n])
        return out

    def pulled(self, rows: np.ndarray, part: slice, lower: np.ndarray) -> np.ndarray:
        """Return the lower half of A + Bᵀ E⁻¹ B, of rows B of a part that cuts no example.

        lower: that of A, which is overwritten where it stands by columns. Symmetric, it takes half
        of a product's time.
        """
        weighed = rows / np.sqrt(self.own[part])[:, None]
        lower = linalg.blas.dsyrk(1.0, weighed.T, 1.0, lower, lower=True, overwrite_c=True)
        if self.coupling is not None and len(examples := self.examples[part]):
            starts = np.flatnonzero(np.diff(examples, prepend=-1))
            inverse = 1.0 / self.own[part][: len(examples)]
            together = np.add.reduceat(inverse[:, None] * rows[: len(examples)], starts)
            coupling = self.coupling[part][starts]
            coupling = coupling / (1.0 + coupling * np.add.reduceat(inverse, starts))
            lower -= together.T @ (coupling[:, None] * together)
        return lower

    def add(self, matrix: np.ndarray, scaling: np.ndarray) -> None:
        """Add the coupling, scaled on both sides, to a matrix [n, n] of the margins."""
        if self.coupling is None:
            return
        apart, first = 0, np.arange(len(self.examples))
        while len(first):
            second = first + apart
            both = scaling[first] * self.coupling[first] * scaling[second]
            matrix[first, second] += both
            if apart:
                matrix[second, first] += both
            apart += 1
            first = np.flatnonzero(self.examples[apart:] == self.examples[:-apart])

    def _summed(self, v: np.ndarray) -> np.ndarray:
        """Return for each margin the sum over its example's, of v [n] or [n, ·]."""
        counts = np.diff(self.starts, append=len(v))
        return np.repeat(np.add.reduceat(v, self.starts), counts, axis=0) if len(v) else v


class OfWeights:
    """The inverse of B Bᵀ + E by I + Bᵀ E⁻¹ B.

    B is held if the bound lets it, but where an example has several rows and the module is a chain.
    """

    def __init__(self, point: Any, compliance: Compliance) -> None:
        self.point = point
        count, self.crowded = len(compliance.own), point.crowded()
        # Blocks of it, and what they are made of, stand beside it.
        self.held = point.rows() if not self.crowded and point.room.holds(count, 2) else None
        held = self.held
        self.squares = point.squares() if held is None else np.einsum("ij,ij->i", held, held)
        self.compliance = compliance.stiffened(TUNING.dependent * self.squares)

    def resolved(self) -> bool:
        """Return whether E is large enough for that."""
        return self.compliance.own.min() >= TUNING.resolved_thin * self.squares.max()

    def factor(self) -> OfWeights:
        """Return this, once it is factored."""
        weights = self.point.room.weights
        if self.crowded:
            matrix = self.point.normal(self.compliance)
            matrix[np.diag_indices(weights)] += 1.0
            self.factors = factored(matrix)
            return self
        lower = np.eye(weights, order="F")
        for part in self.point.parts(self.compliance.starts):
            rows = self.point.block(part) if self.held is None else self.held[part]
            lower = self.compliance.pulled(rows, part, lower)
        self.factors = factored(lower.T)
        return self

    def __call__(self, right: np.ndarray) -> np.ndarray:
        held, over = self.held, self.compliance.over
        y = over(right)
        pulled = self.point.combine(y) if held is None else held.T @ y
        inner = solved(self.factors, pulled)
        if held is None:
            return y - over(np.concatenate(self.point.push(inner)))
        return y - over(held @ inner)


class OfRows:
    """The inverse of B Bᵀ + E, scaled to a diagonal near one and factored."""

    def __init__(self, point: Any, compliance: Compliance) -> None:
        n, own = len(compliance.examples), compliance.own
        split = point.split_gram() if len(point.active) >= TUNING.eliminated else None
        matrix = point.gram() if split is None else split.rest
        squares = matrix.diagonal().copy()
        first = 0 if split is None else len(split.unit)
        if first:
            apart = split.inner.diagonal()[split.example]
            squares = np.concatenate([squares[:n], apart, squares[n:]])
        self.squares = squares
        self.scaling = 1.0 / np.sqrt(squares + own + 1e-300)
        self.apart = slice(n, n + first)
        scaling = self._kept(self.scaling)
        matrix *= scaling[:, None]
        matrix *= scaling
        # Rows that depend on one another (duplicates, dead units) can be factored with this.
        diagonal = own * self.scaling**2 + TUNING.dependent
        matrix[np.diag_indices(len(matrix))] += self._kept(diagonal)
        compliance.add(matrix, self.scaling)
        self.blocks = None
        if first:
            self.blocks = UnitBlocks(split, self.scaling[self.apart], diagonal[self.apart])
            scaled = self.scaling[self.apart][:, None] * split.cross.T * scaling
            self.cross = self.blocks.halved(scaled)
            matrix -= self.cross.T @ self.cross
        self.factors = factored(matrix)

    def _kept(self, v: np.ndarray) -> np.ndarray:
        """Return v without the part of the kinks that are eliminated first."""
        return np.concatenate([v[: self.apart.start], v[self.apart.stop :]])

    def __call__(self, right: np.ndarray) -> np.ndarray:
        scaling = self.scaling.reshape((-1,) + (1,) * (right.ndim - 1))
        right = scaling * right
        if self.blocks is None:
            return scaling * solved(self.factors, right)
        half = self.blocks.halved(right[self.apart])
        kept = self._kept(right) - self.cross.T @ half
        kept = solved(self.factors, kept)
        apart = self.blocks.finished(half - self.cross @ kept)
        start = self.apart.start
        return scaling * np.concatenate([kept[:start], apart, kept[start:]])


class OfSome:
    """The inverse of B Bᵀ + E by conjugate gradients, preconditioned by that of blocks of its rows.

    In the first are the margins whose E is the smallest beside their gradients, as many as go with
    all kinks; these stand unit by unit, for those of two units of a first layer are orthogonal.
    There is more than one block where kinks are too many for one. Raises ValueError where
    `jacobian_bytes` does not hold that.
    """

    def __init__(self, point: Any, compliance: Compliance) -> None:
        self.point, n = point, len(compliance.examples)
        room, kinks, parts = point.room, len(point.active), 1
        while (count := parts * room.rows(parts) - kinks) < 1:
            parts += 1
            if parts > TUNING.blocks:
                raise ValueError(
                    f"jacobian_bytes: {kinks} active kinks need {room.needed(kinks + 1, parts - 1)}"
                    f" bytes, the bound is {room.bound}"
                )
        self.squares, count = point.squares(), min(count, n)
        nearness = compliance.own[:n] / np.maximum(self.squares[:n], 1e-300)
        chosen = np.argpartition(nearness, count - 1)[:count]
        by_unit = np.argsort(point.units(), kind="stable")
        split = np.array_split(np.concatenate([chosen, n + by_unit]), parts)
        self.blocks = [np.sort(block) for block in split]
        self.inner = [
            OfRows(point.part(block[block < n], block[block >= n] - n), compliance.among(block))
            for block in self.blocks
        ]
        self.compliance = compliance.stiffened(TUNING.dependent * self.squares)
        self.diagonal = self.compliance.own + self.squares

    def __call__(self, right: np.ndarray) -> np.ndarray:
        gram, room = Gram(self.point), self.point.room

        def precondition(v: np.ndarray) -> np.ndarray:
            out = v / self.diagonal
            for block, inner in zip(self.blocks, self.inner, strict=True):
                out[block] = inner(v[block])
            return out

        found = conjugate(lambda v: gram @ v + self.compliance.times(v), precondition, right)
        if found is None:
            raise ValueError(
                f"jacobian_bytes: {len(right)} rows are not solved for with blocks of "
                f"{len(self.blocks[0])}, which the bound {room.bound} holds; all need "
                f"{room.needed(len(right))}"
            )
        return found


def inverse_of(point: Any, compliance: Compliance) -> OfWeights | OfRows | OfSome:
    """Return the inverse of B Bᵀ + E, by what there is less of and what the bound holds."""
    count, room = len(compliance.own), point.room
    fits = count <= room.rows()
    if count > max(TUNING.thin if fits else 0, room.weights) and room.square():
        found = OfWeights(point, compliance)
        if found.resolved():
            return found.factor()
    return (OfRows if fits else OfSome)(point, compliance)


def kink_stiffness(
    point: Any, rows: np.ndarray, log_multiplier: np.ndarray, log_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much z of the active kinks changes with their μ [A, A], ν/S held, and ‖Z_k‖.

    What couples the margins of an example is left out.
    """
    point.select(rows)
    gram, n = point.gram(), len(rows)
    own = np.exp(np.minimum(-log_scale - log_multiplier[rows], 600.0))
    scale = 1.0 / np.sqrt(gram.diagonal()[:n] + own + 1e-300)
    margins = scale[:, None] * gram[:n, :n] * scale
    margins[np.diag_indices(n)] += own * scale**2 + TUNING.dependent
    cross = scale[:, None] * gram[:n, n:]
    cross = linalg.solve_triangular(factored(margins), cross, lower=True, check_finite=False)
    return gram[n:, n:] - cross.T @ cross, np.sqrt(gram.diagonal()[n:])


class UnitBlocks:
    """Cholesky factors D = L Lᵀ of the scaled Gram matrices of the first layer's kinks, by unit."""

    def __init__(self, split: SplitGram, scaling: np.ndarray, diagonal: np.ndarray) -> None:
        kept, block = np.unique(split.unit, return_inverse=True)
        # Blocks are filled up to the largest with rows of the identity.
        self.slots, width = slots(block, len(kept))
        self.shape = len(kept), width
        example, scale = (self._padded(v) for v in (split.example, scaling))
        matrix = split.inner[example[:, :, None], example[:, None, :]]
        matrix *= scale[:, :, None] * scale[:, None, :]
        own = np.ones(self.shape).reshape(-1)
        own[self.slots] = diagonal
        matrix[:, np.arange(width), np.arange(width)] += own.reshape(self.shape)
        try:
            self.lower = torch.linalg.cholesky(torch.from_numpy(matrix))
        except torch.linalg.LinAlgError as error:
            raise StepFailed("singular") from error

    def halved(self, v: np.ndarray) -> np.ndarray:
        """Return L⁻¹ v for v [F] or [F, ·]."""
        return self._solved(self.lower, v, upper=False)

    def finished(self, v: np.ndarray) -> np.ndarray:
        """Return L⁻ᵀ v."""
        return self._solved(self.lower.mT, v, upper=True)

    def _solved(self, matrix: torch.Tensor, v: np.ndarray, upper: bool) -> np.ndarray:
        right = torch.from_numpy(self._padded(v).reshape(*self.shape, -1))
        solved = torch.linalg.solve_triangular(matrix, right, upper=upper).numpy()
        return solved.reshape(-1, *v.shape[1:])[self.slots]

    def _padded(self, v: np.ndarray) -> np.ndarray:
        whole = np.zeros((math.prod(self.shape), *v.shape[1:]), dtype=v.dtype)
        whole[self.slots] = v
        return whole.reshape(*self.shape, *v.shape[1:])
