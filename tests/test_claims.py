"""The registry refuses what it cannot judge; record leaves its numbers in the notebook."""

import pytest
import yaml

from latebook import BookError, claims
from tests.conftest import CLAIM


def write(folder, rows):
    (folder / "book").mkdir(exist_ok=True)
    path = folder / "book" / "claims.yml"
    path.write_text(rows if isinstance(rows, str) else yaml.safe_dump(rows))
    return path


def test_one_bound_serves_every_profile(tmp_path):
    loaded = claims.load(write(tmp_path, [CLAIM]))
    assert loaded["first/small"].bound == {"quick": 1.0, "full": 1.0, "paper": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bound": None}, "missing bound"),
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


def test_record_keeps_every_digit_and_infinity(published):
    claims.record("first/small", [0.1, 1 / 3], control={"large": float("inf")}, seeds=[3, 4])
    payload = published[0][claims.MIME]
    assert [float(v) for v in payload["values"]] == [0.1, 1 / 3]
    assert payload["controls"] == {"large": ["inf"]}
    assert payload["seeds"] == [3, 4]


def test_record_shows_the_verdict_of_the_worst_seed(published):
    claims.record("first/small", [0.5, 1.5], control={"large": 2.0})
    assert published[0]["text/plain"] == "first/small: 1.5 <= 1 — fails"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("first/smal", 0.5, {"large": 2.0}), "'first/smal' is not registered; known: first/small"),
        (("first/small", float("nan"), {"large": 2.0}), "is NaN"),
        (("first/small", [0.5, float("nan")], {"large": 2.0}), "is NaN"),
        (("first/small", 0.5, {"large": float("nan")}), "control 'large' of first/small is NaN"),
        (("first/small", [], {"large": 2.0}), "is empty"),
        (("first/small", 0.5, {}), r"expected the controls \['large'\], got \[\]"),
    ],
)
def test_record_refuses(published, call, message):
    id, value, control = call
    with pytest.raises(BookError, match=message):
        claims.record(id, value, control=control)
    assert published == []


def test_record_outside_a_book_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BookError, match=r"no book/claims\.yml"):
        claims.record("first/small", 0.5, control={"large": 2.0})


@pytest.mark.parametrize(("relation", "beyond"), [("<=", 1.1), (">=", 0.9)])
def test_the_bound_itself_is_within(tmp_path, relation, beyond):
    claim = claims.load(write(tmp_path, [CLAIM | {"relation": relation}]))["first/small"]
    assert claim.satisfied(1.0, "quick")
    for value in (beyond, float("nan")):
        assert not claim.satisfied(value, "quick")
    assert claim.worst([1.0, beyond]) == claim.best([beyond, beyond]) == beyond
    assert claim.best([1.0, beyond]) == 1.0


def test_each_profile_has_its_bound_and_each_chapter_its_claims(published, monkeypatch):
    rows = [CLAIM | {"bound": {"quick": 1, "full": 0.1, "paper": 0.1}}]
    registry = claims.load(write(claims.registry_path().parents[1], rows))
    assert claims.holds("first/small", 0.5)
    monkeypatch.setenv("LATEPHASE_PROFILE", "full")
    assert not claims.holds("first/small", 0.5)
    assert claims.of_chapter(registry, "first") == {"first/small"}
    assert claims.of_chapter(registry, "second") == set()


def test_holds_judges_the_worst_number(published):
    assert claims.holds("first/small", [0.5, 1.0])
    assert not claims.holds("first/small", [0.5, 1.1])
    with pytest.raises(BookError, match="is NaN"):
        claims.holds("first/small", float("nan"))
