"""What each product of the build depends on, by content: the one place that decides what is stale.

No clock is asked: a file counts by what it holds, however old it says it is. A chapter depends on
its parts (`chapter_parts`) and on what its kernel opened; every other product on the products
before it and on the files that its step reads.
"""

import ast
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from latebook import BookError, provenance
from latebook.claims import load
from latebook.files import file_sha256, write_whole
from latebook.layout import Book
from latebook.notebooks import Notebook, read, read_executed

# The modules that execute and judge a chapter; with all of the pipeline's that these import.
_EXECUTING = ("execute", "kernel", "claims", "records")
_LEFT_OUT = ("__pycache__", ".ipynb_checkpoints")
# What can be none of a notebook's content: who edited it with what.
_OF_AN_EDITOR = ("language_info", "widgets", "papermill", "latephase")


def of_chapter(book: Book, chapter: str, anew: bool = False) -> dict[str, str]:
    """The sha256 of each part that decides a chapter's result, the opened files aside.

    The library is hashed once a process, or `anew`.
    """
    if anew:
        _library.cache_clear()
    claims = [asdict(c) for c in load(book.claims).values() if c.chapter == chapter]
    lock = book.root / "requirements.lock"
    return {
        "cells": _sha256_of(_essence(read(book.source(chapter)))),
        "library": _library(),
        "pipeline": _sources(executing()),
        "parameters": _sha256_of([book.profile, book.parameters(chapter)]),
        "claims": _sha256_of(claims),
        "lock": file_sha256(lock) if lock.exists() else _sha256_of(None),
        "environment": environment_sha256(provenance.environment()),
    }


def executing() -> list[Path]:
    """The pipeline's modules that can change a chapter's numbers or what the gate says of them."""
    return _closure(_EXECUTING)


def environment_sha256(environment: dict) -> str:
    """The hash of what of an environment decides a number: not how many cores there are."""
    return _sha256_of({key: value for key, value in environment.items() if key != "cores"})


def combined(parts: dict[str, str], opened: dict[str, str]) -> str:
    """The one hash of a chapter's parts and opened files."""
    return _sha256_of([parts, opened])


def why_stale(book: Book, step: str, chapter: str | None = None) -> str | None:
    """Why the product of a step has to be made, in a few words; None if it is what it would be."""
    if step == "chapter":
        return _why_stale_chapter(book, chapter)
    product = book.product_of(step)
    if not (product / "index.html" if step == "site" else product).exists():
        return "it is not there"
    try:
        noted = json.loads(_note(product).read_text(encoding="ascii"))
        changed = differing(noted, of_step(book, step) | _itself(book, step))
    except (OSError, ValueError, AttributeError):
        return "what it was made from is not noted"
    return f"other {', '.join(changed)}" if changed else None


def note(book: Book, step: str, made_from: dict[str, str]) -> None:
    """Write down beside a step's product what it was made from; the last thing a step does."""
    product = book.product_of(step)
    write_whole(_note(product), json.dumps(made_from | _itself(book, step)) + "\n")


def _note(product: Path) -> Path:
    return product.with_name(f".{product.name}.inputs")


def _itself(book: Book, step: str) -> dict[str, str]:
    """The hash of a step's product, of every page of the site, and of what it makes beside it."""
    product = book.product_of(step)
    beside = {"site": ("codecheck", ".yml"), "ledger": ("ledger", ".schema.json")}.get(step)
    files = _below(product) if product.is_dir() else [product]
    if beside and (other := book.product(*beside)).is_file():
        files.append(other)
    return {"content": _files(book.build, files)}


def _why_stale_chapter(book: Book, chapter: str) -> str | None:
    path = book.executed(chapter)
    if not path.exists():
        return "it has not been executed"
    made_by = read_executed(path).content["metadata"].get("latephase", {})
    parts, opened, whole = (made_by.get(key) for key in ("parts", "opened", "inputs"))
    if not isinstance(parts, dict) or not isinstance(opened, dict):
        return "it does not say what it was made from"
    if whole != combined(parts, opened):
        return "its hashes do not fit each other"
    changed = differing(parts, of_chapter(book, chapter))
    changed += differing(opened, contents(book, opened))
    return f"other {', '.join(changed)}" if changed else None


def contents(book: Book, opened: Iterable[str]) -> dict[str, str]:
    """The sha256 that files of these paths have now, or "gone"."""
    return {name: _content(book.root / name) for name in opened}


