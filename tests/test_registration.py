"""When a claim was registered, read from histories with a turn each."""

import datetime
import os
import shutil
import subprocess
import time

import pytest

from latebook import provenance, registration
from latebook.claims import load
from latebook.layout import Book
from tests.conftest import CLAIM, ROOT
from tests.test_compare import Repository

UNKNOWN: dict = {}


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "book root")


def register(repository, *rows, path="book/claims.yml", message="claims"):
    """Commit a registry of rows that differ from CLAIM as said."""
    repository.book.write_yaml(path, [CLAIM | row for row in rows])
    return repository.commit(message)


def dates(repository, profile="quick", measured=None):
    book = Book(repository.root, profile)
    claims = load(book.claims)
    reference = [{"id": id, "measured": {"commit": measured}} for id in claims] if measured else []
    return registration.dates(book, claims, reference)


def commits(repository, id="first/small", **rest):
    found = dates(repository, **rest)[id]
    return found["first"]["commit"], found["bound"]["commit"]


def test_the_first_commit_and_the_last_change_of_the_bound(repository):
    first = register(repository, {})
    assert commits(repository) == (first, first)
    # A row may move to another chapter and keep its date, as long as it keeps its identifier.
    moved = {"chapter": "second", "statement": "The number is not large.", "reason": "another"}
    register(repository, moved)
    assert commits(repository) == (first, first)
    for change in (
        {"bound": 0.9},
        {"bound": 0.9, "relation": ">="},
        {"metric": "its square"},
        {"metric": "its square", "over_seeds": "best"},
    ):
        last = register(repository, change)
        assert commits(repository) == (first, last)
    moved = register(repository, change, {"id": "first/other"})
    assert commits(repository) == (first, last)
    assert commits(repository, "first/other") == (moved, moved)
    found = dates(repository)["first/small"]["first"]
    when = datetime.datetime.fromisoformat(found["date"])
    assert when.tzinfo
    assert abs(when.timestamp() - time.time()) < 600


def test_what_else_decides_a_verdict_has_its_date(repository):
    first = register(repository, {})
    found = dates(repository)["first/small"]
    assert found["terms"]["commit"] == first
    rows = {}
    for change in (
        {"range": [1.0, 3.0]},
        {"expect": "fails", "expect_reason": "so"},
        {"cases": 9},
        {"tolerance": 0.5},
    ):
        rows |= change
        last = register(repository, rows)
        found = dates(repository)["first/small"]
        assert [found[key]["commit"] for key in ("first", "bound", "terms")] == [first, first, last]
    register(repository, rows | {"statement": "in other words", "tolerance": 0.50})
    assert dates(repository)["first/small"]["terms"]["commit"] == last


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_checkout_of_another_user_is_read(repository):
    first = register(repository, {})
    for path in (repository.root, *repository.root.rglob("*")):
        os.chown(path, 12345, 12345)
    refused = subprocess.run(["git", "-C", str(repository.root), "log"], capture_output=True)
    assert b"dubious ownership" in refused.stderr
    assert commits(repository) == (first, first)
    assert provenance.commit(repository.root).removesuffix("+changes") == first


def test_each_profile_has_its_own_bound(repository):
    first = register(repository, {"bound": {"quick": 1.0, "full": 2.0, "paper": 2.0}})
    last = register(repository, {"bound": {"quick": 1.0, "full": 3.0, "paper": 2.0}})
    assert commits(repository) == commits(repository, profile="paper") == (first, first)
    assert commits(repository, profile="full") == (first, last)


def test_a_bound_that_came_back_dates_from_its_return(repository):
    first = register(repository, {"bound": 1.0})
    register(repository, {"bound": 2.0})
    back = register(repository, {"bound": 1.0})
    assert commits(repository) == (first, back)


def test_another_name_is_another_registration(repository):
    register(repository, {"id": "first/old"})
    renamed = register(repository, {"id": "first/new"})
    assert commits(repository, "first/new") == (renamed, renamed)
    again = register(repository, {"id": "first/old"})
    assert commits(repository, "first/old") == (again, again)


