"""The numbers behind a figure, as comma-separated values.

A figure's table is the tidy frame that it was drawn from, where the chapter gives it. For a
figure without one the numbers are read off what was drawn:

panel    number of the axes, from 0, and its title
kind     line, points, path (of a collection of lines), bar, or image
series   the label in the legend, or the artist's number
x, y     data coordinates; of an image the centre of the pixel
value    of an image, its value; of a bar, its length
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from seaborn import FacetGrid

MIME = "text/csv"
_COLUMNS = ["panel", "title", "kind", "series", "x", "y", "value"]
# The frame rides with its figure, and goes with it.
_ATTACHED: WeakKeyDictionary[Figure, pd.DataFrame] = WeakKeyDictionary()


def attach(drawn: Figure | Axes | FacetGrid, frame: pd.DataFrame) -> None:
    """Let a figure's table be the frame that it was drawn from.

    drawn: the figure, or axes or a grid of it. frame: tidy, a row for each observation, columns
    named with symbol and unit; a later one takes the place of an earlier one. Raises ValueError
    for an empty frame, for columns whose names are no words or not distinct, and for a named
    index, which a table would lose.
    """
    if frame.empty or not frame.columns.is_unique:
        raise ValueError(f"attach: expected rows and distinct columns, got {frame.shape} of "
                         f"{list(frame.columns)}")  # fmt: skip
    if not all(isinstance(name, str) and name.strip(" 0123456789") for name in frame.columns):
        raise ValueError(f"attach: expected columns named in words, got {list(frame.columns)}")
    if any(name is not None for name in frame.index.names):
        raise ValueError(f"attach: the index {list(frame.index.names)} would be lost; reset it")
    _ATTACHED[drawn.figure] = frame.copy()


def table(figure: Figure) -> pd.DataFrame:
    """Return the attached frame, else a row for each point that is shown, but for colour bars."""
    if figure in _ATTACHED:
        return _ATTACHED[figure].copy()
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    parts = [
        pd.DataFrame({"panel": k, "title": axes.get_title(), "kind": kind, "series": name, **data})
        for k, axes in enumerate(panels)
        for kind, name, data in _drawn(axes)
    ]
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return whole.reindex(columns=_COLUMNS).dropna(axis="columns", how="all")


def as_csv(figure: Figure) -> str:
    """Return `table` as text, eight digits to a number."""
    return text(table(figure))


def text(frame: pd.DataFrame) -> str:
    """Return a frame as comma-separated values, eight digits to a number."""
    return frame.to_csv(index=False, float_format="%.8g")


def offer() -> None:
    """Have a notebook store every figure as SVG and PNG, and its numbers, under MIME."""
    if "IPython" not in sys.modules:  # so this is no notebook; it need not be installed
        return
    from IPython import get_ipython
    from IPython.core.formatters import BaseFormatter
    from matplotlib_inline.backend_inline import set_matplotlib_formats
    from traitlets import ObjectName, Unicode

    if (shell := get_ipython()) is None:
        return

    class Numbers(BaseFormatter):
        format_type = Unicode(MIME)
        print_method = ObjectName("_repr_csv_")

    # A picture for slides: two dots of it for each of the page.
    set_matplotlib_formats("svg", "retina", bbox_inches=None)
    formatter = Numbers(parent=shell.display_formatter)
    shell.display_formatter.formatters[MIME] = formatter
    # Choosing the formats of pictures makes every formatter forget figures.
    shell.events.register("pre_execute", lambda: formatter.for_type(Figure, as_csv))


def _drawn(axes) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    for k, line in enumerate(axes.lines):
        yield "line", _name(line, k), _columns(line.get_data())
    for k, group in enumerate(axes.collections):
        if isinstance(group, PathCollection):
            yield "points", _name(group, k), _columns(np.ma.filled(group.get_offsets(), np.nan).T)
        elif isinstance(group, LineCollection) and (segments := group.get_segments()):
            yield "path", _name(group, k), _columns(np.concatenate(segments).T)
    bars = [p for p in axes.patches if isinstance(p, Rectangle)]
    if bars:
        corners = np.array([[*bar.get_xy(), bar.get_width(), bar.get_height()] for bar in bars])
        x, y, width, height = corners.T
        lying = np.ptp(height) == 0 and np.ptp(width) > 0
        middle = {"x": x + width / 2, "y": y + height / 2, "value": width if lying else height}
        yield "bar", "0", middle
    for k, image in enumerate(axes.images):
        values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if values.ndim == 2:
            yield "image", _name(image, k), _pixels(values, image.get_extent(), image.origin)


def _name(artist, number: int) -> str:
    label = str(artist.get_label())
    return str(number) if label.startswith("_") or not label else label


def _columns(data) -> dict[str, np.ndarray]:
    x, y = np.broadcast_arrays(*(np.asarray(part, dtype=float).ravel() for part in data))
    return {"x": x, "y": y}


def _pixels(values: np.ndarray, extent, origin: str) -> dict[str, np.ndarray]:
    left, right, bottom, top = extent
    rows, columns = values.shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = bottom + (np.arange(rows) + 0.5) * (top - bottom) / rows
    y = y if origin == "lower" else y[::-1]
    grid = np.meshgrid(x, y)
    return {"x": grid[0].ravel(), "y": grid[1].ravel(), "value": values.ravel()}
