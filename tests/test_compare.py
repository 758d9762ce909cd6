"""A ledger beside the reference: what counts as reproduced, and how a reference is renewed."""

import copy
import json
import math
import os
import subprocess
import sys

import pytest

from latebook import BookError, compare, ledger
from tests.conftest import ROOT, FixtureBook
from tests.test_ledger import entry

INF = math.inf


def two(change):
    """A reference and the same rows with a change, both as they are read from a file."""
    rows = [entry([0.5, 0.8, 0.1], [2.0, INF]), entry(0.001, id="first/other")]
    other = copy.deepcopy(rows)
    change(other)
    return rows, other


def status(change):
    found = compare.compare(*two(change))
    assert found[1].status == "reproduced"
    return found[0].status


def values(*numbers):
    return lambda rows: rows.__setitem__(0, entry([*numbers], [2.0, INF]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: None, "reproduced"),
        (values(0.5, 0.8 * (1 + 1e-13), 0.1), "reproduced"),
        (values(0.5, 0.8 * (1 + 1e-11), 0.1), "within tolerance"),
        (values(0.54, 0.73, 0.1), "within tolerance"),
        (values(0.5, 0.8, 0.11), "within tolerance"),  # the floor is 0.01, a tenth of 0.1
        (values(0.5, 0.8, 0.12), "differs"),  # though the worst seed is as it was
        (values(0.5, 0.7, 0.1), "differs"),
        (values(0.5, INF, 0.1), "differs"),
        (lambda rows: rows.__setitem__(0, entry([0.5, 0.8])), "differs"),
        (lambda rows: rows.__setitem__(0, entry([0.5, 0.8, 0.1], [2.1, INF])), "within tolerance"),
        (lambda rows: rows.__setitem__(0, entry([0.5, 0.8, 0.1], [2.0, 3.0])), "differs"),
        (lambda rows: rows.__setitem__(0, entry([0.5, 0.8, 0.1], [19.0, INF])), "within tolerance"),
        (lambda rows: rows.__setitem__(0, entry([0.5, 0.8, 0.1], [21.0, INF])), "differs"),
        (lambda rows: rows[0].update(statement="in other words"), "restated"),
        (lambda rows: rows[0].update(reason="another"), "restated"),
        (lambda rows: rows[0]["controls"]["large"].update(what="another"), "restated"),
        (lambda rows: rows.__setitem__(0, entry([0.5, 0.8, 0.1], [0.9, INF])), "differs"),
        (lambda rows: rows[0].update(controls={}), "differs"),
        (lambda rows: rows[0]["controls"].update(more=rows[0]["controls"]["large"]), "differs"),
        (lambda rows: rows[0].update(seeds=[7, 8, 10]), "differs"),
        (lambda rows: rows[0].update(dropped={"8": "no late phase"}), "differs"),
        (lambda rows: rows[0].update(verdict="fails"), "differs"),
        (lambda rows: rows[0].update(bound=0.9), "differs"),
        (lambda rows: rows[0].update(metric="another number"), "differs"),
        (lambda rows: rows[0].update(tolerance={"relative": 9.0, "floor": 9.0}), "differs"),
        (lambda rows: rows[0].update(problem="recorded 2 times"), "differs"),
        (lambda rows: rows[0].update(range=[0, 1000]), "differs"),
    ],
)
def test_a_claim_is_judged_seed_by_seed(change, expected):
    assert status(change) == expected


def test_an_infinite_value_is_reproduced_by_itself_alone():
    def row(value):
        return [entry(value, expect="fails", expect_reason="it is large")]

    for value, expected in ((INF, "reproduced"), (1.5, "differs")):
        assert compare.compare(row(INF), row(value))[0].status == expected
    assert compare.compare(row(1.5), row(INF))[0].status == "differs"


