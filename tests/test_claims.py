"""The registry refuses what it cannot judge; record leaves its numbers in the notebook."""

import pytest
import yaml

from latebook import BookError, claims
from tests.conftest import CLAIM, ROOT


def write(folder, rows):
    (folder / "book").mkdir(exist_ok=True)
    path = folder / "book" / "claims.yml"
    path.write_text(rows if isinstance(rows, str) else yaml.safe_dump(rows))
    return path


FAILS = {"expect": "fails", "expect_reason": "so", "range": [1.0, 2.0]}
BEYOND = FAILS | {"expect": "not covered by theory"}
SOMETIMES = {"quick": "holds", "full": "fails", "paper": "fails"}


def test_one_bound_serves_every_profile(tmp_path):
    loaded = claims.load(write(tmp_path, [CLAIM]))
    assert loaded["first/small"].bound == {"quick": 1.0, "full": 1.0, "paper": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bound": None}, "missing bound"),
        ({"tolerance": None}, "missing tolerance"),
        ({"reason": ""}, "missing reason"),
        ({"bound": "0.1"}, "bound is a finite number"),
        ({"bound": float("nan")}, "bound is a finite number"),
        ({"bound": True}, "bound is a finite number"),
        ({"bound": {"quick": 1, "full": 1}}, "one for each of"),
        ({"bund": 1}, "unknown key bund"),
        ({"relation": "<"}, "relation is '<=' or '>='"),
        ({"controls": {}}, "at least one negative control"),
        ({"expect": "maybe"}, "expect is one of"),
        ({"expect": "fails"}, "needs an expect_reason"),
        ({"expect": {"quick": "holds", "full": "fails"}}, "for each of"),
        ({"expect": {"quick": "holds", "full": "fails", "paper": "fails"}}, "expect_reason"),
        (
            {"expect": {"quick": "not covered by theory", "full": "holds", "paper": "holds"}},
            "does not depend on the profile",
        ),
        ({"kind": None}, "missing kind"),
        ({"kind": "guess"}, "kind is one of"),
        (FAILS | {"kind": "theorem"}, "a theorem is expected to hold"),
        (FAILS | {"kind": "theorem", "expect": SOMETIMES}, "a theorem is expected to hold"),
        (BEYOND | {"kind": "theorem"}, "a theorem is expected to hold"),
        (FAILS | {"missed": "later"}, "missed: slower is for a prediction"),
        (FAILS | {"missed": "slower", "kind": "paper"}, "missed: slower is for a prediction"),
        ({"missed": "slower"}, "missed: slower is for a prediction"),
        ({"registered": "yesterday"}, "registered is before or after"),
        ({"registered": {"quick": "after"}}, "registered is before or after"),
        ({"over_seeds": "mean"}, "over_seeds is one of"),
        ({"tolerance": -0.1}, "tolerance is not negative"),
        ({"tolerance": 1e9}, "tolerance is no more than the value itself"),
        ({"reason": " "}, "missing reason"),
        ({"cases": 1, "few": " "}, "needs a reason"),
        ({"controls": {"large": None}}, "does not say what it is"),
        ({"tolerance": {"relative": 0.1}}, "tolerance is a number or"),
        ({"tolerance": {"relative": 0.1, "floor": float("inf")}}, "tolerance is a number or"),
        ({"range": [2.0, 1.0]}, "range is"),
        ({"range": [0.0, float("inf")]}, "range is"),
        ({"range": 1.0}, "range is"),
        ({"range": [-1e308, 1e308]}, "range reaches more than 1000 bounds beyond"),
        ({"range": [1.0, 1002.0]}, "range reaches more than 1000 bounds beyond"),
        ({"expect": "fails", "expect_reason": "so"}, "fails needs a range"),
        ({"expect": "not covered by theory", "expect_reason": "so"}, "theory needs a range"),
        ({"cases": 0}, "cases is a number of starts"),
        ({"cases": 2.0}, "cases is a number of starts"),
        ({"cases": {"quick": 5}}, "cases is a number of starts"),
        ({"cases": 4, "few": ""}, "fewer than 5 and needs a reason"),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused(tmp_path, change, message):
    with pytest.raises(BookError, match=message):
        claims.load(write(tmp_path, [CLAIM | change]))


def test_a_claim_registered_twice_is_refused(tmp_path):
    with pytest.raises(BookError, match="'first/small' is registered twice"):
        claims.load(write(tmp_path, [CLAIM, CLAIM]))


def test_a_key_that_stands_twice_is_refused(tmp_path):
    rows = yaml.safe_dump([CLAIM]) + "  bound: 100.0\n"
    with pytest.raises(BookError, match="'bound' stands twice"):
        claims.load(write(tmp_path, rows))


def test_an_empty_registry_is_refused(tmp_path):
    with pytest.raises(BookError, match="expected a list of claims"):
        claims.load(write(tmp_path, ""))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """What `record` displays, in a folder below a book with one claim."""
    write(tmp_path, [CLAIM])
    monkeypatch.chdir(tmp_path / "book")
    shown = []
    monkeypatch.setattr("IPython.display.publish_display_data", shown.append)
    return shown


LARGE = {"large": [2.0]}


def test_record_keeps_every_digit_and_infinity(published):
    control = {"large": {3: [float("inf"), 2.0], 7: 5}}
    claims.record("first/small", [0.1, 1 / 3], control=control, seeds=[3, 4])
    payload = published[0][claims.MIME]
    assert [float(v) for v in payload.pop("values")] == [0.1, 1 / 3]
    large = {"values": ["inf", "2.0", "5.0"], "seeds": [3, 3, 7]}
    rest = {"seeds": [3, 4], "dropped": {}, "controls": {"large": large}}
    assert payload == {"id": "first/small"} | rest


def test_record_names_the_starts_that_it_dropped(published):
    values, reason = {4: 0.5, 3: 0.25}, "a step killed a neuron"
    claims.record("first/small", values, control={"large": [2.0, 3.0]}, dropped={5: reason})
    payload = published[0][claims.MIME]
    assert (payload["values"], payload["seeds"]) == (["0.5", "0.25"], [4, 3])
    assert payload["dropped"] == {"5": reason}
    assert payload["controls"]["large"]["seeds"] == [4, 3]


def test_record_shows_the_verdict_of_the_worst_seed(published):
    claims.record("first/small", [0.5, 1.5], control={"large": {0: 2.0}}, seeds=[0, 1])
    assert published[0]["text/plain"] == "first/small: 1.5 <= 1 — prediction: broken"


@pytest.mark.parametrize(
    ("value", "change", "said"),
    [
        (0.5, {"kind": "theorem"}, "theorem: confirmed"),
        (1.5, FAILS | {"missed": "slower"}, "prediction: slower than predicted"),
        (
            1.5,
            FAILS | {"registered": "after"},
            "prediction, set after looking: our prediction was wrong",
        ),
        (2.5, FAILS, "prediction: broken"),
        (0.5, FAILS | {"missed": "slower"}, "prediction: broken"),
        (1.5, BEYOND | {"kind": "observation"}, "observation: outside the theorems"),
    ],
)
def test_record_says_what_the_table_says(published, value, change, said):
    write(claims.registry_path().parents[1], [CLAIM | change])
    claims.record("first/small", [value], control=LARGE, seeds=[0])
    assert published[0]["text/plain"].endswith(f" — {said}")
    assert said.endswith(f": {claims.said('first/small', [value])}")


WORDS = {
    # (kind, verdict, missed): what a row that is as registered says
    ("theorem", "holds", ""): "confirmed",
    ("theorem", "fails", ""): "broken",
    ("theorem", "not covered by theory", ""): "outside the theorems",
    ("paper", "holds", ""): "confirmed",
    ("paper", "fails", ""): "not seen here",
    ("paper", "not covered by theory", ""): "outside the theorems",
    ("prediction", "holds", ""): "confirmed",
    ("prediction", "holds", "slower"): "confirmed",
    ("prediction", "fails", ""): "our prediction was wrong",
    ("prediction", "fails", "slower"): "slower than predicted",
    ("prediction", "not covered by theory", ""): "outside the theorems",
    ("observation", "holds", ""): "reproduced",
    ("observation", "fails", ""): "reproduced",
    ("observation", "not covered by theory", ""): "outside the theorems",
    ("instrument", "holds", ""): "confirmed",
    ("instrument", "fails", ""): "known shortcoming",
    ("instrument", "not covered by theory", ""): "outside the theorems",
}


@pytest.mark.parametrize("kind", claims.KINDS)
@pytest.mark.parametrize("verdict", ["holds", "fails", "not covered by theory"])
@pytest.mark.parametrize("missed", ["", "slower"])
def test_every_kind_and_verdict_has_its_word(kind, verdict, missed):
    word = WORDS.get((kind, verdict, missed), WORDS[kind, verdict, ""])
    assert claims.status(kind, verdict, True, missed) == word
    red = "not reproduced" if kind == "observation" else "broken"
    assert claims.status(kind, verdict, False, missed) == red


def test_every_word_is_said_of_something():
    red = {"broken", "not reproduced"}
    assert red | set(WORDS.values()) == set(claims.STATUSES)


def test_in_the_book_each_claim_is_of_a_kind_and_no_theorem_may_fail():
    registry = claims.load(ROOT / "book" / "claims.yml")
    found = {kind: [c for c in registry.values() if c.kind == kind] for kind in claims.KINDS}
    assert all(found.values())
    assert sum(map(len, found.values())) == len(registry)
    for claim in found["theorem"]:
        assert set(claim.expect.values()) == {"holds"}, claim.id


@pytest.mark.parametrize(
    ("id", "value", "seeds", "control", "message"),
    [
        ("first/smal", [0.5], [0], LARGE, "'first/smal' is not registered; known: first/small"),
        ("first/small", [float("nan")], [0], LARGE, "is NaN"),
        ("first/small", [0.5, float("nan")], [0, 1], LARGE, "is NaN"),
        ("first/small", [0.5], [0], {"large": [float("nan")]}, "'large' of first/small is NaN"),
        ("first/small", [], [], LARGE, "is empty"),
        ("first/small", {}, None, LARGE, "is empty"),
        ("first/small", [0.5], [0], {}, r"expected the controls \['large'\], got \[\]"),
        ("first/small", [0.5], [0, 1], LARGE, "is 1 numbers for 2 seeds"),
        ("first/small", [0.5, 0.5], [0], LARGE, "is 2 numbers for 1 seeds"),
        ("first/small", 0.5, None, LARGE, "is 1 numbers for 0 seeds"),
        ("first/small", [0.5], [0], {"large": [2.0, 3.0]}, "'large' .* 2 numbers for 1 seeds"),
        ("first/small", [0.5, 0.5], [1, 1], {"large": [2, 2]}, "takes each start once"),
        ("first/small", [0.5], [0.7], LARGE, "a seed is a whole number, got 0.7"),
        ("first/small", {0: 0.5, 0.5: 0.9}, None, {"large": {0: 2}}, "whole number, got 0.5"),
        ("first/small", {0: [0.5, 0.6]}, None, {"large": [2, 2]}, "takes each start once"),
        ("first/small", [float("-inf")], [0], LARGE, "cannot be -inf, too good for <= 1"),
        ("first/small", [0.5, -1e9], [0, 1], {"large": [2, 2]}, "cannot be -1000000000.0"),
    ],
)
def test_record_refuses(published, id, value, seeds, control, message):
    with pytest.raises(BookError, match=message):
        claims.record(id, value, control=control, seeds=seeds)
    assert published == []


@pytest.mark.parametrize("dropped", [{0: "lost"}, {1: " "}, {1: ""}])
def test_a_dropped_start_is_another_one_and_has_a_reason(published, dropped):
    with pytest.raises(BookError, match="measured or dropped for a reason"):
        claims.record("first/small", [0.5], control=LARGE, seeds=[0], dropped=dropped)


def test_record_outside_a_book_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BookError, match=r"no book/claims\.yml"):
        claims.record("first/small", [0.5], control=LARGE, seeds=[0])


