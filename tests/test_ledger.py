"""What turns the ledger red: each fault is planted in one entry and must be named there.

And the file itself: strict JSON that fits its schema and from which every verdict follows.
"""

import json
import math
import re
import subprocess
import sys

import pytest

from latebook import BookError, ledger
from latebook.claims import CONFIRMED, KINDS, STATUSES, THEOREM, Claim
from tests.conftest import CLAIM, MADE_BY, ROOT

INF, NAN = math.inf, math.nan
SEEDS = [7, 8, 9]


def claim(row):
    of_profile = {"bound": {"quick": 1.0}, "expect": {"quick": row.get("expect", "holds")}}
    of_profile |= {key: {"quick": row.get(key)} for key in ("range", "registered")}
    return Claim(**row | of_profile)


def numbers(values) -> dict:
    values = values if isinstance(values, list) else [values]
    return {"values": [repr(value) for value in values], "seeds": SEEDS[: len(values)]}


def entry(value=0.5, control=2.0, times=1, **change):
    row = CLAIM | change
    controls = {} if control is None else {"large": numbers(control)}
    payload = {"id": row["id"], "dropped": {}, "controls": controls} | numbers(value)
    records = {"first": {"made_by": MADE_BY, "claims": [payload] * times}}
    return ledger.entries({row["id"]: claim(row)}, records, "quick")[0]


def test_a_claim_within_its_bound_holds():
    made = entry()
    assert (made["value"], made["verdict"], made["problem"]) == (0.5, "holds", None)
    assert (made["kind"], made["status"], made["after_looking"]) == (
        "prediction",
        "confirmed",
        False,
    )
    assert made["seconds"] == 1.5


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda: entry(1.5), "expected 'holds', got 'fails'"),
        (lambda: entry([0.1, 1.5, 0.2]), "expected 'holds', got 'fails'"),
        (lambda: entry([0.1, NAN]), "a value is NaN"),
        (lambda: entry(INF), "expected 'holds', got 'fails'"),
        (lambda: entry(times=0), "first recorded no value"),
        (lambda: entry(times=2), "recorded 2 times"),
        (lambda: entry(control=0.9), "negative control passes: large"),
        (lambda: entry(control=[5.0, 0.9]), "negative control passes: large"),
        (lambda: entry(control=NAN), "a value is NaN"),
        (lambda: entry(control=None), "negative control not recorded: large"),
        (lambda: entry(0.5, relation=">="), "negative control passes: large"),
        (lambda: entry(0.5, 0.1, relation=">="), "expected 'holds', got 'fails'"),
        (lambda: entry(0.5, expect="fails"), "expected 'fails', got 'holds'"),
        (
            lambda: entry(INF, expect="fails", range=[1.2, 2.0]),
            "inf is out of the registered range [1.2, 2.0]",
        ),
    ],
)
def test_a_fault_turns_the_entry_red(made, problem):
    assert made()["problem"] == problem
    assert made()["status"] == "broken"
    ledger.text([made()])  # which can be written all the same


def test_what_most_starts_do_not_answer_is_not_answered():
    row = claim(CLAIM)

    def problem(lost):
        payload = {"id": row.id, "controls": {"large": numbers(5.0)}} | numbers([0.5, 0.5])
        payload["dropped"] = {str(seed): "it broke" for seed in range(90, 90 + lost)}
        records = {"first": {"made_by": MADE_BY, "claims": [payload]}}
        return ledger.entries({row.id: row}, records, "quick")[0]["problem"]

    assert problem(1) is None
    assert problem(2) == "2 starts are dropped, 2 are left: the rest says nothing of all"


def test_an_honest_failure_is_green_and_said():
    made = entry(1.5, expect="fails", expect_reason="it is large", range=[1.2, 2.0])
    assert (made["verdict"], made["problem"]) == ("fails", None)
    assert made["status"] == "our prediction was wrong"
    slower = entry(1.5, expect="fails", range=[1.2, 2.0], missed="slower")
    assert slower["status"] == "slower than predicted"


def test_what_theory_does_not_cover_gets_no_other_verdict():
    for value in (0.5, 1.5):
        made = entry(value, expect="not covered by theory", expect_reason="kinks")
        assert (made["verdict"], made["problem"]) == ("not covered by theory", None)


def test_a_row_says_which_of_its_seeds_is_judged():
    made = entry([0.1, 1.5, 0.2], over_seeds="median")
    assert (made["value"], made["over_seeds"], made["problem"]) == (0.2, "median", None)
    ledger.check([made], "the ledger")
    with pytest.raises(BookError, match="but its values say"):
        ledger.check([made | {"over_seeds": "worst"}], "the ledger")


