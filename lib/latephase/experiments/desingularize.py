"""Path length against margin gap: what a Kurdyka–Łojasiewicz inequality says of a recorded flow.

Let a be the limit of γ̃ = α/‖W‖^L and s = (a - γ̃)/a. A desingularizing function Ψ, with Ψ(0) = 0,
is one for which the direction travels at most Ψ(s₁) - Ψ(s₂) while the gap falls from s₁ to s₂; what
is still to come is then at most Ψ(s). Near a maximum of γ̃ that is not degenerate on the sphere
Ψ = C√s; where γ̃ is flatter, Ψ is a smaller power, or no power at all. All arrays are [records].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latephase.flow.trajectory import Trajectory
from latephase.measures.settling import tails

# Gaps and lengths below this are the solver's and rounding, not the flow's.
SMALLEST = 1e-9


@dataclass(frozen=True)
class Approach:
    """How a direction comes to its limit.

    clock: a quantity that grows along the run and says where windows lie, α for a flow
    gap: s = (a - γ̃)/a
    path_length: of the direction, since some state
    """

    clock: np.ndarray
    gap: np.ndarray
    path_length: np.ndarray

    def between(self, start: float, end: float) -> slice:
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
        window = self.between(start, end)
        gap, ahead = self.gap[window], tails(self.path_length)[window]
        kept = (gap > SMALLEST) & (ahead > SMALLEST)
        # Gaps fall along a flow; what rounding turns round is not counted twice.
        x, order = np.unique(np.log(gap[kept]), return_index=True)
        if len(x) < 2 or x[-1] - x[0] < np.log(2.0):
            raise ValueError("expected gaps that fall by a factor of two or more")
        even = np.linspace(x[0], x[-1], 50)
        y = np.interp(even, x, np.log(ahead[kept])[order])
        return float(np.polyfit(even, y, 1)[0])

    def root_constant(self, start: float, end: float) -> float:
        """Return the largest C = (length)/(fall of √s) over quarters of a window, in ln s.

        With this C the window satisfies Ψ = C√s from quarter to quarter, and uses nothing that
        comes after it but the limit a.
        """
        window = self.between(start, end)
        root, length = np.sqrt(np.maximum(self.gap[window], 0.0)), self.path_length[window]
        levels = np.geomspace(root[0], max(root[-1], 1e-16), 5)
        at = np.interp(-levels, -root, length)
        return float(np.max(np.diff(at) / -np.diff(levels)))

    def used(self, start: float, end: float) -> float:
        """Return (length after `end`)/(C√s at `end`), C from the window: above 1 exceeds Ψ."""
        last = self.between(start, end).stop - 1
        bound = self.root_constant(start, end) * np.sqrt(max(self.gap[last], 0.0))
        return float(tails(self.path_length)[last] / bound)


def approach(flow: Trajectory, limit: float | None = None) -> Approach:
    """Return the approach of a flow to the limit a of γ̃; the last record stands in for None."""
    margin = flow.normalized_smoothed_margin
    limit = margin[-1] if limit is None else limit
    return Approach(flow.smoothed_margin, 1.0 - margin / limit, flow.path_length)
