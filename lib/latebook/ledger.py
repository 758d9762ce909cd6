"""From what the chapters recorded to verdicts: `_build/ledger.json`.

The ledger is a list of rows, one a claim, that `ledger.schema.json` describes. A row stands alone:
what is claimed, what was measured where and from what, and every number of which its verdict is
made.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from latebook import BookError
from latebook.claims import AFTER, FAILS, HOLDS, Claim, status
from latebook.files import broken_seal, write_sealed
from latebook.records import sha256_of

MISSING = "missing"
SCHEMA = Path(__file__).with_name("ledger.schema.json")
# Verdicts that say whether the value is within the bound.
_OF_VALUES = {HOLDS: True, FAILS: False}
# What a row says of the run that measured it: its own names, and those `execute` wrote down.
_ENVIRONMENT = ("python", "system", "device", "threads")
_HASHES = {"cells": "notebook"} | {
    name: name for name in ("library", "pipeline", "parameters", "claims", "lock", "environment")
}


def entries(
    claims: dict[str, Claim],
    records: dict[str, dict],
    profile: str,
    registered: Mapping[str, dict] | None = None,
) -> list[dict]:
    """One ledger entry for each registered claim, in the registry's order.

    `records` maps a chapter to {"made_by": what `execute` wrote down of its run, "claims":
    [payload of claims.record, ...]}; `registered` a claim's id to when it was registered, as
    `registration.dates` has it. The build is red where an entry has a `problem`: a verdict other
    than expected, a value out of its range, a claim that is missing, recorded twice or NaN, a
    negative control that satisfies the bound. A recorded claim that the registry does not know,
    or knows in another chapter, is an error.
    """
    found: dict[str, list[dict]] = {}
    for chapter, of_chapter in records.items():
        for payload in of_chapter["claims"]:
            claim = claims.get(payload["id"])
            if claim is None or claim.chapter != chapter:
                raise BookError(f"{chapter} recorded {payload['id']!r}, not registered for it")
            found.setdefault(claim.id, []).append(payload)
    rows = []
    for claim in claims.values():
        made_by = records.get(claim.chapter, {}).get("made_by")
        row = _entry(claim, found.get(claim.id, []), profile, made_by)
        row["registered"] = (registered or {}).get(claim.id)
        row["status"] = _status(row)
        rows.append(sealed(row))
    return rows


def _status(row: Mapping) -> str:
    return status(row["kind"], row["verdict"], row["problem"] is None, row["missed"])


def sealed(row: dict) -> dict:
    """The row with the hash of all else that it says, by which an edit of one is noticed."""
    row = {key: value for key, value in row.items() if key != "sha256"}
    return row | {"sha256": sha256_of(_json(row))}


def _entry(claim: Claim, found: list[dict], profile: str, made_by: dict | None) -> dict:
    entry = {
        "id": claim.id,
        "chapter": claim.chapter,
        "profile": profile,
        "kind": claim.kind,
        "missed": claim.missed,
        "after_looking": claim.registered[profile] == AFTER,
        "statement": claim.statement,
        "source": claim.source,
        "metric": claim.metric,
        "relation": claim.relation,
        "bound": claim.bound[profile],
        "reason": claim.reason,
        "tolerance": claim.tolerance,
        "expected": claim.expect[profile],
        "expect_reason": claim.expect_reason,
        "range": claim.range[profile],
        "over_seeds": claim.over_seeds,
        "value": None,
        "verdict": MISSING,
        "values": [],
        "seeds": [],
        "dropped": {},
        "controls": {},
        "problem": None,
        "seconds": None,
        "measured": None,
    }
    if not found or made_by is None:
        return entry | {"problem": f"{claim.chapter} recorded no value"}
    entry |= {"seconds": made_by["seconds"], "measured": measured(made_by)}
    payload, controls = found[0], found[0]["controls"]
    numbers = [payload, *controls.values()]
    if any(math.isnan(float(value)) for of in numbers for value in of["values"]):
        return entry | {"problem": "a value is NaN"}
    values = [float(value) for value in payload["values"]]
    value = claim.of_seeds(values)
    entry |= {"value": value, "verdict": claim.verdict(value, profile), "values": values}
    entry |= {"seeds": payload["seeds"], "dropped": payload["dropped"]}
    entry["controls"] = {
        name: _control(claim, controls[name], profile) | {"what": what}
        for name, what in claim.controls.items()
        if name in controls
    }
    return entry | {"problem": _problem(claim, entry, len(found))}


def _control(claim: Claim, payload: dict, profile: str) -> dict:
    values = [float(value) for value in payload["values"]]
    value = claim.best(values)
    violates = not claim.satisfied(value, profile)
    return {"value": value, "violates": violates, "values": values, "seeds": payload["seeds"]}


def measured(made_by: dict) -> dict:
    """What a row says of the run that measured it, from what `execute` wrote down."""
    return {
        **{key: made_by[key] for key in ("commit", "date")},
        **{key: made_by["environment"][key] for key in _ENVIRONMENT},
        **{name: made_by["parts"][part] for part, name in _HASHES.items()},
        **{key: made_by[key] for key in ("inputs", "opened")},
    }


def _problem(claim: Claim, entry: dict, times: int) -> str | None:
    if times > 1:
        return f"recorded {times} times"
    if missing := sorted(set(claim.controls) - set(entry["controls"])):
        return f"negative control not recorded: {', '.join(missing)}"
    passing = [name for name, control in entry["controls"].items() if not control["violates"]]
    if passing:
        return f"negative control passes: {', '.join(passing)}"
    if len(entry["dropped"]) >= len(entry["seeds"]):
        lost = f"{len(entry['dropped'])} starts are dropped, {len(entry['seeds'])} are left"
        return f"{lost}: the rest says nothing of all"
    if entry["verdict"] != entry["expected"]:
        return f"expected {entry['expected']!r}, got {entry['verdict']!r}"
    if claim.outside(entry["value"], entry["profile"]):
        return f"{entry['value']!r} is out of the registered range {entry['range']}"
    return None


def write(path: Path, ledger: list[dict]) -> None:
    """Write the ledger as strict JSON, a line for each key of a row: see `text`."""
    write_sealed(path, text(ledger))


def text(ledger: list[dict]) -> str:
    """The ledger as JSON that every reader takes; BookError if it does not fit its schema.

    JSON has no infinity: a value that is infinite is the text "Infinity" or "-Infinity", which
    `float` reads in most languages.
    """
    rows = _json(ledger)
    check(rows, "the ledger")
    lines = (",\n  ".join(f"{_line(key)}: {_line(row[key])}" for key in row) for row in rows)
    return "[\n" + ",\n".join(f" {{{line}}}" for line in lines) + "\n]\n"


def _line(value) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _json(value):
    """The same with the infinite numbers as texts."""
    if isinstance(value, dict):
        return {key: _json(of_key) for key, of_key in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def read(path: Path, own: bool = True) -> list[dict]:
    """The ledger's entries; BookError if the file is missing or not as it was written.

    One that the build of this checkout made (`own`) has its hash beside it; another, the reference
    or a stranger's, is known by what it says: see `check`.
    """
    try:
        content = path.read_text(encoding="utf8")
    except (OSError, ValueError) as error:
        raise BookError(f"cannot read the ledger {path}: {error}") from error
    if own and (wrong := broken_seal(path)):
        raise BookError(f"{wrong}; `make book` makes it again")
    try:
        hooks = {"parse_int": _integer, "object_pairs_hook": _once}
        rows = json.loads(content, parse_constant=_number, parse_float=_number, **hooks)
    except (ValueError, RecursionError) as error:
        raise BookError(f"{path} is not JSON: {error}") from error
    check(rows, str(path))
    for row in rows:
        for numbers in (row, *row["controls"].values()):
            numbers["values"] = [float(value) for value in numbers["values"]]
            numbers["value"] = None if numbers["value"] is None else float(numbers["value"])
    return rows


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is a number that not every reader takes")
    return number


def _integer(text: str) -> int:
    _number(text)
    return int(text)


def _once(pairs: list[tuple]) -> dict:
    """An object whose keys stand there once: of two, one reader takes the first, one the last."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(key for key, _ in pairs)}")
    return found


