"""Slow independent oracles that the flow is tested against; they share no code with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import linprog, nnls
from scipy.special import logsumexp


def hard_margin(x, y) -> tuple[np.ndarray, float]:
    """Return (unit direction w [d], margin) that maximizes min_i y_i ⟨w, x_i⟩ over ‖w‖ = 1.

    A support vector machine through the origin. Its dual as a least-distance problem,
    min ‖Zᵀλ‖² + (Σλ - 1)² over λ ≥ 0 with rows z_i = y_i x_i, is solved exactly by the active-set
    method for nonnegative least squares (Lawson and Hanson 1974): w ∝ Zᵀλ.
    Raises ValueError where the data is not separable through the origin.

    >>> import numpy as np, latephase
    >>> direction, margin = latephase.hard_margin(np.array([[0.1, 0.0], [0.2, 0.2]]), [1, 1])
    >>> print(np.round(direction, 6), round(margin, 6))
    [1. 0.] 0.1
    """
    direction, margin, _ = _hard_margin(x, y)
    return direction, margin


def hard_margin_dual(x, y) -> np.ndarray:
    """Return the dual solution q [n] ≥ 0, Σq = 1, of `hard_margin`: Σ q_i y_i x_i = margin · w.

    Exactly zero off the support vectors. Unique where those are linearly independent.
    Raises ValueError as `hard_margin` does.
    """
    weights = _hard_margin(x, y)[2]
    return weights / weights.sum()


def _hard_margin(x, y) -> tuple[np.ndarray, float, np.ndarray]:
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
    return normal / norm, margin * scale, weights


@dataclass(frozen=True)
class VariationMargin:
    """Solution of `variation_margin`: mass [2, k] of the neurons +, -; dual [n]; both sum to 1."""

    margin: float
    mass: np.ndarray
    dual: np.ndarray


def variation_margin(x, y, directions) -> VariationMargin:
    """Return the largest margin of infinitely many squared ReLUs with the given directions.

    A network Φ = Σ_j s_j relu(⟨w_j, x⟩)², s_j = ±1, ‖W‖² = Σ ‖w_j‖², is linear in the masses
    m_j = ‖w_j‖²: Φ = Σ_j s_j m_j relu(⟨d_j, x⟩)², d_j = w_j/‖w_j‖. Hence the linear program

        max t  subject to  y_i Σ_{s,k} s m_{sk} relu(⟨d_k, x_i⟩)² ≥ t,  Σ m = 1,  m ≥ 0,

    whose value, over all directions d, is the global maximum of min_i p_i over ‖W‖ = 1 for
    networks of any width (the margin in variation, or F1, norm). directions: [k, d], scaled to
    unit length here. With a finite grid the value is a lower bound; it is recomputed from the
    masses, so that it holds whatever the simplex method's rounding. It may be negative.
    Raises ValueError for arrays that do not fit together or are not finite.
    """
    x, y, d = (np.asarray(array, dtype=np.float64) for array in (x, y, directions))
    if x.ndim != 2 or y.shape != (len(x),) or d.ndim != 2 or d.shape[1] != x.shape[1]:
        raise ValueError(
            "expected x [n, d], y [n] and directions [k, d], got "
            f"{list(x.shape)}, {list(y.shape)} and {list(d.shape)}"
        )
    lengths = np.linalg.norm(d, axis=1)
    if not (np.isfinite(x).all() and set(y.tolist()) <= {-1.0, 1.0} and (lengths > 0).all()):
        raise ValueError("expected finite x, labels -1 and +1, and directions other than 0")
    features = y[:, None] * np.maximum(x @ (d / lengths[:, None]).T, 0.0) ** 2
    features = np.hstack([features, -features])
    count = features.shape[1]
    solved = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.hstack([-features, np.ones((len(x), 1))]),
        b_ub=np.zeros(len(x)),
        A_eq=np.append(np.ones(count), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0.0, None)] * count + [(None, None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solved.status != 0:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    mass = np.maximum(solved.x[:-1], 0.0)
    mass /= mass.sum()
    dual = np.maximum(-solved.ineqlin.marginals, 0.0)
    return VariationMargin(float((features @ mass).min()), mass.reshape(2, -1), dual / dual.sum())


def planar_variation_bound(x, y, dual) -> float:
    """Return max over all unit d of |Σ q_i y_i relu(⟨d, x_i⟩)²|, exactly; x [n, 2], q = `dual`.

    By duality an upper bound on the margin of every network of `variation_margin`, whatever
    q ≥ 0, Σq = 1: the margin is at most a weighted mean of margins, which is linear in the masses.
    Between the directions at which an example switches on or off the function is dᵀAd,
    A = Σ_{on} q_i y_i x_i x_iᵀ, whose extrema are eigenvectors; all are tried.
    """
    x, y, q = (np.asarray(array, dtype=np.float64) for array in (x, y, dual))
    if x.ndim != 2 or x.shape[1] != 2 or y.shape != (len(x),) or q.shape != y.shape:
        raise ValueError(
            "expected x [n, 2], y [n] and dual [n], got "
            f"{list(x.shape)}, {list(y.shape)} and {list(q.shape)}"
        )
    if not (q.min() >= 0.0 and abs(q.sum() - 1.0) < 1e-9):
        raise ValueError(f"dual: expected q ≥ 0 with sum 1, got {q.min():g} and {q.sum():.9g}")
    angles = np.arctan2(x[:, 1], x[:, 0])
    switches = np.sort(np.concatenate([angles - np.pi / 2, angles + np.pi / 2]) % (2 * np.pi))
    middles = 0.5 * (switches + np.append(switches[1:], switches[0] + 2 * np.pi))
    on = np.stack([np.cos(middles), np.sin(middles)], axis=1) @ x.T > 0.0
    weighted = (q * y)[:, None, None] * x[:, :, None] * x[:, None, :]
    vectors = np.linalg.eigh(np.einsum("ai,ijk->ajk", on, weighted))[1]
    vectors = vectors.swapaxes(1, 2).reshape(-1, 2)
    edges = np.stack([np.cos(switches), np.sin(switches)], axis=1)
    tried = np.concatenate([vectors, -vectors, edges])
    return float(np.abs(np.maximum(tried @ x.T, 0.0) ** 2 @ (q * y)).max())


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
