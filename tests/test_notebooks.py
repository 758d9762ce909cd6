"""The stored chapters: clean, parameterized, described, and at one with the quick profile."""

import ast

import pytest
from papermill import inspect_notebook

from latebook import gate
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
    assert shown, f"{chapter}.ipynb: expected a figure, made by plt.subplots"
    for cell in shown:
        mystnb = cell.content["metadata"].get("mystnb", {})
        assert mystnb["figure"]["name"].startswith("fig-")
        assert len(mystnb["figure"]["caption"]) > 40
        assert len(mystnb["image"]["alt"]) > 40


# Shows how to use the library, and claims nothing.
TUTORIAL = "your_network"


@pytest.mark.parametrize("chapter", [name for name in CHAPTERS if name != TUTORIAL])
def test_a_chapter_has_claims(chapter):
    found = [claim.id for claim in load(BOOK.claims).values() if claim.chapter == chapter]
    assert found, f"{chapter}: expected a row in book/claims.yml with this chapter"
