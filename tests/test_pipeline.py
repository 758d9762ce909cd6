"""The whole path on a small book: what a green build leaves, and what turns it red.

The faults marked slow have their guard tested alone in test_gate and test_ledger as well.
"""

import json
import re

import pytest
import yaml
from jsonschema import Draft202012Validator
from nbformat.v4 import new_code_cell, new_markdown_cell
from sphinx.util.inventory import InventoryFile

from latebook.layout import Book
from tests.conftest import FixtureBook, chapter


@pytest.fixture(scope="module")
def green(tmp_path_factory) -> FixtureBook:
    """A two-chapter book after its first build."""
    book = FixtureBook(tmp_path_factory.mktemp("green") / "book root")
    book.show_library()
    book.first = book.build()
    return book


def stamps(book):
    made = [*book.root.glob("_build/executed/*/*.ipynb"), book.root / "_build/library.json"]
    return {path.stem: path.stat().st_mtime_ns for path in made}


def test_a_green_build_leaves_ledger_site_and_table(green):
    assert green.first.returncode == 0, green.first.stderr
    assert "first: done in" in green.first.stdout
    assert "first/small" in green.first.stdout
    assert "_build/html/book/index.html" in green.first.stdout
    ledger = json.loads((green.root / "_build/ledger.json").read_text())
    assert [entry["verdict"] for entry in ledger] == ["holds", "holds"]
    schema = json.loads((green.root / "_build/ledger.schema.json").read_text())
    assert list(Draft202012Validator(schema).iter_errors(ledger)) == []
    manifest = yaml.safe_load((green.root / "_build/codecheck.yml").read_text())["manifest"]
    assert all((green.root / one["file"]).is_file() for one in manifest)
    page = (green.root / "_build/html/book/first.html").read_text()
    assert "mathjax/es5/startup.js" in page
    assert "# Parameters" not in page  # the injected cell's first line
    assert (green.root / "_build/html/mathjax/es5/input/tex.js").is_file()


def test_the_librarys_pages_link_to_others_and_can_be_linked_to(green):
    html = green.root / "_build/html"
    page = (html / "book/api.html").read_text()
    assert 'id="latephase.gradient_flow"' in page
    for link in ("nn.Module.html#torch.nn.Module", "tensors.html#torch.Tensor", "#numpy.ndarray"):
        assert link in page
    with open(html / "objects.inv", "rb") as file:
        names = InventoryFile.load(file, "", "{}{}".format)
    assert (
        names["py:function"]["latephase.gradient_flow"][2]
        == "book/api.html#latephase.gradient_flow"
    )
    assert "latephase.Trajectory.extend" in names["py:method"]
    assert "latephase.flow.trajectory" in names["py:module"]


def test_every_page_says_which_profile_made_it(green):
    pages = sorted((green.root / "_build/html/book").glob("*.html"))
    assert [page.stem for page in pages] == ["api", "first", "index", "second"]
    for page in pages:
        assert "Computed with the profile <em>quick</em>" in page.read_text()


@pytest.mark.slow
def test_profiles_are_kept_apart(green):
    def of_quick():
        kept = [green.root / "_build" / name for name in ("ledger.json", "html/book/index.html")]
        kept += (green.root / "_build/executed/quick").glob("*.ipynb")
        assert len(kept) == 4
        return [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]

    before = of_quick()
    green.write_yaml("profiles/full.yml", {n: {"number": 0.25} for n in ("first", "second")})
    full = green.build("--profile", "full")
    assert full.returncode == 0, full.stderr
    assert "_build/html-full/book/index.html" in full.stdout
    ledger = json.loads((green.root / "_build/ledger-full.json").read_text())
    assert [(entry["profile"], entry["value"]) for entry in ledger] == [("full", 0.25)] * 2
    for page in ("index", "first"):
        text = (green.root / f"_build/html-full/book/{page}.html").read_text()
        assert "profile <em>full</em>" in text
        assert "profile <em>quick</em>" not in text
    # Back again: nothing is computed, nothing was written over.
    again = green.build()
    assert again.returncode == 0, again.stderr
    assert "done in" not in again.stdout
    assert of_quick() == before


def test_an_unchanged_book_runs_nothing_and_an_edited_chapter_runs_alone(green):
    before = stamps(green)
    again = green.build()
    assert again.returncode == 0, again.stderr
    assert "done in" not in again.stdout
    assert stamps(green) == before

    notebook = chapter("second", "note = 'edited'")
    green.write_notebook("second", notebook)
    edited = green.build()
    assert edited.returncode == 0, edited.stderr
    after = stamps(green)
    assert after["first"] == before["first"]
    assert after["second"] > before["second"]
    assert after["library"] == before["library"]  # which is slow to make, and of the library alone


def test_a_red_build_leaves_the_earlier_results(green):
    kept = [green.root / "_build" / name for name in ("ledger.json", "html/index.html")]
    kept.append(green.root / "_build/executed/quick/second.ipynb")
    before = [path.read_bytes() for path in kept]
    green.write_notebook("second", chapter("second", "1 / 0"))
    red = green.build()
    assert red.returncode == 1
    assert "book: second: code cell 4 raised ZeroDivisionError: division by zero" in red.stderr
    assert [path.read_bytes() for path in kept] == before


@pytest.fixture
def one(book) -> FixtureBook:
    """A book of one chapter, cheap to break."""
    book.write_chapters("first")
    return book


def raised(book):
    book.write_notebook("first", chapter("first", "raise ValueError('planted')"))


def raised_and_tolerated(book):
    notebook = chapter("first", "raise ValueError('planted')")
    notebook.cells[3].metadata["tags"] = ["raises-exception"]
    book.write_notebook("first", notebook)


