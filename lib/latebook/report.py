"""The reproducibility report: what ran where, and how the ledger stands to the reference."""

import json
from collections.abc import Iterator

from latebook import BookError, compare, provenance
from latebook.layout import Book
from latebook.notebooks import Notebook
from latebook.records import recorded, stored


def page(book: Book, notebooks: dict[str, Notebook], entries: list[dict]) -> str:
    """The tables of the report, from the executed notebooks by chapter and the ledger's entries."""
    made_by = {chapter: notebook.made_by for chapter, notebook in notebooks.items()}
    chapters = [["Chapter", "Finished", "Seconds", "Seeds and parameters", "Commit"]]
    for chapter, made in made_by.items():
        settings = ", ".join(f"`{k}={v}`" for k, v in made["parameters"].items())
        about = [made["date"], f"{made['seconds']:.1f}", settings, f"`{made['commit']}`"]
        chapters.append([f"[{chapter}]({chapter}.ipynb)", *about])
    data = [["What", "Value"], ["Profile", book.profile]]
    data += [[f"sha256 of {n}", f"`{sha}`"] for n, sha in provenance.data(book.root).items()]
    runs = [["Recorded run", "Seconds", "Seed", "Device", "Commit", "sha256 of its data"]]
    for name in stored(book.root / "results"):
        run = recorded(name, book.root / "results")
        commit = run.get("commit", "not noted")
        sha = run.get("data", {}).get("sha256", "made in the run")
        about = [run["seed"], run["device"], f"`{commit}`", f"`{sha}`"]
        runs.append([name, f"{run['duration']:.0f}", *about])
    tables = [chapters, *_environments(made_by), data, runs]
    tables = [_table(rows) for rows in tables if rows[1:]]
    return "\n".join([*tables[:1], _compared(book, entries), *tables[1:]])


def _environments(made_by: dict[str, dict]) -> Iterator[list]:
    """A table of each environment in which chapters ran; where there are several, of which."""
    ran_in: dict[str, list[str]] = {}
    for chapter, made in made_by.items():
        ran_in.setdefault(json.dumps(made["environment"], sort_keys=True), []).append(chapter)
    for environment, chapters in ran_in.items():
        made_in = json.loads(environment)
        rows = [["Environment", "Value" if len(ran_in) == 1 else f"of {', '.join(chapters)}"]]
        keys = ("python", "system", "cores", "device", "threads")
        rows += [[key.title(), made_in[key]] for key in keys]
        rows += [[name, made_in["versions"][name]] for name in provenance.PACKAGES]
        yield rows


def _compared(book: Book, entries: list[dict]) -> str:
    """How the ledger stands to the committed reference, and what did not come out the same."""
    try:
        found = compare.compare(compare.reference(book), entries)
    except BookError as error:
        return f"There is no comparison: {str(error).replace(f'{book.root}/', '')}.\n"
    rows = [["Claim", "Compared with the reference", "Value"]]
    rows += [
        [f"`{c.id}`", c.status, c.why.replace("|", r"\|")]
        for c in found
        if c.status != compare.REPRODUCED
    ]
    said = f"Of the claims of the reference ledger `{book.reference.name}`: "
    return f"{said}{compare.counted(found)}.\n\n" + (_table(rows) if rows[1:] else "")


def _table(rows: list) -> str:
    """A MyST table, its head in the first row."""
    lines = ["| " + " | ".join(map(str, row)) + " |\n" for row in rows]
    return "".join([lines[0], "|---" * len(rows[0]) + "|\n", *lines[1:]])
