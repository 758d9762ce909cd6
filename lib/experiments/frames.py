"""Frames of runs: a row for each run, with columns model, seed and others, as flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd


def gather(rows: Callable[..., pd.DataFrame], runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of every run of a frame, one run below the other."""
    return pd.concat(map(rows, runs.itertuples()), ignore_index=True)


def unrolled(runs: pd.DataFrame, about: list[str], columns: list[str]) -> pd.DataFrame:
    """Return a row for each record of each run: columns `about` it, and its arrays [records]."""
    rows = runs[[*about, *columns]].explode(columns, ignore_index=True)
    return rows.astype(dict.fromkeys(columns, float))


def stacked(parts: Iterable[Mapping]) -> pd.DataFrame:
    """Return the frames of these columns, single values repeated, one below the other."""
    return pd.concat(map(pd.DataFrame, parts), ignore_index=True)


def by_seed(frame: pd.DataFrame, rows: str | list[str], values: str) -> pd.DataFrame:
    """Return a table with a column for each seed, in the order in which the frame has them."""
    return frame.pivot(index=rows, columns="seed", values=values)[[*frame.seed.unique()]]


def seedwise(seeds: Iterable[int], values: Iterable[float], of: Callable = list) -> dict:
    """Return {seed: its numbers}, or `of` them, as max, in the order in which seeds come first."""
    found = {}
    for seed, value in zip(seeds, values, strict=True):
        found.setdefault(seed, []).append(float(value))
    return {seed: of(numbers) for seed, numbers in found.items()}


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Return the slope of ln y against ln x by least squares: the power of x that y goes with."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def at(runs: pd.DataFrame, column: str, level: float | None = None, of: Callable = list) -> dict:
    """Return as `seedwise` an array's last entry for each run, or that at its first α ≥ level.

    Raises ValueError where a run does not reach the level.
    """
    found = []
    for values, alpha in zip(runs[column], runs["smoothed margin α"], strict=True):
        reached = [len(values) - 1] if level is None else np.flatnonzero(alpha >= level)
        if not len(reached):
            raise ValueError(f"level: {level:g} is beyond a run's last α, {max(alpha):g}")
        found.append(values[reached[0]])
    return seedwise(runs.seed, found, of)
