"""What readers see of the ledger: lines in the terminal, counts by kind, a card for every claim."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from latebook.claims import HOLDS, KINDS, STATUSES, marked

# What each kind of claim is, in the words of the landing page.
_MEANS = {
    "theorem": "follows from what is proven, on these networks and data; "
    "were one to fail, something here would be broken",
    "paper": "what the paper or its authors' response shows or says of experiments",
    "prediction": "ours, mostly about when and how fast, of which no theorem speaks; "
    "it may turn out wrong",
    "observation": "a number that was seen; judged is only whether it is seen again",
    "instrument": "about the solver and the measures themselves",
}


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


def _compared(row: Mapping) -> tuple[str, str, str]:
    """A row's value, with how many starts it leaves out, its bound, and what controls came to."""
    value = number(row["value"], row["bound"])
    if dropped := len(row["dropped"]):
        value += f" ({dropped} of {dropped + len(row['seeds'])} starts dropped)"
    bound = f"{'≤' if row['relation'] == '<=' else '≥'} {number(row['bound'])}"
    return value, bound, ", ".join(number(of["value"]) for of in row["controls"].values())


def lines(rows: list[dict]) -> str:
    """The ledger for the terminal, a line for each row."""
    wide = max(len(row["id"]) for row in rows)
    said = []
    for row in rows:
        value, bound, controls = _compared(row)
        mark = f"RED  {row['problem']}" if row["problem"] else ""
        status = f"{marked(row['kind'], row['after_looking'])}: {row['status']}"
        said.append(
            f"  {row['id']:<{wide}}  {value:>9} {bound:<10} {status}  "
            f"controls: {controls}  {mark}".rstrip()
        )
    return "\n".join(said)


def counts(rows: list[dict]) -> str:
    """How many rows of each kind have which status, as a MyST table for the landing page."""
    found = Counter((row["kind"], row["status"]) for row in rows)
    said = [":::{div} counts\n", "| Kind | What it is | How its claims came out |", "|---|---|---|"]
    for kind in KINDS:
        of_kind = {status: found[kind, status] for status in STATUSES if found[kind, status]}
        if total := sum(of_kind.values()):
            came_out = " ".join(_chip(status, f"{n} {status}") for status, n in of_kind.items())
            said.append(f"| **{kind}**, {total} | {_MEANS[kind]} | {came_out} |")
    after = sum(row["after_looking"] for row in rows)
    said += ["", f"Of the {len(rows)} claims {after} are marked *set after looking*.", "", ":::"]
    return "\n".join(said) + "\n"


def page(rows: list[dict], titles: Mapping[str, str]) -> str:
    """Every row as a card in MyST, by chapter; `titles` has these in the order of the book."""
    said = []
    for chapter, title in titles.items():
        if of_chapter := [row for row in rows if row["chapter"] == chapter]:
            said.append(f"## [{title}]({chapter}.ipynb)\n")
            said += ["\n".join(_card(row)) for row in of_chapter]
    return "\n".join(said)


def _card(row: Mapping) -> Iterator[str]:
    """A row with what is to be known first in front: how it came out, then what was claimed."""
    value, bound, controls = _compared(row)
    where = ""
    if row["range"]:
        where = " Registered to lie from {} to {}.".format(*map(number, row["range"]))
    yield f"(claim-{re.sub(r'[^a-z0-9-]', '-', row['id'])})="
    yield "::::{div} claim"
    kind = marked(row["kind"], row["after_looking"])
    yield f"{_chip(row['status'], row['status'])} {kind}\n"
    yield f"**{_plain(row['statement'])}**\n"
    yield f"Measured {value}, bound {bound}, negative controls {controls}.{where}\n"
    yield f"Source: {_plain(row['source'])}.\n"
    yield ":::{dropdown} Measure, reason and controls"
    yield f"*Measured:* {_plain(row['metric'])}.\n"
    yield f"*Why this bound:* {_plain(row['reason'])}\n"
    if row["expected"] != HOLDS:
        yield f"*Why it is expected as it came out:* {_plain(row['expect_reason'])}\n"
    yield "*Negative controls, which must not meet the bound:*\n"
    for name, control in row["controls"].items():
        yield f"- {_plain(name)}, {number(control['value'])}: {_plain(control['what'])}"
    yield f"\nRow `{row['id']}` of the ledger.\n:::\n::::\n"


def _chip(status: str, text: str) -> str:
    return f"[{text}]{{.status .{status.replace(' ', '-')}}}"


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else; 10^-3 and α^(1/L) are set as powers."""
    escaped = re.sub(r"([\\`*_\[\]<>{}$|#~])", r"\\\1", text)
    return re.sub(
        r"\^(?:\(([^()]+)\)|(-?\w+))",
        lambda power: "{{sup}}`{}`".format((power[1] or power[2]).replace("-", "−")),
        escaped,
    )
