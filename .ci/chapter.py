"""The skeleton of a new chapter: `make chapter NAME=some_name`.

    python .ci/chapter.py NAME

The notebook is `chapter.ipynb` beside this file, with the new name in it. Besides it writes what
makes it a chapter of the book: its entry in the contents, its parameters in every profile, and the
row of a claim to be replaced by the author's own.
"""

import re
import sys
from pathlib import Path

from latebook import BookError
from latebook.claims import PROFILES, load
from latebook.files import write_whole
from latebook.layout import Book

TEMPLATE = Path(__file__).with_suffix(".ipynb")
PARAMETERS = """\
{name}:
  seeds: [0, 1, 2, 3, 4]
  until: 1.0e+4
"""
CLAIM = """\

- id: {dashed}/replace-me
  chapter: {name}
  kind: prediction
  statement: A linear model is nearly parallel to its negative gradient (replace this row)
  source: this book's prediction; the alignment theorem names no time
  metric: 1 − cos(W, −∇R) when α reaches 10^4; each seed
  relation: "<="
  bound: 1.0e-4
  tolerance: 0.01
  reason: >-
    Directions of linear models are of order 1/α from their limit, and the misalignment of order
    α^-2, 10^-8; ten thousand times that is allowed.
  controls:
    at the start: the same models before the flow has begun
"""


def lay(book: Book, name: str) -> list[Path]:
    """Write the skeleton of the chapter `name`, and return the files that were made or changed.

    Raises BookError, and writes nothing, for a name that is none or that is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise BookError(f"NAME: expected a name as some_name for a new chapter, got {name!r}")
    if any((book.root / "book" / f"{name}{end}").exists() for end in (".ipynb", ".md")):
        raise BookError(f"NAME: book/ has a page {name} already")
    dashed, title = name.replace("_", "-"), name.replace("_", " ").capitalize()
    words = {"{name}": name, "{dashed}": dashed, "{title}": title}

    def filled(text: str) -> str:
        return re.sub("|".join(words), lambda found: words[found[0]], text)

    files = {book.source(name): filled(TEMPLATE.read_text(encoding="utf8"))}
    for profile in PROFILES:
        path = book.root / "profiles" / f"{profile}.yml"
        files[path] = _text(path) + filled(PARAMETERS)
    files[book.claims] = _text(book.claims) + filled(CLAIM)
    # Last: what is not in the contents is no part of the book.
    files[book.root / "_toc.yml"] = _contents(book, name)
    for path, text in files.items():
        write_whole(path, text)
    return [*files]


def _contents(book: Book, name: str) -> str:
    """The contents with the new chapter behind the last one of the part with the first claim."""
    path = book.root / "_toc.yml"
    first = next(iter(load(book.claims).values())).chapter
    part = re.compile(rf"^( *- file: *)book/{first}(\.ipynb)?\n(\1.*\n)*", re.MULTILINE)
    if not (found := part.search(text := _text(path))):
        raise BookError(
            f"{path}: expected a line `- file: book/{first}`, the first claim's chapter"
        )
    return f"{text[: found.end()]}{found[1]}book/{name}\n{text[found.end() :]}"


def _text(path: Path) -> str:
    """A file's text, which ends with a line's end."""
    try:
        return path.read_text(encoding="utf8").rstrip("\n") + "\n"
    except OSError as error:
        raise BookError(f"cannot read {path}: {error.strerror}") from error


def main(name: str) -> int:
    """Lay the chapter into the book of the current folder; 0, or 1 with what is wrong."""
    book = Book(Path.cwd(), PROFILES[0])
    try:
        for path in lay(book, name):
            print(f"chapter: wrote {path.relative_to(book.root)}")
    except (BookError, OSError) as error:
        print(f"chapter: {error}", file=sys.stderr)
        return 1
    print("chapter: next the claim, as CONTRIBUTING.md says; then make test and make book")
    return 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
