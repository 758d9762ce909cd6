"""The flow at chosen smoothed margins, on which it lands: nothing has to be interpolated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from latephase.flow.errors import NotSeparated
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import Trajectory, largest_drop

# Enough to keep every step the solver accepts: the grid of records is finer than its steps.
_RECORDS = 600


def stations(
    module: torch.nn.Module,
    x: torch.Tensor | np.ndarray,
    y: torch.Tensor | np.ndarray,
    levels: Sequence[float],
    **settings: Any,
) -> Trajectory:
    """Return the trajectory of the flow with one record at each α of `levels`, which increase.

    settings: as for `gradient_flow`. Each record lies between its level and 1.001 times as much.
    `settings["margin_drop"]` of the result is `largest_drop` of the normalized smoothed margin
    over the steps that the solver accepted. Raises ValueError for levels that do not increase or
    that the start has passed, and what `gradient_flow` raises.
    """
    levels = [float(level) for level in levels]
    if not levels or any(b <= a * 1.001 for a, b in pairwise(levels)):
        raise ValueError(f"levels: expected smoothed margins that increase, got {levels}")
    flow = gradient_flow(module, x, y, until=levels[0], records=_RECORDS, **settings)
    ends = [_last(flow)]
    for level in levels[1:]:
        flow = flow.extend(level)
        ends.append(_last(flow))
    drop = largest_drop(flow.normalized_smoothed_margin)
    return flow.replace(
        **{name: np.array([end[name] for end in ends]) for name in ends[0]},
        settings=flow.settings | {"margin_drop": drop},
    )


def attempted(module: torch.nn.Module, x, y, levels, **settings: Any) -> Trajectory | None:
    """Return `stations`, or None where the flow finds that the examples cannot be separated."""
    try:
        return stations(module, x, y, levels, **settings)
    except NotSeparated:
        return None


def _last(flow: Trajectory) -> dict[str, np.ndarray]:
    """Return the last row of every array over the records."""
    fields = {field.name: getattr(flow, field.name) for field in dataclasses.fields(flow)}
    return {
        name: value[-1]
        for name, value in fields.items()
        if isinstance(value, np.ndarray) and name != "log_dual"
    }
