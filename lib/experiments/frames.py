"""Frames of runs: a row for each run, with columns model, seed and others, as flow."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd


def gather(rows: Callable[..., pd.DataFrame], runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of every run of a frame, one run below the other."""
    return pd.concat(map(rows, runs.itertuples()), ignore_index=True)


def by_seed(frame: pd.DataFrame, rows: str | list[str], values: str) -> pd.DataFrame:
    """Return a table with a column for each seed, in the order in which the frame has them."""
    return frame.pivot(index=rows, columns="seed", values=values)[[*frame.seed.unique()]]
