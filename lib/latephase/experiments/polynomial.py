"""Gradient curves of polynomials that end at a degenerate critical point, and their secants.

h = h₄ + h₅ + h₆ with forms h_k of degree k in d variables and h₄ > 0 off the origin: the flow
x' = -∇h comes to the origin, where not only the gradient but the Hessian vanishes. With x = rθ and
s = -ln r as the variable nothing underflows:

    dθ/ds = -Σ_k r^{k-4} (∇h_k(θ) - k h_k(θ) θ) / Σ_k k r^{k-4} h_k(θ).

The secant from the limit to the curve is θ itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy.integrate import solve_ivp

_START = 0.5


@dataclass(frozen=True)
class Polynomial:
    """h = Σ_k h_k: powers [terms, d] and coefficients [terms] of each form, by degree k ≥ 4."""

    forms: dict[int, tuple[np.ndarray, np.ndarray]]

    def form(self, degree: int, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return h_k(θ) and ∇h_k(θ) for θ [d]."""
        powers, coefficients = self.forms[degree]
        value = float(coefficients @ np.prod(theta**powers, axis=1))
        lowered = np.maximum(powers[:, None, :] - np.eye(len(theta), dtype=int), 0)
        gradient = (coefficients[:, None] * powers * np.prod(theta**lowered, axis=2)).sum(axis=0)
        return value, gradient

    def turning(self, s: float, theta: np.ndarray) -> np.ndarray:
        """Return dθ/ds at r = e^{-s}; θ is brought to length one first."""
        theta = theta / np.linalg.norm(theta)
        across, along = np.zeros_like(theta), 0.0
        for degree in self.forms:
            value, gradient = self.form(degree, theta)
            scale = np.exp(-s * (degree - 4))
            across += scale * (gradient - degree * value * theta)
            along += scale * degree * value
        return -across / along


def random_polynomial(dimension: int, rng: np.random.Generator) -> Polynomial:
    """Return h with h₄ = ‖x‖⁴ + a form of size ½ on the sphere, h₅ and h₆ of size 0.3.

    Then r stays decreasing from any x with ‖x‖ ≤ ½ on: 4·½ - 5·0.3/2 - 6·0.3/4 > 0.
    """
    sphere = rng.standard_normal((4000, dimension))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    forms = {}
    for degree, size in ((4, 0.5), (5, 0.3), (6, 0.3)):
        powers = np.array(
            [np.bincount(c, minlength=dimension)
             for c in combinations_with_replacement(range(dimension), degree)]
        )  # fmt: skip
        coefficients = rng.standard_normal(len(powers))
        values = np.prod(sphere[:, None, :] ** powers, axis=2) @ coefficients
        # A sample misses the largest value by little; a tenth is kept back for that.
        coefficients *= 0.9 * size / np.abs(values).max()
        if degree == 4:
            coefficients += _fourth_power_of_the_norm(powers)
        forms[degree] = powers, coefficients
    return Polynomial(forms)


def secants_of(polynomial: Polynomial, theta: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return the unit secants [records, d] of the curve from ½θ, at r = ½e^{-s}, s from 0 up."""
    shift = -np.log(_START)
    solution = solve_ivp(
        lambda at, w: polynomial.turning(at + shift, w),
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


def _fourth_power_of_the_norm(powers: np.ndarray) -> np.ndarray:
    """Return the coefficients of ‖x‖⁴ = Σ x_i⁴ + 2 Σ_{i<j} x_i² x_j²."""
    largest, even = powers.max(axis=1), np.all(powers % 2 == 0, axis=1)
    return np.where(largest == 4, 1.0, np.where(even, 2.0, 0.0))
