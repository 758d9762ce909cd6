"""One implicit stage of the late phase: a primal-dual Newton solve.

The stage θ = c + κ F(θ) of dθ/dρ = F(θ) = ∇α/(L Σ q p) - θ, at scale S = e^{Lρ}, has as unknowns
θ and the log multipliers u = ln λ, λ = κ q / (L Σ q p):

    (1 + κ) θ = c + J(θ)ᵀ λ
    p_i(θ) + (u_i - c_i - ν)/S = 0         c_i = ln(-ℓ'(z)) + z at z = S p; 0 for exp
    Σ λ_i p_i(θ) = κ/L

The middle row is ln λ = ν + ln(-ℓ'(S p)) divided by S: as S grows it turns into complementarity,
and for κ → ∞ the rows are the KKT conditions of margin maximization. Carrying u keeps the dual
variables to full accuracy, which exp(-S p) would lose once S p is rounded by more than one.

Residuals are exact and cost one gradient evaluation; the Newton matrix need not be, so that one
`Linearization` serves many iterations, stages and steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from latephase.flow.newton_matrix import Linearization
from latephase.flow.tuning import TUNING
from latephase.problem.losses import EXPONENTIAL, TAIL
from latephase.problem.margins import Problem


@dataclass
class Stage:
    """A solved stage: θ [P], u = ln λ [pairs], whether it converged, and the linearization."""

    theta: np.ndarray
    log_multiplier: np.ndarray
    converged: bool
    iterations: int
    linearization: Linearization


def solve_stage(
    problem: Problem,
    linearize: Callable[[np.ndarray, np.ndarray], Linearization],
    linearization: Linearization,
    guess: tuple[np.ndarray, np.ndarray],
    center: np.ndarray,
    kappa: float,
    log_scale: float,
    degree: float,
    tol: float,
    dual_tol: float = 1e-5,
) -> Stage:
    """Return the stage solved from the guess (θ, u) to an estimated error of θ within tol.

    The last change of the multipliers, relative, is within dual_tol.
    linearize(θ, u) makes a fresh linearization; the one passed is tried first. `center` is c
    above, log_scale is ln S.
    """
    theta, u = guess
    inverse_scale = np.exp(-log_scale)
    nu, size, fresh = None, np.inf, False
    for iteration in range(1, TUNING.iterations + 1):
        p, pulled = problem.weighted_gradient(theta, problem.shaped(np.exp(u)))
        p = p.reshape(-1)
        correction = loss_correction(problem, p, log_scale)
        if nu is not None:
            u = _followed(u, (nu - p) / inverse_scale + correction[0], linearization)
        if not linearization.covers(u):
            linearization, fresh = linearize(theta, u), True
        residual = center + pulled - (1.0 + kappa) * theta
        arguments = (p, u, residual, correction, kappa, degree, inverse_scale)
        step = _newton_step(linearization, *arguments)
        previous, size = size, float(np.linalg.norm(step.theta))
        # With an old curvature the multipliers may creep where θ stands within tol.
        creeps = linearization.curvature is not None and not step.settled(dual_tol)
        slow = size > linearization.slow() * previous
        if not fresh and slow and (size > tol or creeps):
            linearization, fresh = linearize(theta, u), True
            step = _newton_step(linearization, *arguments)
            size = float(np.linalg.norm(step.theta))
            previous = np.inf
        # A linear sequence that contracts by c a step ends c/(1 - c) of the last step away.
        known = 0.0 < previous < np.inf
        contraction = size / previous if known else 0.5
        if not np.isfinite(size) or (fresh and contraction > TUNING.divergent and size > tol):
            break
        if fresh and known:
            linearization.contraction = contraction
        theta = theta + min(1.0, TUNING.largest_change / max(size, 1e-300)) * step.theta
        u = u.copy()
        u[step.rows] += step.log_multiplier
        nu = step.nu
        contraction = min(contraction, 0.8)
        near = size * contraction / (1.0 - contraction) <= tol and size <= 50 * tol
        # Never at the first iteration, which has not seen whether idle pairs must rise.
        if near and iteration > 1 and step.settled(dual_tol):
            return Stage(theta, u, True, iteration, linearization)
    return Stage(theta, u, False, iteration, linearization)


@dataclass
class _Step:
    theta: np.ndarray
    rows: np.ndarray
    log_multiplier: np.ndarray
    dual_change: float
    largest_rise: float
    nu: float

    def settled(self, dual_tol: float) -> bool:
        """Return whether the multipliers have converged; none may be waiting to rise."""
        return self.dual_change <= dual_tol and self.largest_rise <= 0.1


def loss_correction(
    problem: Problem, p: np.ndarray, log_scale: float
) -> tuple[np.ndarray | float, np.ndarray | None]:
    """Return (c, w - 1) [pairs], w = 1/(1 - c'(z)): how the loss differs from the exponential.

    Both vanish (0, None) for the exponential loss, and in effect for every loss once all
    margins exceed TAIL, where c is a constant that ν absorbs. Margins of iterates far from the
    solution are raised to 1: solutions have z ≥ α ≥ 2.
    """
    scale = np.exp(min(log_scale, 700.0))
    if problem.loss is EXPONENTIAL or scale * p.min() > TAIL + np.log(problem.pairs):
        return 0.0, None
    margins = torch.from_numpy(np.clip(scale * p, 1.0, 1e3).reshape(problem.n, -1))
    z = -torch.logsumexp(-margins, 1)
    c, slope = problem.loss.slope_tail(torch.clamp(z, min=1.0))
    pairs = problem.pairs
    return np.repeat(c.numpy(), pairs), np.repeat((slope / (1.0 - slope)).numpy(), pairs)


def _followed(u: np.ndarray, from_margin: np.ndarray, linearization: Linearization) -> np.ndarray:
    """Return u with the pairs that are not live set from their margins, at most barely live."""
    largest = u.max()
    idle = ~linearization.contains | (u < largest - TUNING.live)
    return np.where(idle, np.clip(from_margin, -1e300, largest - TUNING.live + 1.0), u)


# A step that overflows is not finite, and ends its stage.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _newton_step(
    linearization: Linearization,
    p: np.ndarray,
    u: np.ndarray,
    residual: np.ndarray,
    correction: tuple[np.ndarray | float, np.ndarray | None],
    kappa: float,
    degree: float,
    inverse_scale: float,
) -> _Step:
    # Eliminating δθ = M⁻¹(b + Jᵀδλ) and writing δλ = d x, d = √λ, leaves
    #   [dKd + B/S   -d w] [x  ]   [-d (W(p + (u - c)/S) + J M⁻¹b)]
    #   [d(p + Kλ)ᵀ    0 ] [ν/S] = [κ/L - λ·p - λ·J M⁻¹b          ],     K = J M⁻¹ Jᵀ,
    # where W = B = 1 for the exponential loss. Otherwise the row p_i + (u_i - c(z) - ν)/S of a
    # pair depends on its example's soft margin z; W undoes that dependence.
    live = u[linearization.rows] >= u.max() - TUNING.live
    rows = linearization.rows[live]
    multiplier = np.exp(u[rows])
    d = np.sqrt(multiplier)
    system = linearization.system(live, d, kappa, degree, inverse_scale)
    moved = linearization.primal_inverse(kappa, degree, residual)
    moved_p = linearization.times(moved)[live]
    c, excess = correction
    target = p[rows] + (u[rows] - (c if excess is None else c[rows])) * inverse_scale
    weight = np.ones(len(rows))
    if excess is not None:
        blocks = linearization.example_of[live]
        share = multiplier / np.bincount(blocks, multiplier)[blocks]
        target = target + excess[rows] * np.bincount(blocks, share * target)[blocks]
        weight += excess[rows]
        system.add_blocks(blocks, np.sqrt(share), excess[rows])
    solved = system.solve(np.stack([-d * (target + moved_p), d * weight], 1))
    border = d * p[rows] + system.dual_matrix_times(d)
    last = kappa / degree - np.exp(u) @ p - multiplier @ moved_p
    nu = (last - border @ solved[:, 0]) / (border @ solved[:, 1])
    x = system.settled(solved[:, 0] + nu * solved[:, 1], d * np.abs(p[rows]))
    theta = moved + linearization.primal_inverse(
        kappa, degree, linearization.transpose_times(d * x, live)
    )
    damped = _damped(x / d, u[rows], system.diagonal, inverse_scale)
    dual_change = float(np.abs(d * x).sum() / multiplier.sum())
    return _Step(theta, rows, damped, dual_change, float((x / d).max()), float(nu))


def _damped(
    change: np.ndarray, u: np.ndarray, diagonal: np.ndarray, inverse_scale: float
) -> np.ndarray:
    """Return δu with rises shortened: e^{δu} overshoots where Newton is linear in λ.

    A pair that must rise from nothing is lifted to λ = 1/(S K_ii), where it starts to matter.
    """
    rise = np.maximum(change, 0.0)
    floor = np.log(inverse_scale / np.maximum(diagonal, 1e-300)) - u
    return np.where(change > 0, np.maximum(np.log1p(rise), np.minimum(rise, floor)), change)
