"""Dense linear problems: Cholesky factors, bounded unknowns, a Krylov method, a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import linalg
from scipy.optimize import nnls

from latephase.flow.errors import StepFailed
from latephase.flow.tuning import TUNING
from latephase.problem.vectors import dots, norms


def factored(matrix: np.ndarray) -> np.ndarray:
    """Return L of a symmetric A = L Lᵀ, in its place and below what is left; raises StepFailed."""
    # Columns are rows to LAPACK, which so needs no copy. `linalg.cho_factor` takes as long again.
    lower, info = linalg.lapack.dpotrf(matrix.T, lower=True, overwrite_a=True, clean=False)
    if info:
        raise StepFailed("singular")
    return lower


def solved(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return A⁻¹ b for b [m] or [m, ·], with `factored`'s L."""
    return linalg.lapack.dpotrs(lower, right, lower=True)[0] if right.size else right


def boxed(matrix: np.ndarray, right: np.ndarray, upper: np.ndarray) -> np.ndarray | None:
    """Return y in [0, upper], A y - b zero, but positive where y = 0, negative at the upper end.

    A [m, m] positive definite. The primal-dual active set method (Hintermüller, Ito and Kunisch
    2002), which takes few iterations; None where it cycles.
    """
    scale = 1.0 / np.sqrt(matrix.diagonal())
    matrix, right, upper = scale[:, None] * matrix * scale, scale * right, upper / scale
    low, high = (np.zeros(len(upper), dtype=bool) for _ in range(2))
    for _ in range(TUNING.rounds):
        y, free = np.where(high, upper, 0.0), np.flatnonzero(~(low | high))
        part = matrix[free]
        inner = part[:, free]
        inner[np.diag_indices(len(free))] += TUNING.dependent
        y[free] = solved(factored(inner), right[free] - part @ y)
        slope = matrix @ y - right
        now = (y < 0.0) | low & (slope > 0.0), (y > upper) | high & (slope < 0.0)
        if np.array_equal(low, now[0]) and np.array_equal(high, now[1]):
            return scale * y
        low, high = now
    return None


def conjugate(apply: Callable, precondition: Callable, b: np.ndarray) -> np.ndarray | None:
    """Return x, A x = b by preconditioned conjugate gradients, None where they do not converge.

    A and `precondition` are symmetric and positive definite; the residual is measured in the
    latter's norm. Raises StepFailed where it overflows.
    """
    x, residual = np.zeros_like(b), b.copy()
    direction = precondition(residual)
    energy = first = float(residual @ direction)
    for _ in range(TUNING.conjugate_iterations):
        if energy <= TUNING.conjugate**2 * first:
            return x
        image = apply(direction)
        length = energy / float(direction @ image)
        x += length * direction
        residual -= length * image
        solved = precondition(residual)
        energy, before = float(residual @ solved), energy
        if not math.isfinite(energy):
            raise StepFailed("overflow")
        direction = solved + energy / before * direction
    return None


