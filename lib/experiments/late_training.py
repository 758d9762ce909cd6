"""What training into its late phase says of rest: a criterion, its controls, and exponents.

Everything here reads checkpoints, of a live run or of a stage of a recorded one. Whether they
settle is asked in ln α, or where α is of no use in ln(steps): a series of distances between
checkpoints can be summed if it falls faster than one over the number k of equal steps of that
clock, and a direction that goes on turning with the logarithm of the clock falls exactly so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.integrate import solve_ivp
from scipy.optimize import linprog, minimize_scalar
from scipy.special import softmax
from scipy.stats import linregress, t

from experiments.frames import stacked
from latephase.measures.settling import successive_distances
from latephase.training.parameter_groups import ParameterGroups
from latephase.training.scale_free import History

# From which clock on distances count: α = 10, or ten steps.
START = float(np.log(10.0))


@dataclass(frozen=True)
class Settling:
    """A fit of distance per unit of the clock ~ clock^exponent, and of its rival.

    low, high: the interval of the exponent at 95 %, widened where residuals are correlated.
    beats: whether the power fits better than 1/(clock - c) with the best c, as many free numbers.
    count: distances in the fit.
    """

    exponent: float
    low: float
    high: float
    beats: bool
    count: int

    @property
    def bound(self) -> float:
        """`high`, by which a run is judged; 0 or more where the rival fits better."""
        return self.high if self.beats else max(self.high, 0.0)

    @property
    def settles(self) -> bool:
        """Whether the distances can be summed, with all of the interval."""
        return self.bound < -1.0

    @property
    def words(self) -> str:
        return "settles" if self.settles else "not resolved"

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ({self.low:.2f} to {self.high:.2f})".replace("-", "−")


def pace(
    clock: np.ndarray, distances: np.ndarray, start: float = -np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances [K - 1] per unit of the clock [K], and where on it, from start on.

    Of two checkpoints at one time the later is left out, and so is a distance of zero.
    """
    clock, distances = np.asarray(clock, dtype=float), np.asarray(distances, dtype=float)
    width, middle = np.diff(clock), (clock[1:] + clock[:-1]) / 2
    kept = (width > 1e-9) & (distances > 0.0) & (clock[:-1] > start - 1e-9)
    return middle[kept], distances[kept] / width[kept]


def settling(clock: np.ndarray, distances: np.ndarray, start: float = START) -> Settling:
    """Return the `Settling` of distances [K - 1] between checkpoints at clock [K], from start on.

    Distances are taken per unit of the clock, by `pace`, so that checkpoints need not be evenly
    spaced. Raises ValueError for fewer than five distances.
    """
    at, paces = pace(clock, distances, start)
    count = len(at)
    if count < 5:
        raise ValueError(f"settling: expected five distances from {start:g} on, got {count}")
    paces = np.log(paces)
    line = linregress(np.log(at), paces)
    residual = paces - line.intercept - line.slope * np.log(at)
    half = t.ppf(0.975, count - 2) * line.stderr * np.sqrt(_correlated(residual))

    def misfit(gap: float) -> float:
        """Return the squared residuals of the rival whose pole lies that gap before the first."""
        other = paces + np.log(at - at[0] + gap)
        return float(np.sum((other - other.mean()) ** 2))

    gaps = np.log([1e-3 * at[0], 1e3 * at[-1]])
    rival = minimize_scalar(lambda g: misfit(np.exp(g)), bounds=gaps, method="bounded").fun
    # A drift without noise is fitted to rounding by both.
    beats = float(np.sum(residual**2)) + 1e-8 * count < rival
    return Settling(line.slope, line.slope - half, line.slope + half, beats, count)


def _correlated(residual: np.ndarray) -> float:
    """Return by how much correlation from each to the next widens the variance; 1 for none."""
    size = residual @ residual
    lagged = (residual[1:] @ residual[:-1]) / size if size > 0 else 0.0
    lagged = min(max(lagged, 0.0), 0.9)
    return (1 + lagged) / (1 - lagged)


