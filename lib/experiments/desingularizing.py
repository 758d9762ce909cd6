"""The unbounded Kurdyka–Łojasiewicz inequality, point by point, of f = a - γ̃ near its limit value.

γ̃ = α/‖W‖^L is the normalized smoothed margin of the exponential loss, a its limit along a flow. At
W = ρu, ‖u‖ = 1, with s = ρ^L, margins m_i(u), q = softmax(-s m) and H = -Σ q_i ln q_i,

    γ̃ = Σ q_i m_i - H/s,   ρ ∂_r f = -L H/s,   ρ ∂_⊥ f = -(1 - uuᵀ) Σ q_i ∇m_i(u),

so that nothing over- or underflows however large ρ is. Two inequalities are asked, with one Ψ for
every W (Ji and Telgarsky 2020): Ψ'(f) ρ‖∂f‖ ≥ 1 where ‖∂_⊥f‖ ≥ c ρ^η ‖∂_r f‖, and
max(1, 2/λ) Ψ'(f) ρ^(1+λ) ‖∂f‖ ≥ 1 everywhere. Ψ = C z^θ here, or C (ln 1/z)^(-κ) of flat functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch.func import functional_call, jacrev, vmap

from experiments.where_it_fails import Hat

# Registered: c and η, of what the first inequality asks of the spherical part, and the second's λ.
SHARE, ETA, LAMBDA = 1.0, 1.0, 1.0
# Registered: Ψ is fixed on Z0 ≤ f/a ≤ NEAR, twice as large as that asks, and judged below.
Z0, NEAR, REACH, SAFETY = 1e-2, 0.3, 1e-10, 2.0


@dataclass(frozen=True, eq=False)
class Points:
    """Points W: f/a, ‖W‖, ‖W‖‖∂_⊥f‖/a and ‖W‖|∂_r f|/a, [points] each."""

    f: np.ndarray
    norm: np.ndarray
    spherical: np.ndarray
    radial: np.ndarray


@dataclass(frozen=True, eq=False)
class Limit:
    """Where a flow ends: u [P], q [n], γ̃, and normals [k, P] of the kinks on which it rests."""

    direction: np.ndarray
    dual: np.ndarray
    margin: float
    normals: np.ndarray


@dataclass(frozen=True)
class Power:
    """Ψ(z) = z^θ."""

    theta: float

    def __str__(self) -> str:
        return f"z^({Fraction(self.theta).limit_denominator(9)})"

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return Ψ'(z)."""
        return self.theta * z ** (self.theta - 1)


@dataclass(frozen=True)
class Logarithm:
    """Ψ(z) = (ln 1/z)^(-κ), for functions that are flat to all orders."""

    kappa: float

    def __str__(self) -> str:
        return f"(ln 1/z)^(−{Fraction(self.kappa).limit_denominator(9)})"

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return Ψ'(z)."""
        return self.kappa * np.log(1 / z) ** (-self.kappa - 1) / z


HATS = {"Mexican hat": Hat(), "frozen phase": Hat(cap=0.0)}
FLAT = Logarithm(1 / 2)


def power_of(degree: float) -> Power:
    """Return Ψ = z^θ with θ = min(1/2, η/L).

    1/2 suits maxima that are quadratic across their set. Where the radial part is just as large as
    the first inequality allows, f ≈ H/ρ^L and ρ‖∂f‖ ≈ c L H ρ^(η-L), which asks for θ ≤ η/L.
    """
    return Power(min(0.5, ETA / degree))


def around(run, count: int, rng: np.random.Generator) -> Points:
    """Return points around a run of exponential loss: half around its records from α = 10 on.

    The other half lie around the central path of its limit, u + v/s with multipliers q at margin
    m(u), where the spherical part is small. s = ‖W‖^L is drawn evenly in ln s from 10/a to 1e15/a,
    whatever the record's; the distance from what they lie around evenly in its logarithm, of half
    of them between 1e-14 and 0.3, of half between 1e-3 and 1e3 times 1/s.
    """
    flow = run.flow
    end, last = float(flow.normalized_smoothed_margin[-1]), flow.record()
    limit = Limit(last.direction, last.dual, end, np.zeros((0, len(last.direction))))
    u, s = drawn(run, limit, count, rng)
    margins, gradients = margins_of(run.net, run.task.x, run.task.y)(u)

    def summed(q: np.ndarray) -> np.ndarray:
        return np.einsum("kn,knp->kp", q, gradients)

    return points_of(margins, summed, u, s, end, flow.degree)


def drawn(run, limit: Limit, count: int, rng: np.random.Generator) -> tuple:
    """Return u [count, P] and s [count] of `around`; the central path stays on the kinks."""
    s = 10.0 ** rng.uniform(1, 15, count) / limit.margin
    bases = run.flow.direction[run.flow.smoothed_margin >= 10.0]
    u = bases[rng.integers(len(bases), size=count)]
    central = rng.random(count) < 0.5
    u[central] = limit.direction + _shift(run, limit) / s[central, None]
    free, scaled = 10.0 ** rng.uniform(-14, -0.5, count), 10.0 ** rng.uniform(-3, 3, count)
    away = np.where(rng.random(count) < 0.5, free, np.minimum(0.3, scaled / (limit.margin * s)))
    return _units(u + away[:, None] * _units(rng.standard_normal(u.shape))), s


