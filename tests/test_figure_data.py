"""A figure's numbers are the frame that it was drawn from, or else those that were drawn."""

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from nbclient import NotebookClient

from latephase.figures import tables


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


def test_a_notebook_stores_the_numbers_beside_the_picture():
    cells = [
        "import matplotlib.pyplot as plt\n"
        "from matplotlib_inline.backend_inline import set_matplotlib_formats\n"
        "from latephase.figures import plots\n"
        "plots.style()\n"
        'set_matplotlib_formats("svg", "png")',
        "_, axes = plt.subplots()\naxes.plot([5.0, 6.0]);",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(notebook, kernel_name="python3").execute()
    data = notebook.cells[1].outputs[0]["data"]
    assert {"image/svg+xml", "image/png", tables.MIME} <= set(data)
    assert data[tables.MIME].splitlines()[1].endswith(",5")


def test_outside_a_notebook_nothing_is_offered():
    tables.offer()
