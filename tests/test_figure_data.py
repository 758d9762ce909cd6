"""A figure's numbers are the frame that it was drawn from, or else those that were drawn."""

from base64 import b64decode

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.collections import LineCollection
from nbclient import NotebookClient

from latephase.figures import slider, style, tables


@pytest.fixture
def axes():
    _, axes = plt.subplots()
    yield axes
    plt.close("all")


def test_lines_and_points_by_their_labels(axes):
    axes.plot([1.0, 2.0], [3.0, 4.0], label="first")
    axes.plot([5.0], [6.0])
    axes.scatter([7.0, 8.0], [9.0, 10.0], label="dots")
    axes.set_title("a panel")
    rows = tables.table(axes.figure)
    first = rows[rows.series == "first"]
    assert first[["x", "y"]].to_numpy().tolist() == [[1, 3], [2, 4]]
    assert rows[(rows.kind == "line") & (rows.series == "1")].y.tolist() == [6]
    assert rows[rows.series == "dots"].x.tolist() == [7, 8]
    assert set(rows.title) == {"a panel"}
    assert "value" not in rows


def test_images_bars_and_paths(axes):
    axes.imshow([[1.0, 2.0]], extent=(0, 2, 0, 1), origin="lower")
    axes.bar([0, 1], [3.0, 4.0])
    axes.add_collection(LineCollection([[(0, 0), (1, 5)]]))
    rows = tables.table(axes.figure)
    image = rows[rows.kind == "image"]
    assert image[["x", "y", "value"]].to_numpy().tolist() == [[0.5, 0.5, 1], [1.5, 0.5, 2]]
    assert rows[rows.kind == "bar"].value.tolist() == [3, 4]
    assert rows[rows.kind == "path"].y.tolist() == [0, 5]


def test_an_image_from_the_top_is_turned(axes):
    axes.imshow([[1.0], [2.0]], extent=(0, 1, 0, 2), origin="upper")
    rows = tables.table(axes.figure)
    assert dict(zip(rows.value, rows.y, strict=True)) == {1.0: 1.5, 2.0: 0.5}


def test_a_colour_bar_is_left_out(axes):
    axes.figure.colorbar(axes.scatter([6], [7], c=[1.0]))
    assert set(tables.table(axes.figure).panel) == {0}


def test_the_text_is_read_back(axes, tmp_path):
    axes.plot([1.0, 2.0], [1 / 3, 1e-30], label="a, b")
    (tmp_path / "figure.csv").write_text(tables.as_csv(axes.figure))
    rows = pd.read_csv(tmp_path / "figure.csv")
    np.testing.assert_allclose(rows.y, [1 / 3, 1e-30], rtol=1e-6)
    assert set(rows.series) == {"a, b"}


def test_an_empty_figure_has_an_empty_table():
    assert len(tables.table(plt.figure())) == 0
    plt.close("all")


ALPHA = "smoothed margin α"


@pytest.fixture
def frame():
    """Two models, two seeds, with numbers that six digits would not hold."""
    alpha = np.logspace(0, 12, 7)
    parts = [
        pd.DataFrame({"model": model, "seed": seed, ALPHA: alpha, "angle (rad)": alpha**-power / 3})
        for power, model in enumerate(["linear", "deep linear"], 1)
        for seed in (10, 11)
    ]
    return pd.concat(parts, ignore_index=True)


def drawn(axes) -> list:
    return [(line.get_xydata(), line.get_color(), line.get_marker()) for line in axes.lines]


def test_a_figure_s_table_is_the_very_frame_that_rides_with_it(axes, frame):
    sns.lineplot(frame, x=ALPHA, y="angle (rad)", units="seed", **style.BY_MODEL, ax=axes)
    tables.attach(axes, frame)
    pd.testing.assert_frame_equal(tables.table(axes.figure), frame)
    frame["seed"] = 0  # a later change of the chapter's frame is none of the figure's
    assert set(tables.table(axes.figure).seed) == {10, 11}


