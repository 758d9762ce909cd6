"""How a direction comes to its limit: the length still to come, and secants.

Let a be the limit of γ̃ = α/‖W‖^L and s = (a - γ̃)/a. A desingularizing function Ψ, with Ψ(0) = 0,
is one for which the direction travels at most Ψ(s₁) - Ψ(s₂) while the gap falls from s₁ to s₂; what
is still to come is then at most Ψ(s). Near a maximum of γ̃ that is not degenerate on the sphere
Ψ = C√s; where γ̃ is flatter, Ψ is a smaller power, or no power at all.

Secants are those of the gradient curves x' = -∇h of polynomials h = h₄ + h₅ + h₆, forms h_k of
degree k with h₄ > 0 off the origin: they come to the origin, where the Hessian vanishes too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy.integrate import solve_ivp

from latephase.flow.trajectory import Trajectory
from latephase.measures.settling import tails

# Gaps and lengths below this are the solver's and rounding, not the flow's.
SMALLEST = 1e-9


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
