"""What an executed chapter wears: origin and files of its figures, and its foot."""

import base64
import builtins
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from PIL import Image

from latebook import BookError, dressing, site, surroundings
from latebook.claims import MIME
from latebook.layout import Book
from latebook.notebooks import Notebook, read
from tests.conftest import ROOT


def clear_picture() -> bytes:
    """A PNG of two pixels, one clear, one black."""
    file = io.BytesIO()
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.save(file, "png")
    return file.getvalue()


PNG = clear_picture()


@pytest.fixture
def notebook():
    """A chapter with its parameters, a figure and a recorded claim."""
    figure = {"mystnb": {"figure": {"name": "fig-x", "caption": "See."}}, "tags": []}
    outputs = [
        {"image/svg+xml": ["<svg>", "</svg>"], "image/png": base64.b64encode(PNG).decode()},
        {"text/csv": "x,y\n1,2\n"},
    ]
    recorded = {MIME: {"id": "first/x"}, "text/plain": "first/x: 2e-07 <= 1 — theorem: confirmed"}
    cells = [
        {"cell_type": "code", "source": "a = 1", "metadata": {"tags": ["injected-parameters"]}},
        {
            "cell_type": "code",
            "source": "draw()",
            "metadata": figure,
            "outputs": [{"output_type": "display_data", "data": data} for data in outputs],
        },
        {
            "cell_type": "code",
            "source": "record()",
            "metadata": {},
            "outputs": [{"output_type": "display_data", "data": recorded}],
        },
    ]
    made_by = {"profile": "quick", "commit": "0123456789abcdef"}
    return Notebook({"cells": cells, "metadata": {"latephase": made_by}})


def test_a_figure_gets_its_origin_and_its_files(notebook, tmp_path):
    dressing.dress(notebook, "first", "foot\n", tmp_path)
    caption = notebook.cells[1].content["metadata"]["mystnb"]["figure"]["caption"]
    assert "code cell 1 of first.ipynb, profile quick" in caption
    assert "commit 0123456789" in caption
    for suffix, content in (("svg", b"<svg></svg>"), ("png", PNG), ("csv", b"x,y\n1,2\n")):
        assert (tmp_path / "figures" / f"fig-x.{suffix}").read_bytes() == content
        assert f"<_generated/figures/fig-x.{suffix}>" in caption


def test_a_picture_is_offered_on_white_too(notebook, tmp_path):
    dressing.dress(notebook, "first", "foot\n", tmp_path)
    with Image.open(tmp_path / "figures" / "fig-x-white.png") as picture:
        assert [picture.getpixel((k, 0)) for k in range(2)] == [(255,) * 3, (0,) * 3]
    caption = notebook.cells[1].content["metadata"]["mystnb"]["figure"]["caption"]
    assert "`PNG on white <_generated/figures/fig-x-white.png>`" in caption


def test_a_page_says_how_it_is_cited():
    made_by = {"date": "2026-11-28T12:00:00Z", "commit": "0123456789abcdef"}
    said = dressing.citation(Book(ROOT, "quick"), "alignment", "Alignment", made_by)
    assert "The latephase authors (2026), Alignment, in *Directional convergence, computed*" in said
    assert "commit 0123456789, profile *quick*" in said
    assert "@incollection{latephase-alignment,\n  author = {{The latephase authors}}," in said


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ({"GITHUB_REPOSITORY": "a/b"}, "https://github.com/a/b"),
        ({"GITHUB_REPOSITORY": "a/b", "GITHUB_SERVER_URL": "https://git.x"}, "https://git.x/a/b"),
        ({"CI_PROJECT_URL": "https://gitlab.com/a/b"}, "https://gitlab.com/a/b"),
        ({"READTHEDOCS_GIT_CLONE_URL": "https://github.com/a/b.git"}, "https://github.com/a/b"),
        (
            {"GITHUB_REPOSITORY": "a/b", "LATEPHASE_REPOSITORY": "https://x.y/c/d"},
            "https://x.y/c/d",
        ),
        ({}, None),
    ],
)
def test_a_fork_s_host_tells_its_address(monkeypatch, tmp_path, told, address):
    for name in [*os.environ]:
        if name != "PATH":
            monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    kept = dict(os.environ)
    try:
        surroundings.settle(tmp_path, 1)
        assert os.environ.get("LATEPHASE_REPOSITORY") == address
    finally:
        os.environ.clear()
        os.environ |= kept


def test_pages_on_github_have_a_home():
    assert site._home("https://github.com/Some-One/book") == "https://some-one.github.io/book/"
    assert site._home("https://gitlab.com/a/b") == site._home("") == ""


def test_what_cannot_be_shown_is_taken_out(notebook, tmp_path):
    dressing.dress(notebook, "first", "foot\n", tmp_path)
    shown = json.dumps([cell.outputs for cell in notebook.cells])
    assert MIME not in shown
    assert "text/csv" not in shown
    assert "remove-cell" in notebook.cells[0].tags
    assert notebook.cells[-1].source == "foot\n"


def test_code_is_numbered_as_in_the_stored_notebook(notebook, tmp_path):
    dressing.dress(notebook, "first", "foot\n", tmp_path)
    tags = [cell.tags for cell in notebook.cells]
    assert tags == [["injected-parameters", "remove-cell"], ["code-cell-1"], ["code-cell-2"], []]


