"""One state of the flow, as unit direction and ln‖W‖, which do not overflow; which are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, eq=False)
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
    active_kinks: int = 0
    kink_distance: float = 0.0
    branchings: int = 0

    def bare(self) -> State:
        """Return the state without what only the next step needs."""
        return State(**{field.name: getattr(self, field.name) for field in fields(State)})

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


Entry = tuple[float, State]


def thinned(entries: list[Entry], records: int, until: float) -> list[Entry]:
    """Return at most `records` entries, the nearest to an even grid from the first to ln until.

    Accepted states, never interpolated ones. The first entry and the last are kept; of one record,
    the last.
    """
    if len(entries) <= 1 or records == 1:
        return entries[-1:]
    positions = np.array([position for position, _ in entries])
    grid = np.linspace(positions[0], max(np.log(until), positions[-1]), records)
    above = np.searchsorted(positions, grid).clip(1, len(positions) - 1)
    lower = grid - positions[above - 1] <= positions[above] - grid
    chosen = np.unique(above - lower).tolist()
    if chosen[-1] != len(entries) - 1:
        chosen = [*chosen[: records - 1], len(entries) - 1]
    return [entries[i] for i in chosen]
