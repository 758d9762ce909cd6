"""The Newton matrix of a stage: J of the active examples at a point, and systems made of it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import linalg

from latephase.flow.tuning import TUNING
from latephase.problem.margins import Problem


class Linearization:
    """J of the active examples at θ. Rows of J are margins, pairs of (example, other class).

    curved=True adds the curvature Ĥ = Σ λ_i ∇²p_i / Σ λ_i p_i through its eigenpairs, by which
    the primal block M = (1 + κ) I - (κ/L) Ĥ is inverted for every κ. Without it M = (1 + κ) I.
    """

    def __init__(
        self, problem: Problem, theta: np.ndarray, log_multiplier: np.ndarray, curved: bool = False
    ) -> None:
        self.problem, self.theta = problem, theta
        active = (
            log_multiplier.reshape(problem.n, -1).max(1) >= log_multiplier.max() - TUNING.active
        )
        self.examples = np.flatnonzero(active)
        self.contains = np.repeat(active, problem.pairs)
        self.rows = np.flatnonzero(self.contains)
        self.example_of = np.repeat(np.arange(len(self.examples)), problem.pairs)
        self.jacobian = None
        if 8 * len(self.rows) * theta.size <= problem.jacobian_bytes:
            self.jacobian = problem.jacobian(theta, self.examples)
        # What an iteration left of the error when it was fresh: curvature left out, not age.
        self.contraction = 0.0
        self.curvature = None
        # Without a stored Jacobian there is no rotating it: the curvature stays out.
        if curved and self.jacobian is not None:
            multiplier = np.exp(log_multiplier - log_multiplier.max())
            multiplier /= multiplier @ problem.margins(theta).reshape(-1)
            hessian = problem.hessian(theta, problem.shaped(multiplier))
            self.curvature = linalg.eigh(hessian)

    def covers(self, log_multiplier: np.ndarray) -> bool:
        """Return whether every pair that the stage must solve for has its row here."""
        return bool(self.contains[log_multiplier >= log_multiplier.max() - TUNING.live].all())

    def slow(self) -> float:
        """Return the contraction beyond which age, not missing curvature, must be what slows it."""
        if self.curvature is not None:
            return TUNING.slow_curved
        return max(TUNING.slow, 1.5 * self.contraction)

    def primal_inverse(self, kappa: float, degree: float, v: np.ndarray) -> np.ndarray:
        """Return M⁻¹ v [P]."""
        if self.curvature is None:
            return v / (1.0 + kappa)
        values, vectors = self.curvature
        return vectors @ ((vectors.T @ v) / _primal_eigenvalues(values, kappa, degree))

    def times(self, v: np.ndarray) -> np.ndarray:
        """Return J v on the rows."""
        if self.jacobian is not None:
            return self.jacobian @ v
        return self.problem.jacobian_times(self.theta, v).reshape(-1)[self.rows]

    def transpose_times(self, v: np.ndarray, live: np.ndarray) -> np.ndarray:
        """Return Jᵀ v [P] for v on the live ones of the rows."""
        if self.jacobian is not None:
            return v @ self.jacobian[live]
        weights = np.zeros(len(self.contains))
        weights[self.rows[live]] = v
        return self.problem.weighted_gradient(self.theta, self.problem.shaped(weights))[1]

    def system(
        self, live: np.ndarray, d: np.ndarray, kappa: float, degree: float, inverse_scale: float
    ) -> DualSystem | ThinSystem:
        """Return the dual system d J M⁻¹ Jᵀ d + I/S of the live rows."""
        count, size = int(live.sum()), self.theta.size
        # In units of the dual matrix: margins may be of any size.
        part = inverse_scale * (1.0 + kappa) / max(float((d**2 * self.squares[live]).max()), 1e-300)
        thin = count > max(300, size) or (count > size and part > TUNING.resolved_thin)
        if self.jacobian is not None and thin:
            root = self.jacobian[live]
            if self.curvature is None:
                root = root / np.sqrt(1.0 + kappa)
            else:
                eigenvalues = _primal_eigenvalues(self.curvature[0], kappa, degree)
                root = self.rotated[live] / np.sqrt(eigenvalues)
            return ThinSystem(root, d, inverse_scale)
        if self.curvature is None:
            matrix = self.gram[np.ix_(live, live)] / (1.0 + kappa)
        else:
            root = self.rotated[live]
            matrix = (root / _primal_eigenvalues(self.curvature[0], kappa, degree)) @ root.T
        return DualSystem(matrix, d, inverse_scale)

    @cached_property
    def squares(self) -> np.ndarray:
        """‖J_i‖² of the rows."""
        if self.jacobian is None:
            return self.gram.diagonal()
        return np.einsum("ij,ij->i", self.jacobian, self.jacobian)

    @cached_property
    def rotated(self) -> np.ndarray:
        """J in the basis of the curvature's eigenvectors."""
        return self.jacobian @ self.curvature[1]

    @cached_property
    def gram(self) -> np.ndarray:
        """J Jᵀ of the rows; where J exceeds the bound, by pairs of blocks of it."""
        if self.jacobian is None:
            return self._gram_by_blocks()
        return self.jacobian @ self.jacobian.T

    def _gram_by_blocks(self) -> np.ndarray:
        gram, start = np.empty((len(self.rows),) * 2), 0
        for _, upper in self.problem.jacobian_blocks(self.theta, self.examples):
            rows, begin = slice(start, start + len(upper)), start
            remaining = self.examples[begin // self.problem.pairs :]
            for _, lower in self.problem.jacobian_blocks(self.theta, remaining):
                columns = slice(begin, begin + len(lower))
                gram[rows, columns] = upper @ lower.T
                gram[columns, rows] = gram[rows, columns].T
                begin += len(lower)
            start += len(upper)
        return gram


class DualSystem:
    """A = dKd + B/S with K given densely; B = I until `add_blocks`."""

    def __init__(self, matrix: np.ndarray, d: np.ndarray, inverse_scale: float) -> None:
        self.diagonal, self.inverse_scale = matrix.diagonal().copy(), inverse_scale
        # Of the last solution: scaling, eigenvalues and eigenvectors of dependent gradients.
        self.dependent: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.scaled = d[:, None] * matrix * d
        self.matrix = self.scaled.copy()
        self.matrix[np.diag_indices(len(d))] += inverse_scale

    def add_blocks(self, blocks: np.ndarray, unit: np.ndarray, excess: np.ndarray) -> None:
        """Add (excess/S) e eᵀ for each block (example), e its part of the vector `unit`."""
        same = blocks[:, None] == blocks
        self.matrix += same * np.outer(unit * excess, unit) * self.inverse_scale

    def dual_matrix_times(self, d: np.ndarray) -> np.ndarray:
        """Return d K d² = dKλ."""
        return self.scaled @ d

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return A⁻¹ right."""
        scaling = 1.0 / np.sqrt(self.matrix.diagonal())
        equilibrated = scaling[:, None] * self.matrix * scaling
        right = scaling[:, None] * right
        if not (np.isfinite(equilibrated).all() and np.isfinite(right).all()):
            return np.full_like(right, np.nan)
        share = self.inverse_scale * scaling**2
        if share.min() > TUNING.well_conditioned:
            factor = linalg.cho_factor(equilibrated, check_finite=False)
            pivots = factor[0].diagonal() ** 2
            if (pivots > TUNING.few_shares * share)[share < TUNING.blurred].all():
                return scaling[:, None] * linalg.cho_solve(factor, right, check_finite=False)
        values, vectors = linalg.eigh(equilibrated, check_finite=False)
        blurred = share[share < TUNING.blurred].max(initial=0.0)
        dependent = values < max(TUNING.dependent, TUNING.few_shares * blurred)
        values = np.maximum(values, TUNING.dependent)
        self.dependent = scaling, values[dependent], vectors[:, dependent]
        return scaling[:, None] * (vectors @ ((vectors.T @ right) / values[:, None]))

    def settled(self, x: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Return x of A x = right without what the right side's rounding put there.

        Where gradients are linearly dependent the equations fix only sums of multipliers; how
        they are shared is what 1/S says, and once that is near rounding the shares stay as they
        are unless the right side calls for a change beyond its noise, that of `size` = d|p|.
        """
        if self.dependent is None:
            return x
        scaling, values, vectors = self.dependent
        parts = vectors.T @ (x / scaling)
        parts[np.abs(values * parts) > 1e-13 * np.linalg.norm(scaling * size)] = 0.0
        return x - scaling * (vectors @ parts)


class ThinSystem:
    """A = UUᵀ + B/S with U = d J M^{-1/2} of fewer columns than rows, solved in its columns."""

    def __init__(self, root: np.ndarray, d: np.ndarray, inverse_scale: float) -> None:
        self.root, self.inverse_scale = d[:, None] * root, inverse_scale
        self.diagonal = np.einsum("ij,ij->i", root, root)
        self.blocks = None

    def add_blocks(self, blocks: np.ndarray, unit: np.ndarray, excess: np.ndarray) -> None:
        """Add (excess/S) e eᵀ for each block (example), e its part of the vector `unit`."""
        self.blocks = blocks, unit, excess / (1.0 + excess)

    def dual_matrix_times(self, d: np.ndarray) -> np.ndarray:
        """Return d K d² = dKλ."""
        return self.root @ (self.root.T @ d)

    def settled(self, x: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Return x: this system is for a 1/S that is well above rounding."""
        return x

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return A⁻¹ right = S (B⁻¹r - B⁻¹U (I/S + UᵀB⁻¹U)⁻¹ UᵀB⁻¹r)."""
        divided, root = self._divided(right), self._divided(self.root)
        inner = self.root.T @ root
        inner[np.diag_indices(len(inner))] += self.inverse_scale
        if not (np.isfinite(inner).all() and np.isfinite(divided).all()):
            # An iterate that overflows: the step is not finite either, and ends its stage.
            return np.full_like(right, np.nan)
        correction = root @ linalg.solve(inner, self.root.T @ divided, assume_a="pos")
        return (divided - correction) / self.inverse_scale

    def _divided(self, v: np.ndarray) -> np.ndarray:
        # B⁻¹ = I - excess/(1 + excess) e eᵀ in each block, e of norm one.
        if self.blocks is None:
            return v
        blocks, unit, share = self.blocks
        sums = np.zeros((blocks.max() + 1, v.shape[1]))
        np.add.at(sums, blocks, unit[:, None] * v)
        return v - (share * unit)[:, None] * sums[blocks]


def _primal_eigenvalues(values: np.ndarray, kappa: float, degree: float) -> np.ndarray:
    # Along θ itself 1 + κ - κ(L-1) is negative for L > 2 and large κ. The constraints fix that
    # direction whatever M says there, so that a floor keeps M positive at no cost.
    return np.maximum(1.0 + kappa - kappa / degree * values, 0.2 * (1.0 + kappa))
