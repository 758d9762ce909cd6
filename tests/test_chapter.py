"""A chapter laid by `make chapter` passes what every chapter must, and is executed by the build."""

import runpy
import shutil
import subprocess
import sys

import pytest

from latebook import BookError, gate
from latebook.claims import HOLDS, load
from latebook.layout import Book
from latebook.notebooks import read
from tests.conftest import ROOT

SCRIPT = runpy.run_path(str(ROOT / ".ci" / "chapter.py"))

NAME = "some_new_name"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The repository without what was built, in another folder."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    return tmp_path


def run(copy, *words) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_chapter_that_was_laid_passes_the_tests_and_the_gate(copy):
    said = run(copy, ".ci/chapter.py", NAME)
    for path in ("_toc.yml", "book/claims.yml", f"book/{NAME}.ipynb", "profiles/paper.yml"):
        assert f"wrote {path}\n" in said
    tests = ["tests/test_notebooks.py", "tests/test_spelling.py"]
    chosen = f"{NAME} or claims.yml or every_notebook or profiles or no_two"
    told = run(copy, "-m", "pytest", "-p", "no:cacheprovider", *tests, "-k", chosen, "-vv")
    for test in ("has_claims", "keeps_its_cells_short", "every_figure_has_a_name", "stored_clean"):
        assert any(test in line and NAME in line for line in told.splitlines()), told
    run(copy, "-m", "ruff", "check", "--no-cache", "book")
    run(copy, "-m", "ruff", "format", "--check", "--no-cache", "book")
    run(copy, "-m", "latebook", "chapter", "--chapter", NAME)
    book = Book(copy, "quick")
    executed = read(book.executed(NAME))
    [claim] = [c for c in load(book.claims).values() if c.chapter == NAME]
    of_profile = {claim.id: claim}, "quick", book.parameters(NAME)
    assert gate.check_executed(executed, book.source(NAME), *of_profile) == []
    [record] = gate.recorded(executed)
    assert len(record["seeds"]) == 5
    assert claim.satisfied(claim.of_seeds(list(map(float, record["values"]))), "quick")
    for control in record["controls"].values():
        assert not claim.satisfied(claim.best(list(map(float, control["values"]))), "quick")
    assert claim.expect["quick"] == HOLDS


def test_what_the_author_wrote_stays(copy):
    files = ["_toc.yml", "book/claims.yml", *(f"profiles/{p}.yml" for p in ("quick", "full"))]
    before = {name: (copy / name).read_text().splitlines() for name in files}
    SCRIPT["lay"](Book(copy, "quick"), NAME)
    for name, lines in before.items():
        after = (copy / name).read_text().splitlines()
        begin = next(
            k for k, (a, b) in enumerate(zip(after, [*lines, None], strict=False)) if a != b
        )
        assert after[:begin] + after[begin + len(after) - len(lines) :] == lines
        assert len(after) > len(lines)
    chapters = Book(copy, "quick").chapters()
    assert chapters.index(NAME) == chapters.index("alignment") + 1


@pytest.mark.parametrize("name", ["", "Name", "two words", "a-name", "../name", "_name", "1st"])
def test_a_name_that_is_none_is_refused(book, name):
    with pytest.raises(BookError, match="NAME: expected a name as some_name"):
        SCRIPT["lay"](Book(book.root, "quick"), name)


def test_a_page_that_is_there_is_left_alone(book):
    before = {path: path.read_bytes() for path in book.root.rglob("*") if path.is_file()}
    for name in ("first", "index"):
        with pytest.raises(BookError, match=f"book/ has a page {name} already"):
            SCRIPT["lay"](Book(book.root, "quick"), name)
    (book.root / "profiles" / "full.yml").unlink()
    with pytest.raises(BookError, match=r"cannot read .*full\.yml"):
        SCRIPT["lay"](Book(book.root, "quick"), "third")
    left = {path: path.read_bytes() for path in book.root.rglob("*") if path.is_file()}
    assert left == {path: old for path, old in before.items() if path.name != "full.yml"}
