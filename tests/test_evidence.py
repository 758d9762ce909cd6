"""What readers see of the ledger follows from it: counts, rows, lines."""

import csv
import io
import math
import re
from collections import Counter

import pytest

from latebook import dressing, evidence, ledger
from latebook.claims import KINDS, STATUSES, load
from latebook.files import read_yaml
from latebook.layout import Book
from latebook.notebooks import read
from tests.conftest import ROOT
from tests.test_ledger import entry

INF = math.inf
FAILS = {"expect": "fails", "expect_reason": "it is *large*", "range": [1.2, 2.0]}
BEYOND = {"expect": "not covered by theory", "expect_reason": "kinks", "range": [0.0, 2.0]}
ROWS = [
    entry(kind="theorem", id="first/a"),
    entry(kind="theorem", id="first/b"),
    entry(id="first/c"),
    entry(1.5, **FAILS, id="first/d", missed="slower", registered="after"),
    entry(1.5, **FAILS, id="first/e", registered="after"),
    entry(1.6, **FAILS, id="first/f"),
    entry(1.5, **FAILS, id="first/g", kind="instrument"),
    entry(1.5, **FAILS, id="first/h", kind="paper"),
    entry(0.5, **BEYOND, id="first/i", kind="observation"),
    entry(0.5, id="first/j", kind="observation"),
]


def counted(text: str) -> Counter:
    """What a strip of counts says: how many of a kind have a status; and of a kind, all."""
    found = Counter()
    for total, kind, rest in re.findall(r"<b>(\d+)</b> (\w+)</a>(.*)</li>", text):
        found[kind, None] = int(total)
        for many, status in re.findall(r">(\d+) ([^<]+)</span>", rest):
            found[kind, status] = int(many)
    return found


def test_the_counts_are_those_of_the_ledger():
    rows = ledger.text(ROWS) and ROWS
    agree = Counter((row["kind"], row["status"]) for row in rows)
    agree += Counter((row["kind"], None) for row in rows)
    assert counted(evidence.counts(rows)) == agree
    assert agree["prediction", "our prediction was wrong"] == 2
    assert "10 claims; 2 are marked *set after looking*." in evidence.counts(rows)


def test_no_status_is_left_out_of_the_counts():
    rows = [entry() | {"kind": kind, "status": said} for kind in KINDS for said in STATUSES]
    assert counted(evidence.counts(rows)).total() == 2 * len(rows)


def test_every_row_has_an_anchor_below_its_chapter():
    other = entry() | {"id": "other/one", "chapter": "other"}
    titles = {"first": "The first", "none": "-", "other": "Others"}
    page = evidence.page([other, *ROWS], titles, {})
    assert re.findall(r"^## .*$", page, re.MULTILINE) == [
        "## [The first](first.ipynb)",
        "## [Others](other.ipynb)",
    ]
    assert re.findall(r'<details class="claim" id="claim-(\S+)"', page) == [
        *(f"first-{letter}" for letter in "abcdefghij"),
        "other-one",
    ]
    assert page.count("```") == 4


def test_a_row_shows_how_it_came_out_and_opens_to_all_the_rest():
    page = evidence.page([ROWS[3]], {"first": "The first"}, {"first/d": "fig-x"})
    summary, opened = page.split("</summary>")
    for said in (
        '<span class="status slower-than-predicted">slower than predicted</span>',
        "The number is small",
        "1.5 <span>≤ 1</span>",
        "prediction, set after looking",
    ):
        assert said in summary, said
    for said in (
        "1.5, where the bound is ≤ 1. Registered to lie from 1.2 to 2.",
        "<dt>Source</dt><dd>this fixture.</dd>",
        "<dt>Why this bound</dt><dd>one is small",
        "it is *large*",
        "<dt>By seed</dt><dd>7: 1.5</dd>",
        "<dd><b>2</b> large: a large number</dd>",
        '<a href="first.html#fig-x">the figure</a>',
        '<a href="#claim-first-d">link to this row</a>',
        "<code>first/d</code>",
    ):
        assert said in opened, said
    page = evidence.page([entry(expect_reason="in another profile")], {"first": "-"}, {})
    assert "in another profile" not in page
    assert "no figure" in page


def test_the_table_has_every_row_with_its_figure():
    rows = list(csv.DictReader(io.StringIO(evidence.table(ROWS, {"first/d": "fig-x"}))))
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    row = rows[3]
    assert (row["value"], row["bound"], row["seeds"]) == ("1.5", "1.0", "7")
    assert (row["status"], row["figure"]) == ("slower than predicted", "fig-x")
    assert (row["set after looking"], row["controls"]) == ("True", "large: 2.0")


def test_figures_that_show_claims_are_there_and_show_known_claims():
    book, claims = Book(ROOT, "quick"), load(ROOT / "book" / "claims.yml")
    shown = read_yaml(ROOT / "book" / "shown_in.yml")
    pairs = [(f"{of}/{one}", name) for of, figures in shown.items()
             for name, found in figures.items() for one in found]  # fmt: skip
    ids = [id for id, _ in pairs]
    assert len(ids) == len(set(ids))
    assert set(ids) <= claims.keys()
    drawn = {name: dressing.figures(read(book.source(name))) for name in book.chapters()}
    assert [pair for pair in pairs if pair[1] not in drawn[claims[pair[0]].chapter]] == []


@pytest.mark.parametrize(
    ("text", "powers"),
    [
        ("by α = 10^8, or", "by α = 10<sup>8</sup>, or"),
        ("e^-2z", "e<sup>−2z</sup>"),
        ("t^(-1/L)), falls", "t<sup>−1/L</sup>), falls"),
        ("e^(10^(1/2))", "e^(10<sup>1/2</sup>)"),
        ("a < b & c", "a &lt; b &amp; c"),
    ],
)
def test_powers_in_the_registry_are_set_as_powers(text, powers):
    page = evidence.page([entry() | {"statement": text}], {"first": "-"}, {})
    assert f'<span class="claimed">{powers}</span>' in page


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (0.12345, 1.0, "0.123"),
        (1.0007, 1.0, "1.001"),
        (1.0, 1.0, "1"),
        (1e-6, 1.0, "1e−6"),
        (-2.5e30, 1.0, "−2.5e30"),
        (INF, 1.0, "∞"),
        (-INF, 1.0, "−∞"),
        (None, 1.0, "—"),
    ],
)
def test_a_number_is_told_from_its_bound(value, bound, text):
    assert evidence.number(value, bound) == text


def test_starts_that_were_dropped_are_told():
    row = entry([0.5, 0.6]) | {"dropped": {"3": "lost", "4": "lost", "5": "lost"}}
    for said in (evidence.lines([row]), evidence.page([row], {"first": "-"}, {})):
        assert "0.6 (3 of 5 starts dropped)" in said
    assert "dropped" not in evidence.lines([entry()])


def test_a_line_says_kind_status_and_what_is_red():
    said = evidence.lines([ROWS[3], entry(1.5)])
    assert (
        "1.5 ≤ 1        prediction, set after looking: slower than predicted  controls: 2" in said
    )
    assert said.endswith("prediction: broken  controls: 2  RED  expected 'holds', got 'fails'")