@cache
def _validator():
    # Imported by those alone that read or write a ledger.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf8")))


def check(rows: list[dict], what: str) -> None:
    """Raise BookError where rows, as JSON has them, are not a ledger that the build could write.

    They must fit the schema, have each claim once, be of one profile, be as they were written by
    the hash that each carries, and have the verdicts that follow from their own values.
    """
    for error in _validator().iter_errors(rows):
        at = "".join(f"[{step!r}]" for step in error.absolute_path)
        raise BookError(f"{what}: does not fit {SCHEMA.name}: {at} {error.message[:200]}")
    twice = [id for id, times in Counter(row["id"] for row in rows).items() if times > 1]
    if twice:
        raise BookError(f"{what}: stands there more than once: {', '.join(twice)}")
    if len(profiles := {row["profile"] for row in rows}) != 1:
        raise BookError(f"{what}: rows of the profiles {', '.join(sorted(profiles))}, expected one")
    for row in rows:
        if (wrong := _inconsistent(row) or _missaid(row)) or sealed(row) != row:
            raise BookError(f"{what}: {row['id']}: {wrong or 'changed since it was written'}")


def _inconsistent(row: dict) -> str | None:
    """What a row says that does not follow from its values."""
    if row["verdict"] == MISSING:
        return None if row["value"] is None and row["problem"] else "missing, and yet there"
    upper = row["relation"] == "<="
    for name, numbers in (("", row), *row["controls"].items()):
        values = [float(value) for value in numbers["values"]]
        value = _judged("best" if name else row["over_seeds"], upper, values)
        within = value <= row["bound"] if upper else value >= row["bound"]
        of = f"the control {name}" if name else "the claim"
        if len(values) != len(numbers["seeds"]):
            return f"{of} has {len(values)} values for {len(numbers['seeds'])} seeds"
        if value != float(numbers["value"]):
            return f"{of} has the value {numbers['value']}, but its values say {value!r}"
        if name and numbers["violates"] is within:
            return f"{of} violates the bound: {numbers['violates']}, but {value!r} says otherwise"
        if not name and _OF_VALUES.get(row["verdict"], within) is not within:
            return f"the verdict is {row['verdict']!r}, but its value is {value!r}"
    low, high = row["range"] or (-math.inf, math.inf)
    green = row["verdict"] == row["expected"] and low <= float(row["value"]) <= high
    green = green and row["controls"] and all(c["violates"] for c in row["controls"].values())
    return None if green or row["problem"] else "it names no problem, and yet it is red"


def _missaid(row: dict) -> str | None:
    """What is wrong with a row's status, which ledgers of before there were any do not have."""
    said = _status({"missed": ""} | row)
    if row.get("status", said) == said:
        return None
    return f"the status is {row['status']!r}, but it is {said!r} that follows"


def _judged(how: str, upper: bool, values: list[float]) -> float:
    best_first = sorted(values, reverse=not upper)
    if how == "median":
        return statistics.median(values)
    return best_first[0] if how == "best" else best_first[-1]


def problems(ledger: list[dict]) -> list[str]:
    """What turns the build red, one line each."""
    return [f"{entry['id']}: {entry['problem']}" for entry in ledger if entry["problem"]]