def test_a_record_of_another_chapter_is_an_error():
    row = claim(CLAIM | {"chapter": "second"})
    payload = {"id": row.id, "dropped": {}, "controls": {}} | numbers(0.5)
    with pytest.raises(BookError, match="not registered for it"):
        ledger.entries({row.id: row}, {"first": {"made_by": MADE_BY, "claims": [payload]}}, "quick")


def test_each_profile_has_its_own_expectation():
    bound, expect = {"quick": 1.0, "full": 0.1}, {"quick": "holds", "full": "fails"}
    row = Claim(**CLAIM | {"bound": bound, "expect": expect, "range": dict.fromkeys(bound)})
    payload = {"id": row.id, "dropped": {}, "controls": {"large": numbers(5.0)}} | numbers(0.5)
    records = {"first": {"made_by": MADE_BY, "claims": [payload]}}
    for profile in bound:
        assert ledger.entries({row.id: row}, records, profile)[0]["problem"] is None


def test_a_row_stands_alone():
    made = entry([0.1, 0.5], [2.0, INF])
    for key in ("statement", "source", "metric", "reason", "relation", "tolerance"):
        assert made[key] == CLAIM[key]
    assert (made["values"], made["seeds"], made["dropped"]) == ([0.1, 0.5], [7, 8], {})
    assert made["controls"]["large"] == {
        **{"what": "a large number", "value": 2.0, "violates": True},
        **{"values": [2.0, INF], "seeds": [7, 8]},
    }
    measured = made["measured"]
    assert (measured["commit"], measured["inputs"]) == (MADE_BY["commit"], MADE_BY["inputs"])
    assert (measured["python"], measured["device"], measured["threads"]) == ("3.12.3", "cpu", 1)
    assert (measured["opened"], measured["notebook"]) == (MADE_BY["opened"], "2" * 64)


def test_it_is_json_for_every_reader(tmp_path):
    """Without what orjson, polars, simdjson and jq refuse: NaN, Infinity, overflowing numbers."""
    path = tmp_path / "ledger.json"
    ledger.write(path, [entry(INF, [INF, 1e308])])

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    rows = json.loads(path.read_text(), parse_constant=refuse)
    written = re.findall(r"(?<!\w)-?\d+(?:\.\d+)?[eE][+-]?\d+(?!\w)", path.read_text())
    assert written
    assert all(math.isfinite(float(number)) for number in written)
    assert (rows[0]["value"], rows[0]["controls"]["large"]["values"]) == (
        "Infinity",
        ["Infinity", 1e308],
    )
    [back] = ledger.read(path)
    assert (back["value"], back["controls"]["large"]["values"]) == (INF, [INF, 1e308])
    path.write_text(path.read_text().replace("1e+308", "1e999"))
    with pytest.raises(BookError, match=r"1e999 is a number that not every reader takes"):
        ledger.read(path, own=False)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_theorems_of_the_reference_hold_and_its_controls_are_finite(profile):
    # Labels that nobody can learn make infinity of most measures: no bound could let that pass.
    rows = ledger.read(ROOT / "results" / f"ledger.{profile}.json", own=False)
    assert {row["status"] for row in rows if row["kind"] == THEOREM} == {CONFIRMED}
    for row in rows:
        of_controls = [number for of in row["controls"].values() for number in of["values"]]
        assert of_controls, row["id"]
        assert all(map(math.isfinite, of_controls)), row["id"]


def script() -> str:
    """The one that the reproducibility page shows."""
    page = (ROOT / "book" / "reproducibility.md").read_text()
    [found] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return found


def ran(path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script(), str(path)], capture_output=True, text=True
    )


ROWS = [
    lambda: entry([0.1, 0.5], [INF, 2.0]),
    lambda: entry([1.1, INF], expect="fails", expect_reason="it is large", id="first/fails"),
    lambda: entry([2.0, 1.5], [0.5, -INF], relation=">=", id="first/above"),
    lambda: entry(0.5, expect="not covered by theory", expect_reason="kinks", id="first/beyond"),
    lambda: entry([0.1, 5.0, 0.5], over_seeds="median", id="first/median"),
    lambda: entry([5.0, INF, 0.5], over_seeds="best", id="first/best"),
]


def made_ledger():
    return [make() for make in ROWS]


