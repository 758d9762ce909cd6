"""The public names: their page says all of them, and their examples run."""

import ast
import doctest
import importlib
import inspect
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import latephase
import latephase.training.checkpoints
from latebook import library
from latebook.layout import Book
from latebook.notebooks import read
from latephase.zoo.tasks import separable_points
from tests.conftest import ROOT

NAMES = [name for name in latephase.__all__ if name != "__version__"]
HOMES = sorted({getattr(latephase, name).__module__ for name in NAMES})


@pytest.mark.parametrize("module", HOMES)
def test_the_examples_in_docstrings_run(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


@pytest.mark.parametrize("name", ["diagnose", "gradient_flow", "hard_margin", "homogeneity_degree"])
def test_every_function_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(latephase, name))


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return library.pages("latephase", "experiments")


def test_there_is_a_page_for_every_door_and_the_book_shows_it(pages):
    doors = {path.name for path in (ROOT / "lib" / "latephase").iterdir() if path.is_dir()}
    assert pages.keys() == {"front", "experiments", *doors - {"__pycache__"}}
    shown = [ROOT / "book" / "api.md", *(ROOT / "book" / "library").glob("*.md")]
    text = "".join(path.read_text(encoding="utf8") for path in shown)
    assert all(f"_generated/library/{name}.md" in text for name in pages)


def test_the_pages_have_every_name_that_a_chapter_imports(pages):
    text = "\n".join(pages.values())
    said = {name.rpartition(".")[2] for name in re.findall(r"py:\w+:: ([\w.]+)", text)}
    for chapter in Book(ROOT, "quick").chapters():
        for cell in read(ROOT / "book" / f"{chapter}.ipynb").cells:
            for node in ast.walk(ast.parse(cell.source if cell.is_code else "")):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in (
                    "latephase",
                    "experiments",
                ):
                    names = {alias.name for alias in node.names if not alias.name.isupper()}
                    assert names <= said, f"{chapter}: {names - said}"


def test_doors_take_a_task(tmp_path):
    task = separable_points(12, 3, seed=1)
    direction, margin = latephase.hard_margin(task)
    assert latephase.hard_margin(task.x, task.y)[1] == margin
    assert (latephase.hard_margin(task)[0] == direction).all()
    net = torch.nn.Linear(3, 1, bias=False)
    assert latephase.homogeneity_degree(net, task) == latephase.homogeneity_degree(net, task.x)
    settings = latephase.Settings(steps=3)
    run = latephase.train(net, task, settings, tmp_path / "run")
    assert latephase.training.checkpoints.read_run(tmp_path / "run") != run
    assert hash(run) == hash(run)
    assert "\n" not in repr(run)
    with pytest.raises(ValueError, match="one folder after a task"):
        latephase.train(net, task, settings, "a", "b")
    with pytest.raises(ValueError, match="expected Settings and a folder"):
        latephase.train(net, task, settings, settings)
    with pytest.raises(ValueError, match="y: expected numbers, got <U1"):
        latephase.diagnose(net, task.x, np.array(["a"] * 12))


def test_a_network_without_a_matrix_is_diagnosed_and_drawn():
    net = torch.nn.Module()
    net.w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    net.forward = lambda x: x @ net.w
    found = latephase.diagnose(net, separable_points(12, 3, seed=1))
    assert found.loss == "exponential"
    assert '"loss": "exponential"' in found.to_json()
    assert len(found.layers) == 0
    assert list(found.layers.drop(columns="shape"))
    plt.close(found.plot())


def test_the_front_page_has_the_names_with_their_signatures_and_methods(pages):
    for name in NAMES:
        assert f"## {name}\n" in pages["front"]
    signature = re.search(r"function:: gradient_flow\((.*)\) -> (.*)", pages["front"])
    assert "module: ~torch.nn.Module" in signature[1]
    assert "until: float = 1000000.0" in signature[1]
    assert signature[2].endswith("Trajectory")
    assert "py:method:: Trajectory.extend(until: float)" in pages["front"]
    # Where the name lives, after what stands there besides.
    assert "\n\n:py:obj:`gradient_flow <latephase.gradient_flow>`\n" in pages["flow"]
    assert "\n\n:py:obj:`NotSeparated <latephase.NotSeparated>`\n" in pages["flow"]


@pytest.mark.parametrize(
    ("docstring", "rst"),
    [
        ("See `max|p|` of W_k*.", ["See ``max|p|`` of W\\_k\\*."]),
        ("Two `Loss`es.", [r"Two :py:obj:`Loss <latephase.Loss>`\ es."]),
        (
            "Text:\nx: data\n    [n]\nRaises.",
            ["Text:", "", "**x**", "    data", "    [n]", "", "Raises."],
        ),
        ("x [n, d]   data", ["", "**x [n, d]**", "    data"]),
        ("z: no parameter", ["z: no parameter"]),
        ("An equation\n    a_1 = 2", ["An equation", "", "::", "", "    a_1 = 2"]),
        (">>> f(x_)\n[1]", [">>> f(x_)", "[1]"]),
    ],
)
def test_docstrings_of_the_house_become_restructured_text(docstring, rst):
    homes = {"Loss": "latephase.Loss"}
    assert library._as_rst(docstring.splitlines(), {"x"}, homes) == rst
