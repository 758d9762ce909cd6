"""Slow independent oracles that the flow is tested against; they share no code with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import logsumexp


def stiff_direction_flow(
    gradient: Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]],
    linearized: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    w: np.ndarray,
    degree: float,
    until: float,
    method: str = "Radau",
    tol: float = 1e-5,
    with_jacobian: bool = True,
    deadline: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, float]:
    """Return (direction [P], α) where scipy's `method` arrives, for the exponential loss.

    gradient(θ, S) = (p, q, Jᵀq) with q = softmax(-S p), at the price of one gradient;
    linearized(θ) = (p [n], J [n, P]), called for the Jacobian alone. The equation is
    dθ/dρ = Jᵀq/(L Σ q p) - θ at S = e^{Lρ}; its Jacobian is given exactly unless with_jacobian is
    False. Stops at α = until; when deadline() becomes true, with the best point evaluated.
    """
    last: tuple[float, np.ndarray] = (-np.inf, w)

    def velocity(rho: float, theta: np.ndarray) -> np.ndarray:
        if deadline():
            raise TimeoutError
        nonlocal last
        scale = np.exp(degree * rho)
        p, q, g = gradient(theta, scale)
        alpha = float(-logsumexp(-scale * p))
        last = max(last, (alpha, theta.copy()), key=lambda entry: entry[0])
        return g / (degree * (q @ p)) - theta

    def derivative(rho: float, theta: np.ndarray) -> np.ndarray:
        p, jacobian = linearized(theta)
        scale = np.exp(degree * rho)
        q = np.exp(-scale * p - logsumexp(-scale * p))
        g, mean = jacobian.T @ q, degree * (q @ p)
        centered = q[:, None] * (jacobian - g)
        of_g = -scale * (jacobian - g).T @ centered
        of_mean = degree * (-scale * (p - q @ p) @ centered + g)
        return of_g / mean - np.outer(g, of_mean) / mean**2 - np.eye(theta.size)

    def reached(rho: float, theta: np.ndarray) -> float:
        scale = np.exp(degree * rho)
        return float(-logsumexp(-scale * gradient(theta, scale)[0])) - until

    reached.terminal = True
    start = float(np.log(np.linalg.norm(w)))
    options = {"jac": derivative} if with_jacobian and method in ("Radau", "BDF", "LSODA") else {}
    with suppress(TimeoutError):
        solution = solve_ivp(
            velocity,
            (start, start + (np.log(until) + 10.0) / degree + 10.0),
            w / np.linalg.norm(w),
            method=method,
            rtol=tol,
            atol=tol,
            first_step=1e-4,
            events=reached,
            **options,
        )
        end, theta = solution.t[-1], solution.y[:, -1]
        last = (float(-logsumexp(-np.exp(degree * end) * linearized(theta)[0])), theta)
    return last[1] / np.linalg.norm(last[1]), last[0]
