"""Each trap of the tools is planted and must be seen by its guard."""

import json

import pytest
import yaml
from nbformat.v4 import new_code_cell, new_output
from nbformat.v4 import writes as text_of

from latebook import BookError, claims, gate
from latebook.notebooks import read
from tests.conftest import CLAIM, ROOT, chapter, recorded


def faults(tmp_path, plant=lambda notebook: None, rows=(CLAIM,)):
    source, run = tmp_path / "first.ipynb", tmp_path / "run.ipynb"
    source.write_text(text_of(chapter("first", "x = 1")))
    notebook = recorded(chapter("first", "x = 1"))
    plant(notebook)
    run.write_text(text_of(notebook))
    registered = {}
    if rows:
        (tmp_path / "claims.yml").write_text(yaml.safe_dump([*rows]))
        registered = claims.load(tmp_path / "claims.yml")
    return gate.check_executed(read(run), source, registered, "quick", {"number": 0.5})


def test_a_faultless_run_passes(tmp_path):
    assert faults(tmp_path) == []


def test_injected_parameters_are_not_taken_for_a_changed_source(tmp_path):
    def inject(notebook):
        cell = new_code_cell("number = 0.4", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(3, cell)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for position, cell in enumerate(code, start=1):
            cell.execution_count = position

    assert faults(tmp_path, inject) == []


def error_output(notebook):
    output = new_output("error", ename="ValueError", evalue="no", traceback=[])
    notebook.cells[3].outputs = [output]


def tolerated_error(notebook):
    error_output(notebook)
    notebook.cells[3].metadata["tags"] = ["raises-exception"]


def early_exit(notebook):
    for cell in notebook.cells[3:]:
        cell.execution_count = None


def never_ran(notebook):
    for cell in notebook.cells[1:]:
        cell.execution_count, cell.outputs = None, []


def out_of_order(notebook):
    notebook.cells[3].execution_count = 7


def printed_nan(notebook):
    notebook.cells[3].outputs = [new_output("stream", name="stdout", text="loss: nan\n")]


def printed_pandas_nan(notebook):
    notebook.cells[3].outputs = [new_output("stream", name="stdout", text="loss  NaN\n")]


def glued_nan(notebook):
    notebook.cells[3].outputs = [new_output("display_data", {"text/plain": "np.float64(nan)"})]


def wrote_to_stderr(notebook):
    notebook.cells[3].outputs = [new_output("stream", name="stderr", text="a\nUserWarning: b\n")]


def changed_source(notebook):
    notebook.cells[3].source = "x = 2"


def changed_prose(notebook):
    notebook.cells[0].source = "# Another title"


def no_record(notebook):
    notebook.cells[-1].outputs = []


def recorded_twice(notebook):
    notebook.cells[-1].outputs *= 2


def recorded_early(notebook):
    notebook.cells[3].outputs = notebook.cells[-1].outputs
    notebook.cells[-1].outputs = []


def two_parameter_cells(notebook):
    notebook.cells[3].metadata["tags"] = ["parameters"]


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (error_output, "code cell 3 raised ValueError: no"),
        (tolerated_error, "code cell 3 raised ValueError: no"),
        (early_exit, "ran as [1, 2, None, None], not each once and in order"),
        (never_ran, "ran as [None, None, None, None]"),
        (out_of_order, "ran as [1, 2, 7, 4]"),
        (printed_nan, "code cell 3 printed or glued NaN"),
        (printed_pandas_nan, "code cell 3 printed or glued NaN"),
        (glued_nan, "code cell 3 printed or glued NaN"),
        (wrote_to_stderr, "code cell 3 wrote to stderr: UserWarning: b"),
        (changed_source, "was executed from another source than first.ipynb holds now"),
        (changed_prose, "was executed from another source than first.ipynb holds now"),
        (no_record, "never recorded the claim 'first/small'"),
        (recorded_twice, "recorded 'first/small' 2 times"),
        (recorded_early, "claims are recorded in the last code cell"),
        (two_parameter_cells, "expected one code cell tagged 'parameters'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_seen(tmp_path, plant, message):
    found = faults(tmp_path, plant)
    assert any(message in fault for fault in found), found


def test_a_claim_of_nobody_is_seen(tmp_path):
    assert faults(tmp_path, rows=()) == ["first: recorded 'first/small', not registered for it"]


def test_the_word_nan_inside_another_is_no_fault(tmp_path):
    def plant(notebook):
        notebook.cells[3].outputs = [new_output("stream", name="stdout", text="finance, nano\n")]

    assert faults(tmp_path, plant) == []


@pytest.mark.parametrize(
    "content", ["", "{", '{"nbformat": 4}', '{"nbformat": 3, "cells": []}', "[1]"]
)
def test_an_unreadable_notebook_is_one_clear_line(tmp_path, content):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    with pytest.raises(BookError, match=r"broken\.ipynb is not a readable notebook"):
        gate.check_source(path)


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(BookError, match=r"cannot read the notebook .*absent\.ipynb: No such file"):
        gate.check_source(tmp_path / "absent.ipynb")


def test_a_notebook_stored_with_outputs_is_refused(tmp_path):
    path = tmp_path / "first.ipynb"
    path.write_text(text_of(recorded(chapter("first"))))
    # The last cell kept its output, the others the turn in which they ran.
    stored = [fault for fault in gate.check_source(path) if "stored with outputs" in fault]
    assert len(stored) == 3


def test_parameters_and_profile_must_agree(tmp_path):
    path = tmp_path / "first.ipynb"
    path.write_text(text_of(chapter("first")))
    assert gate.check_parameters(path, {"number": 0.1}, "profiles/quick.yml") == []
    assert gate.check_parameters(path, {"number": 0.1, "sed": 1}, "profiles/quick.yml") == [
        "profiles/quick.yml: first.ipynb declares no parameter 'sed', only number"
    ]
    assert gate.check_parameters(path, {}, "profiles/quick.yml") == [
        "profiles/quick.yml: sets no 'number', which first.ipynb declares"
    ]


def config_faults(tmp_path, change):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    change(config)
    path = tmp_path / "_config.yml"
    path.write_text(yaml.safe_dump(config))
    return gate.check_config(path)


def test_the_books_own_configuration_passes(tmp_path):
    assert config_faults(tmp_path, lambda config: None) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(exlude_patterns=[]), "unknown key 'exlude_patterns'"),
        (lambda c: c["html"].update(favcon="x"), "unknown key 'html.favcon'"),
        (lambda c: c["sphinx"].update(extra_extension=[]), "unknown key 'sphinx.extra_extension'"),
        (lambda c: c["sphinx"].pop("recursive_update"), "needs sphinx.recursive_update: true"),
        (lambda c: c.update(bibtex_reference_style="x"), "works only under sphinx.config"),
        (lambda c: c["execute"].update(execute_notebooks="auto"), "execute_notebooks must be off"),
    ],
)
def test_a_key_that_would_be_passed_over_is_seen(tmp_path, change, message):
    found = config_faults(tmp_path, change)
    assert any(message in fault for fault in found), found


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('<script src="https://cdn.example.org/mathjax.js"></script>', "loads https://cdn.example"),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "loads //fonts.example"),
        ("<SCRIPT defer src='https://cdn.example.org/a.js'></SCRIPT>", "loads https://cdn.example"),
        ('<img alt="a > b" src=//cdn.example.org/a.png>', "loads //cdn.example"),
        ('<img src="a.png">', "without a description"),
        ('<img src="a.png" alt="">', "without a description"),
        ('<img src="a.png" alt="_images/0a1b2c3d4e5f60718293.png">', "without a description"),
        ("<td>$10^{-10}$</td>", "shows raw TeX: '$10^{-10}$'"),
        ('<p>with <span class="math">\\(x\\)</span> and \\lVert W</p>', "raw TeX: '\\\\lVert'"),
    ],
)
def test_a_page_with_a_fault_is_seen(tmp_path, page, fault):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "page.html").write_text(f"<html>{page}</html>")
    assert any(fault in found for found in gate.check_site(tmp_path))


def test_a_page_that_keeps_to_itself_passes(tmp_path):
    page = (
        '<script src="../mathjax/es5/tex-mml-chtml.js"></script><a href="https://example.org">x</a>'
        "<script>draw('<img src=//a.org/a.png>')</script><!-- $x$ <img> -->"
        '<link rel="canonical" href="https://example.org/page.html">'
        '<pre>print("\\lVert $x$")</pre><p>2 $ <span class="math here">\\(\\max\\text{x}\\)</span>'
    )
    (tmp_path / "page.html").write_text(page + '<img src="a.png" alt="A curve that rises">')
    assert gate.check_site(tmp_path) == []


def test_the_schema_still_lists_what_the_book_uses():
    known = gate._known_keys()
    assert "execute_notebooks" in known["execute"]
    assert json.dumps(known)
