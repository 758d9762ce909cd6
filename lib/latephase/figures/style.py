"""One look for all figures: colours for a light and a dark page, and each model's own."""

import warnings

import numpy as np
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatter,
    LogFormatterSciNotation,
    NullFormatter,
)

from latephase.figures import tables

# One file serves the light and the dark page: the background is transparent, and of all greys
# this one keeps the same contrast, 4.2, to white and to the dark theme's #14181e. Text is large.
GREY = "#7b7b7b"
BLUE, ORANGE, GREEN, VERMILION, PINK = sns.color_palette("colorblind").as_hex()[:5]
# From blue (early) to orange (late) at middling lightness: told apart in every common form of
# colour blindness, and neither end vanishes on a light or a dark page.
LATE = LinearSegmentedColormap.from_list("late", ["#2f7fbf", "#8d79a8", "#e0861a"])
# Classes and predictions: blue negative, orange positive, nothing in between.
SIGN = LinearSegmentedColormap.from_list("sign", ["#2f7fbf", "#2f7fbf00", "#e0861a00", "#e0861a"])
# Pictures: from the page itself to grey.
SHADE = LinearSegmentedColormap.from_list("shade", [GREY + "00", GREY])

# A model looks the same in every chapter: colour, dashes (on, off, ...; "" is solid), marker. The
# colours keep a contrast of 3 to both pages. Colour-blind readers see no ten colours, so that no
# two models share dashes or marker either.
MODELS = {
    "linear": (BLUE, "", "o"),
    "deep linear": (GREEN, (6, 2), "s"),
    "squared ReLU": (VERMILION, (3, 1.5), "^"),
    "squared ReLU, fixed signs": (PINK, (1.3, 1.3), "D"),
    "squared ReLU, biases": ("#8d79a8", (9, 2, 3, 2), "<"),
    "convolutional": ("#c27c0e", (6, 1.5, 1.3, 1.5), "v"),
    "two-layer ReLU": ("#2f9bd6", (6, 1.5, 1.3, 1.5, 1.3, 1.5), "P"),
    "three-layer ReLU": ("#9c6b3f", (3, 1, 1, 1), "X"),
    "max-pooling ReLU": ("#5f8f3a", (12, 2, 1.3, 2), "h"),
    "Mexican hat": ("#b05fd0", (12, 3), ">"),
    "control": (GREY, (1, 3), "d"),
}
# What seaborn's lineplot takes for a frame with a column "model".
BY_MODEL = {
    "hue": "model",
    "style": "model",
    "palette": {name: colour for name, (colour, _, _) in MODELS.items()},
    "dashes": {name: dashes for name, (_, dashes, _) in MODELS.items()},
    "markers": {name: marker for name, (_, _, marker) in MODELS.items()},
    # A line for each run in the order of its records, a marker in each fifth of the way.
    "estimator": None,
    "sort": False,
    "markevery": 0.2,
    "markersize": 5,
    "markeredgewidth": 0,
}
# What its plots of dots take.
DOTS_BY_MODEL = {key: BY_MODEL[key] for key in ("hue", "style", "palette", "markers")}
# A colour and dashes of each network of the recorded runs.
NETWORKS = {
    "H-AlexNet": (VERMILION, ""),
    "DenseNet": (BLUE, (6, 2)),
    "ResNet": (GREEN, (3, 1.5)),
    "with biases": (PINK, (1.3, 1.3)),
    "bare ResNet": (ORANGE, (9, 2, 3, 2)),
    "bare DenseNet": (GREY, (6, 1.5, 1.3, 1.5)),
}
# What seaborn's lineplot takes for a frame with columns "network" and "run".
BY_NETWORK = {
    "hue": "network",
    "style": "network",
    "hue_order": [*NETWORKS],
    "style_order": [*NETWORKS],
    "palette": {name: colour for name, (colour, _) in NETWORKS.items()},
    "dashes": {name: dashes for name, (_, dashes) in NETWORKS.items()},
    "units": "run",
    "estimator": None,
}
# Smoothed margins at which others stop: e^-745 is the last number above zero of float64.
STOPS = {10.0: "training usually stops", 745.0: "float64 ends"}


def by_alpha(lowest: float, highest: float) -> dict:
    """Return what seaborn's functions take to colour by α, from blue to orange between the two."""
    return {"hue": "smoothed margin α", "palette": LATE, "hue_norm": LogNorm(lowest, highest)}


class _OnceLayout(ConstrainedLayoutEngine):
    def execute(self, fig: Figure) -> None:
        for axes in fig.axes:
            for axis in (axes.xaxis, axes.yaxis):
                _thin(axis)
        # Axes of equal aspect have their size from the first pass, and their titles' room from
        # the second.
        super().execute(fig)
        if any(axes.get_aspect() != "auto" for axes in fig.axes):
            super().execute(fig)
        fig.set_layout_engine("none")


def _thin(axis: Axis) -> None:
    """Beside the powers of ten name 2 and 5 where few of these are seen, else none.

    All digits would touch each other.
    """
    if axis.get_scale() != "log" or not isinstance(axis.get_minor_formatter(), LogFormatter):
        return
    low, high = np.sort(axis.get_view_interval())
    every = LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf))

    def named(value: float, place: int) -> str:
        return (
            every(value, place) if round(value / 10 ** np.floor(np.log10(value))) in (2, 5) else ""
        )

    every.set_locs(axis.get_minorticklocs())
    powers = np.floor(np.log10(high)) - np.ceil(np.log10(low)) + 1
    few = powers < 2 or high < 20 * low
    axis.set_minor_formatter(FuncFormatter(named) if few else NullFormatter())


def lay_out_once(figure: Figure) -> None:
    """Have a figure's parts placed when it is first drawn, and not again for each further format.

    Finding the places takes as long as drawing.
    """
    if figure.get_layout_engine() is None:
        figure.set_layout_engine(_OnceLayout())


def apply() -> None:
    """Set the style of all figures of the book; called once, in a chapter's first cell.

    From then on the notebook stores the numbers of each figure beside it.
    """
    tables.offer()
    # A grid of seaborn's places its own parts, which is as wanted.
    warnings.filterwarnings("ignore", "The figure layout has changed", module="seaborn")
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            **dict.fromkeys(
                ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor",
                 "xtick.color", "ytick.color"), GREY),
            **dict.fromkeys(
                ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"),
                "none"),
            "font.size": 12,
            "axes.titlesize": 12,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.hooks": ["latephase.figures.style:lay_out_once"],
            "legend.frameon": False,
            # Text stays text in SVG: smaller, searchable, and read aloud.
            "svg.fonttype": "none",
        },
    )  # fmt: skip
