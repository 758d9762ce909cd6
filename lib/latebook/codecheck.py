"""`codecheck.yml`: what a check of this book is to reproduce, in the form of codecheck.org.uk.

The build writes it to `_build/codecheck.yml` once each file of its manifest is there. Who checked,
when, and the certificate are for the codechecker to fill in. What it says follows from the sources
alone, so that the copy at the root, where a codechecker looks, is kept equal by a test.
"""

from collections.abc import Iterator

import yaml

from latebook import BookError
from latebook.dressing import figures
from latebook.files import read_yaml, write_whole
from latebook.layout import Book
from latebook.notebooks import read

VERSION = "https://codecheck.org.uk/spec/config/1.0/"


def text(book: Book) -> str:
    """The configuration for the book's profile; the paper is the one that CITATION.cff names."""
    cited = read_yaml(book.root / "CITATION.cff")
    [paper] = [one for one in cited["references"] if one["type"] == "conference-paper"]
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    content = {
        "version": VERSION,
        "paper": {
            "title": paper["title"],
            "authors": [{"name": name} for name in names],
            "reference": paper["url"],
        },
        "manifest": [{"file": file, "comment": comment} for file, comment in manifest(book)],
    }
    head = "# Made by the build; a codechecker adds who checked, when, and the report.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def manifest(book: Book) -> Iterator[tuple[str, str]]:
    """What the build makes that can be checked, by its path from the root, and what it is."""

    def path(of) -> str:
        return of.relative_to(book.root).as_posix()

    yield path(book.ledger), "every claim with its values, bound and verdict"
    for chapter in book.chapters():
        notebook = read(book.source(chapter))
        yield path(book.executed(chapter)), f"the chapter {chapter}, as executed"
        for figure in figures(notebook):
            picture = book.product("stage") / f"book/_generated/figures/{figure}.svg"
            yield path(picture), f"figure {figure} of {chapter}"


def write(book: Book) -> None:
    """Write it beside the ledger; BookError where a file of the manifest was not made."""
    if missing := [file for file, _ in manifest(book) if not (book.root / file).is_file()]:
        raise BookError(f"codecheck.yml names what the build did not make: {', '.join(missing)}")
    write_whole(book.product("codecheck", ".yml"), text(book))
