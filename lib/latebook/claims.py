"""The registry of claims (`book/claims.yml`) and the one call with which a chapter answers it.

A chapter states no bound. It calls `record(id, value, control=...)`, which leaves the numbers in
the output of the cell; the executed notebook is thus the only record there is, and what the
ledger reads is what the reader sees.
"""

import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from latebook import BookError
from latebook.files import read_yaml

MIME = "application/vnd.latephase.claim+json"
PROFILES = ("quick", "full", "paper")
# How a value stands to its bound, and whether any theory asks that of it.
HOLDS, FAILS, NOT_COVERED = "holds", "fails", "not covered by theory"
# Whose claim it is. A theorem's cannot fail unless something is broken.
KINDS = ("theorem", "paper", "prediction", "observation", "instrument")
THEOREM, PAPER, PREDICTION, OBSERVATION, INSTRUMENT = KINDS
# What that means to a reader: see `status`.
CONFIRMED, REPRODUCED = "confirmed", "reproduced"
SLOWER, WRONG, NOT_SEEN = "slower than predicted", "our prediction was wrong", "not seen here"
SHORTCOMING, OUTSIDE = "known shortcoming", "outside the theorems"
NOT_REPRODUCED, BROKEN = "not reproduced", "broken"
STATUSES = (
    *(CONFIRMED, REPRODUCED, SLOWER, WRONG, NOT_SEEN, SHORTCOMING),
    *(OUTSIDE, NOT_REPRODUCED, BROKEN),
)

_REQUIRED = (
    *("id", "chapter", "kind", "statement", "source", "metric"),
    *("relation", "bound", "tolerance", "reason"),
)
_OPTIONAL = (
    *("controls", "expect", "expect_reason", "missed", "registered"),
    *("range", "over_seeds", "cases", "few"),
)
_EXPECTED = {HOLDS, FAILS, NOT_COVERED}
BEFORE, AFTER = "before", "after"
MISSED = "slower"
OVER_SEEDS = ("worst", "median", "best")
SEEDS = 5  # fewer need a reason
# A value farther than so many bounds beyond its bound, on the side that speaks for the claim, is a
# fault of the measurement: a distance below zero, a factor that stands for a division by zero. A
# range that reaches farther on the other side excludes nothing.
_ABSURD = 1000.0


@dataclass(frozen=True)
class Claim:
    """One row of the registry: what is measured, against which bound, and why that bound.

    `tolerance` is how far a value may lie from the reference's on another machine: the larger of
    `floor` and `relative` times the reference's. `range` bounds the value where the claim is
    expected to fail or is not covered. `cases` is the number of starts that the metric is
    registered for, None for those of the chapter's parameter `seeds`; `few` is the reason why they
    are fewer than five. `over_seeds` says which of the numbers of the seeds is judged.
    `missed` is "slower" for a prediction of a time or a rate that turned out too fast, where it is
    expected to fail. `registered` says whether bound and expectation were set before or after a
    look at the numbers.
    """

    id: str
    chapter: str
    kind: str
    statement: str
    source: str
    metric: str
    relation: str
    bound: Mapping[str, float]
    tolerance: Mapping[str, float]
    reason: str
    controls: Mapping[str, str]
    expect: Mapping[str, str]
    expect_reason: str = ""
    missed: str = ""
    registered: Mapping[str, str] = field(default_factory=lambda: _for_each_profile(BEFORE))
    range: Mapping[str, list[float] | None] = field(default_factory=lambda: _for_each_profile(None))
    over_seeds: str = "worst"
    cases: Mapping[str, int | None] = field(default_factory=lambda: _for_each_profile(None))
    few: str = ""

    def satisfied(self, value: float, profile: str) -> bool:
        """Whether `value` stands in the registered relation to the profile's bound (NaN: no)."""
        bound = self.bound[profile]
        return value <= bound if self.relation == "<=" else value >= bound

    def verdict(self, value: float, profile: str) -> str:
        """HOLDS or FAILS, or NOT_COVERED where the registry says that theory does not reach."""
        if self.expect[profile] == NOT_COVERED:
            return NOT_COVERED
        return HOLDS if self.satisfied(value, profile) else FAILS

    def is_as_registered(self, value: float, profile: str) -> bool:
        """Whether a value has the expected verdict, and is in the range of it."""
        expected = self.verdict(value, profile) == self.expect[profile]
        return expected and not self.outside(value, profile)

    def status(self, value: float, profile: str) -> str:
        """What the value says to a reader: see the function of this name."""
        as_registered = self.is_as_registered(value, profile)
        return status(self.kind, self.verdict(value, profile), as_registered, self.missed)

    def of_seeds(self, values: list[float]) -> float:
        """The value that is judged, of one number for each seed; NaN if any is NaN.

        It is the one that speaks most against the claim, or the median, or, where existence is
        claimed, the one that speaks most for it.
        """
        if self.over_seeds == "best":
            return self.best(values)
        if self.over_seeds == "median":
            return _extreme(statistics.median, values)
        return _extreme(max if self.relation == "<=" else min, values)

    def best(self, values: list[float]) -> float:
        """The value that speaks most for the claim: the one by which a control is judged."""
        return _extreme(min if self.relation == "<=" else max, values)

    def is_absurd(self, value: float, profile: str) -> bool:
        """Whether a value speaks so much for the claim that it can only be a fault.

        Infinity does, and what lies beyond the bound by more than a thousand times the bound's
        size (a thousand, where the bound is zero).
        """
        bound = self.bound[profile]
        beyond = bound - value if self.relation == "<=" else value - bound
        return beyond > _ABSURD * (abs(bound) or 1.0)

    def outside(self, value: float, profile: str) -> bool:
        """Whether a value is out of the range registered for it, which not every claim has."""
        low, high = self.range[profile] or (-math.inf, math.inf)
        return not low <= value <= high


