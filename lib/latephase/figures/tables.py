"""The numbers behind a figure, read off what was drawn, as comma-separated values.

panel    number of the axes, from 0, and its title
kind     line, points, path (of a collection of lines), bar, or image
series   the label in the legend, or the artist's number
x, y, z  data coordinates; of an image the centre of the pixel; z in three dimensions only
value    of an image, its value; of a bar, its length
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.mplot3d.art3d import Line3D, Line3DCollection, Path3DCollection

MIME = "text/csv"
_COLUMNS = ["panel", "title", "kind", "series", "x", "y", "z", "value"]


def table(figure: Figure) -> pd.DataFrame:
    """Return one row for each point that a figure shows; colour bars are left out."""
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    parts = [
        pd.DataFrame({"panel": k, "title": axes.get_title(), "kind": kind, "series": name, **data})
        for k, axes in enumerate(panels)
        for kind, name, data in _drawn(axes)
    ]
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return whole.reindex(columns=_COLUMNS).dropna(axis="columns", how="all")


def as_csv(figure: Figure) -> str:
    """Return `table` as text, six digits to a number."""
    return table(figure).to_csv(index=False, float_format="%.6g")


def offer() -> None:
    """Have a notebook store the numbers of every figure beside its picture, under MIME."""
    if "IPython" not in sys.modules:  # so this is no notebook; it need not be installed
        return
    from IPython import get_ipython
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode

    if (shell := get_ipython()) is None:
        return

    class Numbers(BaseFormatter):
        format_type = Unicode(MIME)
        print_method = ObjectName("_repr_csv_")

    formatter = Numbers(parent=shell.display_formatter)
    shell.display_formatter.formatters[MIME] = formatter
    # Choosing the formats of pictures makes every formatter forget figures.
    shell.events.register("pre_execute", lambda: formatter.for_type(Figure, as_csv))


def _drawn(axes) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    for k, line in enumerate(axes.lines):
        three = isinstance(line, Line3D)
        yield "line", _name(line, k), _columns(line.get_data_3d() if three else line.get_data())
    for k, group in enumerate(axes.collections):
        if isinstance(group, Path3DCollection):
            yield "points", _name(group, k), _columns(group._offsets3d)
        elif isinstance(group, PathCollection):
            yield "points", _name(group, k), _columns(np.ma.filled(group.get_offsets(), np.nan).T)
        elif isinstance(group, (LineCollection, Line3DCollection)):
            segments = getattr(group, "_segments3d", None)
            segments = group.get_segments() if segments is None else segments
            if len(segments):
                yield "path", _name(group, k), _columns(np.concatenate(list(segments)).T)
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
    arrays = [np.asarray(part, dtype=float).ravel() for part in data]
    size = max(map(len, arrays))
    return {
        name: part if len(part) == size else np.full(size, part[0])
        for name, part in zip("xyz", arrays, strict=False)
    }


def _pixels(values: np.ndarray, extent, origin: str) -> dict[str, np.ndarray]:
    left, right, bottom, top = extent
    rows, columns = values.shape
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = bottom + (np.arange(rows) + 0.5) * (top - bottom) / rows
    y = y if origin == "lower" else y[::-1]
    grid = np.meshgrid(x, y)
    return {"x": grid[0].ravel(), "y": grid[1].ravel(), "value": values.ravel()}
