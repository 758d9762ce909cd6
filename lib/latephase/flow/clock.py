"""Physical time along the flow, in the log domain.

dW/dt = -∇R gives dα/dt = |ℓ'(α)| ‖∇α‖², so that t = ∫ dα / (|ℓ'(α)| ‖∇α‖²), whose integrand
grows like e^α: over one step at α = 1e6 it may grow by e^{1e6}.
"""

from __future__ import annotations

import numpy as np
import torch

from latephase.problem.losses import Loss

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


class LogClock:
    """ln t since the start, advanced from state to state by quadrature in α.

    2 ln‖∇α‖ varies slowly, like (2 - 2/L) ln α: it is interpolated through the last four states by
    a cubic in ln α, below α = 1 in α. The growth of 1/|ℓ'| is integrated exactly by taking
    v = e^{α - α_1} as the variable within a step that ends at α_1:
    ∫ e^{α - c(α)} ‖∇α‖^{-2} dα = e^{α_1} ∫ e^{-c} ‖∇α‖^{-2} dv.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.log_time = -np.inf
        self._points: list[tuple[float, float, float]] = []

    def advance(self, alpha: float, log_gradient_norm: float) -> float:
        """Move to the state with that α and ln‖∇α‖, and return ln t there."""
        slow = float(_slow(alpha))
        # An α that rounds to the last one is no new node of the interpolation.
        if self._points and slow <= self._points[-1][0]:
            return self.log_time
        self._points = [*self._points[-3:], (slow, alpha, 2.0 * log_gradient_norm)]
        if len(self._points) > 1:
            self.log_time = float(np.logaddexp(self.log_time, self._log_interval()))
        return self.log_time

    def _log_interval(self) -> float:
        (_, start, _), (_, end, _) = self._points[-2:]
        smallest = np.exp(start - end)
        v = smallest + 0.5 * (1.0 - smallest) * (_NODES + 1.0)
        alpha = end + np.log(v)
        correction = self.loss.log_slope_tail(torch.from_numpy(alpha)).numpy()
        exponent = -correction - self._interpolated(_slow(alpha))
        largest = exponent.max()
        total = 0.5 * (1.0 - smallest) * (_WEIGHTS @ np.exp(exponent - largest))
        return end + largest + np.log(total)

    def _interpolated(self, x: np.ndarray) -> np.ndarray:
        # Newton's form, the newest point first.
        nodes = np.array([point[0] for point in self._points[::-1]])
        divided = np.array([point[2] for point in self._points[::-1]])
        for order in range(1, len(nodes)):
            rises = divided[order:] - divided[order - 1 : -1]
            divided[order:] = rises / (nodes[order:] - nodes[:-order])
        value = np.full_like(x, divided[-1])
        for node, coefficient in zip(nodes[-2::-1], divided[-2::-1], strict=True):
            value = coefficient + (x - node) * value
        return value


def _slow(alpha: np.ndarray | float) -> np.ndarray:
    """Return ln α, continued by α - 1 below 1: the variable in which ln‖∇α‖ is nearly linear."""
    return np.where(alpha > 1.0, np.log(np.maximum(alpha, 1.0)), np.minimum(alpha, 1.0) - 1.0)