# Exponents.


def largest_exponent(groups: ParameterGroups, tolerance: float) -> tuple[float, float, int]:
    """Return (max λ, defect, dimension) of the balanced solution of the system for exponents.

    If w_g ↦ s^{λ_g} w_g multiplies the outputs by s, then Σ_g λ_g ⟨w_g, ∇_g α⟩ = Σ q p at every
    state. Of the exponents λ ≥ 0 that satisfy this at every other checkpoint, to `tolerance`
    relative, those with the smallest largest λ, and of these with the smallest sum; defect: the
    largest relative error at the checkpoints between. dimension: of the solution set, the number
    of groups less that of the singular values above `tolerance` of the largest; P groups are
    never told apart by fewer checkpoints. NaN, NaN where no λ satisfies the system.
    """
    rows = groups.euler / groups.weighted_margin[:, None]
    fitted, between = rows[::2], rows[1::2]
    count, ones = rows.shape[1], np.ones((len(fitted), 1))
    bounds = np.concatenate([(1 + tolerance) * ones[:, 0], (tolerance - 1) * ones[:, 0]])
    system = np.block(
        [
            [fitted, 0 * ones],
            [-fitted, 0 * ones],
            [np.eye(count), -np.ones((count, 1))],
        ]
    )
    right = np.concatenate([bounds, np.zeros(count)])
    found = linprog(np.eye(count + 1)[-1], system, right)
    dimension = count - int(np.sum(_singular(rows) > tolerance))
    if not found.success:
        return np.nan, np.nan, dimension
    top = found.x[-1]
    limits = [(0, None)] * count + [(0, top * (1 + 1e-9))]
    least = linprog(np.r_[np.ones(count), 0.0], system, right, bounds=limits)
    exponents = (least if least.success else found).x[:-1]
    return float(exponents.max()), float(np.abs(between @ exponents - 1).max()), dimension


def _singular(rows: np.ndarray) -> np.ndarray:
    values = np.linalg.svd(rows, compute_uv=False)
    return values / values[0]


def euler_defect(groups: ParameterGroups, exponents: np.ndarray) -> float:
    """Return the largest relative error of Σ_g λ_g ⟨w_g, ∇_g α⟩ = Σ q p over the checkpoints."""
    return float(np.abs(groups.euler @ exponents / groups.weighted_margin - 1).max())


def single_exponent_defect(groups: ParameterGroups) -> float:
    """Return `euler_defect` with one exponent for all groups, the one for which it is least."""
    degree = groups.euler.sum(axis=1) / groups.weighted_margin
    return float((degree.max() - degree.min()) / (degree.max() + degree.min()))


# Controls of the criterion: late phases with a known answer.