def status(kind: str, verdict: str, as_registered: bool, missed: str = "") -> str:
    """What a row says to a reader: the one place where kind and verdict become words.

    `as_registered`: whether all of the row is, controls and range as well; where it is not the
    build is red. An observation has no bound to meet, it is reproduced or not. What an instrument
    is known not to do is neither confirmed nor broken.
    """
    if not as_registered:
        return NOT_REPRODUCED if kind == OBSERVATION else BROKEN
    if verdict == NOT_COVERED:
        return OUTSIDE
    if kind == OBSERVATION:
        return REPRODUCED
    if verdict == HOLDS:
        return CONFIRMED
    of_prediction = SLOWER if missed == MISSED else WRONG
    failing = {PREDICTION: of_prediction, PAPER: NOT_SEEN, INSTRUMENT: SHORTCOMING}
    return failing.get(kind, BROKEN)


def _extreme(of: Callable, values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else of(values)


def load(path: Path) -> dict[str, Claim]:
    """The registered claims by id, in the order of the file.

    Raises BookError for an unknown or missing key, a claim registered twice, a bound that is not
    a number for each profile, a missing negative control, an expectation without a reason or
    without a range, a theorem that is expected to fail, or fewer than five cases without a reason.
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


def of_chapter(claims: Mapping[str, Claim], chapter: str) -> dict[str, Claim]:
    """The claims that a chapter must record, by id."""
    return {id: claim for id, claim in claims.items() if claim.chapter == chapter}


def _claim(row: Mapping, path: Path) -> Claim:
    name = row.get("id", row) if isinstance(row, Mapping) else row
    for fault in _faults(row):
        raise BookError(f"{path}: claim {name!r}: {fault}")
    read = {"bound": {p: float(n) for p, n in _for_each_profile(row["bound"]).items()}}
    read["expect"] = _for_each_profile(row.get("expect", HOLDS))
    read["registered"] = _for_each_profile(row.get("registered", BEFORE))
    read |= {key: _for_each_profile(row.get(key)) for key in ("range", "cases")}
    if _is_number(row["tolerance"]):
        read["tolerance"] = {"relative": row["tolerance"], "floor": 0.0}
    return Claim(**row | read)


def _faults(row: Mapping) -> Iterator[str]:
    """What is wrong with a row; the first is told, those behind it may follow from it."""
    if not isinstance(row, Mapping):
        yield "expected a mapping"
    if missing := [key for key in _REQUIRED if _is_blank(row.get(key))]:
        yield f"missing {', '.join(missing)}"
    if unknown := sorted(set(row) - {*_REQUIRED, *_OPTIONAL}):
        yield f"unknown key {', '.join(unknown)}"
    if row["relation"] not in ("<=", ">="):
        yield f"relation is '<=' or '>=', got {row['relation']!r}"
    bound = _for_each_profile(row["bound"])
    if set(bound) != set(PROFILES) or not all(map(_is_number, bound.values())):
        yield f"bound is a finite number, or one for each of {PROFILES}, got {bound}"
    expect = _for_each_profile(row.get("expect", HOLDS))
    expected = set(expect.values())
    if set(expect) != set(PROFILES) or not expected <= _EXPECTED:
        yield f"expect is one of {sorted(_EXPECTED)}, or one for each of {PROFILES}, got {expect}"
    if NOT_COVERED in expected and expected != {NOT_COVERED}:
        yield f"what theory covers does not depend on the profile, got {expect}"
    if expected != {HOLDS} and _is_blank(row.get("expect_reason")):
        yield f"expect: {expect} needs an expect_reason"
    if not isinstance(row.get("controls"), Mapping) or not row["controls"]:
        yield "needs at least one negative control (controls: name: what it is)"
    elif bare := [name for name, what in row["controls"].items() if _is_blank(what)]:
        yield f"the control {bare[0]!r} does not say what it is"
    yield from _faults_of_kind(row, expected)
    yield from _faults_of_measuring(row, expect)


def _faults_of_kind(row: Mapping, expected: set) -> Iterator[str]:
    """What is wrong with the keys that say whose claim it is, and how it came to be one."""
    if row["kind"] not in KINDS:
        yield f"kind is one of {KINDS}, got {row['kind']!r}"
    if row["kind"] == THEOREM and expected != {HOLDS}:
        yield f"a {THEOREM} is expected to hold, got {sorted(expected)}"
    fails = row["kind"] == PREDICTION and FAILS in expected
    if (missed := row.get("missed")) is not None and not (fails and missed == MISSED):
        yield f"missed: {MISSED} is for a {PREDICTION} that is expected to fail, got {missed!r}"
    registered = _for_each_profile(row.get("registered", BEFORE))
    if set(registered) != set(PROFILES) or not set(registered.values()) <= {BEFORE, AFTER}:
        yield f"registered is {BEFORE} or {AFTER}, or one for each of {PROFILES}, got {registered}"


def _faults_of_measuring(row: Mapping, expect: Mapping) -> Iterator[str]:
    """What is wrong with the keys that say how a claim is measured."""
    if row.get("over_seeds", OVER_SEEDS[0]) not in OVER_SEEDS:
        yield f"over_seeds is one of {OVER_SEEDS}, got {row['over_seeds']!r}"
    tolerance = row["tolerance"]
    parts = tolerance if isinstance(tolerance, Mapping) else {"relative": tolerance, "floor": 0}
    if set(parts) != {"relative", "floor"} or not all(map(_is_number, parts.values())):
        yield f"tolerance is a number or {{relative: a number, floor: a number}}, got {tolerance}"
    elif min(parts.values()) < 0:
        yield f"tolerance is not negative, got {tolerance}"
    elif parts["relative"] > 1:
        yield f"tolerance is no more than the value itself (relative: 1), got {tolerance}"
    ranges = _for_each_profile(row.get("range"))
    if set(ranges) != set(PROFILES) or not all(map(_is_range, ranges.values())):
        yield f"range is [low, high], finite, or one for each of {PROFILES}, got {ranges}"
    bounds = _for_each_profile(row["bound"])
    if wide := [p for p in PROFILES if ranges[p] and _is_wide(ranges[p], bounds[p])]:
        yield f"range reaches more than {_ABSURD:g} bounds beyond the bound, got {ranges[wide[0]]}"
    if bare := [p for p in PROFILES if expect[p] != HOLDS and ranges[p] is None]:
        yield f"expect: {expect[bare[0]]} needs a range, outside of which the row is red"
    cases = _for_each_profile(row.get("cases"))
    if set(cases) != set(PROFILES) or not all(
        number is None or (type(number) is int and number > 0) for number in cases.values()
    ):
        yield f"cases is a number of starts, or one for each of {PROFILES}, got {cases}"
    if _is_blank(row.get("few")) and any(number and number < SEEDS for number in cases.values()):
        yield f"cases: {row['cases']} is fewer than {SEEDS} and needs a reason (few: why)"


def _is_wide(ends: list[float], bound: float) -> bool:
    return max(abs(end - bound) for end in ends) > _ABSURD * (abs(bound) or 1.0)


def _for_each_profile(value) -> Mapping:
    return value if isinstance(value, Mapping) else dict.fromkeys(PROFILES, value)


def _is_blank(text) -> bool:
    return not str("" if text is None else text).strip()


def _is_number(number) -> bool:
    return type(number) in (int, float) and math.isfinite(number)


def _is_range(pair) -> bool:
    if pair is None:
        return True
    numbers = isinstance(pair, list) and all(map(_is_number, pair))
    return numbers and len(pair) == 2 and pair[0] < pair[1]


def record(
    id: str,
    value: Mapping[int, float] | Iterable[float] | float,
    *,
    control: Mapping[str, object],
    seeds: Iterable[int] | None = None,
    dropped: Mapping[int, str] | None = None,
) -> None:
    """Record the measured numbers of a registered claim, seed by seed, with its negative controls.

    `value` is one number for each of `seeds`, in their order, or {seed: number}. `dropped` names
    each start of which there is no number, {seed: reason}; it counts among the registered cases.
    `control` maps the name of each registered control to one number for each seed of the value, in
    their order, or to {seed: number or numbers} for seeds of its own. The ledger judges the worst
    number of the value, or as the registry's `over_seeds` says, and of a control the one that
    speaks most for the claim, which must violate the bound.

    Infinity is a value (a run that never separates) where it speaks against the claim; NaN is
    none. Raises BookError for an unknown claim, NaN, a value that speaks for the claim beyond
    reason, numbers and seeds that do not match one by one, or controls other than the registered
    ones.
    """
    claim, profile = _registered(id), _profile()
    if set(control) != set(claim.controls):
        raise BookError(
            f"claims.record({id!r}): expected the controls {sorted(claim.controls)}, "
            f"got {sorted(control)}"
        )
    seeds = None if seeds is None else [*map(_seed, seeds)]
    measured = _by_seed(value, seeds, f"the value of {id}")
    dropped = {_seed(seed): str(reason).strip() for seed, reason in (dropped or {}).items()}
    kept = measured["seeds"]
    if len({*kept, *dropped}) < len(kept) + len(dropped) or not all(dropped.values()):
        raise BookError(
            f"claims: {id} takes each start once, measured or dropped for a reason, "
            f"got {kept} and dropped {dropped}"
        )
    if absurd := [text for text in measured["values"] if claim.is_absurd(float(text), profile)]:
        raise BookError(
            f"claims: the value of {id} cannot be {', '.join(absurd)}, too good for "
            f"{claim.relation} {claim.bound[profile]:g}: a fault of the measurement"
        )
    controls = {n: _by_seed(v, kept, f"control {n!r} of {id}") for n, v in control.items()}
    dropped = {str(seed): reason for seed, reason in dropped.items()}
    _show(claim, {"id": id, **measured, "dropped": dropped, "controls": controls})


def _seed(seed) -> int:
    if int(seed) != seed:
        raise BookError(f"claims: a seed is a whole number, got {seed!r}")
    return int(seed)


def _by_seed(given, seeds: list[int] | None, what: str) -> dict:
    """Numbers, as text, and their seeds, one by one, as they stand in the output."""
    if isinstance(given, Mapping):
        pairs = {_seed(seed): _numbers(of_seed, what) for seed, of_seed in given.items()}
        values = [text for texts in pairs.values() for text in texts]
        return {
            "values": _some(values, what),
            "seeds": [seed for seed, texts in pairs.items() for _ in texts],
        }
    values = _numbers(given, what)
    if seeds is None or len(values) != len(seeds):
        raise BookError(
            f"claims: {what} is {len(values)} numbers for {len(seeds or [])} seeds; expected one "
            "for each seed in their order, or {seed: number}"
        )
    return {"values": values, "seeds": seeds}


def holds(id: str, value) -> bool:
    """Return whether a value, or that of several seeds, is within the bound of a registered claim.

    For sentences that say what the figures show: a notebook never repeats a bound.
    """
    claim, numbers = _own(id, value)
    return claim.satisfied(claim.of_seeds(numbers), _profile())


def said(id: str, value) -> str:
    """Return the status of a registered claim, for sentences that say what the table says."""
    claim, numbers = _own(id, value)
    return claim.status(claim.of_seeds(numbers), _profile())


def _own(id: str, value) -> tuple[Claim, list[float]]:
    claim = _registered(id)
    if os.environ.get("LATEPHASE_CHAPTER", claim.chapter) != claim.chapter:
        raise BookError(
            f"claims: {id!r} is of {claim.chapter}; a change of its bound would not run this"
        )
    return claim, list(map(float, _numbers(value, f"the value of {id}")))


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
    _some(values, what)
    if any(math.isnan(v) for v in values):
        raise BookError(f"claims: {what} is NaN in {values}; a claim needs numbers")
    return [repr(v) for v in values]


def _some(values: list, what: str) -> list:
    if not values:
        raise BookError(f"claims: {what} is empty")
    return values


def _show(claim: Claim, payload: dict) -> None:
    from IPython.display import publish_display_data

    text = line(claim, [float(v) for v in payload["values"]], _profile())
    publish_display_data({MIME: payload, "text/plain": text})


def line(claim: Claim, values: list[float], profile: str) -> str:
    """What a reader sees below the cell that recorded the values of a claim."""
    value, bound = claim.of_seeds(values), claim.bound[profile]
    kind = marked(claim.kind, claim.registered[profile] == AFTER)
    said = claim.status(value, profile)
    return f"{claim.id}: {value:.3g} {claim.relation} {bound:.3g} — {kind}: {said}"


def marked(kind: str, after: bool) -> str:
    """A kind, and the mark of a row whose bound or expectation was set after a look."""
    return f"{kind}, set after looking" if after else kind


def registry_path() -> Path:
    """The registry of the book that the current folder belongs to."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (path := folder / "book" / "claims.yml").is_file():
            return path
    raise BookError(f"no book/claims.yml in {here} or above it: run the notebook inside the book")
