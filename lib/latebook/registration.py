"""When a claim was registered, and its bound last changed: from git's history of the registry.

A reading of the commits, not of the dates that they carry, says whether a bound precedes the
measurement of the reference: dates can be set, a commit's ancestors cannot.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import yaml

from latebook import provenance
from latebook.claims import HOLDS, OVER_SEEDS, PROFILES, Claim
from latebook.files import write_whole
from latebook.layout import Book

NOT_COMMITTED = {"commit": "not committed", "date": None}
# What a claim says of its number, with what a row has that does not say it; and what else decides
# whether the number is as registered.
_BOUND = {"relation": None, "bound": None, "metric": None, "over_seeds": OVER_SEEDS[0]}
_TERMS = {"expect": HOLDS, "range": None, "cases": None, "tolerance": None}


def dates(book: Book, claims: Mapping[str, Claim], reference: list[dict] | None) -> dict[str, dict]:
    """By a claim's id the commit that `first` registered it, and those of its last changes.

    A `bound` changes with the relation, the metric, which seed is judged, or the number of the
    book's profile; the `terms` with these, and with the expectation, its range, the number of cases
    and the tolerance. An id that was taken out and put in again, or is another, is registered anew.
    `before_reference`: whether the bound's commit is, or is an ancestor of, the one at which the
    reference was measured; None where there is no reference or its commit is not known here. The
    whole is empty where the book is not the root of a git checkout with all of its history.
    """
    if (history := _history(book)) is None:
        return {}
    now = _stated(_registered(book.claims.read_text(encoding="utf8")), book.profile)
    measured = {row["id"]: row["measured"]["commit"] for row in reference or []}
    found = {}
    for id in claims:
        first = history.origin(lambda of, id=id: id in of)
        bound, terms = (
            history.origin(lambda of, id=id, k=k: id in of and of[id][k] == now[id][k])
            for k in (0, 1)
        )
        before = precedes(book.root, bound["commit"], measured.get(id, "unknown"))
        found[id] = {"first": first, "bound": bound, "terms": terms, "before_reference": before}
    return found


@cache
def precedes(root: Path, commit: str, measured: str) -> bool | None:
    """Whether a commit is the measured one or an ancestor of it; None where that is not known."""
    measured = measured.removesuffix("+changes")
    if measured == "unknown":
        return None
    if commit == NOT_COMMITTED["commit"]:
        return False
    done = provenance.git(root, "merge-base", "--is-ancestor", commit, measured)
    return {0: True, 1: False}.get(done.returncode)


def is_changed(root: Path, path: Path) -> bool:
    """Whether a file of a checkout is other than committed; False where there is no checkout."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or not _same(top, root):
        return False
    # Compared by content: git may be told not to look at a file.
    committed = _git(root, "rev-parse", f"HEAD:{path.relative_to(root).as_posix()}")
    return committed != _git(root, "hash-object", "--", str(path))


class _History:
    """The commits that made the registry what it is, the last first, and what each registers."""

    def __init__(self, commits: dict[str, tuple[str, list[str]]], versions: dict[str, dict | None]):
        self.commits, self.versions = commits, versions

    def origin(self, has: Callable[[dict], bool]) -> dict:
        """The commit since which every version, in one line of descent to the last, `has` it."""
        last, candidates = None, self._readable([next(iter(self.commits))])
        while found := next((commit for commit in candidates if has(self.versions[commit])), None):
            last, candidates = found, self._readable(self.commits[found][1])
        return {"commit": last, "date": self.commits[last][0]} if last else NOT_COMMITTED

    def _readable(self, commits: list[str]) -> Iterator[str]:
        """These, but for one whose registry cannot be read its parents: it says nothing."""
        for commit in commits:
            if self.versions[commit] is None:
                yield from self._readable(self.commits[commit][1])
            else:
                yield commit


def _history(book: Book) -> _History | None:
    said = _git(book.root, "rev-parse", "--show-toplevel", "--is-shallow-repository")
    if said is None or said.split("\n")[1] == "true" or not _same(said.split("\n")[0], book.root):
        return None
    path = book.claims.relative_to(book.root).as_posix()
    follow = ["--follow", "--diff-filter=R", "--name-status", "--format="]
    moves = _git(book.root, "log", *follow, "--", path) or ""
    # Each line: how alike the two are, the earlier path, the later one.
    names = list(
        dict.fromkeys([path, *(line.split("\t")[1] for line in moves.splitlines() if line)])
    )
    log = _git(book.root, "log", "--topo-order", "--parents", "--format=%H %cI %P", "--", *names)
    if not log:
        return None
    commits = {}
    for line in log.splitlines():
        commit, date, *parents = line.split()
        commits[commit] = (date, parents)
    return _History(commits, _versions(book, [*commits], names))


def _same(toplevel: str, root: Path) -> bool:
    return Path(toplevel).resolve() == root.resolve()


def _versions(book: Book, commits: list[str], names: list[str]) -> dict[str, dict | None]:
    """What the registry said at each commit: `_stated` of its claims, by their ids.

    None where it could not be read, as in a merge that left it torn.
    """
    asked = [f"{commit}:{name}" for commit in commits for name in names]
    told = _git(book.root, "cat-file", "--batch-check", say="\n".join(asked)).splitlines()
    blobs = {}
    for name, line in zip(asked, told, strict=True):
        if re.fullmatch(r"[0-9a-f]+ blob [0-9]+", line):
            blobs.setdefault(name.partition(":")[0], line.split()[0])
    # What a blob says never changes, and to read each takes a second in all.
    kept = book.build / "registry.json"
    try:
        known = json.loads(kept.read_text(encoding="utf8"))
    except (OSError, ValueError):
        known = {}
    if new := set(blobs.values()) - set(known):
        known |= {blob: _registered(_git(book.root, "cat-file", "blob", blob)) for blob in new}
        write_whole(kept, json.dumps(known) + "\n")
    said = {blob: _stated(rows, book.profile) for blob, rows in known.items()}
    return {commit: said[blobs[commit]] if commit in blobs else {} for commit in commits}


def _registered(text: str) -> dict[str, dict] | None:
    """By id what `_stated` takes of a version's claims; None where it cannot be read."""
    try:
        # In C where it was compiled with it: a version takes a fifth of a second otherwise.
        rows = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    told = _BOUND | _TERMS
    return {str(row.get("id")): {key: row[key] for key in told if key in row} for row in rows}


def _stated(rows: dict[str, dict] | None, profile: str) -> dict[str, list[str]] | None:
    """What the claims of a version state for the profile: [the bound, all terms], by their ids."""
    if rows is None:
        return None

    def of_profile(value):
        return value.get(profile) if isinstance(value, dict) and set(value) & {*PROFILES} else value

    def said(row: dict, keys: dict) -> str:
        # Numbers as JSON writes them: 1, 1.0 and 1e0 are the same bound.
        text = json.dumps([of_profile(row.get(key, other)) for key, other in keys.items()])
        return json.dumps(json.loads(text, parse_int=float))

    return {
        id: [said(row, _BOUND), said(row, _BOUND | _TERMS)]
        for id, row in rows.items()
        if isinstance(of_profile(row.get("bound")), int | float)
    }


def _git(root: Path, *words: str, say: str | None = None) -> str | None:
    """What git prints, None where it refuses or is not there."""
    try:
        done = provenance.git(root, *words, say=say)
    except OSError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
