"""Which accepted states to keep: the nearest to an even grid in ln α, never interpolated ones."""

from __future__ import annotations

from typing import Any

import numpy as np

Entry = tuple[float, Any]


def offered(entries: list[Entry], alpha: float, state: Any, records: int, until: float):
    """Return entries (ln α, state) with a state added, thinned now and then.

    Thinning on the final grid drops nothing that the end would keep: the last entry stays, and
    stands for every grid point beyond it.
    """
    entries = [*entries, (float(np.log(alpha)), state)]
    return entries if len(entries) < 4 * records + 64 else thinned(entries, records, until)


def thinned(entries: list[Entry], records: int, until: float) -> list[Entry]:
    """Return at most `records` entries, the nearest to an even grid from the first to ln until.

    The first entry and the last are kept; of one record, the last.
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
