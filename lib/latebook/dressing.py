"""What an executed chapter wears on the site: figures with their origin and their files, a foot.

The files behind a page stand in `_generated/` of the staged book; Sphinx copies those that a page
offers for download.
"""

import base64
import gzip
from html import escape
from pathlib import Path

from PIL import Image

from latebook import folds
from latebook.claims import MIME
from latebook.evidence import anchor
from latebook.files import read_yaml, write_whole
from latebook.layout import Book
from latebook.notebooks import Cell, Notebook, joined, read
from latebook.provenance import short

# Types of output that Jupyter Book cannot show, and warns of.
_HIDDEN = (MIME, "text/csv", "application/papermill.record/text/csv")
# In the order in which a figure offers them: type, suffix, name.
_KINDS = (
    ("image/svg+xml", "svg", "SVG"),
    ("image/png", "png", "PNG"),
    ("text/csv", "csv", "numbers"),
)
# Numbers of more bytes than these are offered compressed.
_LARGE = 2**18
# The first code cell of the notebooks that the site offers, but for the repository's address.
COLAB = Path(__file__).with_name("colab.py").read_text(encoding="utf8")
ADDRESS = 'repository = ""'


def figures(notebook: Notebook) -> list[str]:
    """The names of a notebook's figures."""
    about = (cell.content["metadata"].get("mystnb", {}).get("figure") for cell in notebook.cells)
    return [figure["name"] for figure in about if figure]


def dress(notebook: Notebook, chapter: str, foot: str, generated: Path) -> None:
    """Hide the injected parameters, number the code, give each figure its origin and its files,
    add the foot."""
    made_by, number = notebook.made_by, 0
    for cell in notebook.cells:
        metadata, injected = cell.content["metadata"], "injected-parameters" in cell.tags
        number += cell.is_code and not injected  # as they stand in the stored notebook
        if cell.is_code:
            more = "remove-cell" if injected else f"{folds.NUMBERED}{number}"
            metadata["tags"] = [*cell.tags, more]
        if figure := metadata.get("mystnb", {}).get("figure"):
            files = _figure_files(cell, figure["name"], generated)
            figure["caption"] = (
                f"{figure['caption'].rstrip()} *Source: code cell {number} of {chapter}.ipynb, "
                f"profile {made_by['profile']}, "
                f"data: {metadata.get('data', 'made in the chapter')}, "
                f"commit {short(made_by['commit'])}.* {files}"
            )
        if recorded := [o["data"] for o in cell.outputs if MIME in o.get("data", {})]:
            others = [o for o in cell.outputs if MIME not in o.get("data", {})]
            cell.content["outputs"] = [*others, _recorded(recorded)]
        for output in cell.outputs:
            for kind in _HIDDEN:
                output.get("data", {}).pop(kind, None)
    source = foot.splitlines(keepends=True)
    notebook.content["cells"].append(
        {"cell_type": "markdown", "id": "foot", "metadata": {}, "source": source}
    )


def _recorded(shown: list[dict]) -> dict:
    """What a cell recorded as a list, each claim with a link to its row in the table of claims."""
    said = (data["text/plain"].partition(": ") for data in shown)
    rows = "\n".join(
        f'<li><a href="all_claims.html#{anchor(id)}"><code>{escape(id)}</code></a>: '
        f"{escape(rest.replace('<=', '≤').replace('>=', '≥'))}</li>"
        for id, _, rest in said
    )
    data = {"text/html": f'<ul class="recorded">\n{rows}\n</ul>'}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def notebooks_to_take(book: Book, chapter: str, generated: Path, address: str = "") -> str:
    """Copy a chapter as stored and as executed; return the foot that offers both of them.

    The copies begin with a cell for Colab, which knows the repository's address. The executed one
    leaves out what the chapter's page offers with each figure: the numbers, and the PNG of what
    is there as SVG.
    """
    folder = generated / "notebooks"
    executed = read(book.executed(chapter))
    for output in executed.outputs:
        _lighten(output.get("data", {}))
    for notebook, end in ((read(book.source(chapter)), ""), (executed, "-executed")):
        first = next(k for k, cell in enumerate(notebook.cells) if cell.is_code)
        notebook.content["cells"].insert(first, _colab_cell(address))
        write_whole(folder / f"{chapter}{end}.ipynb", notebook.text())
    parameters = book.parameters(chapter)
    copy = f"_generated/notebooks/{chapter}"
    foot = (
        f"**{folds.FOOT}** {{download}}`the notebook <{copy}.ipynb>`, "
        f"{{download}}`as executed <{copy}-executed.ipynb>` with the profile *{book.profile}*. "
        "Uploaded to Google Colab, either fetches the book first.\n"
    )
    if not parameters:
        return foot
    # As YAML: papermill takes a list after -p for text.
    run = f".venv/bin/papermill book/{chapter}.ipynb"
    name, value = next(iter(parameters.items()))
    sweep = end = ""
    if "seeds" in parameters:
        name, value, sweep = "seeds", "[7, 8, 9, 10, 11]", ", and once for each seed of a sweep"
        end = f'for s in 7 8 9; do {run} mine-$s.ipynb -y "seeds: [$s]"; done\n'
    return (
        f"{foot}\nWith other parameters, in a checkout of the book{sweep}:\n\n"
        f'```bash\n{run} mine.ipynb -y "{name}: {value}"\n{end}```\n'
    )


