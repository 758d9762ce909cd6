"""The Newton matrix of an implicit stage and its inverse, the curvature apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import linalg

from latephase.flow.errors import StepFailed
from latephase.flow.linear import factored
from latephase.flow.tuning import TUNING
from latephase.problem.chain import SplitGram


@dataclass(frozen=True, eq=False)
class Bent:
    """Of the curvature C: images of its columns in w [m, P] and ν/S [P], and I - A C factored.

    A takes a right side a to δθ; δθ = x then solves (I - A C) x = A a + ... .
    """

    rows: np.ndarray
    turn: np.ndarray
    factors: tuple[np.ndarray, np.ndarray]


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
        self.point, self.rows, self.rho, self.multipliers = point, rows, rho, multipliers
        point.select(rows)
        n, inverse_scale = len(rows), math.exp(-log_scale)
        self.lam = np.maximum(multipliers[0][rows], 1e-300)
        self.holds = np.zeros(len(multipliers[0]), dtype=bool)
        self.holds[rows] = True
        share = inverse_scale / self.lam
        self.column = np.concatenate([np.ones(n), np.zeros(len(give))])
        own, coupling, self.examples = np.concatenate([share, give]), None, None
        if excess is not None:
            self.column[:n] += excess[rows]
            block = np.repeat(multipliers[0].reshape(-1, pairs).sum(1), pairs)
            coupling = (excess / np.maximum(block, 1e-300))[rows] * inverse_scale
            self.examples = rows // pairs
        thin = n + len(give) > max(TUNING.thin, len(rho))
        if not (thin and self._factor_thin(own, coupling)):
            self._factor(own, coupling)
        self.solved_column = self._inverse(self.column)
        self.row = np.concatenate(point.push(rho))
        self.row[:n] += rest
        self.pivot = float(self.row @ self.solved_column)
        if self.pivot == 0.0:
            raise StepFailed("singular")

    def covers(self, rows: np.ndarray, gates: np.ndarray, active: np.ndarray) -> bool:
        """Return whether these margins have their rows here, and these kinks slide."""
        point = self.point
        slides = np.array_equal(active, point.active) and np.array_equal(gates, point.gates)
        return slides and bool(self.holds[rows].all())

    def solve(
        self, a: np.ndarray, right: np.ndarray | None = None, length: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return (δθ, w, δν/S) for the right sides of the equations; None are zeros."""
        pushed = np.concatenate(self.point.push(a))
        y = self._inverse(-pushed if right is None else right - pushed)
        nu = (length - float(self.rho @ a) - float(self.row @ y)) / self.pivot
        w = y + nu * self.solved_column
        return a + self.point.combine(w), w, nu

    def newton(
        self, a: np.ndarray, right: np.ndarray, length: float, curved: Bent
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Return `solve` with C in the matrix as well."""
        x, w, nu = self.solve(a, right, length)
        x = linalg.lu_solve(curved.factors, x, check_finite=False)
        bend = float(curved.turn @ x)
        return x, w + curved.rows @ x + bend * self.solved_column, nu + bend

    @cached_property
    def bent(self) -> Bent | None:
        """What C = ∇²(λᵀp + μᵀz) adds, None of modules with more than a few weights."""
        curvature = self.point.hessian(*self.multipliers)
        if curvature is None:
            return None
        rows = self.point.rows()
        y = self._inverse(-rows @ curvature)
        turn = -(self.rho @ curvature + self.row @ y) / self.pivot
        matrix = -curvature - rows.T @ (y + np.outer(self.solved_column, turn))
        matrix[np.diag_indices(len(matrix))] += 1.0
        return Bent(y, turn, linalg.lu_factor(matrix, check_finite=False))

    def filtered(self, error: np.ndarray) -> np.ndarray:
        """Return an error of θ as the equations let it stand, without its part along the step."""
        e = self.solve(error)[0]
        return e - (self.rho @ e) / (self.rho @ self.rho) * self.rho

    def _factor_thin(self, own: np.ndarray, coupling: np.ndarray | None) -> bool:
        """Factor I + Bᵀ E⁻¹ B, and return whether E is large enough for that."""
        held = self.point.rows()
        self.squares = np.einsum("ij,ij->i", held, held)
        own = own + TUNING.dependent * self.squares
        if own.min() < TUNING.resolved_thin * self.squares.max():
            return False
        n = len(self.rows)
        self.own, self.coupling = own, None
        if coupling is not None:
            _, self.starts, counts = np.unique(self.examples, return_index=True, return_counts=True)
            sums = np.add.reduceat(coupling / own[:n], self.starts)
            self.counts = counts
            self.coupling = coupling / (1.0 + np.repeat(sums, counts)) / own[:n]
        matrix = held.T @ self._shared(held)
        matrix[np.diag_indices(len(matrix))] += 1.0
        self.held, self.factor = held, factored(matrix)
        return True

    def _shared(self, v: np.ndarray) -> np.ndarray:
        """Return E⁻¹ v for v [m] or [m, ·]."""
        shape = (-1,) + (1,) * (v.ndim - 1)
        out = v / self.own.reshape(shape)
        if self.coupling is not None:
            n = len(self.rows)
            sums = np.repeat(np.add.reduceat(out[:n], self.starts), self.counts, 0)
            out[:n] -= self.coupling.reshape(shape) * sums
        return out

    def _factor(self, own: np.ndarray, coupling: np.ndarray | None) -> None:
        """Factor B Bᵀ + E, scaled to a diagonal near one."""
        point, n = self.point, len(self.rows)
        split = point.split_gram() if len(point.active) >= TUNING.eliminated else None
        gram = point.gram() if split is None else split.rest
        squares = gram.diagonal()
        first = 0 if split is None else len(split.unit)
        if first:
            apart = split.inner.diagonal()[split.example]
            squares = np.concatenate([squares[:n], apart, squares[n:]])
        self.held, self.squares = None, squares
        self.scaling = 1.0 / np.sqrt(squares + own + 1e-300)
        self.apart = slice(n, n + first)
        scaling = self._kept(self.scaling)
        matrix = scaling[:, None] * gram * scaling
        # Rows that depend on one another (duplicates, dead units) can be factored with this.
        diagonal = own * self.scaling**2 + TUNING.dependent
        matrix[np.diag_indices(len(gram))] += self._kept(diagonal)
        if coupling is not None:
            unit = self.scaling[:n]
            blocks = np.outer(unit * coupling, unit)
            matrix[:n, :n] += (self.examples[:, None] == self.examples) * blocks
        self.blocks = None
        if first:
            self.blocks = UnitBlocks(split, self.scaling[self.apart], diagonal[self.apart])
            scaled = self.scaling[self.apart][:, None] * split.cross.T * scaling
            self.cross = self.blocks.halved(scaled)
            matrix -= self.cross.T @ self.cross
        self.factor = factored(matrix)

    def _kept(self, v: np.ndarray) -> np.ndarray:
        """Return v without the part of the kinks that are eliminated first."""
        return np.concatenate([v[: self.apart.start], v[self.apart.stop :]])

    def _inverse(self, right: np.ndarray) -> np.ndarray:
        if self.held is not None:
            y = self._shared(right)
            inner = linalg.cho_solve(self.factor, self.held.T @ y, check_finite=False)
            return y - self._shared(self.held @ inner)
        scaling = self.scaling.reshape((-1,) + (1,) * (right.ndim - 1))
        right = scaling * right
        if self.blocks is None:
            return scaling * linalg.cho_solve(self.factor, right, check_finite=False)
        half = self.blocks.halved(right[self.apart])
        kept = self._kept(right) - self.cross.T @ half
        kept = linalg.cho_solve(self.factor, kept, check_finite=False)
        apart = self.blocks.finished(half - self.cross @ kept)
        start = self.apart.start
        return scaling * np.concatenate([kept[:start], apart, kept[start:]])


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
    cross = linalg.solve_triangular(factored(margins)[0], cross, lower=True, check_finite=False)
    return gram[n:, n:] - cross.T @ cross, np.sqrt(gram.diagonal()[n:])


class UnitBlocks:
    """Cholesky factors D = L Lᵀ of the scaled Gram matrices of the first layer's kinks, by unit."""

    def __init__(self, split: SplitGram, scaling: np.ndarray, diagonal: np.ndarray) -> None:
        order = np.argsort(split.unit, kind="stable")
        _, block, counts = np.unique(split.unit[order], return_inverse=True, return_counts=True)
        width = counts.max()
        place = np.arange(len(order)) - (np.cumsum(counts) - counts)[block]
        self.slots = np.empty_like(order)
        # Blocks are filled up to the largest with rows of the identity.
        self.slots[order] = block * width + place
        self.shape = len(counts), width
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
