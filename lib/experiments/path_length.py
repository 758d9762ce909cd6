"""How a direction comes to its limit: the length still to come, and secants.

Let a be the limit of γ̃ = α/‖W‖^L and s = (a - γ̃)/a. A desingularizing function Ψ, with Ψ(0) = 0,
is one for which the direction travels at most Ψ(s₁) - Ψ(s₂) while the gap falls from s₁ to s₂; what
is still to come is then at most Ψ(s). Near a maximum of γ̃ that is not degenerate on the sphere
Ψ = C√s; where γ̃ is flatter, Ψ is a smaller power, or no power at all.

Secants are those of the gradient curves x' = -∇h of polynomials h = h₄ + h₅ + h₆, forms h_k of
degree k with h₄ > 0 off the origin: they come to the origin, where the Hessian vanishes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp

from experiments.where_it_fails import Path
from latephase.flow.errors import SolverError
from latephase.flow.gradient_flow import gradient_flows
from latephase.flow.trajectory import Trajectory
from latephase.measures.max_margin import hard_margin
from latephase.measures.settling import leading_plane, tails
from latephase.problem.vectors import angle, unit
from latephase.zoo.networks import deep_linear, linear, two_layer
from latephase.zoo.tasks import separable_points

# Gaps and lengths below this are the solver's and rounding, not the flow's.
SMALLEST = 1e-9
ALPHA, GAP = "smoothed margin α", "relative margin gap s = (a − γ̃)/a"
AHEAD = "length still to come (radians)"
# The limit of γ̃ over the margin of the support vector machine, and the solver's tolerance.
_OF_MACHINE = {"linear": 1.0, "deep linear": 3**-1.5}
_TOLS = {"squared ReLU": 1e-2, "linear": 1e-3, "deep linear": 1e-4}
# Where predictions are compared between starts: α, and what is shown for it.
LEVELS = [0.0, 5.0, 100.0, 1e4, 1e12]
STATIONS = [*(f"α = {level:.3g}" for level in LEVELS), "√ of the last α", "last α"]


@dataclass(frozen=True, eq=False)
class Approach:
    """How a direction comes to its limit; arrays [records].

    clock: a quantity that grows along the run and says where windows lie, α for a flow
    gap: s = (a - γ̃)/a
    path_length: of the direction, since some record
    """

    clock: np.ndarray
    gap: np.ndarray
    path_length: np.ndarray

    @classmethod
    def of(cls, flow: Trajectory, limit: float | None = None) -> Approach:
        """Return that of a flow to the limit a of γ̃; the last record stands in for None."""
        margin = flow.normalized_smoothed_margin
        limit = margin[-1] if limit is None else limit
        return cls(flow.smoothed_margin, 1.0 - margin / limit, flow.path_length)

    @classmethod
    def of_hat(cls, path: Path) -> Approach:
        """Return that of a path of the hat, whose clock is σ = ln ln ‖W‖ and whose limit is 1."""
        return cls(path.log_log_norm, np.exp(path.log_gap), path.path_length)

    def window(self, start: float, end: float) -> slice:
        """Return the records from the first with clock ≥ start to the first with clock ≥ end."""
        first, last = (int(np.argmax(self.clock >= level)) for level in (start, end))
        if not (self.clock[-1] >= end and last > first):
            raise ValueError(f"expected records between {start:g} and {end:g}")
        return slice(first, last + 1)

    def exponent(self, start: float, end: float) -> float:
        """Return κ of the fit (length still to come) ∝ s^κ between two values of the clock.

        A line through the logarithms, of the records whose gap and length exceed 1e-9; the line
        passes through the middle of their gaps, each decade of which counts alike. Raises
        ValueError where these span less than a factor of two in the gap.
        """
        window = self.window(start, end)
        gap, ahead = self.gap[window], tails(self.path_length)[window]
        kept = (gap > SMALLEST) & (ahead > SMALLEST)
        # Gaps fall along a flow; what rounding turns round is not counted twice.
        x, order = np.unique(np.log(gap[kept]), return_index=True)
        if len(x) < 2 or x[-1] - x[0] < np.log(2.0):
            raise ValueError("expected gaps that fall by a factor of two or more")
        even = np.linspace(x[0], x[-1], 50)
        return float(np.polyfit(even, np.interp(even, x, np.log(ahead[kept])[order]), 1)[0])

    def root_constant(self, start: float, end: float) -> float:
        """Return the largest C = (length)/(fall of √s) over quarters of a window, in ln s.

        With this C the window satisfies Ψ = C√s from quarter to quarter, and uses nothing that
        comes after it but the limit a.
        """
        window = self.window(start, end)
        root, length = np.sqrt(np.maximum(self.gap[window], 0.0)), self.path_length[window]
        quarters = np.geomspace(root[0], max(root[-1], 1e-16), 5)
        return float(np.max(np.diff(np.interp(-quarters, -root, length)) / -np.diff(quarters)))

    def used(self, start: float, end: float) -> float:
        """Return (length after `end`)/(C√s at `end`), C from the window: above 1 exceeds Ψ."""
        last = self.window(start, end).stop - 1
        bound = self.root_constant(start, end) * np.sqrt(max(self.gap[last], 0.0))
        return float(tails(self.path_length)[last] / bound)


@dataclass(frozen=True, eq=False)
class Polynomial:
    """h = Σ_k h_k: powers [terms, d] and coefficients [terms] of each form, by degree k ≥ 4."""

    forms: dict[int, tuple[np.ndarray, np.ndarray]]

    def form(self, degree: int, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return h_k(θ) and ∇h_k(θ) for θ [d]."""
        powers, coefficients = self.forms[degree]
        value = float(coefficients @ np.prod(theta**powers, axis=1))
        lowered = np.maximum(powers[:, None, :] - np.eye(len(theta), dtype=int), 0)
        slopes = coefficients[:, None] * powers * np.prod(theta**lowered, axis=2)
        return value, slopes.sum(axis=0)

    def velocity(self, s: float, theta: np.ndarray) -> np.ndarray:
        """Return dθ/ds of x = rθ at r = e^{-s}, where nothing underflows; θ is brought to length 1.

        dθ/ds = -Σ_k r^{k-4} (∇h_k(θ) - k h_k(θ) θ) / Σ_k k r^{k-4} h_k(θ).
        """
        theta = theta / np.linalg.norm(theta)
        across, along = np.zeros_like(theta), 0.0
        for degree in self.forms:
            value, gradient = self.form(degree, theta)
            factor = np.exp(-s * (degree - 4))
            across += factor * (gradient - degree * value * theta)
            along += factor * degree * value
        return -across / along


