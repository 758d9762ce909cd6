"""The registry of claims (`book/claims.yml`) and the one call with which a chapter answers it.

A chapter states no bound. It calls `record(id, value, control=...)`, which leaves the numbers in
the output of the cell; the executed notebook is thus the only record there is, and what the
ledger reads is what the reader sees.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from latebook import BookError
from latebook.files import read_yaml

MIME = "application/vnd.latephase.claim+json"
PROFILES = ("quick", "full", "paper")
HOLDS, FAILS, NOT_COVERED = "holds", "fails", "not covered by theory"

_REQUIRED = ("id", "chapter", "statement", "source", "metric", "relation", "bound", "reason")
_OPTIONAL = ("controls", "expect", "expect_reason")
_EXPECTED = {HOLDS, FAILS, NOT_COVERED}


@dataclass(frozen=True)
class Claim:
    """One row of the registry: what is measured, against which bound, and why that bound."""

    id: str
    chapter: str
    statement: str
    source: str
    metric: str
    relation: str
    bound: Mapping[str, float]
    reason: str
    controls: Mapping[str, str]
    expect: Mapping[str, str]
    expect_reason: str = ""

    def satisfied(self, value: float, profile: str) -> bool:
        """Whether `value` stands in the registered relation to the profile's bound (NaN: no)."""
        bound = self.bound[profile]
        return value <= bound if self.relation == "<=" else value >= bound

    def verdict(self, value: float, profile: str) -> str:
        """HOLDS or FAILS, or NOT_COVERED where the registry says that theory does not reach."""
        if self.expect[profile] == NOT_COVERED:
            return NOT_COVERED
        return HOLDS if self.satisfied(value, profile) else FAILS

    def worst(self, values: list[float]) -> float:
        """The value that speaks most against the claim; NaN if any is NaN."""
        return _extreme(max if self.relation == "<=" else min, values)

    def best(self, values: list[float]) -> float:
        """The value that speaks most for the claim: the one by which a control is judged."""
        return _extreme(min if self.relation == "<=" else max, values)


