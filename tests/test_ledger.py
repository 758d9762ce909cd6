"""What turns the ledger red: each fault is planted in one entry and must be named there."""

import dataclasses
import json
import math

import pytest

from latebook import BookError, ledger
from latebook.claims import Claim
from tests.conftest import CLAIM

INF, NAN = math.inf, math.nan
BOUNDS = {"quick": 1.0, "full": 0.1}


def claim(row):
    expect = {"quick": row.get("expect", "holds")}
    return Claim(**row | {"bound": {"quick": 1.0}, "expect": expect})


def entry(value=0.5, control=2.0, times=1, **change):
    row = CLAIM | change
    payload = {
        "id": "first/small",
        "values": [repr(v) for v in (value if isinstance(value, list) else [value])],
        "controls": {} if control is None else {"large": [repr(control)]},
        "seeds": [0],
    }
    records = {"first": {"seconds": 1.5, "claims": [payload] * times}}
    return ledger.entries({row["id"]: claim(row)}, records, "quick")[0]


def test_a_claim_within_its_bound_holds():
    made = entry()
    assert (made["value"], made["verdict"], made["problem"]) == (0.5, "holds", None)
    assert made["seconds"] == 1.5


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda: entry(1.5), "expected 'holds', got 'fails'"),
        (lambda: entry([0.1, 1.5, 0.2]), "expected 'holds', got 'fails'"),
        (lambda: entry([0.1, NAN]), "the value is NaN"),
        (lambda: entry(INF), "expected 'holds', got 'fails'"),
        (lambda: entry(times=0), "first recorded no value"),
        (lambda: entry(times=2), "recorded 2 times"),
        (lambda: entry(control=0.9), "negative control passes: large"),
        (lambda: entry(control=NAN), "negative control passes: large"),
        (lambda: entry(control=None), "negative control not recorded: large"),
        (lambda: entry(0.5, relation=">="), "negative control passes: large"),
        (lambda: entry(0.5, 0.1, relation=">="), "expected 'holds', got 'fails'"),
        (lambda: entry(0.5, expect="fails"), "expected 'fails', got 'holds'"),
    ],
)
def test_a_fault_turns_the_entry_red(made, problem):
    assert made()["problem"] == problem


def test_an_honest_failure_is_green_and_printed_as_failing():
    made = entry(1.5, expect="fails", expect_reason="it is large")
    assert (made["verdict"], made["problem"]) == ("fails", None)
    assert "**fails** (it is large)" in ledger.markdown_table([made])


def test_what_theory_does_not_cover_gets_no_other_verdict():
    for value in (0.5, 1.5):
        made = entry(value, expect="not covered by theory", expect_reason="kinks")
        assert (made["verdict"], made["problem"]) == ("not covered by theory", None)


def test_a_control_is_judged_by_its_most_favourable_seed():
    row = claim(CLAIM)
    payload = {"id": row.id, "values": ["0.5"], "controls": {"large": ["5.0", "0.9"]}, "seeds": []}
    made = ledger.entries({row.id: row}, {"first": {"seconds": 1, "claims": [payload]}}, "quick")
    assert made[0]["problem"] == "negative control passes: large"


def test_a_record_of_another_chapter_is_an_error():
    row = claim(CLAIM | {"chapter": "second"})
    payload = {"id": row.id, "values": ["0.5"], "controls": {"large": ["5.0"]}, "seeds": []}
    with pytest.raises(BookError, match="not registered for it"):
        ledger.entries({row.id: row}, {"first": {"seconds": 1, "claims": [payload]}}, "quick")


def test_infinity_survives_in_strict_json(tmp_path):
    ledger.write(tmp_path / "ledger.json", [entry(INF, INF)])

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "ledger.json").read_text()
    read = json.loads(text, parse_constant=refuse)
    assert read[0]["value"] == INF
    assert read[0]["controls"]["large"]["value"] == INF


def test_a_full_disk_leaves_the_old_ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    ledger.write(path, [entry()])
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(
        BookError, match=r"cannot write .*ledger\.json\.sha256: No space left on device"
    ):
        ledger.write(path, [entry(1.5)])
    assert path.read_text() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [".ledger.json.sha256", path.name]


def test_a_broken_ledger_is_named(tmp_path):
    path = tmp_path / "ledger.json"
    with pytest.raises(BookError, match="cannot read the ledger"):
        ledger.read(path)
    ledger.write(path, [entry()])
    for content in (path.read_text()[:-9], path.read_text().replace("0.5", "0.4"), "\xff"):
        path.write_text(content, encoding="latin1")
        with pytest.raises(BookError, match=r"ledger\.json.*(cut off or changed|decode)"):
            ledger.read(path)


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
    assert ledger.number(value, bound) == text


def test_each_profile_has_its_own_expectation():
    row = claim(CLAIM)
    row = dataclasses.replace(row, expect={"quick": "holds", "full": "fails"}, bound=BOUNDS)
    payload = {"id": row.id, "values": ["0.5"], "controls": {"large": ["5.0"]}, "seeds": []}
    records = {"first": {"seconds": 1, "claims": [payload]}}
    for profile in BOUNDS:
        assert ledger.entries({row.id: row}, records, profile)[0]["problem"] is None
