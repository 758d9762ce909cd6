"""Figures in one style: every function draws what it is given on the axes it is given.

Nothing is computed here beyond what drawing needs; units and definitions are those of
`latephase.flow.trajectory`.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm

from latephase.figures import tables
from latephase.figures.style import BLUE, GREY, LATE, ORANGE, SHADE, SIGN, STOPS
from latephase.figures.style import apply as style  # noqa: F401


def prediction_surface(
    axes: Axes,
    grid: tuple[np.ndarray, np.ndarray],
    outputs: np.ndarray,
    points: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Draw a network's outputs over the plane, its decision boundary, and the labelled points.

    grid: coordinates a, b of a mesh, each [h, w]; outputs [h, w], drawn relative to their largest
    absolute value, full colour from 0.4 of it on; points [n, 2]; labels [n] in {-1, +1}.
    """
    scaled = outputs / np.abs(outputs).max()
    extent = (grid[0].min(), grid[0].max(), grid[1].min(), grid[1].max())
    look = {"cmap": SIGN, "vmin": -0.4, "vmax": 0.4, "alpha": 0.8, "interpolation": "bilinear"}
    axes.imshow(scaled, origin="lower", extent=extent, **look)
    axes.contour(*grid, scaled, levels=[0.0], colors=GREY, linewidths=2)
    for sign, marker, colour in ((-1, "o", BLUE), (1, "^", ORANGE)):
        axes.scatter(*points[labels == sign].T, marker=marker, color=colour, edgecolor=GREY, s=36)
    axes.set(aspect="equal", xticks=[], yticks=[])
    sns.despine(ax=axes, left=True, bottom=True)


def approach(
    axes: mpl.projections.polar.PolarAxes,
    angle: np.ndarray,
    distance: np.ndarray,
    smoothed_margin: np.ndarray,
    floor: float = 1e-12,
) -> None:
    """Draw how a path comes to its limit, in decades of distance to it: a polar picture.

    angle [records]: of the difference to the limit in some plane; distance [records]: to the
    limit, whose decades above `floor` are the radius. Coloured by α [records]. A path that ends in
    one direction runs straight into the middle, a spiral goes round.
    """
    kept = distance > floor
    points = np.stack([np.unwrap(angle[kept]), np.log10(distance[kept] / floor)], axis=1)
    # An edge of a polar picture is drawn with points between, or it cuts through the middle.
    edges = np.linspace(points[:-1], points[1:], 12, axis=1)
    path = LineCollection(edges, cmap=LATE, norm=LogNorm(1, smoothed_margin.max()), linewidths=2)
    path.set_array(smoothed_margin[kept][1:])
    axes.add_collection(path)
    axes.scatter(*points[0], color=GREY, s=24, zorder=3)
    top = int(np.ceil(-np.log10(floor)))
    rings = np.arange(3, top + 1, 3)
    axes.set_rmax(top + 0.5)
    axes.set_rticks(rings, [f"$10^{{{ring - top}}}$" for ring in rings])
    axes.set_xticks([])
    axes.grid(color=GREY, alpha=0.4, linewidth=0.6)
    axes.spines["polar"].set_color(GREY)


def rate_line(axes: Axes, levels: np.ndarray, first: float, power: float, label: str) -> None:
    """Draw first · (α/α_0)^power over the levels, a rate to compare slopes with."""
    axes.plot(levels, first * (levels / levels[0]) ** power, color=GREY, linestyle=":", label=label)


# Where a globe is seen from: radians above its equator.
ELEVATION = 0.45


def mark_stops(axes: Axes) -> None:
    """Mark on an axis of α, its limits set, where others stop, and that the limit is beyond."""
    look = {"color": GREY, "fontsize": 9, "va": "top", "transform": axes.get_xaxis_transform()}
    for height, (alpha, words) in zip((1.0, 0.94), STOPS.items(), strict=True):
        axes.axvline(alpha, ymax=height, color=GREY, linestyle=":", linewidth=1)
        # An SVG drops a common space at the beginning, and the line would strike the first letter.
        axes.text(alpha, height, f"\N{NO-BREAK SPACE}{words}", ha="left", **look)
    axes.text(axes.get_xlim()[1], 0.88, "the limit →", ha="right", **look)


