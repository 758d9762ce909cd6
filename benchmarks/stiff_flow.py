"""Slow independent oracles that the flow is tested against; they share no code with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.integrate import solve_ivp

FIRST_STEP = 1e-4


class Point(Protocol):
    """Margins p [n] at one θ [P] with their derivatives, J = ∂p/∂θ [n, P].

    pull(λ) = Jᵀλ, push(v) = J v; curvature(λ, v) = C v and hessian(λ) = C with C = Σ λᵢ∇²pᵢ.
    """

    p: np.ndarray

    def pull(self, weights: np.ndarray) -> np.ndarray: ...
    def push(self, v: np.ndarray) -> np.ndarray: ...
    def rows(self) -> np.ndarray: ...
    def curvature(self, weights: np.ndarray, v: np.ndarray) -> np.ndarray: ...
    def hessian(self, weights: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class DirectionFlow:
    """The late phase for margins of degree L and the exponential loss, as an equation in ρ = ln‖W‖:

    dθ/dρ = g/(L m) - θ with q = softmax(-S p(θ)), S = e^{Lρ}, g = Jᵀq, m = Σ q p. `at` gives p and
    its derivatives at any θ.
    """

    at: Callable[[np.ndarray], Point]
    degree: float

    def alpha(self, rho: float, theta: np.ndarray) -> float:
        """Return α = -ln Σ e^{-S p}."""
        return self.duals(rho, self.at(theta).p)[1]

    def velocity(self, rho: float, theta: np.ndarray) -> np.ndarray:
        """Return dθ/dρ [P], at the price of one gradient."""
        point = self.at(theta)
        q, _ = self.duals(rho, point.p)
        return point.pull(q) / (self.degree * (q @ point.p)) - theta

    def derivative(self, rho: float, theta: np.ndarray) -> np.ndarray:
        """Return ∂(dθ/dρ)/∂θ = ∂g/(L m) - g ∂mᵀ/(L m²) - I [P, P].

        With D = J - 1 gᵀ, ∂q = -S diag(q) D, so that ∂g = Σ qᵢ∇²pᵢ - S Dᵀ diag(q) D and
        ∂m = g - S Dᵀ diag(q) p.
        """
        point = self.at(theta)
        q, _ = self.duals(rho, point.p)
        mean, g = self.degree * (q @ point.p), point.pull(q)
        centred = point.rows() - g
        moved = -np.exp(self.degree * rho) * q[:, None] * centred
        of_mean = self.degree * (g + point.p @ moved)
        # The two products are one, of the matrices that stand beside and below one another.
        derivative = np.c_[centred.T, -g] @ np.r_[moved / mean, [of_mean / mean**2]]
        derivative += point.hessian(q / mean)
        derivative[np.diag_indices(theta.size)] -= 1.0
        return derivative

    def product(self, rho: float, theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return v ↦ derivative(ρ, θ) v without the matrix."""
        point, scale = self.at(theta), np.exp(self.degree * rho)
        q, _ = self.duals(rho, point.p)
        mean, g = self.degree * (q @ point.p), point.pull(q)

        def times(v: np.ndarray) -> np.ndarray:
            along = g @ v
            moved = -scale * q * (point.push(v) - along)
            of_mean = self.degree * (along + point.p @ moved)
            of_g = point.curvature(q, v) + point.pull(moved)
            return of_g / mean - g * (of_mean / mean**2) - v

        return times

    def duals(self, rho: float, p: np.ndarray) -> tuple[np.ndarray, float]:
        """Return q [n] and α."""
        scale, low = np.exp(self.degree * rho), p.min()
        q = np.exp(-scale * (p - low))
        total = q.sum()
        return q / total, float(scale * low - np.log(total))


@dataclass(frozen=True, eq=False)
class End:
    """Where a solver ended: direction [P], α, and whether it "arrived", or what stopped it."""

    direction: np.ndarray
    alpha: float
    stopped: str