def require_fresh(book: Book) -> None:
    """Raise BookError if an executed notebook belongs to other files than there are now."""
    wrong = [
        f"{chapter}: executed with {why}; `make book` makes it again"
        for chapter in book.chapters()
        if (why := _why_stale_chapter(book, chapter))
    ]
    if wrong:
        raise BookError("\n".join(wrong))


def of_step(book: Book, step: str) -> dict[str, str]:
    """The sha256 of everything from which a step other than a chapter's makes its product."""
    return _STEPS[step](book)


def _of_library(book: Book) -> dict[str, str]:
    environment = environment_sha256(provenance.environment())
    pipeline = _sources(_closure(("library",)))
    return {"library": _library(), "pipeline": pipeline, "environment": environment}


def _of_ledger(book: Book) -> dict[str, str]:
    results = sorted((book.root / "results").glob("ledger*.json"))
    return {
        **_executed(book),
        "claims": file_sha256(book.claims),
        "reference": _files(book.root, results),
        "history": provenance.history(book.root, "book/claims.yml", "results"),
        "pipeline": _sources(_below(_package("latebook"))),
    }


def _of_verdict(book: Book) -> dict[str, str]:
    return {"ledger": file_sha256(book.ledger)}


def _of_site(book: Book) -> dict[str, str]:
    root = book.root
    pages = [*root.glob("_*.yml"), *root.glob("C*.*"), *_below(root / "book")]
    return {
        **_executed(book),
        **_of_verdict(book),
        "pages": _files(root, pages),
        "results": _files(root, _below(root / "results")),
        "data": _sha256_of(provenance.data(root)),
        "library": file_sha256(book.library) if book.shows_library else "",
        "repository": os.environ.get("LATEPHASE_REPOSITORY", ""),
        "pipeline": _sources(_below(_package("latebook"))),
        "environment": environment_sha256(provenance.environment()),
    }


_STEPS = {
    "library": _of_library,
    "ledger": _of_ledger,
    "verdict": _of_verdict,
    "site": _of_site,
}


def _executed(book: Book) -> dict[str, str]:
    return {chapter: file_sha256(book.executed(chapter)) for chapter in book.chapters()}


def _essence(notebook: Notebook) -> list:
    """What of a stored notebook is its own: of each cell all but an editor's notes."""
    about = notebook.content["metadata"]
    cells = [
        [c.content["cell_type"], c.source, c.content["metadata"], c.content.get("attachments")]
        for c in notebook.cells
    ]
    return [{k: v for k, v in about.items() if k not in _OF_AN_EDITOR}, cells]


def _closure(names: Iterable[str]) -> list[Path]:
    """The files of modules of the pipeline and of all those of it that they import."""
    folder, found, left = _package("latebook"), set(), ["__init__", *names]
    while left:
        path = folder / f"{left.pop()}.py"
        if path.is_file() and path not in found:
            found.add(path)
            left += _imported(path.read_bytes())
    return sorted(found)


@cache
def _imported(source: bytes) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "latebook":
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latebook."):
            found.append(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found += [a.name.split(".")[1] for a in node.names if a.name.startswith("latebook.")]
    return found


@cache
def _library() -> str:
    """The hash of the science: every file of its packages, found without importing them."""
    return _sha256_of([_sources(_below(_package(name))) for name in ("latephase", "experiments")])


def _package(name: str) -> Path:
    if name in sys.modules:
        return Path(sys.modules[name].__file__).parent
    return Path(importlib.util.find_spec(name).origin).parent


def _sources(files: Iterable[Path]) -> str:
    return _files(_package("latebook").parent, files)


def _below(folder: Path) -> list[Path]:
    """The files below a folder, what tools leave there aside."""
    return [f for f in folder.rglob("*") if f.is_file() and not set(_LEFT_OUT) & {*f.parts}]


def _files(root: Path, files: Iterable[Path]) -> str:
    return _sha256_of({str(f.relative_to(root)): file_sha256(f) for f in sorted(files)})


def _content(path: Path) -> str:
    """The hash of a file's content, or that it is gone."""
    return file_sha256(path) if path.is_file() else "gone"


def _sha256_of(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differing(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The names under which two mappings have different hashes, or one of them has none."""
    return [name for name in (before | now) if before.get(name) != now.get(name)]
