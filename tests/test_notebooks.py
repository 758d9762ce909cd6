"""The stored chapters: clean, parameterized, described, and at one with the quick profile."""

import ast
import re
import statistics

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


def names_bound(tree: ast.Module) -> set[str]:
    """The names that a cell leaves behind: not those inside of functions and comprehensions."""
    scopes = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp)
    bound, rest = set(), list(ast.iter_child_nodes(tree))
    while rest:
        node = rest.pop()
        if isinstance(node, ast.FunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        if not isinstance(node, (*scopes, ast.GeneratorExp)):
            rest += ast.iter_child_nodes(node)
    return bound


def test_names_inside_of_functions_and_comprehensions_are_not_left_behind():
    source = "import a.b as c, d.e\nf = [g for g in c]\nfor h, i in f:\n    j = h\n"
    source += "def k(l):\n    m = lambda n: n\n"
    assert names_bound(ast.parse(source)) == {*"cdfhijk"}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_short_cells_and_few_names(chapter):
    cells = [cell for cell in read(BOOK.source(chapter)).cells if cell.is_code]
    trees = [ast.parse(cell.source) for cell in cells if "colab" not in cell.tags]
    assert statistics.median(len(cell.source.splitlines()) for cell in cells) <= 10
    assert len(set().union(*map(names_bound, trees))) <= 60
    for node in (node for tree in trees for node in ast.walk(tree)):
        assert not isinstance(node, ast.NamedExpr), "an assignment inside of an expression"
        statement = isinstance(node, ast.Expr) and isinstance(node.value, ast.BoolOp)
        assert not statement, "`and` in place of a statement of its own"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_figure_has_its_frame(chapter):
    """Its own, or that of an object which draws itself."""
    attached = re.compile(r"tables\.attach\(|slider\.frames\(|\.plot\(\);$")
    for cell in read(BOOK.source(chapter)).cells:
        if "figure" in cell.content["metadata"].get("mystnb", {}):
            assert attached.search(cell.source), cell.source


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_figure_has_a_name_a_caption_and_a_description(chapter):
    cells = read(BOOK.source(chapter)).cells
    shown = [c for c in cells if "subplots(" in c.source or c.source.endswith(".plot();")]
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