def left_early(book):
    book.write_notebook("first", chapter("first", "import sys\n\nsys.exit(0)", "assert False"))


def never_recorded(book):
    notebook = chapter("first")
    notebook.cells[-1] = new_code_cell("number")
    book.write_notebook("first", notebook)


def entry_without_file(book):
    toc = book.read_yaml("_toc.yml")
    toc["chapters"].append({"file": "book/absent"})
    book.write_yaml("_toc.yml", toc)


def misspelt_key(book):
    config = book.read_yaml("_config.yml")
    config["exlude_patterns"] = []
    book.write_yaml("_config.yml", config)


def misspelt_sphinx_key(book):
    config = book.read_yaml("_config.yml")
    config["sphinx"]["config"]["mathjaxs_path"] = "x"
    book.write_yaml("_config.yml", config)


# What a page may refer to, and what is said when it is not there.
REFERENCES = {
    "{ref}`nowhere`": "undefined label: 'nowhere'",
    "{numref}`fig-none`": "undefined label: 'fig-none'",
    "{prf:ref}`thm-none`": "label 'thm-none' not found",
    "{eq}`eq-none`": "equation not found: eq-none",
    "{cite:p}`nobody`": 'could not find bibtex key "nobody"',
    "{glue:text}`nothing`": "No key 'nothing' found in glue data",
    "[a page](absent.md)": "cross-reference target not found: 'absent.md'",
    "[a place](first.ipynb#absent)": "local id not found in doc 'book/first': 'absent'",
    "{download}`a file <absent.csv>`": "download file not readable: book/absent.csv",
    "![a picture](absent.png)": "image file not readable: book/absent.png",
    "\n\n```{include} absent.md\n```\n": 'Directive "include": file not found',
}


def broken_reference(book):
    notebook = chapter("first")
    notebook.cells.insert(1, new_markdown_cell("See " + ", ".join(REFERENCES)))
    book.write_notebook("first", notebook)


def claim_that_fails(book):
    book.write_yaml("profiles/quick.yml", {"first": {"number": 1.5}})


def control_that_passes(book):
    claims = book.read_yaml("book/claims.yml")
    claims[0]["bound"] = 3.0
    book.write_yaml("book/claims.yml", claims)


def unknown_parameter(book):
    book.write_yaml("profiles/quick.yml", {"first": {"number": 0.5, "sed": 1}})


def profile_without_the_chapter(book):
    book.write_yaml("profiles/quick.yml", {"other": {}})


def unreadable_notebook(book):
    (book.root / "book/first.ipynb").write_text('{"cells": [')


def claim_of_an_unknown_chapter(book):
    claims = book.read_yaml("book/claims.yml")
    claims.append(claims[0] | {"id": "ghost/claim", "chapter": "ghost"})
    book.write_yaml("book/claims.yml", claims)


def picture_without_description(book):
    source = (
        "from IPython.display import SVG\n\n"
        'SVG(\'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>\')'
    )
    book.write_notebook("first", chapter("first", source))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (raised, "first: code cell 4 raised ValueError: planted"),
        (raised_and_tolerated, "has the tag raises-exception"),
        (left_early, "imports sys"),
        (never_recorded, "never recorded the claim 'first/small'"),
        (entry_without_file, "_toc.yml names book/absent, but there is no such page"),
        (misspelt_key, "_config.yml: unknown key 'exlude_patterns'"),
        pytest.param(
            misspelt_sphinx_key, "unknown config value 'mathjaxs_path'", marks=pytest.mark.slow
        ),
        (broken_reference, "\n".join(REFERENCES.values())),
        pytest.param(
            claim_that_fails, "first/small: expected 'holds', got 'fails'", marks=pytest.mark.slow
        ),
        pytest.param(control_that_passes, "negative control passes: large", marks=pytest.mark.slow),
        pytest.param(unknown_parameter, "declares no parameter 'sed'", marks=pytest.mark.slow),
        (profile_without_the_chapter, "no parameters for the chapter 'first'"),
        (unreadable_notebook, "is not a readable notebook"),
        (claim_of_an_unknown_chapter, "'ghost/claim' names the chapter 'ghost', not in _toc.yml"),
        pytest.param(
            picture_without_description, "<img> without a description", marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_turns_the_build_red(one, plant, message):
    plant(one)
    red = one.build()
    assert red.returncode == 1
    assert [line for line in message.splitlines() if line not in red.stderr] == []
    assert "Traceback" not in red.stderr
    assert not (one.root / "_build/html").exists()


def test_an_unknown_profile_is_one_clear_line(one):
    red = one.build("--profile", "fast")
    assert red.returncode == 1
    assert red.stderr == "book: unknown PROFILE 'fast': expected one of quick, full, paper\n"


def ran(done) -> list[str]:
    """The chapters that a build has made, in the order in which it ended them."""
    assert done.returncode == 0, done.stderr
    return re.findall(r"^(\w+): done", done.stdout, re.MULTILINE)


def test_the_longest_chapter_comes_first(book):
    """By the reference's times, by its own of the last run, and what has none before all others."""
    book.write_chapters("first", "second", "third")
    (book.root / "results").mkdir()
    rows = [{"chapter": "first", "seconds": 1.0}, {"chapter": "second", "seconds": 9.0}]
    (book.root / "results/ledger.quick.json").write_text(json.dumps(rows))
    assert ran(book.build("--cores", "1")) == ["third", "second", "first"]
    here = Book(book.root, "quick").seconds()
    assert here.keys() == {"first", "second", "third"}
    assert max(here.values()) < 9.0
    Book(book.root, "quick").executed("first").write_text("{")
    assert Book(book.root, "quick").seconds()["first"] == 1.0