def gmres(apply: Callable, b: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """Return x = Σ y_j v_j, and y: x - apply(x) = b to a relative residual of tol.

    v_j are the vectors that `apply` gets, in the order it does. Where it shortens, x is nearer by
    an iteration as b + Σ y_j apply(v_j).
    """
    size = float(np.linalg.norm(b))
    if not 0.0 < size < math.inf:
        return np.zeros_like(b), np.zeros(0)
    most = TUNING.krylov_dimension
    # H y = size e_0 in least squares, by rotations of its rows two by two: R y = right.
    basis, triangle, right, turns = np.empty((most + 1, len(b))), np.zeros((most, most)), [size], []
    basis[0] = b / size
    for j in range(most):
        w, column = basis[j] - apply(basis[j]), np.zeros(j + 1)
        for _ in range(2):
            parts = basis[: j + 1] @ w
            w = w - parts @ basis[: j + 1]
            column += parts
        below = math.sqrt(w @ w)
        if not math.isfinite(below):
            raise StepFailed("overflow")
        for i, (cos, sin) in enumerate(turns):
            column[i : i + 2] = (
                cos * column[i] + sin * column[i + 1],
                cos * column[i + 1] - sin * column[i],
            )
        length = math.hypot(column[j], below)
        turns.append((column[j] / length, below / length))
        column[j] = length
        triangle[: j + 1, j] = column
        right[j:] = turns[j][0] * right[j], -turns[j][1] * right[j]
        if abs(right[-1]) < tol * size or below < 1e-14:
            break
        basis[j + 1] = w / below
    # `linalg.solve_triangular` takes ten times as long for so few.
    y = linalg.lapack.dtrtrs(triangle[: j + 1, : j + 1], right[: j + 1])[0]
    return y @ basis[: j + 1], y


def gmres_of_many(apply: Callable, b: np.ndarray, tol: float) -> tuple[np.ndarray, list]:
    """Return x [m, P] and y, a list of [m]: `gmres` of m problems at once, until all are solved."""
    size = norms(b)
    open_ = (size > 0.0) & np.isfinite(size)
    basis = [np.where(open_[:, None], b / np.where(open_, size, 1.0)[:, None], 0.0)]
    columns, right, turns = [], [np.where(open_, size, 0.0)], []
    for j in range(TUNING.krylov_dimension):
        w, column = basis[j] - apply(basis[j]), [0.0] * (j + 1)
        for _ in range(2):
            for i, vector in enumerate(basis):
                part = dots(vector, w)
                w, column[i] = w - part[:, None] * vector, column[i] + part
        below = norms(w)
        for i, (cos, sin) in enumerate(turns):
            one, next_ = column[i], column[i + 1]
            column[i], column[i + 1] = cos * one + sin * next_, cos * next_ - sin * one
        length = np.hypot(column[j], below)
        whole = np.where(length > 0.0, length, 1.0)
        cos, sin = np.where(length > 0.0, column[j] / whole, 1.0), below / whole
        turns.append((cos, sin))
        columns.append([*column[:j], length])
        right[j:] = cos * right[j], -sin * right[j]
        further = below >= 1e-14
        open_ = open_ & (np.abs(right[-1]) >= tol * size) & further
        if not open_.any():
            break
        basis.append(np.where(further[:, None], w / np.where(further, below, 1.0)[:, None], 0.0))
    y: list = [None] * len(columns)
    for i in range(len(columns) - 1, -1, -1):
        rest = right[i] - sum(columns[k][i] * y[k] for k in range(i + 1, len(columns)))
        pivot = columns[i][i]
        y[i] = np.where(pivot > 0.0, rest / np.where(pivot > 0.0, pivot, 1.0), 0.0)
    return sum(part[:, None] * vector for part, vector in zip(y, basis, strict=False)), y


def vanishing(rows: np.ndarray, free: np.ndarray) -> np.ndarray | None:
    """Return λ [m] ≥ 0 with Σ λ_i r_i = 0 up to a combination of `free` rows; None where none has.

    The least distance of such a combination, Σλ = 1 for rows of unit length, is by nonnegative
    least squares (Lawson and Hanson 1974). λ is of the rows as they came.
    """
    if len(free):
        basis = linalg.svd(free, full_matrices=False)
        basis = basis[2][basis[1] > TUNING.stationary * basis[1][0]]
        rows = rows - (rows @ basis.T) @ basis
    lengths = np.linalg.norm(rows, axis=1)
    if (lengths == 0.0).any():
        return (lengths == 0.0).astype(float)
    system = np.vstack([(rows / lengths[:, None]).T, np.ones(len(rows))])
    weights = nnls(system, np.append(np.zeros(rows.shape[1]), 1.0), maxiter=50 * len(rows))[0]
    distance = float(np.linalg.norm(system[:-1] @ weights)) / weights.sum()
    return weights / lengths if distance <= TUNING.stationary else None
