"""Plain and leaky ReLU networks by small explicit steps: an oracle for the nonsmooth flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ExplicitFlow:
    """States where α first reached each level, each interpolated within its step.

    levels [k], those reached; weights [k, P], the layers' weights one after the other; margins
    [k, n] = p at them. `steps` were taken, and α was `last` in the end. `separated` is the number
    of steps until every p > 0, None if that never was. `dead` are the examples whose output was
    exactly 0 in the end. `moving` is false where the gradient became exactly 0.
    """

    levels: np.ndarray
    weights: np.ndarray
    margins: np.ndarray
    steps: int
    last: float
    separated: int | None
    dead: np.ndarray
    moving: bool


def explicit_relu_flow(
    weights: Sequence[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    step: float,
    levels: Sequence[float],
    arc: float = 20.0,
    slope: float = 0.0,
) -> ExplicitFlow:
    """Follow f(x) = W_L σ(… σ(W_1 x)) from `weights` [out, in] by W += h‖W‖ g/‖g‖.

    σ(z) = max(z, slope·z) with 0 ≤ slope < 1. g = ∇α of α = -ln Σ e^{-p}, p = y f(x) with
    x [n, d], y [n] of ±1; a gate is open where its pre-activation is positive, and shut at 0, as
    in PyTorch. h = `step` is the relative arc length of a step; where the flow slides along a
    kink, these steps chatter about it at a distance of order h. Stops at the last of the rising
    `levels` of α, when g = 0, or after the relative arc length `arc`.
    Raises ValueError for a start beyond the first level.
    """
    sizes = np.cumsum([w.size for w in weights])
    flat, g = np.concatenate([np.ravel(w) for w in weights]).astype(float), np.zeros(sizes[-1])
    layers, slopes = (
        [part.reshape(w.shape) for part, w in zip(np.split(v, sizes[:-1]), weights, strict=True)]
        for v in (flat, g)
    )
    # Examples are columns.
    inputs = np.ascontiguousarray(x.T, dtype=float)
    values = [inputs, *(np.empty((len(w), len(y))) for w in layers)]
    shares = [np.empty_like(v) for v in values]
    gates = [np.empty_like(v) for v in values]

    def forward() -> tuple[np.ndarray, np.ndarray, float]:
        for k, w in enumerate(layers, 1):
            np.matmul(w, values[k - 1], out=values[k])
            if k < len(layers):
                np.maximum(values[k], slope * values[k], out=values[k])
        p = y * values[-1][0]
        least = p.min()
        relative = np.exp(least - p)
        total = relative.sum()
        return p, relative / total, float(least - np.log(total))

    def backward(q: np.ndarray) -> None:
        shares[-1][0] = q * y
        for k in range(len(layers) - 1, -1, -1):
            np.matmul(shares[k + 1], values[k].T, out=slopes[k])
            if k:
                np.matmul(layers[k].T, shares[k + 1], out=shares[k])
                # The sign of σ(z) is that of z; its maximum with the slope is σ'(z).
                np.maximum(np.sign(values[k], out=gates[k]), slope, out=gates[k])
                np.multiply(shares[k], gates[k], out=shares[k])

    p, q, alpha = forward()
    if alpha >= levels[0]:
        raise ValueError(f"expected a start below α = {levels[0]:g}, got α = {alpha:g}")
    before, taken, separated = flat.copy(), 0, 0 if p.min() > 0 else None
    states, margins = [], []
    moving = True
    while len(states) < len(levels) and taken < round(arc / step):
        backward(q)
        square = g @ g
        if square == 0.0:
            moving = False
            break
        np.copyto(before, flat)
        earlier = alpha, p
        flat += step * np.sqrt((flat @ flat) / square) * g
        taken += 1
        p, q, alpha = forward()
        if separated is None and p.min() > 0:
            separated = taken
        while len(states) < len(levels) and alpha >= levels[len(states)]:
            part = (levels[len(states)] - earlier[0]) / (alpha - earlier[0])
            states.append(before + part * (flat - before))
            margins.append(earlier[1] + part * (p - earlier[1]))
    return ExplicitFlow(
        levels=np.array(levels[: len(states)]),
        weights=np.reshape(states, (len(states), flat.size)),
        margins=np.reshape(margins, (len(states), len(y))),
        steps=taken,
        last=alpha,
        separated=separated,
        dead=np.flatnonzero(p == 0),
        moving=moving,
    )