def test_a_frame_attached_to_a_grid_is_that_of_its_figure(frame):
    style.apply()  # no warning, though the grid takes the place of the style's layout
    grid = sns.relplot(frame, x=ALPHA, y="angle (rad)", col="model", kind="line")
    tables.attach(grid, frame)
    pd.testing.assert_frame_equal(tables.table(grid.figure), frame)
    plt.close("all")


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (lambda frame: frame.iloc[:0], "expected rows"),
        (lambda frame: frame.rename(columns={ALPHA: "seed"}), "distinct"),
        (lambda frame: frame.rename(columns={ALPHA: 3}), "named in words"),
        (lambda frame: frame.rename(columns={ALPHA: "12"}), "named in words"),
        (lambda frame: frame.set_index("seed"), "would be lost"),
    ],
)
def test_a_frame_that_makes_no_table_is_refused(axes, frame, spoilt, words):
    with pytest.raises(ValueError, match=words):
        tables.attach(axes, spoilt(frame))


def by_model(frame, axes):
    sns.lineplot(frame, x=ALPHA, y="angle (rad)", units="seed", **style.BY_MODEL, ax=axes)


def by_share(frame, axes):
    sns.ecdfplot(frame, x="angle (rad)", hue="model", ax=axes)


def by_dots(frame, axes):
    sns.scatterplot(frame, x=ALPHA, y="angle (rad)", style="seed", ax=axes)


@pytest.mark.parametrize("draw", [by_model, by_share, by_dots])
def test_a_download_is_all_that_it_takes_to_draw_the_figure_again(frame, draw, tmp_path):
    _, (first, again) = plt.subplots(1, 2)
    draw(frame, first)
    tables.attach(first, frame)
    (tmp_path / "figure.csv").write_text(tables.as_csv(first.figure), encoding="utf8")
    draw(pd.read_csv(tmp_path / "figure.csv"), again)
    for one, other in zip(drawn(first), drawn(again), strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-7)  # eight digits are kept
        assert one[1:] == other[1:]
    for one, other in zip(first.collections, again.collections, strict=True):
        np.testing.assert_allclose(one.get_offsets(), other.get_offsets(), rtol=1e-7)
    plt.close("all")


def test_a_slider_keeps_the_frames_of_its_figures(frame):
    figures = [plt.figure() for _ in range(2)]
    for figure, (_, part) in zip(figures, frame.groupby("model"), strict=True):
        tables.attach(figure, part)
    numbers = slider.frames(figures, ["a", "b"], "x", "fig-x", "a picture").numbers
    assert numbers.splitlines()[0] == f"frame,model,seed,{ALPHA},angle (rad)"
    assert numbers.count("\na,deep linear,") == numbers.count("\nb,linear,") == 14


def test_a_notebook_stores_the_numbers_beside_the_picture():
    cells = [
        "import matplotlib.pyplot as plt\n"
        "import pandas as pd\n"
        "from latephase.figures import style, tables\n"
        "style.apply()",
        "_, axes = plt.subplots()\naxes.plot([5.0, 6.0]);",
        "figure, axes = plt.subplots()\n"
        'tables.attach(axes, pd.DataFrame({"angle (rad)": [0.5, 0.25]}))',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(notebook, kernel_name="python3").execute()
    output = notebook.cells[1].outputs[0]
    data, width = output["data"], output["metadata"]["image/png"]["width"]
    drawn = int.from_bytes(b64decode(data["image/png"])[16:20])
    assert drawn == 2 * width, "the PNG has two dots for each of the page"
    assert {"image/svg+xml", "image/png", tables.MIME} <= set(data)
    assert data[tables.MIME].splitlines()[1].endswith(",5")
    attached = notebook.cells[2].outputs[0]["data"][tables.MIME]
    assert attached.splitlines() == ["angle (rad)", "0.5", "0.25"]


def test_outside_a_notebook_nothing_is_offered():
    tables.offer()