def test_what_was_recorded_leads_to_the_table_of_claims(notebook, tmp_path):
    dressing.dress(notebook, "first", "foot\n", tmp_path)
    (output,) = notebook.cells[2].outputs
    to = '<a href="all_claims.html#claim-first-x"><code>first/x</code></a>'
    assert f"<li>{to}: 2e-07 ≤ 1 — theorem: confirmed</li>" in output["data"]["text/html"]


def test_many_numbers_are_offered_compressed(notebook, tmp_path):
    numbers = "x,y\n" + "1,2\n" * 100_000
    notebook.cells[1].outputs[1]["data"]["text/csv"] = numbers
    dressing.dress(notebook, "first", "foot\n", tmp_path)
    caption = notebook.cells[1].content["metadata"]["mystnb"]["figure"]["caption"]
    assert "`numbers, compressed <_generated/figures/fig-x.csv.gz>`" in caption
    assert len(pd.read_csv(tmp_path / "figures" / "fig-x.csv.gz")) == 100_000
    assert not (tmp_path / "figures" / "fig-x.csv").exists()


@pytest.mark.parametrize("address", ["", "https://github.com/someone/latephase"])
def test_the_foot_offers_both_notebooks_and_a_sweep(tmp_path, notebook, address):
    executed = tmp_path / "executed.ipynb"
    executed.write_text(json.dumps(notebook.content | {"nbformat": 4}))

    class Here(Book):
        def executed(self, chapter):
            return executed

    here = Here(ROOT, "quick")
    foot = dressing.notebooks_to_take(here, "alignment", tmp_path, address)
    assert '-y "seeds: [7, 8, 9, 10, 11]"' in foot
    assert "for s in 7 8 9; do" in foot
    stored, run = (
        read(tmp_path / "notebooks" / f"alignment{end}.ipynb") for end in ("", "-executed")
    )
    for taken in (stored, run):
        first = next(cell for cell in taken.cells if cell.is_code)
        assert first.tags == ["colab"]
        assert f'repository = "{address}"\n' in first.source
    nbformat.validate(nbformat.from_dict(stored.content))
    stored.content["cells"].remove(next(c.content for c in stored.cells if c.is_code))
    assert stored.content == read(here.source("alignment")).content
    # What the page offers anyway is left out.
    kinds = [set(output["data"]) for output in run.outputs]
    assert kinds == [{"image/svg+xml"}, set(), {MIME, "text/plain"}]


@pytest.mark.parametrize("address", ["", "https://github.com/someone/latephase"])
def test_the_cell_for_colab_fetches_the_book_on_colab_and_does_nothing_elsewhere(
    monkeypatch, tmp_path, address
):
    commands, questions = [], []

    def run(command, check):
        commands.append(command)
        if command[0] == "git":
            os.makedirs(os.path.join(command[-1], "book"))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(builtins, "input", lambda text: questions.append(text) or "someone/fork")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = dressing.COLAB.replace(dressing.ADDRESS, f'repository = "{address}"')
    exec(source, {})
    assert (commands, questions, os.getcwd()) == ([], [], str(tmp_path))

    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(source, {})
    exec(source, {})  # after a restart of the kernel, the checkout is there
    checkout = str(tmp_path / "latephase-book")
    assert len(questions) == (not address)
    cloned = ["git", "clone", "--depth=1", address or "https://github.com/someone/fork", checkout]
    packages = [f"{checkout}[plot,images]", "myst-nb", "pyyaml"]
    install = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
    assert commands == [cloned, install, install]
    assert os.getcwd() == os.path.join(checkout, "book")
    assert os.path.join(checkout, "lib") in sys.path


@pytest.mark.parametrize("page", ["README.md", "book/reproducibility.md"])
def test_a_printed_command_hands_papermill_a_list_of_seeds(page):
    """As the command line of papermill understands it, which takes a list after -p for text."""
    text = (ROOT / page).read_text(encoding="utf8")
    commands = [shlex.split(line) for line in text.splitlines() if "bin/papermill " in line]
    assert commands
    for words in commands:
        start = next(k for k, word in enumerate(words) if word.endswith("papermill"))
        options = [word.rstrip(";").replace("$s", "7") for word in words[start + 1 : start + 5]]
        source, _, *parameters = options
        assert Path(ROOT, source).is_file()
        assert parameters[0] == "-y"
        (seeds,) = yaml.safe_load(parameters[1]).values()
        assert all(isinstance(seed, int) for seed in seeds)


def test_buttons_need_an_address(monkeypatch):
    path = ROOT / "_config.yml"
    monkeypatch.delenv("LATEPHASE_REPOSITORY", raising=False)
    config = yaml.safe_load(site._config(path, "full"))
    assert "profile <em>full</em>" in config["html"].pop("extra_footer")
    assert config == yaml.safe_load(path.read_text(encoding="utf8"))
    monkeypatch.setenv("LATEPHASE_REPOSITORY", "https://github.com/someone/latephase")
    assert "binderhub_url" in site._config(path, "quick")
    monkeypatch.setenv("LATEPHASE_REPOSITORY", "someone/latephase")
    with pytest.raises(BookError, match="expected https://HOST/OWNER/NAME"):
        site._config(path, "quick")