def test_every_verdict_follows_from_the_file_alone(tmp_path):
    path = tmp_path / "ledger.json"
    ledger.write(path, made_ledger())
    done = ran(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 verdicts follow from their values\n"


# What is edited in the file, by a row's id, and what then is wrong.
EDITS = [
    (lambda row: row.update(verdict="fails"), "verdict is 'fails', but its value is 0.5"),
    (lambda row: row.update(value=0.4), "the claim has the value 0.4, but its values say 0.5"),
    (lambda row: row["values"].__setitem__(0, 3.0), "has the value 0.5, but its values say 3.0"),
    (lambda row: row.update(over_seeds="best"), "has the value 0.5, but its values say 0.1"),
    (lambda row: row.update(bound=0.3), "verdict is 'holds', but its value is 0.5"),
    (lambda row: row["controls"]["large"].update(violates=False), "control large violates"),
    (lambda row: row["controls"]["large"].update(values=[0.1, 2.0]), "control large has the value"),
]


@pytest.mark.parametrize(("edit", "wrong"), EDITS)
def test_a_verdict_that_does_not_follow_is_refused_by_both(tmp_path, edit, wrong):
    path = tmp_path / "ledger.json"
    ledger.write(path, made_ledger())
    rows = json.loads(path.read_text())
    edit(rows[0])
    path.write_text(json.dumps(rows))
    assert ran(path).returncode != 0
    with pytest.raises(BookError, match=wrong):
        ledger.read(path, own=False)


@pytest.mark.parametrize(
    ("edit", "wrong"),
    [
        (lambda rows: rows[0]["values"].__setitem__(0, 0.2), "first/small: changed since"),
        (lambda rows: rows[0]["tolerance"].update(floor=9.0), "first/small: changed since"),
        (lambda rows: rows[0]["measured"].update(commit="d" * 40), "first/small: changed since"),
        (lambda rows: rows.append(rows[0]), "more than once: first/small"),
        (lambda rows: rows[0]["seeds"].append(9), "the claim has 2 values for 3 seeds"),
        (lambda rows: rows[0].pop("metric"), "'metric' is a required property"),
        (lambda rows: rows[0].update(extra=1), "'extra' was unexpected"),
        (lambda rows: rows[0].update(kind="guess"), "'guess' is not one of"),
        (lambda rows: rows[0].update(kind="observation"), "it is 'reproduced' that follows"),
        (lambda rows: rows[0].update(status="reproduced"), "it is 'confirmed' that follows"),
        (
            lambda rows: rows[1].update(missed="slower"),
            "it is 'slower than predicted' that follows",
        ),
        (lambda rows: rows[0].update(status="fine"), "'fine' is not one of"),
        (lambda rows: rows[0].update(after_looking=None), "None is not of type 'boolean'"),
        (lambda rows: rows[0].update(verdict="perhaps"), "'perhaps' is not valid"),
        (lambda rows: rows[0].update(profile="full"), "of the profiles full, quick, expected one"),
        (lambda rows: rows[0]["measured"].update(commit="c" * 10), "does not match"),
        (lambda rows: rows[0].update(tolerance=None), "None is not of type 'object'"),
        (lambda rows: rows.clear(), "should be non-empty"),
    ],
)
def test_a_ledger_that_no_build_wrote_is_refused(tmp_path, edit, wrong):
    rows = json.loads(ledger.text(made_ledger()))
    edit(rows)
    (tmp_path / "ledger.json").write_text(json.dumps(rows))
    with pytest.raises(BookError, match=wrong):
        ledger.read(tmp_path / "ledger.json", own=False)


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        ('"verdict": "holds"', '"verdict": "fails", "verdict": "holds"', "a key stands twice"),
        ('"value": 0.5', '"value": 5' + "0" * 400, "a number that not every reader takes"),
        ("[", "[" * 100_000, "is not JSON"),
    ],
)
def test_what_readers_read_differently_is_refused(tmp_path, before, after, wrong):
    path = tmp_path / "ledger.json"
    path.write_text(ledger.text([entry()]).replace(before, after, 1))
    with pytest.raises(BookError, match=wrong):
        ledger.read(path, own=False)


@pytest.mark.parametrize("change", [{"range": [2, 3]}, {"controls": {}}, {"expected": "fails"}])
def test_a_red_row_that_names_no_problem_is_refused(change):
    with pytest.raises(BookError, match="names no problem, and yet it is red"):
        ledger.text([ledger.sealed(entry() | change)])


def test_the_schema_is_one_and_has_the_kinds_and_statuses_of_the_design():
    from jsonschema import Draft202012Validator

    schema = json.loads(ledger.SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    row = schema["items"]["properties"]
    assert row["kind"]["enum"] == [*KINDS, None]
    assert row["status"]["enum"] == list(STATUSES)
    assert schema["$defs"]["verdict"]["enum"] == ["holds", "fails", "not covered by theory"]
    # Ledgers of before they were registered are read as well.
    new = {"missed", "after_looking", "status"}
    assert set(schema["items"]["required"]) | new == set(row) == set(entry())


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
