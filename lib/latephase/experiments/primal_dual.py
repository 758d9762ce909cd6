"""Gradient descent on a linear model in its primal-dual form, many data sets at once.

With rows z_i = y_i x_i, margins p = Zw and dual variables q = softmax(-p), gradient descent on the
exponential loss's mean risk R = (1/n) Σ e^{-p_i} is w ← w + η̂ Zᵀq with η̂ = η R: mirror ascent in
q for the dual of margin maximization (Ji and Telgarsky 2021). All is done in the log domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RULES = ("normalized", "constant")


@dataclass(frozen=True)
class LinearDescent:
    """Recorded states of `linear_descent`; the first axis is the record.

    steps [r]: number of steps taken; passed [r, ...]: Σ η̂ over them; w [r, ..., d];
    dual [r, ..., n].
    """

    steps: np.ndarray
    passed: np.ndarray
    w: np.ndarray
    dual: np.ndarray


def linear_descent(
    z: np.ndarray, steps: int, rule: str = "normalized", per_decade: int = 10
) -> LinearDescent:
    """Return gradient descent from w = 0 on the rows z [..., n, d], one run for each leading index.

    rule: "normalized", η̂ = 1, steps that grow as the risk falls; "constant", η = 1 on the mean
    risk, η̂ = R. Records after 1 step and then `per_decade` times in each decade of steps.
    Raises ValueError for rows longer than 1, for which neither step is known to be stable.
    """
    z = np.asarray(z, dtype=np.float64)
    if z.ndim < 2 or not np.linalg.norm(z, axis=-1).max(initial=0.0) <= 1.0 + 1e-9:
        raise ValueError(f"z: expected rows [..., n, d] of length at most 1, got {list(z.shape)}")
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {RULES}, got {rule!r}")
    if steps < 1 or per_decade < 1:
        raise ValueError(f"expected steps, per_decade ≥ 1, got {steps}, {per_decade}")
    count = 1 + round(per_decade * np.log10(steps))
    marks = np.unique(np.append(np.geomspace(1, steps, count).round(), steps))
    transposed = np.ascontiguousarray(z.swapaxes(-1, -2))
    w, passed = np.zeros((*z.shape[:-2], z.shape[-1], 1)), np.zeros(z.shape[:-2])
    dual, log_mean_risk = _dual(z, w)
    kept = []
    for step in range(1, steps + 1):
        size = np.ones_like(passed) if rule == "normalized" else np.exp(log_mean_risk)
        w = w + size[..., None, None] * (transposed @ dual)
        passed = passed + size
        dual, log_mean_risk = _dual(z, w)
        if step == marks[len(kept)]:
            kept.append((passed, w[..., 0], dual[..., 0]))
    sums, weights, duals = (np.array(column) for column in zip(*kept, strict=True))
    return LinearDescent(marks.astype(int), sums, weights, duals)


def _dual(z: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (q [..., n, 1], ln R [...]) at w [..., d, 1]."""
    p = z @ w
    smallest = p.min(axis=-2, keepdims=True)
    q = np.exp(smallest - p)
    total = q.sum(axis=-2, keepdims=True)
    return q / total, (np.log(total / z.shape[-2]) - smallest)[..., 0, 0]