def margins_of(net: torch.nn.Module, x, y) -> Callable:
    """Return u [k, P] ↦ (margins [k, n], their gradients [k, n, P]), P the trained parameters."""
    trained = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in net.named_parameters() if not p.requires_grad}
    sizes = [p.numel() for p in trained.values()]

    def margins(u):
        parts = torch.split(u, sizes)
        shaped = {
            name: part.reshape(p.shape)
            for (name, p), part in zip(trained.items(), parts, strict=True)
        }
        return y * functional_call(net, shaped | fixed, (x,)).ravel()

    def both(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = torch.from_numpy(u)
        return vmap(margins)(u).numpy(), vmap(jacrev(margins), chunk_size=250)(u).numpy()

    return both


def _shift(run, limit: Limit) -> np.ndarray:
    """Return v [P], tangent, with s m_i(u + v/s) = s m_i(u) - ln q_i + const. on the support.

    To first order, and along all kinks of the limit; the support are multipliers above 1e-6.
    """
    _, gradients = margins_of(run.net, run.task.x, run.task.y)(limit.direction[None])
    held = limit.dual > 1e-6
    across = gradients[0, held]
    fixed = np.linalg.qr(np.vstack([limit.direction, limit.normals]).T)[0]
    across = across - across @ fixed @ fixed.T
    asked = -np.log(limit.dual[held])
    return np.linalg.lstsq(across - across.mean(0), asked - asked.mean(), rcond=1e-8)[0]


def points_of(margins, summed: Callable, u, s, limit, degree) -> Points:
    """Return the points s^(1/L) u; summed: q [k, n] ↦ Σ q_i ∇m_i [k, P] at u [k, P]."""
    low = margins.min(axis=1)
    above = s[:, None] * (margins - low[:, None])
    weights = np.exp(-above)
    total = weights.sum(axis=1)
    q = weights / total[:, None]
    gradient = summed(q)
    across = gradient - (gradient * u).sum(axis=1)[:, None] * u
    entropy = (q * above).sum(axis=1) + np.log(total)
    return Points(
        f=(limit - low + np.log(total) / s) / limit,
        norm=s ** (1 / degree),
        spherical=np.linalg.norm(across, axis=1) / limit,
        radial=degree * entropy / s / limit,
    )


def around_hat(hat: Hat, count: int, rng: np.random.Generator) -> Points:
    """Return the same of the hat, a = 1: X up to 30, ψ = π/2 + η, and ‖W‖ from 1 on.

    As in `around`, they lie around where the slope is least: half around the bottom of the groove,
    η = 0, half around the ridge, η = -π/2, the way from there drawn evenly in its logarithm between
    1e-9 and π. f does not depend on ‖W‖, and ln ‖W‖ is drawn up to 0.1 for half of them, up to 35
    for the others.
    """
    x = rng.uniform(1.5, 30, count)
    line = np.where(rng.random(count) < 0.5, 0.0, -np.pi / 2)
    offset = line + 10.0 ** rng.uniform(-9, 0.497, count) * rng.choice([-1, 1], count)
    f = np.exp(hat.log_gap(x, offset))
    norm = np.exp(rng.uniform(0, np.where(rng.random(count) < 0.5, 0.1, 35.0)))
    return Points(f, norm, spherical=hat_slope(hat, x, offset), radial=np.zeros(count))


def hat_slope(hat: Hat, x: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return ‖∇f‖ of the hat on the unit sphere; offset: η = ψ - π/2."""
    radial, around = hat.velocity(x, offset)
    # dX/dτ and dφ/dτ are those of -e^X ∇f; the metric is dX²/(4X²(X - 1)) + r² dφ².
    along = radial / (2 * x * np.sqrt(x - 1))
    return np.exp(-x) * np.hypot(along, np.sqrt(1 - 1 / x) * around)


def least(points: Points, psi: Power | Logarithm, z0: float = Z0) -> dict[str, float]:
    """Return the least left-hand sides over the points of f < z0, by which inequality it is.

    Ψ is C times `psi`, C fixed by the points with z0 ≤ f ≤ NEAR, the same for both. "no condition"
    is the first one at all points, "without norm" the second with ‖W‖ in the place of ‖W‖^(1+λ).
    """
    c, far = constant(points, psi, z0), (points.f < z0) & (points.f >= Z0 * REACH)
    return {name: c * float(side[far].min()) for name, side in _sides(points, psi).items()}


def _sides(points: Points, psi: Power | Logarithm) -> dict[str, np.ndarray]:
    first = left(points, psi)
    return {
        "first": np.where(is_steep(points), first, np.inf),
        "second": max(1.0, 2 / LAMBDA) * first * points.norm**LAMBDA,
        "no condition": first,
        "without norm": max(1.0, 2 / LAMBDA) * first,
    }


def constant(points: Points, psi: Power | Logarithm, z0: float) -> float:
    """Return C: twice what both forms ask of the points with z0 ≤ f ≤ NEAR."""
    sides, near = _sides(points, psi), (points.f >= z0) & (points.f <= NEAR)
    return SAFETY / float(min(sides["first"][near].min(), sides["second"][near].min()))


def left(points: Points, psi: Power | Logarithm) -> np.ndarray:
    """Return the left-hand side of the first form, for C = 1 [points]."""
    positive = np.where(points.f > 0, points.f, np.nan)
    return psi.slope(positive) * np.hypot(points.spherical, points.radial)


def is_steep(points: Points) -> np.ndarray:
    """Return where the first form asks anything [points]."""
    return points.spherical >= SHARE * points.norm**ETA * points.radial


def _units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
