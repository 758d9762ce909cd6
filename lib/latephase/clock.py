"""Physical time along the flow, in the log domain.

dW/dt = -∇R gives dα/dt = |ℓ'(α)| ‖∇α‖², so that t = ∫ dα / (|ℓ'(α)| ‖∇α‖²), whose integrand
grows like e^α: over one step at α = 1e6 it may grow by e^{1e6}.
"""

from __future__ import annotations

import numpy as np
import torch

from latephase.losses import Loss

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


class LogClock:
    """ln t since the start, advanced from state to state by quadrature in α.

    2 ln‖∇α‖ varies slowly, like (2 - 2/L) ln α: it is interpolated between states, by a quadratic
    in asinh α (linear near 0, logarithmic beyond). The growth of 1/|ℓ'| is integrated exactly by
    taking v = e^{α - α_1} as the variable within a step that ends at α_1:
    ∫ e^{α - c(α)} ‖∇α‖^{-2} dα = e^{α_1} ∫ e^{-c} ‖∇α‖^{-2} dv.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.log_time = -np.inf
        self._points: list[tuple[float, float, float]] = []

    def advance(self, alpha: float, log_gradient_norm: float) -> float:
        """Move to the state with that α and ln‖∇α‖, and return ln t there."""
        self._points = [*self._points[-2:], (np.arcsinh(alpha), alpha, 2.0 * log_gradient_norm)]
        if len(self._points) > 1 and alpha > self._points[-2][1]:
            self.log_time = float(np.logaddexp(self.log_time, self._log_interval()))
        return self.log_time

    def _log_interval(self) -> float:
        (_, start, _), (_, end, _) = self._points[-2:]
        smallest = np.exp(start - end)
        v = smallest + 0.5 * (1.0 - smallest) * (_NODES + 1.0)
        alpha = end + np.log(v)
        correction = self.loss.slope_tail(torch.from_numpy(alpha))[0].numpy()
        exponent = -correction - self._interpolated(np.arcsinh(alpha))
        largest = exponent.max()
        total = 0.5 * (1.0 - smallest) * (_WEIGHTS @ np.exp(exponent - largest))
        return end + largest + np.log(total)

    def _interpolated(self, x: np.ndarray) -> np.ndarray:
        (x1, _, f1), (x2, _, f2) = self._points[-2:]
        slope = (f2 - f1) / (x2 - x1)
        value = f2 + slope * (x - x2)
        if len(self._points) == 3 and self._points[0][0] < x1:
            x0, _, f0 = self._points[0]
            bend = (slope - (f1 - f0) / (x1 - x0)) / (x2 - x0)
            value += bend * (x - x1) * (x - x2)
        return value
