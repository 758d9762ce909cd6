"""A ledger beside the reference: what reproduced, claim by claim. And how a reference is renewed.

The reference of a profile, `results/ledger.PROFILE.json`, is a ledger of this repository's own
build, committed alone by `renew`.
"""

import json
import math
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from latebook import BookError, ledger, registration
from latebook.files import write_whole
from latebook.layout import Book

REPRODUCED, WITHIN, DIFFERS = "reproduced", "within tolerance", "differs"
RESTATED, MISSING, NEW = "restated", "missing", "new"
STATUSES = (REPRODUCED, WITHIN, RESTATED, DIFFERS, MISSING, NEW)
# Those that a comparison does not pass with.
RED = (DIFFERS, MISSING)
# What two rows must have in common before their values can be compared.
_REGISTERED = ("chapter", "relation", "bound", "metric", "over_seeds", "tolerance")
_REGISTERED += ("expected", "range")
_OF_ROW = ("verdict", "seeds", "dropped", "problem")
# What it is said to be, which decides nothing.
_WORDS = ("kind", "statement", "source", "reason", "expect_reason")
# Apart by no more than this share: the same sums, taken in another order.
ROUNDING = 1e-12
# A control shows that a claim can fail, and how clearly: by its order of magnitude.
_OF_CONTROLS = 10.0
# What a row says of its run and not of its claim.
_OF_THE_RUN = ("seconds", "measured", "registered", "sha256")


@dataclass(frozen=True)
class Comparison:
    """How a claim's row stands to the reference's: one of STATUSES, and why."""

    id: str
    status: str
    why: str = ""


def reference(book: Book) -> list[dict]:
    """The committed reference of the book's profile; BookError where there is none, or no whole.

    In a checkout the file must be as committed; elsewhere it is taken as it is.
    """
    if not book.reference.exists():
        raise BookError(f"no reference is committed for the profile {book.profile!r}")
    if registration.is_changed(book.root, book.reference):
        name = book.reference.relative_to(book.root)
        raise BookError(
            f"{name} is not as committed (git status {name}); only make reference renews it"
        )
    return ledger.read(book.reference, own=False)


def known(book: Book) -> list[dict] | None:
    """The same for what can do without: None where there is none, or none of this schema."""
    try:
        return reference(book)
    except BookError:
        return None


def compare(reference: list[dict], other: list[dict]) -> list[Comparison]:
    """Compare a ledger with the reference, claim by claim; BookError for another profile.

    *Reproduced* is a claim with the reference's verdict and seeds, each of whose values, and of
    its controls', equals the reference's or is apart by no more than ROUNDING of it. *Within
    tolerance*: each is apart by no more than the larger of the reference's `floor` and `relative`
    times the reference's value; of a claim that judges the median of its seeds, the median is. A
    control violates the bound as the reference's does, is infinite for the same seeds, and has the
    same order of magnitude. *Restated* is such a claim in other words. Whatever is apart by more,
    or registered otherwise, *differs*.
    """
    if (of := reference[0]["profile"]) != (got := other[0]["profile"]):
        raise BookError(f"a ledger of the profile {got!r} cannot be compared with one of {of!r}")
    rows = {row["id"]: row for row in other}
    found = [
        _compare(row, rows[row["id"]]) if row["id"] in rows else Comparison(row["id"], MISSING)
        for row in reference
    ]
    return found + [
        Comparison(id, NEW) for id in rows if id not in {row["id"] for row in reference}
    ]


def _compare(reference: dict, row: dict) -> Comparison:
    for key in (*_REGISTERED, *_OF_ROW):
        if reference[key] != row[key]:
            said = f"{key} {_short(row[key])}, reference {_short(reference[key])}"
            return Comparison(row["id"], DIFFERS, said)
    names = [f"seed {seed}" for seed in row["seeds"]]
    pairs = list(zip(names, row["values"], reference["values"], strict=True))
    other_than = [
        f"{name}: {value!r}, reference {other!r}"
        for name, value, other in pairs
        if not _same(value, other)
    ]
    if row["over_seeds"] == "median":  # registered because rounding decides where one seed ends
        pairs = [("median", row["value"], reference["value"])]
    tolerance = reference["tolerance"]
    for name, value, other in pairs:
        allowed = max(tolerance["floor"], tolerance["relative"] * abs(other))
        if not _same(value, other) and not abs(value - other) <= allowed < math.inf:
            said = f"{name}: {value!r}, reference {other!r} ± {allowed:.2g}"
            return Comparison(row["id"], DIFFERS, said)
    for name in row["controls"] | reference["controls"]:
        control, other = row["controls"].get(name), reference["controls"].get(name)
        if not control or not other or not _alike(control, other):
            return Comparison(row["id"], DIFFERS, f"the control {name}")
        if not all(map(_same, control["values"], other["values"])):
            other_than.append(f"the control {name}")
    if words := [word for word in _WORDS if row[word] != reference[word]] + [
        f"the control {name}"
        for name in row["controls"]
        if row["controls"][name]["what"] != reference["controls"][name]["what"]
    ]:
        return Comparison(row["id"], RESTATED, "in other words: " + ", ".join(words))
    return Comparison(row["id"], WITHIN if other_than else REPRODUCED, "; ".join(other_than[:2]))


