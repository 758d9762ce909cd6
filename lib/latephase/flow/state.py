"""One state of the flow, in the form that does not overflow: a unit direction and ln‖W‖."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class State:
    """W = e^{log_norm} direction, with what belongs to it.

    p [n, ·] and gradient [P] are the margins and ∇α of the unit direction under the dual
    variables q, that is p/‖W‖^L and ∇α/‖W‖^{L-1}; normalized_smoothed_margin is α/‖W‖^L.
    log_time and path_length count from the start of the flow.
    """

    direction: np.ndarray
    log_norm: float
    p: np.ndarray
    log_dual: np.ndarray
    gradient: np.ndarray
    normalized_smoothed_margin: float
    smoothed_margin: float
    dual_gap: float = 0.0
    log_time: float = -math.inf
    path_length: float = 0.0

    def mean_margin(self) -> float:
        """Return Σ q p at the unit direction."""
        return float(np.vdot(np.exp(self.log_dual), self.p))

    def alignment(self) -> float:
        """Return cos(W, ∇α)."""
        return float(self.direction @ self.gradient / np.linalg.norm(self.gradient))

    def w(self) -> np.ndarray:
        """Return W [P]; overflows to infinity with ‖W‖."""
        return self.direction * np.exp(self.log_norm)


def exp_times(log_scale: float, value: float) -> float:
    """Return e^{log_scale} value, without overflow of the first factor alone."""
    if log_scale < 600.0 or value == 0.0:
        return math.exp(log_scale) * value
    return math.copysign(math.exp(log_scale + math.log(abs(value))), value)
