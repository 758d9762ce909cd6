"""Physical time along the flow, in the log domain.

dW/dt = -∇R gives dα/dt = |ℓ'(α)| ‖∇α‖², so that t = ∫ dα / (|ℓ'(α)| ‖∇α‖²), whose integrand
grows like e^α: over one step at α = 1e6 it may grow by e^{1e6}.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from latephase.problem.losses import Loss

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


class LogClock:
    """ln t since the start, advanced from step to step by quadrature in α.

    2 ln‖∇α‖ varies slowly, like (2 - 2/L) ln α once W is aligned with ∇α: it is interpolated
    through a step's stages by a polynomial, in ln α where the step was in ln‖W‖, else in α. The
    growth of 1/|ℓ'| is integrated exactly by taking v = e^{α - α_1} as the variable within a step
    that ends at α_1: ∫ e^{α - c(α)} ‖∇α‖^{-2} dα = e^{α_1} ∫ e^{-c} ‖∇α‖^{-2} dv.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.log_time, self.alpha = -np.inf, None
        self.log_gradient = 0.0

    def advance(self, nodes: Iterable[tuple[float, float]], radial: bool = False) -> float:
        """Move to the last of the nodes (α, ln‖∇α‖) of a step, and return ln t there.

        Where the last step ended is a node of this one. radial: the step was in ln‖W‖.
        """
        nodes = [*nodes]
        end, log_gradient = nodes[-1]
        if self.alpha is not None and end > self.alpha:
            start = self.alpha, self.log_gradient
            points = sorted({start, *nodes})
            self.log_time = float(
                np.logaddexp(self.log_time, self._log_interval(points, end, radial))
            )
        self.alpha, self.log_gradient = end, log_gradient
        return self.log_time

    def _log_interval(self, points: list[tuple[float, float]], end: float, radial: bool) -> float:
        alphas, log_squares = np.array(points).T * [[1.0], [2.0]]
        variable = np.log if radial else np.asarray
        slow = variable(alphas)
        # Values of α that round to one another are one node.
        kept = np.concatenate([[True], np.diff(slow) > 1e-9 * (slow[-1] - slow[0])])
        # From the difference itself: α may rise by less than a rounding of e^α.
        width = -np.expm1(self.alpha - end)
        v = 1.0 - 0.5 * width * (1.0 - _NODES)
        alpha = end + np.log(v)
        correction = self.loss.log_slope_tail(torch.from_numpy(alpha)).numpy()
        exponent = -correction - _interpolated(slow[kept], log_squares[kept], variable(alpha))
        largest = exponent.max()
        total = 0.5 * width * (_WEIGHTS @ np.exp(exponent - largest))
        return end + largest + np.log(total)


def _interpolated(nodes: np.ndarray, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the polynomial through the nodes, in Newton's form, at x."""
    divided = values[::-1].copy()
    nodes = nodes[::-1]
    for order in range(1, len(nodes)):
        rises = divided[order:] - divided[order - 1 : -1]
        divided[order:] = rises / (nodes[order:] - nodes[:-order])
    value = np.full_like(x, divided[-1])
    for node, coefficient in zip(nodes[-2::-1], divided[-2::-1], strict=True):
        value = coefficient + (x - node) * value
    return value
