"""The stored chapters: clean, parameterized, described, and at one with the quick profile."""

import ast
import builtins
import os
import subprocess
import sys

import pytest
from papermill import inspect_notebook

from latebook import dressing, gate
from latebook.claims import PROFILES, load
from latebook.files import read_yaml
from latebook.layout import Book
from latebook.notebooks import read
from tests.conftest import ROOT

BOOK = Book(ROOT, "quick")
CHAPTERS = BOOK.chapters()


def test_every_notebook_of_the_book_is_in_its_contents():
    assert sorted(CHAPTERS) == sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_stored_clean_with_one_parameters_cell(chapter):
    assert gate.check_source(BOOK.source(chapter)) == []


def test_the_profiles_are_those_of_the_folder_and_of_no_other_chapter():
    assert sorted(PROFILES) == sorted(path.stem for path in (ROOT / "profiles").glob("*.yml"))
    for profile in PROFILES:
        assert set(read_yaml(ROOT / "profiles" / f"{profile}.yml")) == set(CHAPTERS), profile


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_sets_the_parameters_a_chapter_declares(chapter, profile):
    parameters = Book(ROOT, profile).parameters(chapter)
    assert gate.check_parameters(BOOK.source(chapter), parameters, profile) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_defaults_of_a_chapter_are_the_quick_profile(chapter):
    declared = inspect_notebook(str(BOOK.source(chapter)))
    defaults = {name: ast.literal_eval(spec["default"]) for name, spec in declared.items()}
    assert defaults == BOOK.parameters(chapter)


def test_no_two_figures_of_the_book_have_one_name():
    figures = [
        cell.content["metadata"]["mystnb"]["figure"]["name"]
        for chapter in CHAPTERS
        for cell in read(BOOK.source(chapter)).cells
        if "figure" in cell.content["metadata"].get("mystnb", {})
    ]
    assert len(figures) > 20
    assert [name for name in set(figures) if figures.count(name) > 1] == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_keeps_its_cells_short(chapter):
    """Short functions may be defined; classes live in the library."""
    for cell in read(BOOK.source(chapter)).cells:
        if cell.is_code:
            tree = ast.parse(cell.source)
            assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
            imports = any(isinstance(node, ast.ImportFrom) for node in tree.body)
            assert imports or len(cell.source.splitlines()) <= 20, cell.source


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_figure_has_a_name_a_caption_and_a_description(chapter):
    shown = [cell for cell in read(BOOK.source(chapter)).cells if "subplots(" in cell.source]
    assert shown
    for cell in shown:
        mystnb = cell.content["metadata"].get("mystnb", {})
        assert mystnb["figure"]["name"].startswith("fig-")
        assert len(mystnb["figure"]["caption"]) > 40
        assert len(mystnb["image"]["alt"]) > 40


def test_every_chapter_begins_with_one_and_the_same_cell_for_colab():
    first = [next(c for c in read(BOOK.source(name)).cells if c.is_code) for name in CHAPTERS]
    assert [cell.tags for cell in first] == [["colab", "remove-cell"]] * len(CHAPTERS)
    assert len({cell.source for cell in first}) == 1
    assert first[0].source.count(dressing.ADDRESS) == 1


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
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cell = next(cell for cell in read(BOOK.source(CHAPTERS[0])).cells if "colab" in cell.tags)
    source = cell.source.replace(dressing.ADDRESS, f'repository = "{address}"')
    exec(source, {})
    assert (commands, questions, os.getcwd()) == ([], [], str(tmp_path))

    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(source, {})
    exec(source, {})  # after a restart of the kernel, the checkout is there
    checkout = str(tmp_path / "latephase-book")
    assert len(questions) == (not address)
    cloned = ["git", "clone", "--depth=1", address or "https://github.com/someone/fork", checkout]
    install = [sys.executable, "-m", "pip", "install", "--quiet", checkout, "myst-nb", "pyyaml"]
    assert commands == [cloned, install, install]
    assert os.getcwd() == os.path.join(checkout, "book")


# Shows how to use the library, and claims nothing.
TUTORIAL = "your_network"


@pytest.mark.parametrize("chapter", [name for name in CHAPTERS if name != TUTORIAL])
def test_a_chapter_has_claims(chapter):
    assert any(claim.chapter == chapter for claim in load(BOOK.claims).values())
