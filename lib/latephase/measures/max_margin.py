"""The maximum margin through the origin, by a solver that shares no code with the flow.

It is the answer that flows are compared with, so it vouches for itself: the margin of its
direction and the bound that its dual solution sets to all directions are compared before it
returns, in sums that are rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.linalg import qr, solve_triangular
from scipy.optimize import nnls
from torch import Tensor

from latephase.problem.checks import points_and_signs
from latephase.problem.task import Task, inputs_and_labels

# How closely margin and bound must agree, relative.
_RESOLVED = 1e-9
# By how much, relative, an example may miss the margin before it is taken among the support.
_ON_THE_MARGIN = 1e-13
# Examples that span so little of a new direction, relative, are taken for dependent.
_DEPENDENT = 1e-15
# Corrections end where one is this small, relative, beyond any digit that is kept. Each brings at
# least three digits down to the smallest margins that are resolved.
_SETTLED, _REFINEMENTS = 1e-20, 10


def hard_margin(
    x: Tensor | np.ndarray | Task, y: Tensor | np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return (unit direction w [d], margin) that maximizes min_i y_i ⟨w, x_i⟩ over ‖w‖ = 1.

    x [n, d] and y [n] in {-1, +1}, or a Task for both. A support vector machine through the
    origin: the least ‖v‖ with z_i·v ≥ 1 for all i, z_i = y_i x_i, is reached at v = Zᵀμ, μ ≥ 0,
    and w = v/‖v‖. The active-set method for nonnegative least squares (Lawson and Hanson 1974)
    finds the support; on it v and μ are refined with residuals that are rounded once (Björck
    1967), and the active set goes on from there until no example misses the margin. For any
    q ≥ 0 with Σq = 1, no direction has a margin above ‖Σ q_i z_i‖: this bound and the margin
    agree to 1e-9, relative. Relative margins γ/max‖x_i‖ down to 1e-12 are resolved; the margin is
    that of w before it is rounded to float64.
    Raises ValueError where the data is not separable through the origin, with the examples that
    show it, and where margin and bound do not agree.

    >>> import numpy as np, latephase
    >>> direction, margin = latephase.hard_margin(np.array([[0.1, 0.0], [0.2, 0.2]]), [1, 1])
    >>> print(np.round(direction, 6), round(margin, 6))
    [1. 0.] 0.1
    """
    direction, margin, _ = _hard_margin(x, y)
    return direction, margin


def hard_margin_dual(
    x: Tensor | np.ndarray | Task, y: Tensor | np.ndarray | None = None
) -> np.ndarray:
    """Return the dual solution q [n] ≥ 0, Σq = 1, of `hard_margin`: Σ q_i y_i x_i = margin · w.

    Exactly zero off the support vectors. Unique where those are linearly independent.
    Raises ValueError as `hard_margin` does.
    """
    weights = _hard_margin(x, y)[2]
    return weights / weights.sum()


def _hard_margin(x, y) -> tuple[np.ndarray, float, np.ndarray]:
    x, y = inputs_and_labels(x, y)
    x, y = points_and_signs(x, y)
    largest = np.abs(x).max(initial=0.0) or 1.0
    z = y[:, None] * (x / largest)
    scale = np.linalg.norm(z, axis=1).max() or 1.0
    z /= scale
    if not z.any(axis=1).all():
        raise _not_separable(np.flatnonzero(~z.any(axis=1))[:1])
    v, tail, dual = _least_norm(z)
    norm = np.linalg.norm(v)
    margin = (1.0 - _remainder(z, v, tail, np.ones(len(z))).max()) / norm
    bound = np.linalg.norm(_remainder(z.T, dual, 0.0, np.zeros(len(v)))) / math.fsum(dual)
    if not abs(bound - margin) <= _RESOLVED * bound:
        raise ValueError(
            f"the maximum margin lies between {margin:.6g} and {bound:.6g} of the largest "
            "example's norm, which is all that float64 resolves here"
        )
    return v / norm, float(margin * scale * largest), dual