def globe(axes: Axes) -> None:
    """Draw the outline of the unit sphere and its equator, seen from `ELEVATION`."""
    angles = np.linspace(0, 2 * np.pi, 181)
    outline = {"color": GREY, "linewidth": 1}
    axes.plot(np.cos(angles), np.sin(angles), **outline)
    equator = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=-1)
    globe_path(axes, equator, **outline)
    axes.set(aspect="equal", xticks=[], yticks=[])
    sns.despine(ax=axes, left=True, bottom=True)


def globe_path(
    axes: Axes, direction: np.ndarray, values: np.ndarray | None = None, **line
) -> LineCollection | None:
    """Draw a path [records, 3] on the unit sphere, faint where the sphere hides it.

    values [records] colour the path from early to late; the coloured front is then returned.
    """
    flat, depth = _seen(direction)
    if values is None:
        for part, alpha in ((depth >= 0, 1.0), (depth <= 0, 0.3)):
            # A record that is not drawn breaks the line.
            axes.plot(*np.where(part[:, None], flat, np.nan).T, alpha=alpha, **line)
        return None
    segments = np.stack([flat[:-1], flat[1:]], axis=1)
    norm = mpl.colors.Normalize(values.min(), values.max())
    for part, alpha in ((depth[1:] < 0, 0.3), (depth[1:] >= 0, 1.0)):
        path = LineCollection(segments[part], cmap=LATE, norm=norm, alpha=alpha, **line)
        path.set_array(values[1:][part])
        axes.add_collection(path)
    return path


def globe_view(pixels: int) -> np.ndarray:
    """Return the points [pixels, pixels, 3] of the unit sphere that the viewer sees, NaN beside."""
    flat = np.linspace(-1, 1, pixels)
    right, up = np.meshgrid(flat, flat)
    square = right**2 + up**2
    depth = np.sqrt(np.where(square <= 1, 1 - square, np.nan))
    sine, cosine = np.sin(ELEVATION), np.cos(ELEVATION)
    points = np.stack([right, up * sine - depth * cosine, up * cosine + depth * sine], axis=-1)
    return np.where(np.isnan(depth)[..., None], np.nan, points)


def globe_image(axes: Axes, values: np.ndarray) -> None:
    """Shade the visible half of the unit sphere by values in [-1, 1] at the points of its view."""
    look = {"cmap": SIGN, "vmin": -1.5, "vmax": 1.5, "extent": (-1, 1, -1, 1)}
    axes.imshow(values, origin="lower", **look)


def _seen(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (coordinates in the picture [..., 2], depth towards the viewer [...])."""
    x, y, z = np.moveaxis(points, -1, 0)
    sine, cosine = np.sin(ELEVATION), np.cos(ELEVATION)
    return np.stack([x, y * sine + z * cosine], axis=-1), z * sine - y * cosine


def circle_of_neurons(
    axes: Axes,
    angles: np.ndarray,
    masses: np.ndarray,
    program: np.ndarray,
    points: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Draw masses on the unit circle as rays outwards, the points that they must fit inside.

    angles [k]; masses [2, k], of the neurons with sign + (orange) and - (blue); program [2, k],
    masses to compare with, as open circles where the ray would end; a mass of 0.25 has length 1.
    points [n, 2] within the unit disc, labels [n] in {-1, +1}.
    """
    around = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(around), np.sin(around), color=GREY, linewidth=1)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for sign, marker, colour, mass, wanted in (
        (-1, "o", BLUE, masses[1], program[1]),
        (1, "^", ORANGE, masses[0], program[0]),
    ):
        shown = mass > 1e-3
        ends = rays[shown] * (1 + 4 * mass[shown, None])
        segments = np.stack([rays[shown], ends], axis=1)
        axes.add_collection(LineCollection(segments, colors=colour, linewidths=3))
        shown = wanted > 1e-3
        ends = rays[shown] * (1 + 4 * wanted[shown, None])
        axes.scatter(*ends.T, facecolor="none", edgecolor=colour, s=90, linewidths=1.5)
        axes.scatter(*(0.9 * points[labels == sign]).T, marker=marker, color=colour, s=28)
    axes.set(aspect="equal", xticks=[], yticks=[], xlim=(-2.1, 2.1), ylim=(-2.1, 2.1))
    sns.despine(ax=axes, left=True, bottom=True)


