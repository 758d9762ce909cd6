"""Figures draw what they are given, label their axes and leave both kinds of page readable."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from latephase import figures

ALPHA = np.array([30.0, 80.0, 220.0])


@pytest.fixture
def ax():
    figures.style()
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()
    plt.close(figure)


def luminance(colour) -> float:
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_on_light_and_dark_pages(ax):
    # 4 is between the accessibility guideline's 3 for large and 4.5 for small text; one grey
    # cannot have 4.5 on both. #121212 is the theme's dark page.
    assert contrast(figures.INK, "white") > 4
    assert contrast(figures.INK, "#121212") > 4
    assert ax.get_facecolor()[3] == 0.0
    assert ax.figure.get_facecolor()[3] == 0.0


def test_lines_stand_out_on_light_and_dark_pages():
    # 1.9 is the contrast of the palest, sky blue and orange, on white; labels tell lines apart too.
    for colour in figures.COLOURS:
        assert contrast(colour, "white") > 1.9
        assert contrast(colour, "#121212") > 3


def test_a_path_is_drawn_through_its_points(ax):
    points = np.array([[0.0, 0.0], [1.0, 2.0], [1.5, 2.5]])
    path = figures.direction_path(ax, points, ALPHA)
    np.testing.assert_array_equal(path.get_segments(), np.stack([points[:-1], points[1:]], axis=1))
    np.testing.assert_array_equal(path.get_array(), ALPHA[1:])
    assert "W/\\|W\\|" in ax.get_xlabel()


def test_margins_are_drawn_sorted_one_line_a_checkpoint(ax):
    margins = np.array([[0.3, 0.1], [0.25, 0.2], [0.24, 0.22]])
    figures.margin_distributions(ax, margins, ALPHA)
    lines = ax.get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), [0.1, 0.3])
    assert len(lines) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()][0] == "$\\alpha$ = 30"


def test_a_surface_shows_its_points_and_zero_line(ax):
    grid = np.linspace(-1, 1, 5)
    values = np.add.outer(grid, grid)
    points, labels = np.array([[0.5, 0.5], [-0.5, -0.5]]), np.array([1, -1])
    figures.prediction_surface(ax, grid, values, points, labels)
    drawn = [c.get_offsets() for c in ax.collections if len(c.get_offsets())]
    assert any(np.allclose(offsets, [[0.5, 0.5]]) for offsets in drawn)


@pytest.mark.parametrize("scale", ["x", "y"])
def test_series_have_logarithmic_axes_and_labels_in_words(ax, scale):
    if scale == "x":
        figures.normalized_margins(ax, ALPHA, np.array([0.1, 0.2, 0.25]), "seed 0")
        assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "smoothed margin $\\alpha$")
    else:
        figures.per_efold(ax, np.array([0.3, 0.2]), "length in radians", "seed 0")
        assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "length in radians")
        np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [1, 2])
