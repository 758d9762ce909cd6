"""Smooth functions behind a layer: their values, and derivatives along a change, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Power:
    """max(z, 0)^p, p ≥ 2, of each entry."""

    p: int

    def at(self, z: np.ndarray) -> tuple[np.ndarray, PowerAt]:
        """Return its values at z [·, m], and the derivatives there."""
        r, p = np.maximum(z, 0.0), self.p
        below = r ** (p - 2) if p > 2 else (r > 0.0).astype(float)
        return r * r * below, PowerAt(p * r * below, p * (p - 1) * below)


@dataclass(frozen=True)
class PowerAt:
    """σ' and σ'' at z."""

    first: np.ndarray
    second: np.ndarray

    def of(self, rows: np.ndarray) -> PowerAt:
        """Return it at some rows of z, repeated at will."""
        return PowerAt(self.first[rows], self.second[rows])

    def forward(self, dz: np.ndarray) -> np.ndarray:
        """Return the change of the values."""
        return self.first * dz

    def backward(self, g: np.ndarray) -> np.ndarray:
        """Return the derivative in z of the values weighed with g."""
        return self.first * g

    def bent(self, g: np.ndarray, dz: np.ndarray) -> np.ndarray:
        """Return the change of `backward` of g."""
        return self.second * g * dz


@dataclass(frozen=True)
class Smoothed:
    """½(z_j + r_j), r_j² = z_j² + ε² s², s² the mean of z² of an example (`problem.kinks`)."""

    epsilon: float

    def at(self, z: np.ndarray) -> tuple[np.ndarray, SmoothedAt]:
        """Return its values at z [·, m], and the derivatives there."""
        share = self.epsilon**2 / z.shape[-1]
        square = z * z
        # At z = 0 in a whole layer the root has no derivative.
        square += np.finfo(float).tiny + share * square.sum(-1, keepdims=True)
        r = np.sqrt(square)
        return 0.5 * (z + r), SmoothedAt(z, r, share)


@dataclass(frozen=True)
class SmoothedAt:
    """z, r and ε²/m: ∂r_j/∂z_k = (δ_jk z_j + ε² z_k/m)/r_j."""

    z: np.ndarray
    r: np.ndarray
    share: float

    def of(self, rows: np.ndarray) -> SmoothedAt:
        """Return it at some rows of z, repeated at will."""
        return SmoothedAt(self.z[rows], self.r[rows], self.share)

    def forward(self, dz: np.ndarray) -> np.ndarray:
        """Return the change of the values."""
        return 0.5 * (dz + self._of_r(dz))

    def backward(self, g: np.ndarray) -> np.ndarray:
        """Return the derivative in z of the values weighed with g."""
        over = g / self.r
        return 0.5 * (g + self.z * (over + self.share * over.sum(-1, keepdims=True)))

    def bent(self, g: np.ndarray, dz: np.ndarray) -> np.ndarray:
        """Return the change of `backward` of g."""
        over = g / self.r
        less = over * self._of_r(dz) / self.r
        sums = (self.share * each.sum(-1, keepdims=True) for each in (over, less))
        of_slopes, of_change = sums
        return 0.5 * (dz * (over + of_slopes) - self.z * (less + of_change))

    def _of_r(self, dz: np.ndarray) -> np.ndarray:
        whole = self.share * (self.z * dz).sum(-1, keepdims=True)
        return (self.z * dz + whole) / self.r