def misalignment(
    axes: Axes,
    smoothed_margin: np.ndarray,
    runs: Sequence[np.ndarray],
    label: str | None = None,
    **line,
) -> None:
    """Draw 1 - cos of some angle against α, one line for each run, both axes logarithmic.

    smoothed_margin: one array for each run, or one for all of them.
    """
    alphas = smoothed_margin if np.ndim(smoothed_margin[0]) else [smoothed_margin] * len(runs)
    for i, (alpha, run) in enumerate(zip(alphas, runs, strict=True)):
        axes.plot(alpha, run, label=None if i else label, **line)
    axes.set(xscale="log", yscale="log", xlabel="smoothed margin α")
    axes.set(ylabel="1 − cos(W, −∇R)")


def image_and_saliency(
    top: Axes, bottom: Axes, image: np.ndarray, saliency: np.ndarray, largest: float
) -> None:
    """Draw an image [h, w] with values in [0, 1] and, below it, its saliency map [h, w].

    Orange where a brighter pixel raises the output, blue where it lowers it, full colour from
    |∂Φ/∂x| = largest on.
    """
    top.imshow(image, cmap=SHADE, vmin=0.0, vmax=1.0, interpolation="none")
    bottom.imshow(saliency, cmap=SIGN, vmin=-largest, vmax=largest, interpolation="none")
    for axes in (top, bottom):
        axes.set(xticks=[], yticks=[])
        sns.despine(ax=axes, left=True, bottom=True)


def sorted_margins(axes: Axes, margins: np.ndarray) -> None:
    """Draw the sorted margins [n] of one network against the share of examples below."""
    share = (np.arange(len(margins)) + 0.5) / len(margins)
    axes.plot(np.sort(margins), share, color=BLUE, linewidth=2)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="margin p", ylabel="share of examples below", ylim=(0, 1))


def layer_ratios(axes: Axes, layers: Sequence[str], ratios: Sequence[float]) -> None:
    """Draw ‖A‖₂/‖A‖_F of layers, by name: 1 is rank one."""
    places = np.arange(len(layers))
    axes.barh(places, ratios, color=BLUE)
    axes.set(yticks=places, yticklabels=list(layers), xlim=(0, 1), xlabel="‖A‖₂ / ‖A‖_F")
    axes.invert_yaxis()


def trajectory_summary(flow) -> mpl.figure.Figure:
    """Return a figure of a `Trajectory`: α/‖W‖^L and 1 - cos(W, -∇R) against α."""
    if not (flow.smoothed_margin > 0.0).any():
        raise ValueError("plot: expected records with α > 0, which a logarithmic axis has room for")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(flow.smoothed_margin, flow.normalized_smoothed_margin, color=BLUE, marker=".")
    left.set(xscale="log", xlabel="smoothed margin α", ylabel="normalized smoothed margin")
    # What is 0 has no place on a logarithmic axis.
    apart = np.where(flow.misalignment > 0.0, flow.misalignment, np.nan)
    misalignment(right, flow.smoothed_margin, [apart], color=BLUE, marker=".")
    tables.attach(figure, flow.to_dataframe())
    return figure


def diagnosis_summary(found) -> mpl.figure.Figure:
    """Return a figure of a `Diagnosis`: sorted margins, and ‖A‖₂/‖A‖_F of the layers.

    Of more than twelve layers the twelve with the largest norms, in the network's order.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    sorted_margins(left, found.margins)
    shown = found.layers.sort_values("frobenius_norm", ascending=False).head(12).sort_index()
    layer_ratios(right, shown["layer"], shown["spectral_ratio"])
    margins = pd.DataFrame({"margin": np.sort(found.margins)})
    tables.attach(figure, pd.concat([margins, found.layers]))
    return figure


def training_summary(run) -> mpl.figure.Figure:
    """Return a figure of a `Run`: ln(1/R) and the training error against the steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(run.steps, -run.log_risk, color=BLUE, marker=".")
    left.set(yscale="symlog", ylabel="ln(1/R)")
    right.plot(run.steps, 1.0 - run.accuracy, color=BLUE, marker=".")
    right.set(ylim=(0, None), ylabel="training error")
    for axes in (left, right):
        axes.set(xscale="symlog", xlabel="gradient steps")
    columns = {"steps": run.steps, "ln(1/R)": -run.log_risk, "training error": 1.0 - run.accuracy}
    tables.attach(figure, pd.DataFrame(columns))
    return figure
