"""What readers see of the ledger follows from it: counts, cards, lines."""

import math
import re
from collections import Counter

import pytest

from latebook import evidence, ledger
from latebook.claims import KINDS, STATUSES
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
    """What a table of counts says: how many of a kind have a status; and of a kind, all."""
    found = Counter()
    for kind, total, rest in re.findall(r"^\| \*\*(\w+)\*\*, (\d+) \|(.*)$", text, re.MULTILINE):
        found[kind, None] = int(total)
        for many, status in re.findall(r"\[(\d+) ([^]]+)\]", rest):
            found[kind, status] = int(many)
    return found


def test_the_counts_are_those_of_the_ledger():
    rows = ledger.text(ROWS) and ROWS
    agree = Counter((row["kind"], row["status"]) for row in rows)
    agree += Counter((row["kind"], None) for row in rows)
    assert counted(evidence.counts(rows)) == agree
    assert agree["prediction", "our prediction was wrong"] == 2
    assert "Of the 10 claims 2 are marked *set after looking*." in evidence.counts(rows)


def test_no_status_is_left_out_of_the_counts():
    rows = [entry() | {"kind": kind, "status": said} for kind in KINDS for said in STATUSES]
    assert counted(evidence.counts(rows)).total() == 2 * len(rows)


def test_every_row_has_a_card_with_an_anchor_below_its_chapter():
    other = entry() | {"id": "other/one", "chapter": "other"}
    page = evidence.page([other, *ROWS], {"first": "The first", "none": "-", "other": "Others"})
    assert re.findall(r"^## .*$", page, re.MULTILINE) == [
        "## [The first](first.ipynb)",
        "## [Others](other.ipynb)",
    ]
    assert re.findall(r"^\(claim-(\S+)\)=$", page, re.MULTILINE) == [
        *(f"first-{letter}" for letter in "abcdefghij"),
        "other-one",
    ]


def test_a_card_begins_with_its_status_and_says_all_of_the_row():
    [card] = evidence.page([ROWS[3]], {"first": "The first"}).split("::::{div} claim\n")[1:]
    assert card.startswith(
        "[slower than predicted]{.status .slower-than-predicted} prediction, set after looking\n"
    )
    for said in (
        "**The number is small.**",
        "Measured 1.5, bound ≤ 1, negative controls 2. Registered to lie from 1.2 to 2.\n",
        "Source: this fixture.\n",
        "*Why this bound:* one is small",
        "it is \\*large\\*",
        "- large, 2: a large number",
        "`first/d`",
    ):
        assert said in card, said
    [card] = evidence.page([entry(expect_reason="in another profile")], {"first": "-"}).split(
        "## "
    )[1:]
    assert "in another profile" not in card


@pytest.mark.parametrize(
    ("text", "powers"),
    [
        ("by α = 10^8, or", "by α = 10{sup}`8`, or"),
        ("e^-2z", "e{sup}`−2z`"),
        ("t^(-1/L)), falls", "t{sup}`−1/L`), falls"),
        ("e^(10^(1/2))", "e^(10{sup}`1/2`)"),
        ("a_1 ^ b", "a\\_1 ^ b"),
    ],
)
def test_powers_in_the_registry_are_set_as_powers(text, powers):
    [card] = evidence.page([entry() | {"statement": text}], {"first": "-"}).split("## ")[1:]
    assert f"**{powers}**" in card


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
    for said in (evidence.lines([row]), evidence.page([row], {"first": "-"})):
        assert "0.6 (3 of 5 starts dropped)" in said
    assert "dropped" not in evidence.lines([entry()])


def test_a_line_says_kind_status_and_what_is_red():
    said = evidence.lines([ROWS[3], entry(1.5)])
    assert (
        "1.5 ≤ 1        prediction, set after looking: slower than predicted  controls: 2" in said
    )
    assert said.endswith("prediction: broken  controls: 2  RED  expected 'holds', got 'fails'")