@pytest.mark.parametrize(("relation", "beyond"), [("<=", 1.1), (">=", 0.9)])
def test_the_bound_itself_is_within(tmp_path, relation, beyond):
    claim = claims.load(write(tmp_path, [CLAIM | {"relation": relation}]))["first/small"]
    assert claim.satisfied(1.0, "quick")
    for value in (beyond, float("nan")):
        assert not claim.satisfied(value, "quick")
    assert claim.of_seeds([1.0, beyond]) == claim.best([beyond, beyond]) == beyond
    assert claim.best([1.0, beyond]) == 1.0


@pytest.mark.parametrize(("rule", "judged"), [("worst", 3.0), ("median", 2.0), ("best", 0.5)])
def test_the_registry_says_which_seed_is_judged(tmp_path, rule, judged):
    claim = claims.load(write(tmp_path, [CLAIM | {"over_seeds": rule}]))["first/small"]
    assert claim.of_seeds([3.0, 0.5, 2.0]) == judged


@pytest.mark.parametrize(
    ("relation", "bound", "absurd", "fine"),
    [
        ("<=", 1e-12, [-2e-9, float("-inf"), -0.5], [0.0, -1e-15, 1e300]),
        (">=", 0.1, [float("inf"), 101.0], [0.1, 99.0, -1e300]),
        (">=", 0.0, [float("inf"), 1001.0], [0.0, 999.0]),
        ("<=", -0.8, [-801.0], [-1.0, -800.0]),
    ],
)
def test_too_good_is_no_value(tmp_path, relation, bound, absurd, fine):
    row = CLAIM | {"relation": relation, "bound": bound}
    claim = claims.load(write(tmp_path, [row]))["first/small"]
    assert [value for value in [*absurd, *fine] if claim.is_absurd(value, "quick")] == absurd