def test_where_the_median_is_judged_the_median_is_compared():
    def row(*values):
        return [entry([*values], over_seeds="median")]

    for values, expected in (
        ((0.5, 0.1, 0.9), "reproduced"),
        ((0.5, 0.4, 0.6), "within tolerance"),
        ((0.56, 0.1, 0.9), "differs"),
    ):
        assert compare.compare(row(0.5, 0.1, 0.9), row(*values))[0].status == expected


def test_rows_that_one_of_the_two_lacks_are_named():
    rows, other = two(lambda rows: rows.pop(1))
    assert [(c.id, c.status) for c in compare.compare(rows, other)][1:] == [
        ("first/other", "missing")
    ]
    assert [(c.id, c.status) for c in compare.compare(other, rows)][1:] == [("first/other", "new")]
    assert compare.counted(compare.compare(rows, other)) == "1 reproduced, 1 missing"


def test_why_a_claim_differs_is_said():
    found = compare.compare(*two(values(0.5, 0.7, 0.1)))[0]
    assert found.why == "seed 8: 0.7, reference 0.8 ± 0.08"
    assert "first/small  differs           seed 8" in compare.table([found])


def test_another_profile_is_refused():
    rows, other = two(lambda rows: rows[0].update(profile="full"))
    with pytest.raises(BookError, match="profile 'full' cannot be compared with one of 'quick'"):
        compare.compare(rows, other)


class Repository:
    """A book that git keeps, no claim registered yet, with a ledger as its build makes them."""

    def __init__(self, root):
        self.book = FixtureBook(root)
        (root / ".gitignore").write_text("/_build/\n")
        (root / "book/claims.yml").unlink()
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("a book")

    @property
    def root(self):
        return self.book.root

    def git(self, *words):
        named = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        return subprocess.run(
            ["git", "-C", str(self.root), *named, *words],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip

    def commit(self, message):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def measure(self, value=0.5, changes="", threads=1, **of_row):
        """Write the ledger as if it had been measured at the last commit."""
        row = entry(value, **of_row)
        commit = self.git("rev-parse", "HEAD") + changes
        row["measured"] = row["measured"] | {"commit": commit, "threads": threads}
        made = self.root / "_build/ledger.json"
        ledger.write(made, [ledger.sealed(row)])
        return made

    def call(self, *words):
        people, of = ("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")
        names = {f"GIT_{who}_{what}": "n@example.org" for who in people for what in of}
        return subprocess.run(
            [sys.executable, "-m", "latebook", *words],
            cwd=self.root, env=os.environ | names, capture_output=True, text=True,
        )  # fmt: skip


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "book root")


def test_a_reference_is_a_commit_of_its_own_that_says_what_changed_and_why(repository):
    repository.measure(0.5)
    assert "no reference is committed" in repository.call("compare").stderr
    (repository.root / "other").write_text("of another commit")
    repository.git("add", "other")
    first = repository.call("reference", "--why", "the first")
    assert first.returncode == 0, first.stderr
    assert repository.git("show", "--name-only", "--format=") == "results/ledger.quick.json"
    assert repository.git("log", "-1", "--format=%s") == (
        "Reference ledger, quick: 1 of 1 claims changed"
    )
    assert repository.git("status", "--porcelain") == "A  other"
    assert repository.call("compare").returncode == 0

    again = repository.call("reference", "--why", "nothing")
    assert "nothing to renew" in again.stdout
    repository.measure(0.25)
    done = repository.call("compare")
    assert done.returncode == 1
    assert "seed 7: 0.25, reference 0.5 ± 0.05" in done.stdout
    renewed = repository.call("reference", "--why", 'halves $HOME "it"')
    assert renewed.returncode == 0, renewed.stderr
    said = repository.git("log", "-1", "--format=%b")
    assert said.startswith('halves $HOME "it"\n\nfirst/small: value 0.5 → 0.25; values [0.5] → [')
    assert said in renewed.stdout


