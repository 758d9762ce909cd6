"""From executed notebooks and the ledger to `_build/html`: staging, Jupyter Book, a last check.

The site is built from a staged copy of the book in which each notebook is the executed one and
the pages made from the ledger stand in `book/_generated/`. It is built aside and put in place by
a rename, so that an earlier site stays whole until a new one has passed its checks.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from latebook import BookError, codecheck, dressing, evidence, gate, ledger, mathjax, pages, report
from latebook.files import read_yaml, write_whole
from latebook.layout import Book
from latebook.notebooks import Notebook, joined, read_executed


def build(book: Book) -> None:
    """Build the site of the executed book into `_build/html`; BookError if anything is amiss."""
    _restore(book.html)
    stage, out = book.product("stage"), book.product("site")
    for earlier in (stage, out):
        shutil.rmtree(earlier) if earlier.is_dir() else earlier.unlink(missing_ok=True)
    _stage(book, stage)
    _jupyter_book(stage, out, book.product("site", ".log"))
    made = out / "_build" / "html"
    # What a page's own button offers: the chapter as stored, not as dressed for the site.
    for notebook in (stage / "book" / "_generated" / "notebooks").glob("*.ipynb"):
        if (offered := made / "_sources" / "book" / notebook.name).is_file():
            shutil.copy(notebook, offered)
    pages.finish(made, _home(_address()))
    if wrong := gate.check_site(made):
        raise BookError("\n".join(wrong))
    codecheck.write(book)
    _put_in_place(made, book.html)
    shutil.rmtree(out)


def _stage(book: Book, stage: Path) -> None:
    shutil.copytree(book.root / "book", stage / "book", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(book.root / "_toc.yml", stage)
    write_whole(stage / "_config.yml", _config(book.root / "_config.yml", book.profile))
    for page in book.root.glob("C*.md"):
        shutil.copy(page, stage)  # which pages of the book include
    if (style := stage / "book" / "_static").is_dir():
        style.rename(stage / "_static")  # where Jupyter Book looks for style sheets
    mathjax.copy_to(stage / "mathjax" / "mathjax")
    shutil.copy(Path(__file__).with_name("scorer.js"), stage)
    generated = stage / "book" / "_generated"
    address = _address()
    notebooks = {chapter: read_executed(book.executed(chapter)) for chapter in book.chapters()}
    for chapter, notebook in notebooks.items():
        foot = dressing.notebooks_to_take(book, chapter, generated, address)
        foot += dressing.citation(book, chapter, _title(notebook), notebook.made_by)
        dressing.dress(notebook, chapter, foot, generated)
        write_whole(stage / "book" / f"{chapter}.ipynb", notebook.text())
    entries = ledger.read(book.ledger)
    titles = {chapter: _title(notebook) for chapter, notebook in notebooks.items()}
    write_whole(generated / "counts.md", evidence.counts(entries))
    shown = _shown_in(book, notebooks)
    write_whole(generated / "claims.md", evidence.page(entries, titles, shown))
    write_whole(generated / "claims.csv", evidence.table(entries, shown))
    shutil.copy(book.ledger, generated / "ledger.json")
    for notebook in notebooks.values():
        for name, picture in _glued_pictures(notebook):
            write_whole(generated / f"{name}.svg", picture)
    library = book.library.read_text(encoding="utf8") if book.shows_library else "{}"
    for door, text in json.loads(library).items():
        write_whole(generated / "library" / f"{door}.md", text)
    write_whole(generated / "report.md", report.page(book, notebooks, entries))


def _config(path: Path, profile: str) -> str:
    """The configuration, with the profile under every page and, where the repository is known,
    buttons to it and Binder.

    LATEPHASE_REPOSITORY is its address, as https://github.com/OWNER/NAME. There is no button to
    Colab: it would open the chapter as stored, which lacks the cell that fetches the book.
    """
    config = read_yaml(path)
    html = config.setdefault("html", {})
    html["extra_footer"] = f"<p>Computed with the profile <em>{profile}</em>.</p>"
    if address := _address():
        config["repository"] = {"url": address, "branch": "main", "path_to_book": ""}
        binder = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
        config["launch_buttons"] = binder
        html |= {"use_repository_button": True, "use_issues_button": True}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _address() -> str:
    """The repository's, from LATEPHASE_REPOSITORY, as https://github.com/OWNER/NAME, or ""."""
    address = os.environ.get("LATEPHASE_REPOSITORY", "").rstrip("/")
    if address and not re.fullmatch(r"https://[\w.-]+/[\w.-]+/[\w.-]+", address):
        raise BookError(f"LATEPHASE_REPOSITORY: expected https://HOST/OWNER/NAME, got {address!r}")
    return address