def test_a_range_is_of_one_profile_or_of_all(tmp_path):
    expected = {"expect": "fails", "expect_reason": "so", "range": [1.0, 2.0]}
    claim = claims.load(write(tmp_path, [CLAIM | expected]))["first/small"]
    assert [claim.outside(v, "full") for v in (1.0, 2.0, 2.1, float("inf"))] == [0, 0, 1, 1]
    assert not claims.load(write(tmp_path, [CLAIM]))["first/small"].outside(1e300, "quick")


def test_each_profile_has_its_bound_and_each_chapter_its_claims(published, monkeypatch):
    rows = [CLAIM | {"bound": {"quick": 1, "full": 0.1, "paper": 0.1}}]
    registry = claims.load(write(claims.registry_path().parents[1], rows))
    assert claims.holds("first/small", 0.5)
    monkeypatch.setenv("LATEPHASE_PROFILE", "full")
    assert not claims.holds("first/small", 0.5)
    assert set(claims.of_chapter(registry, "first")) == {"first/small"}
    assert claims.of_chapter(registry, "second") == {}


def test_holds_judges_the_worst_number(published):
    assert claims.holds("first/small", [0.5, 1.0])
    assert not claims.holds("first/small", [0.5, 1.1])
    with pytest.raises(BookError, match="is NaN"):
        claims.holds("first/small", float("nan"))
