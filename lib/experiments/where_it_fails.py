"""A smooth homogeneous function whose gradient flow turns for ever: the spherical Mexican hat.

With (u, v) = (x, y)/ρ on the unit sphere of R³, r² = u² + v² < 1, X = 1/(1 - r²) and the
longitude φ of (u, v),

    h = ρ^L (1 - f),   f = e^{-X} (1 - C(r) sin ψ),   ψ = φ - X,

and f = 0 on the equator r = 1. If every margin of a model is h, its flow climbs h, and its
direction descends f: with ln ρ as the variable dθ/d ln ρ = -∇f/(L (1 - f)), ∇ on the sphere, whose
metric is dX²/(4X²(X - 1)) + r² dφ². The contrast C = 4r⁴/(4r⁴ + (1 - r²)³) keeps ψ = 0 invariant,
a ridge; trajectories fall off it into the valley near ψ = π/2, which winds about the sphere without
end as X → ∞. The idea of the hat is that of Absil, Mahony and Andrews (2005), in the plane, where
the power is 4; as a counterexample for homogeneous models it is due to Lyu and Li (2019).

The phase θ(X) = X may be capped, θ = cap · tanh(X/cap): then f is definable in the o-minimal
structure of exp and restricted analytic functions, and the direction converges.

A revolution multiplies ln ρ by several hundred, so everything is a function of σ = ln ln ρ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor, nn

from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory
from latephase.measures.settling import last_to_first, stretches
from latephase.problem.vectors import angle

_TOLERANCE = 1e-9
# e^{-X} with a larger X changes nothing, and 1/(1 - r²) must not overflow on the equator.
_LARGEST_X = 700.0


@dataclass(frozen=True)
class Hat:
    """The hat's constants: degree L, power of 1 - r² in the contrast, cap of the phase.

    power: 3 suits the sphere's metric, 4 the plane's. cap: inf for the phase X itself, 0 for a
    phase frozen at 0.
    """

    degree: float = 2.0
    power: int = 3
    cap: float = np.inf

    def contrast(self, x):
        """Return (C, 1 - C, dC/dX): C = g/(1 + g), g = 4r⁴X^power, without cancellation."""
        g = 4 * x ** (self.power - 2) * (x - 1) ** 2
        slope = 4 * x ** (self.power - 3) * (x - 1) * (self.power * x - self.power + 2)
        return g / (1 + g), 1 / (1 + g), slope / (1 + g) ** 2

    def phase(self, x):
        """Return (θ, dθ/dX) of the phase, ψ = φ - θ(X)."""
        if np.isinf(self.cap):
            return x, np.ones_like(x)
        if self.cap == 0:
            return np.zeros_like(x), np.zeros_like(x)
        return self.cap * np.tanh(x / self.cap), np.cosh(x / self.cap) ** -2.0

    def log_gap(self, x, offset):
        """Return ln f, f = 1 - h/ρ^L: what the normalized margin lacks to its limit 1.

        offset: η = ψ - π/2, zero at the bottom of the groove.
        """
        contrast, rest, _ = self.contrast(x)
        return np.log(rest + 2 * contrast * np.sin(offset / 2) ** 2) - x

    def velocity(self, x, offset):
        """Return (dX/dτ, dφ/dτ) = (-4r²X³ e^X ∂f/∂X, -e^X ∂f/∂φ / r²), ds = L (1 - f) e^X dτ.

        s = ln ρ. η = ψ - π/2 stands in the place of ψ, and 1 - sin ψ - cos ψ, which vanishes in the
        valley as well as on the ridge, is formed as 2√2 sin(η/2) sin(η/2 + π/4).
        """
        contrast, rest, slope = self.contrast(x)
        sine, cosine = np.cos(offset), -np.sin(offset)  # of ψ
        left = 2**1.5 * np.sin(offset / 2) * np.sin(offset / 2 + np.pi / 4)
        left = left + (1 - self.phase(x)[1]) * cosine
        # 1 - C sin ψ + C' sin ψ - C θ' cos ψ
        fall = rest + contrast * left + slope * sine
        return 4 * x**2 * (x - 1) * fall, contrast * cosine * x / (x - 1)

    def valley_velocity(self, x):
        """Return dX/dτ in the valley, C (1 - C + C')/r², of the hat with its phase uncapped.

        Where ψ = π/2 + δ, dψ = 0 needs δ = -(1 - C + C') up to terms of second order. For large X
        this is (1 + 6/X + ...)/(4X³), so that dX/ds ≈ e^{-X}/(4LX³).
        """
        contrast, rest, slope = self.contrast(x)
        return contrast * (rest + slope) * x / (x - 1)

    def ridge_velocity(self, x):
        """Return dX/dτ = C/r² on the ridge ψ = 0 of the sphere's hat; dX/ds ≈ e^{-X}/L."""
        return self.contrast(x)[0] * x / (x - 1)


HATS = {"Mexican hat": Hat(), "capped phase": Hat(cap=16.0), "frozen phase": Hat(cap=0.0)}
# The proper range begins at ln α = e^18.
PROPER = 18.0
LENGTH, PACE = "length of the path (radians)", "length per e-fold of ln α (radians)"


@dataclass(frozen=True, eq=False)
class Path:
    """A flow at even or uneven values of σ = ln ln ρ; arrays of shape [records].

    x: X = 1/(1 - r²); offset: η = ψ - π/2; path_length: of the direction since the start, radians.
    """

    hat: Hat
    log_log_norm: np.ndarray
    x: np.ndarray
    offset: np.ndarray
    path_length: np.ndarray

    @property
    def longitude(self) -> np.ndarray:
        """φ, counted on through the revolutions."""
        return self.offset + np.pi / 2 + self.hat.phase(self.x)[0]

    @property
    def log_gap(self) -> np.ndarray:
        """ln f, f = 1 - h/ρ^L."""
        return self.hat.log_gap(self.x, self.offset)

    @property
    def log_smoothed_margin(self) -> np.ndarray:
        """ln α for one example, α = h: ln α = L ln ρ + ln(1 - f), about e^σ."""
        return self.hat.degree * np.exp(self.log_log_norm) + np.log1p(-np.exp(self.log_gap))

    @property
    def direction(self) -> np.ndarray:
        """(x, y, z)/ρ, [records, 3], on the upper half of the sphere."""
        return on_sphere(self.x, self.longitude)


def on_sphere(x: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return the unit vectors [..., 3] with 1/(1 - r²) = X and z > 0."""
    r = np.sqrt(1 - 1 / x)
    return np.stack([r * np.cos(longitude), r * np.sin(longitude), x**-0.5], axis=-1)


def follow(hat: Hat, x: float, psi: float, log_log_norm: np.ndarray) -> Path:
    """Return the flow from X = x and ψ = psi at the first σ, recorded at each σ = ln ln ρ.

    σ [records] increases. The equations are stiff, by up to 16X⁶, and solved by implicit
    multistep formulas (scipy's LSODA, relative tolerance 1e-9); nothing in them over- or underflows
    for σ up to some hundred. Raises ValueError unless x > 1, ArithmeticError if the solver fails.
    """
    if not x > 1:
        raise ValueError(f"x: expected 1/(1 - r²) > 1, got {x:g}")
    # Between two crests, ψ in [0, 2π), there is one groove; its bottom is η = 0.
    offset = psi % (2 * np.pi) - np.pi / 2

    def slopes(sigma, point):
        x, offset, _ = point
        radial, around = hat.velocity(x, offset)
        clock = np.exp(sigma - x) / (hat.degree * -np.expm1(hat.log_gap(x, offset)))
        length = np.sqrt(radial**2 / (4 * x**2 * (x - 1)) + (1 - 1 / x) * around**2)
        return clock * np.array([radial, around - hat.phase(x)[1] * radial, length])

    def jacobian(sigma, point):
        # By the complex step: the slopes are analytic, and nothing is subtracted.
        steps = np.asarray(point) + 1e-30j * np.eye(3)[:2]
        columns = [slopes(sigma, step).imag / 1e-30 for step in steps]
        return np.column_stack([*columns, np.zeros(3)])

    solution = solve_ivp(
        slopes,
        (log_log_norm[0], log_log_norm[-1]),
        (x, offset, 0.0),
        method="LSODA",
        jac=jacobian,
        t_eval=log_log_norm,
        rtol=_TOLERANCE,
        atol=(1e-10, 1e-14, 1e-10),
    )
    if not solution.success:
        raise ArithmeticError(f"the flow stopped at σ = {solution.t[-1]:g}: {solution.message}")
    return Path(hat, np.asarray(log_log_norm, dtype=float), *solution.y)


def revolutions(path: Path, start: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (σ, X, length) at the ends of whole revolutions after σ = start, the last at the end.

    [revolutions + 1] each, interpolated between records; the longitude must grow from `start` on.
    """
    late = path.log_log_norm >= start
    longitude = path.longitude[late]
    count = int((longitude[-1] - longitude[0]) / (2 * np.pi))
    ends = longitude[-1] - 2 * np.pi * np.arange(count, -1, -1)
    columns = (path.log_log_norm[late], path.x[late], path.path_length[late])
    return tuple(np.interp(ends, longitude, column) for column in columns)


def revolution_factors(
    hat: Hat, velocity: Callable, log_log_norm: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Return the factors by which ln ρ grows from one X to the next, if dX/dτ = velocity(X).

    log_log_norm, x: σ and X at the ends of revolutions, [revolutions + 1], as `revolutions` returns
    them. By quadrature of ds = L e^X dX/velocity(X); f is neglected against 1.
    """
    grown = []
    for first, last, sigma in zip(x[:-1], x[1:], log_log_norm[:-1], strict=True):
        # Relative to e^last nothing overflows.
        added, _ = quad(lambda at, e=last: np.exp(at - e) / velocity(at), first, last, epsrel=1e-10)
        grown.append(np.logaddexp(sigma, last + np.log(hat.degree * added)) - sigma)
    return np.exp(grown)


class HatNetwork(nn.Module):
    """inputs [n, 1] ↦ inputs · h(weight), a model with three weights whose margins are all h.

    Positively homogeneous of degree L and smooth off the axis r = 0. weight: [3].
    """

    def __init__(self, hat: Hat, weight: np.ndarray) -> None:
        super().__init__()
        self.hat, self.degree = hat, hat.degree
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.float64).clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return h for each input, times the input."""
        square = self.weight.square().sum()
        u, v, w = (self.weight / square.sqrt()).unbind()
        r2 = u.square() + v.square()
        # A constant to derivatives: a clamp would be one more kink to follow.
        x = 1 / (w.square() + torch.relu(1 / _LARGEST_X - w.square().detach()))
        # C sin φ = 4 r³ v X^k/(1 + 4r⁴X^k) needs no angle.
        g = 4 * x**self.hat.power
        cap = self.hat.cap
        phase = x if np.isinf(cap) else cap * torch.tanh(x / cap) if cap else torch.zeros_like(x)
        wave = g * r2**1.5 * (v * phase.cos() - u * phase.sin()) / (1 + g * r2.square())
        height = 1 - torch.exp(-x) * (1 - wave)
        # A number without dimensions would not raise float32 inputs to float64; a vector does.
        return inputs * (square ** (self.degree / 2) * height)[None]


def paths(seeds: Iterable[int], reach: float, hats: Mapping[str, Hat] = HATS) -> pd.DataFrame:
    """Return the flows on hats, {name: hat}, to σ = reach, a row each: hat, seed, x, psi, path.

    Of each seed a start: X between 2 and 6, on one side of the ridge or on the other.
    """
    clock, rows = np.arange(0.0, reach + 0.01, 0.02), []
    for name, hat in hats.items():
        for seed in seeds:
            rng = np.random.default_rng(seed)
            x, psi = rng.uniform(2, 6), (-1) ** seed * rng.uniform(0.05, 1)
            rows.append((name, seed, x, psi, follow(hat, x, psi, clock)))
    return pd.DataFrame(rows, columns=["hat", "seed", "x", "psi", "path"])


def records(run, every: int = 5) -> pd.DataFrame:
    """Return a row for some of the records of a run's path: clocks, length, gap and direction."""
    path = run.path
    columns = {
        "log₁₀ α": path.log_smoothed_margin / np.log(10),
        "ln ln α": np.log(path.log_smoothed_margin),
        LENGTH: path.path_length,
        "ln 1/(1 − γ̃)": -path.log_gap,
        **dict(zip("uvw", path.direction.T, strict=True)),
        "turns": (path.longitude - path.longitude[0]) / (2 * np.pi),
    }
    return pd.DataFrame({"hat": run.hat, "seed": run.seed} | columns)[::every]


def turns(run) -> pd.DataFrame:
    """Return a row for each whole turn in the proper range.

    X where it begins, its length, the factor by which it multiplies ln ‖W‖, and that factor by the
    laws of the valley and of the ridge of a hat without a cap.
    """
    hat = run.path.hat
    sigma, x, length = revolutions(run.path, PROPER - np.log(hat.degree))
    columns = {
        "X at the start of the turn": x[:-1],
        "length of a turn (radians)": np.diff(length),
        "followed": np.exp(np.diff(sigma)),
        "law of the valley": revolution_factors(hat, hat.valley_velocity, sigma, x),
        "law of the ridge": revolution_factors(hat, hat.ridge_velocity, sigma, x),
    }
    return pd.DataFrame({"seed": run.seed} | columns)


def paces(run) -> pd.DataFrame:
    """Return the length travelled in each e-fold of ln α of the proper range, a row each."""
    path = run.path
    lengths = stretches(path.path_length, path.log_smoothed_margin, np.exp(PROPER))
    columns = {"ln ln α": PROPER + 0.5 + np.arange(len(lengths)), PACE: lengths}
    return pd.DataFrame({"hat": run.hat, "seed": run.seed} | columns)


def measures(run) -> dict[str, float]:
    """Return what a run shows in the proper range, and before.

    settled: the last pace over the first; power: of X with which the length falls that a unit of X
    takes, by least squares of logarithms; turned: full circles; growth: the least ratio of the
    lengths of a turn and the one before, or of factors of ln α that would make one; share: of its
    length, up to α = 10^300.
    """
    path = run.path
    length, log_alpha = path.path_length, path.log_smoothed_margin
    begun = np.searchsorted(log_alpha, np.exp(PROPER))
    late, x = path.longitude[begun:], path.x[begun:]
    pace = np.diff(length[begun:]) / np.diff(x)
    if run.hat == "Mexican hat":
        each = turns(run)["length of a turn (radians)"].to_numpy()
    else:
        each = stretches(length, log_alpha, np.exp(PROPER), np.exp(2 * np.pi))
    return {
        "settled": last_to_first(paces(run)[PACE].to_numpy()),
        "power": -np.polyfit(np.log(x[1:]), np.log(pace), 1)[0],
        "turned": (late[-1] - late[0]) / (2 * np.pi),
        "growth": np.min(each[1:] / each[:-1]),
        "share": np.interp(np.log(1e300), log_alpha, length) / length[-1],
    }


def slip(hat: Hat, seed: int) -> float:
    """Return the largest |dφ - dX|/(|dφ| + |dX|) on the ridge, at a thousand X from 2 to 60."""
    radial, around = hat.velocity(np.random.default_rng(seed).uniform(2, 60, 1000), -np.pi / 2)
    return float(np.max(np.abs(around - radial) / (np.abs(around) + np.abs(radial))))


def solved(run, levels: Sequence[float]) -> Trajectory:
    """Return the solver's flow of `HatNetwork` from a run's start to each level of α in turn."""
    net = HatNetwork(run.path.hat, np.e * on_sphere(run.x, run.x + run.psi))
    settings = {"until": levels[0], "tol": 1e-3, "records": 2000}
    flow = gradient_flow(net, np.ones((1, 1)), [1.0], **settings)
    for level in levels[1:]:
        flow = flow.extend(level)
    return flow


def beside(run) -> tuple[Path, float]:
    """Return a run's path at the norms of run.flow's records, and the largest angle to these."""
    flow = run.flow
    sigma, at = np.unique(np.log(np.maximum(flow.log_norm, 1.0)), return_index=True)
    path = follow(run.path.hat, run.x, run.psi, sigma)
    return path, max(map(angle, flow.direction[at], path.direction))


def legs(run, levels: Sequence[float]) -> tuple[float, float, float]:
    """Return the length between the last two levels over that between the first two.

    Of run.flow, and of run.beside; and the former's length between the last two.
    """
    path = run.beside
    flow = np.diff([run.flow.at(level).path_length for level in levels])
    other = np.diff(np.interp(np.log(levels), path.log_smoothed_margin, path.path_length))
    return flow[-1] / flow[0], other[-1] / other[0], flow[-1]


def solver_records(run) -> pd.DataFrame:
    """Return a row for each record of run.flow, and for every sixth of run.beside."""
    flow, path = run.flow, run.beside
    columns = {
        "log₁₀ α": np.log10(flow.smoothed_margin),
        LENGTH: flow.path_length,
        "1 − γ̃, distance to the limit": 1 - flow.normalized_smoothed_margin,
        "way": "gradient_flow",
    }
    other = {"log₁₀ α": path.log_smoothed_margin / np.log(10), LENGTH: path.path_length}
    other = pd.DataFrame(other | {"way": "in X and ψ"})[::6]
    return pd.concat([pd.DataFrame(columns), other]).assign(seed=run.seed)


def around_ridge(psis: Iterable[float]) -> pd.DataFrame:
    """Return paths of the hat from X = 5 and each ψ in the plane with X for radius."""
    parts = []
    for psi in psis:
        path = follow(HATS["Mexican hat"], 5.0, psi, np.arange(0.0, 28.0, 0.02))
        plane = {
            "X cos φ": path.x * np.cos(path.longitude),
            "X sin φ": path.x * np.sin(path.longitude),
        }
        parts.append(pd.DataFrame({"start": f"from ψ = {psi:g}".replace("-", "−")} | plane)[::5])
    return pd.concat(parts, ignore_index=True)


def relief(right: np.ndarray, up: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return e^X f - 1 of the hat at X = x and the longitude of (right, up), any shape."""
    return -HATS["Mexican hat"].contrast(x)[0] * np.sin(np.arctan2(up, right) - x)