def _least_norm(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return v [d], its tail beyond float64 and μ [n]: the least ‖v‖ with Z v ≥ 1, v = Zᵀμ."""
    count, size = z.shape
    system, target = np.vstack([z.T, np.ones(count)]), np.append(np.zeros(size), 1.0)
    dual = nnls(system, target, maxiter=50 * count)[0]
    support = list(np.flatnonzero(dual))
    for _ in range(50 * count):
        wanted = _on_support(z, support, dual)
        if wanted is None:
            continue
        v, tail, on_support = wanted
        if on_support.min() < 0.0:
            _advance(dual, support, on_support - dual[support])
            continue
        dual[support] = on_support
        missed = _remainder(z, v, tail, np.ones(count))
        missed[support] = -np.inf
        worst = int(missed.argmax())
        if len(support) == count or missed[worst] <= _ON_THE_MARGIN:
            return v, tail, dual
        support.append(worst)
    raise ValueError("the active set of the maximum margin did not come to rest")


def _on_support(z: np.ndarray, support: list[int], dual: np.ndarray):
    """Return v, its tail and μ of the least ‖v‖ with z_i·v = 1 on the support.

    Where its examples are dependent, Σ c_i z_i = 0, moves `dual` along c until one of them leaves
    the support, and returns None. Raises ValueError where none does: then they show that nothing
    separates them.
    """
    rows = z[support]
    q, r = qr(rows.T, mode="economic")
    sizes = np.abs(np.diagonal(r))
    lengths = np.linalg.norm(rows, axis=1)
    if len(support) > len(sizes) or sizes[-1] <= _DEPENDENT * lengths[-1]:
        # The others are independent: the last one to come is what made them dependent.
        others = np.linalg.lstsq(rows[:-1].T / lengths[:-1], rows[-1], rcond=None)[0]
        along = np.append(-others / lengths[:-1], 1.0)
        if along.min() >= -_DEPENDENT:
            raise _not_separable(np.array(support)[along > _DEPENDENT])
        _advance(dual, support, along, math.inf)
        return None
    v, tail = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    mu, mu_tail = np.zeros(len(rows)), np.zeros(len(rows))
    for _ in range(_REFINEMENTS):
        # Zᵀμ - v and 1 - Z v: what is still wrong with both equations.
        off = _remainder(-rows.T, mu, mu_tail, -v) - tail
        short = _remainder(rows, v, tail, np.ones(len(rows)))
        inner = solve_triangular(r, short - rows @ off, trans="T")
        step = off + q @ inner
        v, tail = _added(v, tail, step)
        mu, mu_tail = _added(mu, mu_tail, solve_triangular(r, inner))
        if np.linalg.norm(step) <= _SETTLED * np.linalg.norm(v):
            break
    return v, tail, mu


def _advance(dual: np.ndarray, support: list[int], along: np.ndarray, most: float = 1.0) -> None:
    """Move the dual on its support along a direction until one is zero, and let that one go."""
    falling = np.flatnonzero(along < 0.0)
    ratios = dual[support][falling] / -along[falling]
    first = int(ratios.argmin())
    dual[support] += min(most, ratios[first]) * along
    gone = support.pop(int(falling[first]))
    dual[gone] = 0.0
    dual[support] = np.maximum(dual[support], 0.0)


def _remainder(a: np.ndarray, x: np.ndarray, tail, b: np.ndarray) -> np.ndarray:
    """Return b - A(x + tail), each entry rounded once (products split as by Dekker 1971)."""
    product = a * x
    (a_high, a_low), (x_high, x_low) = _halves(a), _halves(x)
    error = a_low * x_low - (((product - a_high * x_high) - a_low * x_high) - a_high * x_low)
    terms = np.concatenate([b[:, None], -product, -error, -a * tail], axis=1)
    return np.array([math.fsum(row) for row in terms.tolist()])


def _halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifted = 134217729.0 * a  # 2^27 + 1
    high = shifted - (shifted - a)
    return high, a - high


def _added(x: np.ndarray, tail: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x + tail + step as a float64 number and its tail."""
    step = step + tail
    total = x + step
    return total, step - (total - x)


def _not_separable(examples: Iterable[int]) -> ValueError:
    named = ", ".join(map(str, sorted(int(i) for i in examples)))
    return ValueError(
        "not separable through the origin: no direction has a positive margin; a combination with "
        f"positive weights of the examples {named}, each times its label, vanishes"
    )
