"""The reproducibility report says what is so: every environment, whole commits, the comparison."""

import copy

import pytest

from latebook import ledger, report
from latebook.layout import Book
from latebook.notebooks import Notebook
from latebook.provenance import PACKAGES
from tests.conftest import MADE_BY
from tests.test_ledger import entry


def made(**change):
    made_by = copy.deepcopy(MADE_BY)
    made_by["environment"]["versions"] = dict.fromkeys(PACKAGES, "1.0")
    made_by["environment"] |= change.pop("environment", {})
    return Notebook({"cells": [], "metadata": {"latephase": made_by | change}})


@pytest.fixture
def page(tmp_path):
    def written(*entries, **notebooks):
        notebooks = notebooks or {"first": made(), "second": made()}
        return report.page(Book(tmp_path, "quick"), notebooks, list(entries) or [entry()])

    return written


def test_a_chapter_has_its_whole_commit_its_date_and_its_parameters(page):
    said = page(first=made(commit="c" * 40 + "+changes"))
    assert f"`{'c' * 40}+changes` |" in said
    assert "| [first](first.ipynb) | 2026-11-28T12:00:00+00:00 | 1.5 | `number=0.5` |" in said


def test_one_environment_is_shown_once_and_several_with_their_chapters(page):
    said = page()
    assert said.count("| Environment | Value |") == said.count("| Python | 3.12.3 |") == 1
    assert "| Threads | 1 |" in said
    others = {"second": made(environment={"threads": 2}), "third": made()}
    said = page(first=made(), **others)
    assert "| Environment | of first, third |" in said
    assert "| Environment | of second |" in said
    assert said.count("| Threads | 1 |") == said.count("| Threads | 2 |") == 1
    said = page(first=made(), second=made(environment={"python": "3.11.9"}))
    assert "| Python | 3.11.9 |" in said
    assert "| Python | 3.12.3 |" in said


def test_the_comparison_is_shown_or_why_there_is_none(page, tmp_path):
    assert "There is no comparison: no reference is committed for the profile 'quick'." in page()
    reference = tmp_path / "results" / "ledger.quick.json"
    reference.parent.mkdir()
    reference.write_text(ledger.text([entry(0.5), entry(0.2, id="first/other")]))
    assert "`ledger.quick.json`: 2 reproduced.\n" in page(entry(), entry(0.2, id="first/other"))
    said = page(entry(0.7), entry(0.2, id="first/other", metric="|x|"))
    assert "`ledger.quick.json`: 2 differs.\n" in said
    assert "| `first/small` | differs | seed 7: 0.7, reference 0.5 ± 0.05 |" in said
    assert r'| `first/other` | differs | metric "\|x\|", reference "the number" |' in said
    reference.write_text(reference.read_text()[:-9])
    said = page()
    assert "There is no comparison: results/ledger.quick.json is not JSON" in said


def test_a_reference_is_not_taken_for_a_recorded_run(page, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ledger.quick.json").write_text("[]")
    assert "Recorded run" not in page()
