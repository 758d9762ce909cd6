"""Figures draw what they are given, label their axes and leave both kinds of page readable."""

import io
from itertools import combinations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.layout_engine import ConstrainedLayoutEngine

from latephase.figures import plots, style


@pytest.fixture
def axes():
    plots.style()
    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()
    plt.close(figure)


def luminance(colour) -> float:
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


# The accessibility guideline asks for 3 with large text and graphics; one grey cannot have the
# 4.5 for small text on both pages. #14181e is the theme's dark page.
@pytest.mark.parametrize("page", ["#ffffff", "#14181e"])
@pytest.mark.parametrize("ink", [style.GREY, *(style.LATE(t) for t in (0.0, 0.5))])
def test_text_and_lines_stand_out_on_both_pages(ink, page):
    assert contrast(ink, page) > 3


@pytest.mark.parametrize("page", ["#ffffff", "#14181e"])
@pytest.mark.parametrize("model", style.MODELS)
def test_a_model_stands_out_on_both_pages(model, page):
    assert contrast(style.MODELS[model][0], page) > 3


def test_without_colours_dashes_and_markers_tell_models_apart():
    for one, other in combinations(style.MODELS.values(), 2):
        assert one[1] != other[1]
        assert one[2] != other[2]


# Viénot, Brettel and Mollon 1999: what is left of linear red, green and blue without the cones
# for green, that is in deuteranopia.
DEUTERANOPIA = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])


def test_deuteranopia_leaves_the_ends_of_the_colours_of_alpha_apart():
    ends = np.array([matplotlib.colors.to_rgb(style.LATE(t)) for t in (0.0, 1.0)]) ** 2.2
    seen = np.clip(ends @ DEUTERANOPIA.T, 0, 1) ** (1 / 2.2)
    # Half of the way from black to white, in the numbers that a screen is given.
    assert np.abs(seen[0] - seen[1]).max() > 0.5


def test_a_line_by_model_has_its_look(axes):
    names = list(style.MODELS)
    frame = pd.DataFrame({"model": names * 2, "seed": 0, "x": [0] * len(names) + [1] * len(names)})
    frame["y"] = np.arange(len(frame))
    sns.lineplot(frame, x="x", y="y", units="seed", **style.BY_MODEL, ax=axes)
    handles = axes.get_legend().legend_handles
    for handle, (colour, _, marker) in zip(handles, style.MODELS.values(), strict=True):
        assert matplotlib.colors.to_hex(handle.get_color()) == matplotlib.colors.to_hex(colour)
        assert handle.get_marker() == marker
    assert (
        len(
            {
                line.get_dash_pattern()
                if hasattr(line, "get_dash_pattern")
                else str(line._unscaled_dash_pattern)
                for line in axes.get_lines()[: len(names)]
            }
        )
        > 8
    )


def test_a_line_by_model_keeps_the_order_of_its_records(axes):
    frame = pd.DataFrame({"model": "linear", "seed": 0, "x": [0, 2, 1], "y": [0, 1, 2]})
    sns.lineplot(frame, x="x", y="y", units="seed", **style.BY_MODEL, ax=axes)
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [2, 1], [1, 2]]


def test_a_way_in_comes_to_the_middle_in_decades_of_its_distance():
    axes = plt.subplot(projection="polar")
    distance = np.array([1.0, 1e-3, 1e-6, 1e-15])
    plots.approach(axes, np.array([0.0, 3.0, -3.0, 0.0]), distance, np.array([1.0, 10, 100, 1e3]))
    (path,) = (c for c in axes.collections if isinstance(c, LineCollection))
    ends = [(one[0], one[-1]) for one in path.get_segments()]
    # Angles go on where they pass π; what lies below the floor is left out.
    np.testing.assert_allclose(ends, [[[0, 12], [3, 9]], [[3, 9], [2 * np.pi - 3, 6]]])
    np.testing.assert_array_equal(path.get_array(), [10, 100])
    plt.close("all")


def test_the_background_is_clear(axes):
    assert axes.get_facecolor()[3] == 0.0
    assert axes.figure.get_facecolor()[3] == 0.0


def test_a_surface_shows_its_outputs_points_and_boundary(axes):
    a, b = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    points, labels = np.array([[0.5, 0.25], [-0.5, -0.25]]), np.array([1, -1])
    plots.prediction_surface(axes, (a, b), 2.0 * (a + b), points, labels)
    (image,) = axes.get_images()
    np.testing.assert_allclose(image.get_array(), (a + b) / 2.0)
    assert image.origin == "lower"  # row 0 is the smallest b
    scattered = [c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 1]
    assert any(np.array_equal(offsets, [[0.5, 0.25]]) for offsets in scattered)


def test_a_rate_line_has_its_slope(axes):
    plots.rate_line(axes, np.array([3.0, 30.0]), 0.5, -1.0, "slope")
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [0.5, 0.05])


def test_stops_are_marked_by_name(axes):
    axes.set(xscale="log", xlim=(1, 1e12))
    plots.mark_stops(axes)
    words = [text.get_text().strip() for text in axes.texts]
    assert words == ["training usually stops", "float64 ends", "the limit →"]
    assert [line.get_xdata()[0] for line in axes.lines] == [10.0, 745.0]


def test_a_globe_shows_its_front_and_veils_its_back(axes):
    plots.globe(axes)
    # The point nearest to the viewer lies in the middle, the opposite one behind it.
    near = np.array([0.0, -np.cos(plots.ELEVATION), np.sin(plots.ELEVATION)])
    for point, alpha in ((near, 1.0), (-near, 0.3)):
        plots.globe_path(axes, np.stack([point, point]))
        front, back = axes.lines[-2:]
        shown = front if alpha == 1.0 else back
        np.testing.assert_allclose(shown.get_xydata(), 0.0, atol=1e-15)
        assert shown.get_alpha() == alpha
        assert np.isnan((back if shown is front else front).get_xydata()).all()