def citation(book: Book, chapter: str, title: str, made_by: dict) -> str:
    """How to cite a chapter's page: the words, and under a fold the entry for BibTeX."""
    cited = read_yaml(book.root / "CITATION.cff")
    whole = read_yaml(book.root / "_config.yml")["title"]
    authors = " and ".join(author["name"] for author in cited["authors"])
    year, commit = made_by["date"][:4], short(made_by["commit"])
    return (
        f"\n**Cite this page:** {authors} ({year}), {title}, in *{whole}*, "
        f"version {cited['version']}, commit {commit}, profile *{book.profile}*.\n\n"
        f"```{{code-block}} bibtex\n:class: bibtex\n@incollection{{latephase-{chapter},\n"
        f"  author = {{{{{authors}}}}},\n  title = {{{title}}},\n  booktitle = {{{whole}}},\n"
        f"  year = {{{year}}},\n  note = {{version {cited['version']}, commit {commit}}},\n}}\n"
        "```\n"
    )


def _colab_cell(address: str) -> dict:
    source = COLAB.replace(ADDRESS, f'repository = "{address}"').rstrip().splitlines(keepends=True)
    about = {"cell_type": "code", "id": "colab", "metadata": {"tags": ["colab"]}}
    return about | {"execution_count": None, "outputs": [], "source": source}


def _lighten(data: dict) -> None:
    for record in ("", "application/papermill.record/"):
        data.pop(f"{record}text/csv", None)
        if f"{record}image/svg+xml" in data:
            data.pop(f"{record}image/png", None)


def _figure_files(cell: Cell, name: str, generated: Path) -> str:
    """Write a figure's picture and numbers to files and return the words that offer them."""
    folder = generated / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    offers = []
    for kind, suffix, word in _KINDS:
        path = folder / f"{name}.{suffix}"
        if (content := _shown(cell, kind)) is None:
            continue
        if suffix == "png":
            path.write_bytes(base64.b64decode(content))
            _on_white(path)
        elif suffix == "csv" and len(content) > _LARGE:
            path, word = path.with_name(f"{path.name}.gz"), f"{word}, compressed"
            path.write_bytes(gzip.compress(content.encode(), 4, mtime=0))
        else:
            write_whole(path, content)
        offers.append(f"{{download}}`{word} <_generated/figures/{path.name}>`")
        if suffix == "png":
            offers.append(f"{{download}}`PNG on white <_generated/figures/{name}-white.png>`")
    # What moves, for pages that show it again.
    if moving := _shown(cell, "text/html"):
        write_whole(folder / f"{name}.html", moving)
    return f"[Download: {', '.join(offers)}.]{{.files}}" if offers else ""


def _on_white(path: Path) -> None:
    """Lay the picture of a clear ground on white, for slides, beside it."""
    with Image.open(path) as clear:
        drawn, dots = clear.convert("RGBA"), clear.info.get("dpi")
    white = Image.new("RGBA", drawn.size, "white")
    white.alpha_composite(drawn)
    white.convert("RGB").save(path.with_name(f"{path.stem}-white.png"), dpi=dots)


def _shown(cell: Cell, kind: str) -> str | None:
    """The last that a cell shows of a type of output."""
    found = [o["data"][kind] for o in cell.outputs if kind in o.get("data", {})]
    return joined(found[-1]) if found else None
