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

import numpy as np
import torch
from torch.func import functional_call, jacrev, vmap

from experiments.where_it_fails import Hat
from latephase.flow.trajectory import Trajectory

# Registered: what the first inequality asks of the spherical part, c and η, and the λ of the second.
SHARE, ETA, LAMBDA = 1.0, 1.0, 1.0
# Registered: Ψ is fixed on f ≥ Z0 (in units of a), twice as large as that asks, and judged below.
Z0, REACH, SAFETY = 1e-2, 1e-10, 2.0


@dataclass(frozen=True, eq=False)
class Points:
    """Points W: f/a, ‖W‖, ‖W‖‖∂_⊥f‖/a and ‖W‖|∂_r f|/a, [points] each."""

    f: np.ndarray
    norm: np.ndarray
    spherical: np.ndarray
    radial: np.ndarray


@dataclass(frozen=True)
class Power:
    """Ψ(z) = z^θ."""

    theta: float

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return Ψ'(z)."""
        return self.theta * z ** (self.theta - 1)


@dataclass(frozen=True)
class Logarithm:
    """Ψ(z) = (ln 1/z)^(-κ), for functions that are flat to all orders."""

    kappa: float

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return Ψ'(z)."""
        return self.kappa * np.log(1 / z) ** (-self.kappa - 1) / z


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
    flow, degree = run.flow, run.flow.degree
    limit = float(flow.normalized_smoothed_margin[-1])
    s = 10.0 ** rng.uniform(1, 15, count) / limit
    bases = flow.direction[flow.smoothed_margin >= 10.0]
    u = bases[rng.integers(len(bases), size=count)]
    central = rng.random(count) < 0.5
    u[central] = bases[-1] + _shift(run) / s[central, None]
    free, scaled = 10.0 ** rng.uniform(-14, -0.5, count), 10.0 ** rng.uniform(-3, 3, count)
    away = np.where(rng.random(count) < 0.5, free, np.minimum(0.3, scaled / (limit * s)))
    u = _units(u + away[:, None] * _units(rng.standard_normal(u.shape)))
    margins, gradients = margins_of(run.net, run.task.x, run.task.y)(u)
    return _points(margins, gradients, u, s, limit, degree)


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


def _shift(run) -> np.ndarray:
    """Return v [P], tangent, with s m_i(u + v/s) = s m_i(u) - ln q_i + const. on the support.

    To first order, at the run's last record; the support are multipliers above 1e-6.
    """
    last = run.flow.record()
    _, gradients = margins_of(run.net, run.task.x, run.task.y)(last.direction[None])
    held = last.dual > 1e-6
    across = gradients[0, held]
    across = across - np.outer(across @ last.direction, last.direction)
    asked = -np.log(last.dual[held])
    return np.linalg.lstsq(across - across.mean(0), asked - asked.mean(), rcond=1e-8)[0]


def _points(margins, gradients, u, s, limit, degree) -> Points:
    low = margins.min(axis=1)
    above = s[:, None] * (margins - low[:, None])
    weights = np.exp(-above)
    total = weights.sum(axis=1)
    q = weights / total[:, None]
    gradient = np.einsum("kn,knp->kp", q, gradients)
    across = gradient - (gradient * u).sum(axis=1)[:, None] * u
    entropy = (q * above).sum(axis=1) + np.log(total)
    return Points(
        f=(limit - low + np.log(total) / s) / limit,
        norm=s ** (1 / degree),
        spherical=np.linalg.norm(across, axis=1) / limit,
        radial=degree * entropy / s / limit,
    )


def around_hat(hat: Hat, count: int, rng: np.random.Generator) -> Points:
    """Return the same of the hat, a = 1: f down to e^-30, ψ = π/2 + η, ln ‖W‖ from 0 to 35.

    η, the way from the bottom of the groove, evenly from -π to π for half of the points, evenly in
    its logarithm between 1e-9 and π for the others. f does not depend on ‖W‖.
    """
    x = rng.uniform(1.5, 30, count)
    small = 10.0 ** rng.uniform(-9, 0.497, count) * rng.choice([-1, 1], count)
    offset = np.where(rng.random(count) < 0.5, small, rng.uniform(-np.pi, np.pi, count))
    f = np.exp(hat.log_gap(x, offset))
    radial, around = hat.velocity(x, offset)
    # dX/dτ and dφ/dτ are of -e^X ∇f; the metric is dX²/(4X²(X - 1)) + r² dφ².
    slope = np.exp(-x) * np.sqrt(radial**2 / (4 * x**2 * (x - 1)) + (1 - 1 / x) * around**2)
    norm = np.exp(rng.uniform(0, 35, count))
    return Points(f=f, norm=norm, spherical=slope, radial=np.zeros(count))


def least(points: Points, psi: Power | Logarithm) -> dict[str, float]:
    """Return the least left-hand sides over the points of f < Z0, by which inequality it is.

    C is fixed by the points with Z0 ≤ f ≤ 0.3, the same for both. "no condition" is the first one
    at all points.
    """
    z, total = points.f, np.hypot(points.spherical, points.radial)
    z = np.where(z > 0, z, np.nan)
    left = psi.slope(z) * total
    steep = points.spherical >= SHARE * points.norm**ETA * points.radial
    sides = {
        "first": np.where(steep, left, np.inf),
        "second": max(1.0, 2 / LAMBDA) * left * points.norm**LAMBDA,
        "no condition": left,
    }
    near, far = (z >= Z0) & (z <= 0.3), (z < Z0) & (z >= Z0 * REACH)
    c = SAFETY / min(sides["first"][near].min(), sides["second"][near].min())
    return {name: float(c * side[far].min()) for name, side in sides.items()} | {
        "points": int(far.sum()), "steep": int((far & steep).sum()), "near": int(near.sum()), "C": c,
    }  # fmt: skip


def _units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
