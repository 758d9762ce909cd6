"""What readers see of the ledger: lines in the terminal, counts by kind, a table of every claim.

The table is HTML of its own, as Markdown has no rows that open. Each row has an anchor, `claim-`
and its identifier, and leads to the figure that shows it.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape

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
    """A value in short: three digits, or as many as tell it from the bound."""
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
    """How many rows of each kind have which status: a strip of HTML for the landing page."""
    found = Counter((row["kind"], row["status"]) for row in rows)
    said = ["```{raw} html", '<ul class="counts">']
    for kind in KINDS:
        of_kind = {status: found[kind, status] for status in STATUSES if found[kind, status]}
        if total := sum(of_kind.values()):
            came_out = " ".join(_chip(status, f"{n} {status}") for status, n in of_kind.items())
            to = f'<a href="all_claims.html?kind={kind}"><b>{total}</b> {kind}</a>'
            said.append(f"<li>{to} {came_out} <small>{_MEANS[kind]}</small></li>")
    after = sum(row["after_looking"] for row in rows)
    said += ["</ul>", "```", "", f"{len(rows)} claims; {after} are marked *set after looking*."]
    return "\n".join(said) + "\n"


def table(rows: list[dict], figures: Mapping[str, str]) -> str:
    """Every row as comma-separated values; `figures` has the figure that shows a claim, by id."""
    columns = ["id", "chapter", "kind", "status", "set after looking", "statement", "value"]
    columns += ["relation", "bound", "values", "seeds", "controls", "source", "metric", "figure"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        listed = {key: " ".join(f"{value!r}" for value in row[key]) for key in ("values", "seeds")}
        listed["controls"] = "; ".join(f"{n}: {of['value']!r}" for n, of in row["controls"].items())
        marks = {"set after looking": row["after_looking"], "figure": figures.get(row["id"], "")}
        writer.writerow(row | listed | marks)
    return file.getvalue()


def page(rows: list[dict], titles: Mapping[str, str], figures: Mapping[str, str]) -> str:
    """Every row, by chapter, in MyST; `titles` has these in the order of the book.

    `figures` has the name of the figure that shows a claim, by its id.
    """
    said = []
    for chapter, title in titles.items():
        if of_chapter := [row for row in rows if row["chapter"] == chapter]:
            said.append(f"## [{title}]({chapter}.ipynb)\n")
            lines = ("\n".join(_row(row, figures.get(row["id"]))) for row in of_chapter)
            said += ["```{raw} html", '<div class="claims">', *lines, "</div>", "```\n"]
    return "\n".join(said)


def anchor(id: str) -> str:
    """Where a claim stands on its page."""
    return f"claim-{re.sub(r'[^a-z0-9-]', '-', id)}"


def _row(row: Mapping, figure: str | None) -> Iterator[str]:
    """A row that opens: how it came out, what was claimed, and its number; then all the rest."""
    value, bound, _ = _compared(row)
    id = anchor(row["id"])
    kind = marked(row["kind"], row["after_looking"])
    marks = f'data-kind="{row["kind"]}" data-status="{row["status"]}"'
    yield f'<details class="claim" id="{id}" {marks}>'
    yield f"<summary>{_chip(row['status'], row['status'])}"
    yield f'<span class="claimed">{_plain(row["statement"])}</span>'
    yield f'<span class="measured">{value} <span>{bound}</span></span>'
    yield f'<span class="kind">{kind}</span></summary>'
    yield "<dl>"
    yield from _said("Measured", f"{_plain(row['metric'])}.")
    yield from _said("Value", f"{value}, where the bound is {bound}.{_range(row)}")
    yield from _said("Why this bound", _plain(row["reason"]))
    if row["expected"] != HOLDS:
        yield from _said("Why it came out like this", _plain(row["expect_reason"]))
    seeds = [f"{seed}: {number(v)}" for seed, v in _pairs(row)]
    yield from _said("By seed", ", ".join(seeds))
    yield from _said("Negative controls", "they measure the same and must not meet the bound")
    for name, of in row["controls"].items():
        what = f"{_plain(name)}: {_plain(of['what'])}"
        yield f"<dd><b>{number(of['value'])}</b> {what}</dd>"
    yield from _said("Source", f"{_plain(row['source'])}.")
    chapter = f"{row['chapter']}.html"
    shown = f'<a href="{chapter}#{figure}">the figure</a>' if figure else "no figure"
    where = f'{shown}, <a href="{chapter}">its chapter</a>, <a href="#{id}">link to this row</a>'
    yield from _said("See", f"{where}, <code>{escape(row['id'])}</code> in the ledger")
    yield "</dl>\n</details>"


def _said(term: str, words: str) -> Iterator[str]:
    yield f"<dt>{term}</dt><dd>{words}</dd>"


def _range(row: Mapping) -> str:
    if not row["range"]:
        return ""
    low, high = (number(end) for end in row["range"])
    return f" Registered to lie from {low} to {high}."


def _pairs(row: Mapping) -> Iterator[tuple[int, float]]:
    yield from zip(row["seeds"], row["values"], strict=True)


def _chip(status: str, text: str) -> str:
    return f'<span class="status {status.replace(" ", "-")}">{text}</span>'


def _plain(text: str) -> str:
    """Text of the registry as HTML; 10^-3 and α^(1/L) are set as powers."""
    return re.sub(
        r"\^(?:\(([^()]+)\)|(-?\w+))",
        lambda power: f"<sup>{(power[1] or power[2]).replace('-', '−')}</sup>",
        escape(text, quote=False),
    )
