"""The squared ReLU network of the benchmarks by hand in NumPy, the same for all solvers."""

from __future__ import annotations

import numpy as np


class SquaredPoint:
    """Margins p = y v·relu(A x)² [n] at one θ = (A, v) [P], with their derivatives.

    x [n, d], y [n]; A [h, d] row by row, then v [h]. The methods are those of `stiff_flow.Point`.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, theta: np.ndarray) -> None:
        self.x, self.y = x, y
        a, self.v = self._parts(theta)
        self.r = np.maximum(x @ a.T, 0.0)
        self.s = self.r * self.r
        self.p = y * (self.s @ self.v)

    def pull(self, weights: np.ndarray) -> np.ndarray:
        """Return Jᵀ weights [P]."""
        share = weights * self.y
        of_a = (share[:, None] * self.r).T @ self.x
        return np.concatenate([(of_a * (2.0 * self.v)[:, None]).ravel(), share @ self.s])

    def push(self, v: np.ndarray) -> np.ndarray:
        """Return J v [n]."""
        of_a, of_v = self._parts(v)
        return self.y * ((self.r * (self.x @ of_a.T)) @ (2.0 * self.v) + self.s @ of_v)

    def rows(self) -> np.ndarray:
        """Return J [n, P]."""
        of_z = self.y[:, None] * self.r * (2.0 * self.v)
        of_a = (of_z[:, :, None] * self.x[:, None, :]).reshape(len(self.x), -1)
        return np.concatenate([of_a, self.y[:, None] * self.s], axis=1)

    def curvature(self, weights: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return Σ weights_i ∇²p_i v [P]."""
        of_a, of_v = self._parts(v)
        share = 2.0 * (weights * self.y)[:, None]
        moved = (self.x @ of_a.T) * (self.r > 0.0)
        slopes = share * (moved * self.v + self.r * of_v)
        return np.concatenate([(slopes.T @ self.x).ravel(), (share * self.r * moved).sum(0)])

    def hessian(self, weights: np.ndarray) -> np.ndarray:
        """Return Σ weights_i ∇²p_i [P, P]: a neuron has curvature with its own weights alone."""
        share, (width, d) = 2.0 * weights * self.y, (len(self.v), self.x.shape[1])
        squares = (self.x[:, :, None] * self.x[:, None, :]).reshape(len(self.x), -1)
        own = (share[:, None] * (self.r > 0.0)).T @ squares * self.v[:, None]
        mixed = (share[:, None] * self.r).T @ self.x
        whole, neuron = np.zeros((width * (d + 1),) * 2), np.arange(width)
        inner = whole[: width * d, : width * d].reshape(width, d, width, d)
        inner[neuron, :, neuron, :] = own.reshape(width, d, d)
        across = whole[: width * d, width * d :].reshape(width, d, width)
        across[neuron, :, neuron] = mixed
        whole[width * d :, : width * d] = whole[: width * d, width * d :].T
        return whole

    def _parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width = theta.size // (self.x.shape[1] + 1)
        return theta[:-width].reshape(width, -1), theta[-width:]
