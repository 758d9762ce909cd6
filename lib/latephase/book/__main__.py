"""The pipeline's commands: `python -m latephase.book build` and the steps the Snakefile calls."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from latephase.book import BookError, gate, ledger
from latephase.book.claims import PROFILES, load, of_chapter
from latephase.book.layout import Book
from latephase.book.notebooks import read


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when green, 1 with what is wrong on the standard error otherwise."""
    parser = argparse.ArgumentParser(prog="python -m latephase.book", description=__doc__)
    parser.add_argument("step", choices=[*_STEPS])
    parser.add_argument("--chapter", help="which one, for the step `chapter`")
    parser.add_argument("--profile", default=PROFILES[0], help=", ".join(PROFILES))
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    options = parser.parse_args(words)
    try:
        book = Book(Path.cwd(), options.profile)
        return _STEPS[options.step](book, options) or 0
    except BookError as error:
        print("\n".join(f"book: {line}" for line in str(error).splitlines()), file=sys.stderr)
    except OSError as error:
        print(f"book: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("book: interrupted; `make book` goes on from here", file=sys.stderr)
    return 1


def _build(book: Book, options) -> int:
    """Everything, by Snakemake: only what is out of date runs."""
    began = time.monotonic()
    _preflight(book)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        str(options.cores),
        "--keep-going",
        "--rerun-incomplete",
        "--nocolor",
        "--config",
        f"profile={book.profile}",
    ]
    if _run(command, book) != 0:
        raise BookError("the build is red; earlier results are as they were")
    entries = ledger.read(book.ledger)
    print(f"\nVerdicts, profile {book.profile}:\n{ledger.plain_table(entries)}\n")
    print(f"{time.monotonic() - began:.0f} s. The site: {book.html / 'book' / 'index.html'}")
    return 0


def _run(command: list[str], book: Book) -> int:
    """Run Snakemake: the chapters' progress and `book:` lines are shown, the rest is logged."""
    log = book.build / "snakemake.log"
    log.parent.mkdir(exist_ok=True)
    said = False
    with (
        open(log, "w", encoding="utf8") as file,
        subprocess.Popen(command, cwd=book.root, stderr=subprocess.PIPE, text=True) as process,
    ):
        for line in process.stderr:
            file.write(line)
            if line.startswith("book: "):
                print(line, end="", file=sys.stderr, flush=True)
                said = True
    if process.returncode != 0 and not said:
        print(log.read_text(encoding="utf8")[-2000:], file=sys.stderr)
    return process.returncode


def _preflight(book: Book) -> None:
    """What can be known to be wrong before anything is computed, all of it at once."""
    wrong = gate.check_config(book.root / "_config.yml")
    claims, chapters = load(book.claims), book.chapters()
    for claim in claims.values():
        if claim.chapter not in chapters:
            wrong.append(
                f"claims.yml: {claim.id!r} names the chapter {claim.chapter!r}, not in _toc.yml"
            )
    for chapter in chapters:
        book.parameters(chapter)
        wrong += gate.check_source(book.source(chapter))
    if wrong:
        raise BookError("\n".join(wrong))


def _chapter(book: Book, options) -> None:
    from latephase.book.execute import execute

    execute(book, options.chapter)


def _ledger(book: Book, options) -> None:
    """Gate every executed notebook again, then merge what they recorded."""
    claims, records, wrong = load(book.claims), {}, []
    for chapter in book.chapters():
        expected = of_chapter(claims, chapter)
        wrong += gate.check_executed(book.executed(chapter), book.source(chapter), expected)
        if not wrong:
            notebook = read(book.executed(chapter))
            seconds = notebook.made_by["seconds"]
            records[chapter] = {"seconds": seconds, "claims": gate.recorded(notebook)}
    if wrong:
        raise BookError("\n".join(wrong))
    ledger.write(book.ledger, ledger.entries(claims, records, book.profile))


def _verdict(book: Book, options) -> None:
    """Red if any entry of the ledger is."""
    entries = ledger.read(book.ledger)
    if wrong := ledger.problems(entries):
        raise BookError("\n".join(["red claims:", ledger.plain_table(entries), *wrong]))


def _site(book: Book, options) -> None:
    from latephase.book import site

    site.build(book)


def _links(book: Book, options) -> int:
    from latephase.book import links

    return links.check(book.root)


_STEPS = {
    "build": _build,
    "chapter": _chapter,
    "ledger": _ledger,
    "verdict": _verdict,
    "site": _site,
    "links": _links,
}

if __name__ == "__main__":
    sys.exit(main())