def random_polynomial(dimension: int, rng: np.random.Generator) -> Polynomial:
    """Return h with h₄ = ‖x‖⁴ + a form of size ½ on the sphere, h₅ and h₆ of size 0.3.

    Then r stays decreasing from any x with ‖x‖ ≤ ½ on: 4·½ - 5·0.3/2 - 6·0.3/4 > 0.
    """
    sphere = rng.standard_normal((4000, dimension))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    forms = {}
    for degree, size in ((4, 0.5), (5, 0.3), (6, 0.3)):
        terms = combinations_with_replacement(range(dimension), degree)
        powers = np.array([np.bincount(term, minlength=dimension) for term in terms])
        coefficients = rng.standard_normal(len(powers))
        values = np.prod(sphere[:, None, :] ** powers, axis=2) @ coefficients
        # A sample misses the largest value by little; a tenth is kept back for that.
        coefficients *= 0.9 * size / np.abs(values).max()
        if degree == 4:
            # ‖x‖⁴ = Σ x_i⁴ + 2 Σ_{i<j} x_i² x_j².
            even = np.where(np.all(powers % 2 == 0, axis=1), 2.0, 0.0)
            coefficients += np.where(powers.max(axis=1) == 4, 1.0, even)
        forms[degree] = powers, coefficients
    return Polynomial(forms)