def _home(address: str) -> str:
    """Where the pages of a repository on GitHub stand, "" for another host."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+)", address)
    return f"https://{found[1].lower()}.github.io/{found[2]}/" if found else ""


def _title(notebook: Notebook) -> str:
    """A chapter's, from its first line."""
    return notebook.cells[0].source.partition("\n")[0].lstrip("# ")


def _shown_in(book: Book, notebooks: dict[str, Notebook]) -> dict[str, str]:
    """The figure that shows a claim, by the claim's id, for figures that the chapters have."""
    if not (path := book.root / "book" / "shown_in.yml").is_file():
        return {}
    drawn = {name for notebook in notebooks.values() for name in dressing.figures(notebook)}
    return {
        f"{of}/{claim}": figure
        for of, figures in read_yaml(path).items()
        for figure, claims in figures.items()
        for claim in claims
        if figure in drawn
    }


def _glued_pictures(notebook: Notebook) -> Iterator[tuple[str, str]]:
    """The figures a chapter hands to other pages with `glue("name", figure, display=False)`."""
    for output in notebook.outputs:
        if picture := output.get("data", {}).get("application/papermill.record/image/svg+xml"):
            yield output["metadata"]["scrapbook"]["name"], joined(picture)


def _jupyter_book(stage: Path, out: Path, log: Path) -> None:
    # A page is a large tree, no garbage: to look for some takes a seventh of the time.
    main = "import gc; gc.disable(); from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", main, "build", str(stage), "--path-output", str(out)]
    command += ["-W", "-n", "--keep-going", "-q"]
    # The theme and its extensions warn of their own deprecations; those are not the book's.
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    # Sphinx looks for the search's scorer where it is started.
    done = subprocess.run(command, cwd=stage, env=environment, capture_output=True, text=True)
    write_whole(log, done.stdout + done.stderr)
    if done.returncode != 0:
        said = log.read_text(encoding="utf8").splitlines()
        lines = (line for line in said if re.search("WARNING|ERROR|CRITICAL|rror:", line))
        plain = (re.sub(r"\x1b\[[0-9;]*m", "", line).replace(f"{stage}/", "") for line in lines)
        told = "\n".join(dict.fromkeys(plain))
        raise BookError(f"{told}\njupyter-book refused the site (log: {log})")


def _restore(html: Path) -> None:
    """Undo what a process left that was killed between the two renames of `_put_in_place`."""
    old = html.with_name(f".{html.name}.old")
    if old.exists() and not html.exists():
        _move(old, html)


def _put_in_place(made: Path, html: Path) -> None:
    """Rename what was made to `html`; where that fails the earlier site stands there again."""
    old = html.with_name(f".{html.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        _move(html, old)
    try:
        _move(made, html)
    except OSError:
        shutil.rmtree(html, ignore_errors=True)
        _restore(html)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _move(folder: Path, to: Path) -> None:
    """Rename a folder, or copy it whole first where that crosses file systems, as in an overlay."""
    try:
        folder.rename(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = to.with_name(f"{to.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(folder, aside)
        aside.rename(to)
        shutil.rmtree(folder)