def test_a_globe_s_path_is_coloured_by_its_values(axes):
    angles = np.linspace(0, 2 * np.pi, 9)
    equator = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1)
    path = plots.globe_path(axes, equator, np.arange(9.0))
    assert isinstance(path, LineCollection)
    assert path.get_clim() == (0.0, 8.0)
    both = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert sum(len(c.get_segments()) for c in both) == 8


def test_a_globe_s_view_is_what_its_paths_are_drawn_over(axes):
    points = plots.globe_view(5)
    seen = ~np.isnan(points[..., 0])
    assert seen.sum() == 13  # of 5 × 5 points of the square, those in the disc
    np.testing.assert_allclose(np.linalg.norm(points[seen], axis=1), 1.0, atol=1e-15)
    plots.globe_path(axes, points[seen])
    flat = np.linspace(-1, 1, 5)
    expected = np.stack(np.meshgrid(flat, flat), axis=-1)[seen]
    drawn = np.where(np.isnan(axes.lines[0].get_xydata()), axes.lines[1].get_xydata(), expected)
    np.testing.assert_allclose(drawn, expected, atol=1e-15)
    plots.globe_image(axes, points[..., 2])
    (image,) = axes.images
    assert image.get_extent() == [-1, 1, -1, 1]


def test_masses_are_rays_outwards_and_the_program_open_circles(axes):
    angles, none = np.array([0.0, np.pi / 2]), np.zeros(2)
    masses, program = np.array([[0.25, 0.0], none]), np.array([none, [0.0, 0.125]])
    points, labels = np.array([[0.5, 0.0], [0.0, 0.5]]), np.array([1, -1])
    plots.circle_of_neurons(axes, angles, masses, program, points, labels)
    drawn = [c for c in axes.collections if isinstance(c, LineCollection)]
    segments = [segment for c in drawn for segment in c.get_segments()]
    np.testing.assert_allclose(segments, [[[1.0, 0.0], [2.0, 0.0]]])
    hollow = [
        c for c in axes.collections if not isinstance(c, LineCollection) and c.get_sizes() > 80
    ]
    ends = np.concatenate([c.get_offsets() for c in hollow])
    np.testing.assert_allclose(ends, [[0.0, 1.5]], atol=1e-15)


def test_misalignments_share_one_alpha_or_have_their_own(axes):
    runs = [np.array([0.1, 0.01]), np.array([0.2, 0.02])]
    plots.misalignment(axes, np.array([1.0, 10.0]), runs, "shared")
    plots.misalignment(axes, [np.array([2.0, 3.0]), np.array([4.0, 5.0])], runs, "own")
    starts = [line.get_xdata()[0] for line in axes.get_lines()]
    assert starts == [1.0, 1.0, 2.0, 4.0]
    assert axes.get_legend_handles_labels()[1] == ["shared", "own"]
    assert axes.get_yscale() == "log"


def test_an_image_stands_above_its_saliency_map():
    figure, (top, bottom) = plt.subplots(2)
    image, saliency = np.eye(3), np.diag([1.0, -2.0, 0.5])
    plots.image_and_saliency(top, bottom, image, saliency, 2.0)
    np.testing.assert_array_equal(top.get_images()[0].get_array(), image)
    np.testing.assert_array_equal(bottom.get_images()[0].get_array(), saliency)
    assert bottom.get_images()[0].get_clim() == (-2.0, 2.0)
    plt.close(figure)


def test_titles_over_axes_of_equal_aspect_stay_in_the_picture():
    with plt.rc_context():
        plots.style()
        figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.7), width_ratios=(1, 1, 1.25))
        for axes in panels[:2]:
            axes.set(
                aspect="equal", xticks=[], yticks=[], xlim=(-2, 2), ylim=(-2, 2), title="α = 1.9"
            )
        panels[2].loglog([1, 1e30], [1, 1e-8])
        panels[2].set(xlabel="smoothed margin α", ylabel="share")
        figure.canvas.draw()
        for axes in panels[:2]:
            assert axes.title.get_window_extent().y1 <= figure.bbox.height
    plt.close(figure)


@pytest.mark.parametrize("span", [(0.02, 0.09), (0.005, 0.4), (0.3, 8.0), (1.0, 1e30)])
def test_names_of_ticks_within_a_decade_do_not_touch(span):
    with plt.rc_context():
        plots.style()
        figure, axes = plt.subplots(figsize=(4, 3))
        axes.loglog(span, span)
        figure.canvas.draw()
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            boxes = [t.label1.get_window_extent() for t in ticks if t.label1.get_text()]
            low, high = axis.get_view_interval()
            seen = [t for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()]
            assert len(seen) >= 1 + (span[1] < 1e3)
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    plt.close(figure)


def test_a_figure_is_laid_out_once_for_all_its_formats(monkeypatch):
    placed = []
    place = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine, "execute", lambda *a: (placed.append(1), place(*a))[1]
    )
    with plt.rc_context():
        plots.style()
        figure, axes = plt.subplots()
        axes.set(xlabel="a long label\nof two lines")
        for kind in ("svg", "png"):
            figure.savefig(io.BytesIO(), format=kind)
        kept = plt.figure(layout="tight")
        assert not isinstance(kept.get_layout_engine(), ConstrainedLayoutEngine)
    assert len(placed) == 1
    assert axes.get_position().y0 > 0.12, "the label was not given its room"
    plt.close("all")