def secants_of(polynomial: Polynomial, theta: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return the unit secants [records, d] of the curve from ½θ, at r = ½e^{-s}, s from 0 up.

    The secant from the limit to the curve is θ itself.
    """
    solution = solve_ivp(
        lambda at, w: polynomial.velocity(at + np.log(2.0), w),
        (s[0], s[-1]),
        theta / np.linalg.norm(theta),
        t_eval=s,
        method="LSODA",
        rtol=1e-9,
        atol=1e-12,
    )
    if not solution.success:
        raise ArithmeticError(f"the curve stopped at s = {solution.t[-1]:g}: {solution.message}")
    return (solution.y / np.linalg.norm(solution.y, axis=0)).T


def flows(seeds: Sequence[int], draws: int, until: float) -> pd.DataFrame:
    """Return a row for each start: model, seed, draw, svm, flow, why it stopped, and seen.

    On twelve points of R⁸ so many networks of squared ReLUs, two linear ones and a deep linear one.
    svm: direction and margin. seen: `predictions`. Without α > 0 there is no flow.
    """
    starts: dict[str, list[tuple]] = {}
    for seed in seeds:
        task = separable_points(12, 8, margin=0.1, seed=seed)
        for k in range(draws):
            rng = {"generator": torch.Generator().manual_seed(100 * seed + k)}
            nets = {"squared ReLU": two_layer(8, 8, "squared_relu", **rng)}
            if k < 2:
                nets["linear"] = linear(8, **rng)
            if k == 0:
                nets["deep linear"] = deep_linear([8, 4, 4, 1], scale=0.8, **rng)
            for model, net in nets.items():
                starts.setdefault(model, []).append((seed, k, task, net))
    rows = []
    for model, own in starts.items():
        far = {"until": until, "records": 10_000, "tol": _TOLS[model]}
        _, _, points, nets = zip(*own, strict=True)
        try:
            found = gradient_flows(nets, points, **far)
        except SolverError as error:
            found = error.flows
        for (seed, k, task, net), flow in zip(own, found, strict=True):
            about, why = {"model": model, "seed": seed, "draw": k, "svm": hard_margin(task)}, ""
            if isinstance(flow, SolverError):
                flow, why = flow.trajectory, "never got to α > 0"
                if flow is not None:
                    why = f"stopped at α = {flow.smoothed_margin[-1]:.0e}"
            seen = None if flow is None else predictions(net, flow)
            rows.append(about | {"flow": flow, "why": why, "seen": seen})
    return pd.DataFrame(rows).sort_values(["seed", "draw"], kind="stable", ignore_index=True)


def predictions(net: torch.nn.Module, flow: Trajectory) -> np.ndarray:
    """Return the outputs at 400 Gaussian points, of norm one, at `STATIONS`: [stations, 400]."""
    points = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 8)))
    alpha = flow.smoothed_margin
    at = [int(np.argmax(alpha >= level)) for level in (*LEVELS, alpha[-1] ** 0.5, alpha[-1])]
    nets = (flow.write_to(net, k, normalized=True) for k in at)
    return np.array([unit(net(points)[:, 0].detach().numpy()) for net in nets])


def approach(run, until: float) -> Approach | None:
    """Return how a run comes to its limit, None where it did not arrive or still turns.

    The limit of γ̃ is the support vector machine's for linear and deep linear models; another's last
    state stands in where its predictions turned by 0.01 or less while α was squared.
    """
    known = run.model in _OF_MACHINE
    if run.flow.smoothed_margin[-1] < until or not (known or run.still <= 0.01):
        return None
    return Approach.of(run.flow, run.svm[1] * _OF_MACHINE[run.model] if known else None)


def apart(rows: pd.DataFrame) -> tuple[float, float]:
    """Return how far limits of starts on one set differ: the largest angle, and the margins.

    Of the predictions, less what either still turned; and 1 - the smallest normalized margin over
    the largest.
    """
    pairs = combinations(rows.itertuples(), 2)
    ends = [flow.normalized_margin[-1] for flow in rows.flow]
    angles = [angle(a.seen[-1], b.seen[-1]) - a.still - b.still for a, b in pairs]
    return max(angles, default=0.0), 1 - min(ends) / max(ends)


def off_machine(runs: pd.DataFrame, level: float | None = None) -> list[float]:
    """Return the angle of linear models to the SVM at the end, or where first α ≥ level."""
    last = [-1 if level is None else np.argmax(f.smoothed_margin >= level) for f in runs.flow]
    ways = zip(runs.flow, last, runs.svm, strict=True)
    return [angle(flow.direction[k], svm[0]) for flow, k, svm in ways]


def ahead(run, first: float, last: float = np.inf) -> pd.DataFrame:
    """Return a row for each record of run.curve between two values of its clock: gap and length."""
    curve = run.curve
    kept = (curve.clock >= first) & (curve.clock <= last) & (curve.gap > SMALLEST)
    columns = {"model": run.model, "start": f"{run.seed}, {run.draw}", ALPHA: curve.clock}
    columns |= {GAP: curve.gap, AHEAD: tails(curve.path_length)}
    return pd.DataFrame(columns)[kept]


def maps(runs: pd.DataFrame) -> pd.DataFrame:
    """Return predictions of runs in the plane of their principal components, by model.

    A row for each start and station, numbered.
    """
    parts = []
    for model, rows in runs.groupby("model", sort=False):
        plane = leading_plane(np.concatenate([*rows.seen]))[0]
        plane = pd.DataFrame(plane - plane.mean(0), columns=["first principal component", "second"])
        place = {"start": np.repeat(rows.draw, len(STATIONS)), "station": [*range(7)] * len(rows)}
        parts.append(plane.assign(model=model, **{k: np.array(v) for k, v in place.items()}))
    return pd.concat(parts, ignore_index=True)


def secants(kind: str, seed: int, one: np.ndarray) -> pd.DataFrame:
    """Return every fourth secant of a path [records, 3] to nine tenths of it, a row each.

    With its share of the path's clock, and the angle to the one at nine tenths, 10⁻⁹ or more.
    """
    end = int(0.9 * len(one))
    columns = {
        "secants": kind,
        "seed": seed,
        "share of the path's own clock": np.linspace(0, 1, len(one))[:end:4],
        "angle to the last secant": [max(angle(u, one[end]), 1e-9) for u in one[:end:4]],
        **dict(zip("uvw", one[:end:4].T, strict=True)),
    }
    return pd.DataFrame(columns)


def drawn_secants(seed: int) -> np.ndarray:
    """Return the secants of a seed's random polynomial down to a distance of e^-200, [401, 3]."""
    polynomial = random_polynomial(3, np.random.default_rng(seed))
    return secants_of(polynomial, np.ones(3), np.linspace(0.0, 200.0, 401))