def test_the_file_may_have_moved(repository):
    first = register(repository, {}, {"id": "first/b"}, path="claims of old.yml")
    shutil.move(repository.root / "claims of old.yml", repository.root / "book/claims.yml")
    repository.commit("moved")
    assert commits(repository) == (first, first)
    last = register(repository, {"bound": 0.5}, {"id": "first/b"})
    assert commits(repository) == (first, last)


def test_branches_meet(repository):
    first = register(repository, {})
    repository.git("checkout", "--quiet", "-b", "side")
    side = register(repository, {}, {"id": "first/side"})
    repository.git("checkout", "--quiet", "main")
    main = register(repository, {"id": "first/main"}, {})
    repository.git("merge", "--quiet", "--strategy", "ours", "--no-commit", "side")
    # A merge that left the registry torn says nothing of when a claim was registered.
    (repository.root / "book/claims.yml").write_text("<<<<<<< [\n")
    repository.commit("merge")
    register(repository, {"id": "first/main"}, {}, {"id": "first/side"})
    assert commits(repository) == (first, first)
    assert commits(repository, "first/side") == (side, side)
    assert commits(repository, "first/main") == (main, main)


def test_what_is_not_committed_is_not_registered(repository):
    first = register(repository, {})
    edited = [CLAIM | {"bound": 0.5}, CLAIM | {"id": "first/new"}]
    repository.book.write_yaml("book/claims.yml", edited)
    no = "not committed"
    assert commits(repository) == (first, no)
    assert commits(repository, "first/new") == (no, no)
    assert dates(repository, measured=first)["first/small"]["before_reference"] is False


def test_whether_a_bound_precedes_its_measurement_is_asked_of_ancestors_not_of_dates(
    repository, monkeypatch
):
    first = register(repository, {})
    (repository.root / "note").write_text("measured here")
    measured = repository.commit("measured")
    for at in (first, measured, measured + "+changes"):
        assert dates(repository, measured=at)["first/small"]["before_reference"] is True
    for at in ("unknown", "f" * 40, None):
        assert dates(repository, measured=at)["first/small"]["before_reference"] is None
    # Moved after the measurement, and dated before it.
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2001-01-01T00:00:00+00:00")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00+00:00")
    register(repository, {"bound": 0.5})
    found = dates(repository, measured=measured)["first/small"]
    assert found["bound"]["date"].startswith("2001-01-01")
    assert found["before_reference"] is False


def test_without_a_history_of_its_own_nothing_is_said(repository, tmp_path, monkeypatch):
    register(repository, {})
    register(repository, {"bound": 0.5})
    inside = repository.root / "archive"
    shutil.copytree(repository.root / "book", inside / "book")
    apart = tmp_path / "apart"
    shutil.copytree(repository.root / "book", apart / "book")
    shallow = tmp_path / "shallow"
    clone = ["clone", "--quiet", "--depth", "1", repository.root.as_uri(), str(shallow)]
    subprocess.run(["git", *clone], check=True)
    for root in (inside, apart, shallow):
        book = Book(root, "quick")
        assert registration.dates(book, load(book.claims), None) == UNKNOWN
    # What the environment says of git's is of another repository.
    monkeypatch.setenv("GIT_DIR", str(repository.root / ".git"))
    book = Book(apart, "quick")
    assert registration.dates(book, load(book.claims), None) == UNKNOWN


def test_it_asks_git_little_the_second_time(monkeypatch):
    book = Book(ROOT, "quick")
    claims = load(book.claims)
    if not (found := registration.dates(book, claims, None)):
        pytest.skip("this checkout has not all of its history")
    asked, git = [], registration._git
    monkeypatch.setattr(registration, "_git", lambda *a, **k: (asked.append(a), git(*a, **k))[1])
    assert registration.dates(book, claims, None) == found
    # None of them for a claim, or for a commit.
    assert len(asked) < 5
    assert set(found) == set(claims)


def test_a_damaged_memory_of_versions_is_made_again(repository):
    first = register(repository, {})
    dates(repository)
    memory = repository.root / "_build/registry.json"
    memory.write_text(memory.read_text()[:-9])
    assert commits(repository) == (first, first)