def _alike(control: Mapping, other: Mapping) -> bool:
    """Whether two measurements of a control show the same; where it judges, and how clearly."""
    if any(control[key] != other[key] for key in ("seeds", "violates")):
        return False
    pairs = list(zip(control["values"], other["values"], strict=True))
    if any(math.isinf(a) != math.isinf(b) for a, b in pairs):
        return False
    value, of_reference = abs(control["value"]), abs(other["value"])
    return value <= _OF_CONTROLS * of_reference and of_reference <= _OF_CONTROLS * value


def _same(value: float, other: float) -> bool:
    return value == other or math.isclose(value, other, rel_tol=ROUNDING)


def counted(comparisons: list[Comparison]) -> str:
    """How many claims have which status, in a line."""
    counts = Counter(comparison.status for comparison in comparisons)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def table(comparisons: list[Comparison]) -> str:
    """The comparison as lines for the terminal."""
    width = max(len(comparison.id) for comparison in comparisons)
    lines = (f"  {c.id:<{width}}  {c.status:<{len(WITHIN)}}  {c.why}".rstrip() for c in comparisons)
    return "\n".join(lines)


def renew(book: Book, why: str) -> None:
    """Commit the build's ledger, alone, as the reference of its profile; say what changes and why.

    Raises BookError without a reason, for a red ledger, for one that was measured on more threads
    than one, where files were changed since the commit or where the commit is unknown, and where
    git refuses.
    """
    if not why.strip():
        raise BookError('a reference is renewed for a reason: make reference WHY="..."')
    rows = ledger.read(book.ledger)
    if wrong := ledger.problems(rows):
        raise BookError("\n".join(["a red ledger is no reference", *wrong]))
    if threaded := sorted({row["chapter"] for row in rows if row["measured"]["threads"] != 1}):
        raise BookError(
            f"a reference is measured on one thread; on more were: {', '.join(threaded)}"
        )
    measured = {row["chapter"]: row["measured"]["commit"] for row in rows}
    if unclear := [
        f"{c}: {commit}" for c, commit in measured.items() if len(commit) not in (40, 64)
    ]:
        folder = book.executed("").parent.relative_to(book.root)
        raise BookError(
            "a reference is measured at a commit; these chapters were not, commit and remove them "
            f"from {folder}, then make it again: {', '.join(unclear)}"
        )
    old = known(book) or []
    if not (changes := changed(old, rows)):
        print(f"{book.reference.name}: every row is as it was; nothing to renew.")
        return
    told = [
        f"Reference ledger, {book.profile}: {len(changes)} of {len(rows)} claims changed",
        why.strip(),
    ]
    message = "\n\n".join([*told, "\n".join(changes)]) + "\n"
    print(message)
    write_whole(book.reference, ledger.text([_preceding(book, row) for row in rows]))
    for words in (["add"], ["commit", "--quiet", "--only", "--message", message]):
        command = ["git", "-C", str(book.root), *words, "--", str(book.reference)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise BookError(
                f"{book.reference} is written, but git {words[0]}: {done.stderr.strip()}"
            )


def _preceding(book: Book, row: dict) -> dict:
    """The row as the reference says it, whose own measurement is the one to precede."""
    if not row["registered"]:
        return row
    commits = row["registered"]["bound"]["commit"], row["measured"]["commit"]
    before = registration.precedes(book.root, *commits)
    return ledger.sealed(row | {"registered": row["registered"] | {"before_reference": before}})


def changed(old: list[dict], new: list[dict]) -> list[str]:
    """The rows in which two ledgers say different things of a claim, and what, one line each."""
    before, after = ({row["id"]: _claimed(row) for row in rows} for rows in (old, new))
    lines = []
    for id in dict.fromkeys([*before, *after]):
        if id not in before or id not in after:
            lines.append(f"{id}: {'new' if id in after else 'gone'}")
        elif keys := [key for key in after[id] if after[id][key] != before[id].get(key)]:
            said = [
                f"{key} {_short(before[id].get(key))} → {_short(after[id][key])}" for key in keys
            ]
            lines.append(f"{id}: {'; '.join(said)}")
    return lines


def _claimed(row: Mapping) -> dict:
    return {key: value for key, value in row.items() if key not in _OF_THE_RUN}


def _short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else "…"
