"""The linear model in the plane: two weights, a known limit, and three places to stop before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from scipy.special import logsumexp, softmax

from latephase.flow.gradient_flow import gradient_flows
from latephase.flow.trajectory import Trajectory
from latephase.measures.max_margin import hard_margin, hard_margin_dual
from latephase.zoo import networks

ALPHA = "smoothed margin α"


def clouds(seed: int, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return x [n, 2] and labels y [n] of two clouds that face each other across the origin.

    y x = (0.3 + 0.25 E) u + 0.2 N v with a random unit vector u, v across it, E exponential and N
    standard normal: u separates them. Drawn anew until two points carry the largest margin.
    """
    rng = np.random.default_rng(seed)
    y = np.where(np.arange(n) % 2 == 0, 1, -1)
    while True:
        turn = rng.uniform(0, 2 * np.pi)
        u = np.array([np.cos(turn), np.sin(turn)])
        depth, along = 0.3 + rng.exponential(0.25, (n, 1)), rng.normal(0, 0.2, (n, 1))
        x = y[:, None] * (depth * u + along * [-u[1], u[0]])
        if np.count_nonzero(hard_margin_dual(x, y)) == 2:
            return x, y


def resting_place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the unit vector ŵ of largest margin, ŵ turned by a right angle, and b, W's rest.

    Write W = a ŵ + b ŵ⊥. Two points are on the margin, at s₁ > 0 > s₂ along ŵ⊥. Once a is large,
    only they count, and the gradient has no part along ŵ⊥ where s₁ exp(-b s₁) + s₂ exp(-b s₂) = 0.
    That b is where W comes to rest across ŵ, while a grows (Soudry et al. 2018).
    """
    best, _ = hard_margin(x, y)
    across = np.array([-best[1], best[0]])
    on = hard_margin_dual(x, y) > 0
    high, low = np.sort((y[:, None] * x)[on] @ across)[::-1]
    return best, across, float(np.log(-high / low) / (high - low))


def start(seed: int) -> torch.nn.Module:
    """Return the linear model of two weights at a random start."""
    return networks.linear(2, generator=torch.Generator().manual_seed(seed))


def follow(seeds: Sequence[int], levels: list[float]) -> list[Trajectory]:
    """Return the flow of the exponential risk of each seed's `clouds`, landing on levels of α."""
    x, y = zip(*map(clouds, seeds), strict=True)
    return gradient_flows([*map(start, seeds)], x, y, at=levels, tol=1e-3)


def path(start: tuple[float, float], x: np.ndarray, y: np.ndarray, until: float) -> np.ndarray:
    """Return weights [records, 2] along the flow from any start up to a smoothed margin.

    By an explicit solver, along the length of the path: dW/ds = ∇α/‖∇α‖, where no logarithm is
    needed and no network.
    """
    z = y[:, None] * x

    def velocity(_, weights):
        uphill = softmax(-z @ weights) @ z
        return uphill / np.linalg.norm(uphill)

    def arrived(_, weights):
        return -logsumexp(-z @ weights) - until

    arrived.terminal = True
    return solve_ivp(velocity, (0, 1e4), start, events=arrived, max_step=1.0).y.T


def measures(flow: Trajectory, x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    """Return three distances from the end at each record: of direction, margin and gradient."""
    best, across, _ = resting_place(x, y)
    off = np.abs(np.arctan2(flow.direction @ across, flow.direction @ best))
    columns = {
        ALPHA: flow.smoothed_margin,
        "angle to the limit (degrees)": np.degrees(off),
        "angle to the limit (rad)": off,
        "missing share of the margin": 1 - flow.normalized_margin / hard_margin(x, y)[1],
        "1 − cos(W, −∇R)": flow.misalignment,
    }
    return pd.DataFrame(columns)


def off_the_law(weights: np.ndarray, smoothed_margin: float, x: np.ndarray, y: np.ndarray) -> float:
    """Return |b(W)/b - 1| for W along `weights` at such a size that its margin is that of α.

    b(W) is W's part across ŵ, b where it should have come to rest (`resting_place`). At large α
    the part along ŵ is α/γ, up to a part of order 1/α, and b(W) = tan(angle) α/γ.
    """
    best, across, rest = resting_place(x, y)
    gamma = hard_margin(x, y)[1]
    tangent = (weights @ across) / (weights @ best)
    return abs(tangent * smoothed_margin / gamma / rest - 1)


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the weights at which training with the squared loss comes to rest."""
    return np.linalg.lstsq(x, y.astype(float), rcond=None)[0]


def boundary(direction: np.ndarray, reach: float) -> np.ndarray:
    """Return the ends [2, 2] of the line ⟨w, x⟩ = 0 within a distance of the origin."""
    along = np.array([-direction[1], direction[0]]) / np.linalg.norm(direction)
    return reach * np.stack([-along, along])


def level_lines(x: np.ndarray, y: np.ndarray, reach: float) -> tuple[np.ndarray, ...]:
    """Return both weights and the smoothed margin, each [101, 101], on a square of weights."""
    grid = np.meshgrid(*2 * [np.linspace(-reach, reach, 101)])
    margins = np.tensordot(y[:, None] * x, np.stack(grid), 1)
    return *grid, -logsumexp(-margins, axis=0)
