"""From what the chapters recorded to verdicts: `_build/ledger.json` and its tables."""

import json
import math
import re
from pathlib import Path

from latebook import BookError
from latebook.claims import Claim
from latebook.files import broken_seal, write_sealed

MISSING = "missing"


def entries(claims: dict[str, Claim], records: dict[str, dict], profile: str) -> list[dict]:
    """One ledger entry for each registered claim, in the registry's order.

    `records` maps a chapter to {"seconds": float, "claims": [payload of claims.record, ...]}.
    The build is red where an entry has a `problem`: verdict other than expected, claim missing,
    recorded twice or NaN, a negative control that satisfies the bound. A recorded claim that the
    registry does not know, or knows in another chapter, is an error.
    """
    found: dict[str, list[tuple[dict, float]]] = {}
    for chapter, of_chapter in records.items():
        for payload in of_chapter["claims"]:
            claim = claims.get(payload["id"])
            if claim is None or claim.chapter != chapter:
                raise BookError(f"{chapter} recorded {payload['id']!r}, not registered for it")
            found.setdefault(claim.id, []).append((payload, of_chapter["seconds"]))
    return [_entry(claim, found.get(claim.id, []), profile) for claim in claims.values()]


def _entry(claim: Claim, found: list[tuple[dict, float]], profile: str) -> dict:
    entry = {
        "id": claim.id,
        "chapter": claim.chapter,
        "profile": profile,
        "value": None,
        "relation": claim.relation,
        "bound": claim.bound[profile],
        "verdict": MISSING,
        "seeds": [],
        "seconds": None,
        "statement": claim.statement,
        "expected": claim.expect[profile],
        "expect_reason": claim.expect_reason,
        "values": [],
        "controls": {},
        "problem": None,
    }
    if not found:
        return entry | {"problem": f"{claim.chapter} recorded no value"}
    payload, seconds = found[0]
    values = [float(value) for value in payload["values"]]
    entry |= {"values": values, "value": claim.worst(values)}
    entry |= {"seeds": payload["seeds"], "seconds": seconds}
    entry["controls"] = {
        name: _control(claim, [float(value) for value in payload["controls"][name]], profile)
        for name in claim.controls
        if name in payload["controls"]
    }
    entry["verdict"] = claim.verdict(entry["value"], profile)
    return entry | {"problem": _problem(claim, entry, len(found))}


def _control(claim: Claim, values: list[float], profile: str) -> dict:
    value = claim.best(values)
    violates = not math.isnan(value) and not claim.satisfied(value, profile)
    return {"value": value, "violates": violates}


def _problem(claim: Claim, entry: dict, times: int) -> str | None:
    if times > 1:
        return f"recorded {times} times"
    if math.isnan(entry["value"]):
        return "the value is NaN"
    if missing := sorted(set(claim.controls) - set(entry["controls"])):
        return f"negative control not recorded: {', '.join(missing)}"
    passing = [name for name, control in entry["controls"].items() if not control["violates"]]
    if passing:
        return f"negative control passes: {', '.join(passing)}"
    if entry["verdict"] != entry["expected"]:
        return f"expected {entry['expected']!r}, got {entry['verdict']!r}"
    return None


def write(path: Path, ledger: list[dict]) -> None:
    """Write the ledger as JSON. Infinity is written 1e999, a JSON number every reader takes."""
    text = json.dumps(ledger, indent=1, ensure_ascii=False)
    # A number ends its line, a text that says the same is closed by a quotation mark.
    text = re.sub(r"\bInfinity(?=,?$)", "1e999", text, flags=re.MULTILINE)
    text = re.sub(r"\bNaN(?=,?$)", "null", text, flags=re.MULTILINE)
    write_sealed(path, text + "\n")


def read(path: Path) -> list[dict]:
    """The ledger's entries; BookError if the file is missing or not as it was written."""
    try:
        content = path.read_text(encoding="utf8")
    except (OSError, ValueError) as error:
        raise BookError(f"cannot read the ledger {path}: {error}") from error
    if wrong := broken_seal(path):
        raise BookError(f"{wrong}; `make book` makes it again")
    return json.loads(content)


def problems(ledger: list[dict]) -> list[str]:
    """What turns the build red, one line each."""
    return [f"{entry['id']}: {entry['problem']}" for entry in ledger if entry["problem"]]


def number(value: float | None, bound: float = math.nan) -> str:
    """A value for a table: three digits, or as many as tell it from the bound; ∞ for infinity."""
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    digits = 3
    while f"{value:.{digits}g}" == f"{bound:.{digits}g}" and value != bound and digits < 17:
        digits += 1
    text = f"{value:.{digits}g}"
    return re.sub(r"e([+-])0*", r"e\1", text).replace("e+", "e").replace("-", "−")


def _cells(entry: dict) -> tuple[str, str, str, dict[str, str]]:
    """What the tables say in an entry's row: measured, relation, bound, and each control."""
    relation = "≤" if entry["relation"] == "<=" else "≥"
    controls = {name: number(control["value"]) for name, control in entry["controls"].items()}
    return number(entry["value"], entry["bound"]), relation, number(entry["bound"]), controls


def plain_table(ledger: list[dict]) -> str:
    """The verdicts as lines for the terminal."""
    width = max(len(entry["id"]) for entry in ledger)
    lines = []
    for entry in ledger:
        measured, relation, bound, controls = _cells(entry)
        mark = "RED  " + entry["problem"] if entry["problem"] else ""
        lines.append(
            f"  {entry['id']:<{width}}  {measured:>9} {relation} {bound:<8} "
            f"{entry['verdict']:<8} controls: {', '.join(controls.values())}  {mark}".rstrip()
        )
    return "\n".join(lines)


def markdown_table(ledger: list[dict]) -> str:
    """The verdicts as a MyST table, each row linked to its chapter."""
    lines = [
        ":::{div} verdicts",
        "",
        "| Claim | Measured (worst) | Bound | Verdict | Negative controls (must violate) |",
        "|---|---|---|---|---|",
    ]
    for entry in ledger:
        measured, relation, bound, controls = _cells(entry)
        reason = f" ({entry['expect_reason']})" if entry["expect_reason"] else ""
        lines.append(
            f"| [{entry['statement']}]({entry['chapter']}.ipynb) | {measured} | {relation} {bound} "
            f"| **{entry['verdict']}**{reason} | {'; '.join(map(': '.join, controls.items()))} |"
        )
    return "\n".join([*lines, "", ":::"]) + "\n"
