"""Slow independent oracles that the flow is tested against; they share no code with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import nnls
from scipy.special import logsumexp


def hard_margin(x, y) -> tuple[np.ndarray, float]:
    """Return (unit direction w [d], margin) that maximizes min_i y_i ⟨w, x_i⟩ over ‖w‖ = 1.

    A support vector machine through the origin. Its dual as a least-distance problem,
    min ‖Zᵀλ‖² + (Σλ - 1)² over λ ≥ 0 with rows z_i = y_i x_i, is solved exactly by the active-set
    method for nonnegative least squares (Lawson and Hanson 1974): w ∝ Zᵀλ.
    Raises ValueError where the data is not separable through the origin.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64).reshape(-1)
    if x.ndim != 2 or len(x) == 0 or y.shape != (len(x),):
        raise ValueError(f"expected x [n, d] and y [n], got {list(x.shape)} and {list(y.shape)}")
    if not (np.isfinite(x).all() and set(y.tolist()) <= {-1.0, 1.0}):
        raise ValueError("expected finite x and labels -1 and +1")
    scale = np.linalg.norm(x, axis=1).max()
    z = y[:, None] * x / (scale or 1.0)
    system = np.vstack([z.T, np.ones(len(z))])
    target = np.append(np.zeros(z.shape[1]), 1.0)
    weights, _ = nnls(system, target, maxiter=50 * len(z))
    normal = z.T @ weights
    norm = np.linalg.norm(normal)
    margin = float((z @ normal).min() / norm) if norm > 0.0 else 0.0
    # Rounding of Zᵀλ, whose terms cancel to zero where the data is not separable.
    if margin <= 1e-12:
        raise ValueError("not separable through the origin: no direction has a positive margin")
    return normal / norm, margin * scale


def finite_differences(function: Callable, w: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the Jacobian [m, P] of function(w) [m] by central differences of length `step`."""
    columns = [
        (np.ravel(function(w + step * e)) - np.ravel(function(w - step * e))) / (2.0 * step)
        for e in np.eye(w.size)
    ]
    return np.array(columns).T


def physical_flow(
    negative_gradient: Callable[[np.ndarray], np.ndarray],
    w: np.ndarray,
    times: np.ndarray,
    rtol: float = 1e-10,
) -> np.ndarray:
    """Return W(t) [times, P] of dW/dt = -∇R(W) from W(0) = w, by an explicit method of order 8.

    Reaches only as far as the risk is not small: the time to α is about e^α.
    """
    solution = solve_ivp(
        lambda _, v: negative_gradient(v),
        (0.0, float(times[-1])),
        w,
        method="DOP853",
        t_eval=np.asarray(times, dtype=np.float64),
        rtol=rtol,
        atol=rtol * max(1.0, float(np.linalg.norm(w))),
    )
    if not solution.success:
        raise RuntimeError(f"the reference solver failed: {solution.message}")
    return solution.y.T


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