class Watch:
    """A flow from W [P] whose evaluations end at a deadline, and the farthest state seen of it."""

    def __init__(
        self, flow: DirectionFlow, w: np.ndarray, until: float, deadline: Callable[[], bool]
    ) -> None:
        self.flow, self.until, self.deadline = flow, until, deadline
        self.theta, norm = w / np.linalg.norm(w), float(np.linalg.norm(w))
        # By the end of it any α has been passed: α grows like e^{Lρ} at least.
        self.span = np.log(norm), np.log(norm) + (np.log(until) + 10.0) / flow.degree + 10.0
        self.end = End(self.theta, -np.inf, "out of time")

    def velocity(self, rho: float, theta: np.ndarray) -> np.ndarray:
        """Return dθ/dρ [P]; raises TimeoutError at the deadline."""
        if self.deadline():
            raise TimeoutError
        return self.flow.velocity(rho, theta)

    def passed(self, rho: float, theta: np.ndarray) -> float:
        """Return ln(α/until), from α = 1e-3 on, which solvers ask for after each of their steps."""
        alpha = self.flow.alpha(rho, theta)
        if alpha > self.end.alpha:
            self.end = End(theta / np.linalg.norm(theta), alpha, "out of time")
        return float(np.log(max(alpha, 1e-3) / self.until))

    def ended(self, arrived: bool, rho: float, theta: np.ndarray, message: str) -> End:
        """Return where a solver has arrived, or the farthest state with what it says."""
        if not arrived:
            return replace(self.end, stopped=message)
        return End(theta / np.linalg.norm(theta), self.flow.alpha(rho, theta), "arrived")


def solved_by_scipy(
    flow: DirectionFlow,
    w: np.ndarray,
    until: float,
    method: str = "Radau",
    tol: float = 1e-8,
    max_step: float = np.inf,
    deadline: Callable[[], bool] = lambda: False,
) -> End:
    """Return where scipy's `method` ends from W [P], an implicit one with the exact derivative.

    tol stands for rtol and atol. It stops at α = until, or when deadline() becomes true.
    """
    watch = Watch(flow, w, until, deadline)

    def passed(rho: float, theta: np.ndarray) -> float:
        return watch.passed(rho, theta)

    passed.terminal = True
    try:
        found = solve_ivp(
            watch.velocity,
            watch.span,
            watch.theta,
            method=method,
            rtol=tol,
            atol=tol,
            first_step=FIRST_STEP,
            max_step=max_step,
            events=passed,
            **({} if method.startswith("RK") else {"jac": flow.derivative}),
        )
    except TimeoutError:
        return watch.end
    return watch.ended(found.status == 1, found.t[-1], found.y[:, -1], found.message)


def solved_by_cvode(
    flow: DirectionFlow,
    w: np.ndarray,
    until: float,
    tol: float = 1e-8,
    max_step: float = np.inf,
    krylov: int = 20,
    deadline: Callable[[], bool] = lambda: False,
) -> End:
    """Return the same of BDF in SUNDIALS' CVODE, with GMRES on exact products of the derivative.

    krylov: vectors that GMRES keeps. Needs scikit-sundae.
    """
    from sksundae.cvode import CVODE, CVODEJacTimes

    watch = Watch(flow, w, until, deadline)
    product = None

    def velocity(rho: float, theta: np.ndarray, out: np.ndarray) -> None:
        out[:] = watch.velocity(rho, theta)

    def linearize(rho: float, theta: np.ndarray, _: np.ndarray) -> None:
        nonlocal product
        product = flow.product(rho, theta.copy())

    def multiply(rho: float, theta: np.ndarray, _: np.ndarray, v: np.ndarray, out) -> None:
        out[:] = product(v)

    def passed(rho: float, theta: np.ndarray, out: np.ndarray) -> None:
        out[0] = watch.passed(rho, theta)

    solver = CVODE(
        velocity,
        rtol=tol,
        atol=tol,
        first_step=FIRST_STEP,
        max_step=0.0 if np.isinf(max_step) else max_step,
        max_num_steps=10**7,
        linsolver="gmres",
        krylov_dim=krylov,
        jactimes=CVODEJacTimes(linearize, multiply),
        eventsfn=passed,
        num_events=1,
    )
    try:
        found = solver.solve(np.array(watch.span), watch.theta)
    except TimeoutError:
        return watch.end
    return watch.ended(found.status == 2, found.t[-1], found.y[-1], found.message)