def test_a_reference_has_its_reason_its_verdicts_and_its_commit(repository):
    repository.measure()
    assert "is renewed for a reason" in repository.call("reference", "--why", " ").stderr
    for value, changes, threads, wrong in (
        (1.5, "", 1, "a red ledger is no reference"),
        (0.5, "+changes", 1, "a reference is measured at a commit; these chapters were not"),
        (0.5, "", 2, "a reference is measured on one thread; on more were: first"),
    ):
        repository.measure(value, changes, threads)
        done = repository.call("reference", "--why", "for a reason")
        assert (done.returncode, wrong in done.stderr) == (1, True), done.stderr
    assert not (repository.root / "results").exists()


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda rows: rows[0].update(value=0.51, values=[0.51]), "changed since it was written"),
        (lambda rows: rows[0].update(verdict="fails"), "the verdict is 'fails'"),
        (lambda rows: rows[0]["tolerance"].update(relative=5.0), "changed since it was written"),
        (lambda rows: rows.append(rows[0]), "stands there more than once"),
        (lambda rows: rows.clear(), "should be non-empty"),
        (lambda rows: rows[0].update(profile="paper"), "changed since it was written"),
    ],
)
def test_neither_ledger_may_be_edited(repository, tamper, said):
    made = repository.measure()
    assert repository.call("reference", "--why", "the first").returncode == 0
    theirs, reference = (
        repository.root / "theirs.json",
        repository.root / "results/ledger.quick.json",
    )
    whole = made.read_text()
    rows = json.loads(whole)
    tamper(rows)
    theirs.write_text(json.dumps(rows))
    done = repository.call("compare", "--ledger", str(theirs))
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    reference.write_text(json.dumps(rows))
    done = repository.call("compare")
    assert (done.returncode, "is not as committed" in done.stderr) == (1, True), done.stderr
    repository.git("commit", "--all", "--message", "by hand")
    done = repository.call("compare")
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr


def test_an_edited_reference_is_not_the_committed_one(repository):
    """Sealed anew it is a valid ledger, and git may have been told not to look."""
    repository.measure(0.25)
    assert repository.call("reference", "--why", "the first").returncode == 0
    reference = repository.root / "results/ledger.quick.json"
    repository.git("update-index", "--assume-unchanged", str(reference))
    reference.write_text(ledger.text([entry(0.5)]))
    repository.measure(0.5)
    done = repository.call("compare")
    assert (done.returncode, "is not as committed" in done.stderr) == (1, True), done.stderr


def test_a_strangers_ledger_is_compared_where_it_is(repository):
    made = repository.measure(0.5)
    assert repository.call("reference", "--why", "the first").returncode == 0
    theirs = repository.root / "theirs.json"
    theirs.write_text(ledger.text([entry(0.52)]))
    done = repository.call("compare", "--ledger", str(theirs))
    assert (done.returncode, "within tolerance" in done.stdout) == (0, True), done.stderr
    theirs.write_text(ledger.text([entry(0.6)]))
    assert repository.call("compare", "--ledger", str(theirs)).returncode == 1
    theirs.write_text(ledger.text([ledger.sealed(entry() | {"profile": "full"})]))
    assert "cannot be compared" in repository.call("compare", "--ledger", str(theirs)).stderr
    theirs.write_text(ledger.text([entry(id="first/other")]))
    done = repository.call("compare", "--ledger", str(theirs))
    assert (done.returncode, "1 missing, 1 new" in done.stdout) == (1, True), done.stdout
    made.write_text(made.read_text() + " ")
    assert "cut off or changed" in repository.call("compare").stderr


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("ledger.*.json")), ids=str)
def test_the_committed_references_are_ledgers_of_their_profiles(path):
    rows = ledger.read(path, own=False)
    assert {row["profile"] for row in rows} == {path.name.split(".")[1]}
    assert not ledger.problems(rows)
    assert all(row["registered"]["bound"]["commit"] for row in rows)