def _extreme(of: Callable, values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else of(values)


def load(path: Path) -> dict[str, Claim]:
    """The registered claims by id, in the order of the file.

    Raises BookError for an unknown or missing key, a claim registered twice, a bound that is not
    a number for each profile, a missing negative control, or an expectation without a reason.
    """
    rows = read_yaml(path)
    if not isinstance(rows, list) or not rows:
        raise BookError(f"{path}: expected a list of claims, got {type(rows).__name__}")
    claims = {}
    for row in rows:
        claim = _claim(row, path)
        if claim.id in claims:
            raise BookError(f"{path}: the claim {claim.id!r} is registered twice")
        claims[claim.id] = claim
    return claims


def of_chapter(claims: Mapping[str, Claim], chapter: str) -> set[str]:
    """The ids of the claims that a chapter must record."""
    return {claim.id for claim in claims.values() if claim.chapter == chapter}


def _claim(row: Mapping, path: Path) -> Claim:
    name = row.get("id", row) if isinstance(row, Mapping) else row
    for fault in _faults(row):
        raise BookError(f"{path}: claim {name!r}: {fault}")
    bound = {p: float(number) for p, number in _for_each_profile(row["bound"]).items()}
    return Claim(**row | {"bound": bound, "expect": _for_each_profile(row.get("expect", HOLDS))})


def _faults(row: Mapping) -> Iterator[str]:
    """What is wrong with a row; the first is told, those behind it may follow from it."""
    if not isinstance(row, Mapping):
        yield "expected a mapping"
    if missing := [key for key in _REQUIRED if row.get(key) in (None, "")]:
        yield f"missing {', '.join(missing)}"
    if unknown := sorted(set(row) - {*_REQUIRED, *_OPTIONAL}):
        yield f"unknown key {', '.join(unknown)}"
    if row["relation"] not in ("<=", ">="):
        yield f"relation is '<=' or '>=', got {row['relation']!r}"
    bound = _for_each_profile(row["bound"])
    if set(bound) != set(PROFILES) or not all(map(_is_finite, bound.values())):
        yield f"bound is a finite number, or one for each of {PROFILES}, got {bound}"
    expect = _for_each_profile(row.get("expect", HOLDS))
    expected = set(expect.values())
    if set(expect) != set(PROFILES) or not expected <= _EXPECTED:
        yield f"expect is one of {sorted(_EXPECTED)}, or one for each of {PROFILES}, got {expect}"
    if NOT_COVERED in expected and expected != {NOT_COVERED}:
        yield f"what theory covers does not depend on the profile, got {expect}"
    if expected != {HOLDS} and not row.get("expect_reason"):
        yield f"expect: {expect} needs an expect_reason"
    if not isinstance(row.get("controls"), Mapping) or not row["controls"]:
        yield "needs at least one negative control (controls: name: what it is)"


def _for_each_profile(value) -> Mapping:
    return value if isinstance(value, Mapping) else dict.fromkeys(PROFILES, value)


def _is_finite(number) -> bool:
    return type(number) in (int, float) and math.isfinite(number)


def record(id: str, value, *, control: Mapping[str, object] | None = None, seeds=()) -> None:
    """Record the measured value of a registered claim, with its negative controls.

    `value` is a number or one number for each seed; the ledger judges the worst. `control` maps
    the name of each registered negative control to its number or numbers; the ledger judges the
    most favourable, which must violate the bound. Infinity is a value (a run that never
    separates), NaN is not. Raises BookError for an unknown claim, a NaN, or controls other than
    the registered ones.
    """
    claim, control = _registered(id), control or {}
    if set(control) != set(claim.controls):
        raise BookError(
            f"claims.record({id!r}): expected the controls {sorted(claim.controls)}, "
            f"got {sorted(control)}"
        )
    payload = {
        "id": id,
        "values": _numbers(value, f"the value of {id}"),
        "controls": {n: _numbers(v, f"control {n!r} of {id}") for n, v in control.items()},
        "seeds": [int(seed) for seed in seeds],
    }
    _show(claim, payload)


def holds(id: str, value) -> bool:
    """Return whether a value, or the worst of several, is within the bound of a registered claim.

    For sentences that say what the figures show: a notebook never repeats a bound.
    """
    claim = _registered(id)
    numbers = list(map(float, _numbers(value, f"the value of {id}")))
    return claim.satisfied(claim.worst(numbers), _profile())


def _registered(id: str) -> Claim:
    path = registry_path()
    registry = _load_once(path, path.stat().st_mtime_ns)
    if id not in registry:
        raise BookError(f"claims: {id!r} is not registered; known: {', '.join(registry)}")
    return registry[id]


# A chapter asks for each of its claims; reading the registry takes a sixth of a second.
_load_once = cache(lambda path, modified: load(path))


def _profile() -> str:
    return os.environ.get("LATEPHASE_PROFILE", PROFILES[0])


def _numbers(value, what: str) -> list[str]:
    # As text: the kernel's messages carry JSON, which has no infinity, and repr loses no digit.
    values = [float(v) for v in (value if hasattr(value, "__iter__") else [value])]
    if not values:
        raise BookError(f"claims: {what} is empty")
    if any(math.isnan(v) for v in values):
        raise BookError(f"claims: {what} is NaN in {values}; a claim needs numbers")
    return [repr(v) for v in values]


def _show(claim: Claim, payload: dict) -> None:
    from IPython.display import publish_display_data

    profile = _profile()
    value = claim.worst([float(v) for v in payload["values"]])
    bound, verdict = claim.bound[profile], claim.verdict(value, profile)
    line = f"{claim.id}: {value:.3g} {claim.relation} {bound:.3g} — {verdict}"
    publish_display_data({MIME: payload, "text/plain": line})


def registry_path() -> Path:
    """The registry of the book that the current folder belongs to."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (path := folder / "book" / "claims.yml").is_file():
            return path
    raise BookError(f"no book/claims.yml in {here} or above it: run the notebook inside the book")