def turning(omega: float, levels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (directions, normalized margins) of a late phase that turns for ever, at levels of α.

    dθ/dρ = F(θ) + ω J θ, ρ = ln‖W‖, F the late phase of the exponential loss of a deep linear
    network of two layers, f = w_2 W_1 x; J turns two hidden units into each other, which leaves
    every margin as it is. omega = 0 is the flow itself.
    """
    x = np.random.default_rng(seed).normal(size=(20, 3))
    # Separated by the first coordinate, along which the start points.
    x[:, 0] = np.abs(x[:, 0]) + 0.3
    hidden, inputs = 3, x.shape[1]

    def margins(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, second = theta[:-hidden].reshape(hidden, inputs), theta[-hidden:]
        return x @ first.T @ second, first, second

    def velocity(rho: float, theta: np.ndarray) -> np.ndarray:
        p, first, second = margins(theta)
        q = softmax(-np.exp(2 * rho) * p)
        pull = q @ x
        g = np.concatenate([np.outer(second, pull).ravel(), first @ pull])
        spun = np.zeros_like(theta)
        for place in (theta[:-hidden].reshape(hidden, inputs), theta[-hidden:, None]):
            turned = np.zeros_like(place)
            turned[0], turned[1] = -place[1], place[0]
            spun += np.pad(
                turned.ravel(),
                (0, hidden) if place.shape[1] == inputs else (hidden * inputs, 0),
            )
        return g / (2 * (q @ p)) - theta + omega * spun

    start = np.concatenate([np.outer([0.5, 0.3, 0.2], [1.0, 0.0, 0.0]).ravel(), [0.5, 0.3, 0.2]])
    start /= np.linalg.norm(start)
    span = (0.5 * np.log(1.0 / margins(start)[0].min()), 0.5 * np.log(1e3 * levels[-1]))
    done = solve_ivp(
        velocity, span, start, method="LSODA", rtol=1e-9, atol=1e-11, dense_output=True
    )
    rho = np.linspace(*span, 4000)
    theta = done.sol(rho)
    alpha = np.array(
        [_smoothed(np.exp(2 * r), margins(w)[0]) for r, w in zip(rho, theta.T, strict=True)]
    )
    at = done.sol(np.interp(np.log(levels), np.log(np.maximum(alpha, 1e-9)), rho)).T
    at /= np.linalg.norm(at, axis=1, keepdims=True)
    return at, np.array([margins(w)[0] for w in at])


def controls(
    levels: np.ndarray, seeds: Iterable[int], thrown: Mapping[str, History], seed: int
) -> pd.DataFrame:
    """Return runs of which it is known whether they settle, a row each.

    A flow and one that turns for ever, by `turning` with ω = 0 and 0.3, at levels of α for each of
    the seeds; and runs of training that never rest, by their names, from one seed. Columns: run;
    seed; time, its name; clock [K], its values; distances [K - 1] of the direction; fit, how it
    settles; margins, how the margins of a flow do.
    """
    rows, ln = [], np.log(levels)
    for name, omega in (("flow", 0.0), ("turning for ever", 0.3)):
        for start in seeds:
            states, p = turning(omega, levels, start)
            chords = np.linalg.norm(np.diff(states, axis=0), axis=1)
            rows.append((name, start, "ln α", ln, chords, settling(ln, successive_distances(p))))
    for name, run in thrown.items():
        clock = np.log(np.maximum(run.steps, 0.5))
        rows.append((name, seed, "ln(steps)", clock, run.turn, None))
    columns = ["run", "seed", "time", "clock", "distances", "margins"]
    found = pd.DataFrame(rows, columns=columns)
    return found.assign(fit=[*map(settling, found.clock, found.distances)])


def control_paces(found: pd.DataFrame) -> pd.DataFrame:
    """Return how far the first of each kind of `controls` goes in each unit of its clock."""
    firsts = found.drop_duplicates("run").itertuples()
    rows = ((f"{row.run}, {row.time}", pace(row.clock, row.distances, 0.0)) for row in firsts)
    return stacked(
        {"run": name, "clock": at, "distance per unit of the clock": paces}
        for name, (at, paces) in rows
    )


def bounds(found: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Return {run: {seed: bound}} of `controls`, and of "margins", those of the flow."""
    parts = {name: rows.set_index("seed").fit for name, rows in found.groupby("run")}
    parts["margins"] = found[found.run == "flow"].set_index("seed").margins
    return {name: {seed: fit.bound for seed, fit in part.items()} for name, part in parts.items()}


def sentences(found: pd.DataFrame) -> dict[str, str]:
    """Return what the page says of the exponents of `controls`, by their name."""
    first = found.drop_duplicates("run").set_index("run").fit
    names = {"turning": "turning for ever", "blind": "renewed labels", "edge": "edge"}
    told = {f"{n}-exponent": f"{first[run]}, {first[run].words}" for n, run in names.items()}
    return told | {"flow-exponent": str(first["flow"])}


def _smoothed(scale: float, p: np.ndarray) -> float:
    low = p.min()
    return scale * low - np.log(np.sum(np.exp(-scale * (p - low))))
