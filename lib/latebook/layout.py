"""Where things are: the book's files, and what the build makes of them for one profile."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latebook import BookError
from latebook.claims import PROFILES
from latebook.files import read_yaml


@dataclass(frozen=True)
class Book:
    """A book at `root`, built with `profile`; raises BookError for an unknown profile."""

    root: Path
    profile: str

    def __post_init__(self):
        if self.profile not in PROFILES:
            raise BookError(
                f"unknown PROFILE {self.profile!r}: expected one of {', '.join(PROFILES)}"
            )

    @property
    def claims(self) -> Path:
        return self.root / "book" / "claims.yml"

    @property
    def build(self) -> Path:
        return self.root / "_build"

    @property
    def ledger(self) -> Path:
        return self.product("ledger", ".json")

    @property
    def reference(self) -> Path:
        """The committed ledger that others' are compared with."""
        return self.root / "results" / f"ledger.{self.profile}.json"

    @property
    def library(self) -> Path:
        """What autodoc made of the library: a page's text by the name of its door, as JSON."""
        return self.product("library", ".json")

    @property
    def shows_library(self) -> bool:
        """Whether it has pages that include what autodoc made."""
        return (self.root / "book" / "library").is_dir()

    @property
    def html(self) -> Path:
        return self.product("html")

    def product(self, name: str, end: str = "") -> Path:
        """What a build makes, apart for each profile: html is quick's, html-full is full's."""
        of_profile = "" if self.profile == PROFILES[0] else f"-{self.profile}"
        return self.build / f"{name}{of_profile}{end}"

    def product_of(self, step: str, chapter: str | None = None) -> Path:
        """What a step makes, as ("chapter", NAME): a file, or the folder of the site."""
        products = {"ledger": self.ledger, "library": self.library, "site": self.html}
        products["verdict"] = self.product("verdict", ".ok")
        return self.executed(chapter) if step == "chapter" else products[step]

    def mark(self, step: str, chapter: str | None = None) -> Path:
        """What tells Snakemake that a step is done. It may delete it, unlike the product."""
        product = self.product_of(step, chapter)
        return product.with_name(f".{product.name}.done")

    def lock(self, step: str, chapter: str | None = None) -> Path:
        """What a process holds while it takes the step."""
        return self.product("-".join([f".{step}", *([chapter] if chapter else [])]), ".lock")

    def source(self, chapter: str) -> Path:
        return self.root / "book" / f"{chapter}.ipynb"

    def executed(self, chapter: str) -> Path:
        return self.build / "executed" / self.profile / f"{chapter}.ipynb"

    def chapters(self) -> list[str]:
        """The notebooks of `_toc.yml`, in its order; BookError for an entry without a file."""
        entries = [*_entries(read_yaml(self.root / "_toc.yml"))]
        notebooks = [entry for entry in entries if (self.root / f"{entry}.ipynb").is_file()]
        for entry in entries:
            if entry not in notebooks and not (self.root / f"{entry}.md").is_file():
                raise BookError(f"_toc.yml names {entry}, but there is no such page")
        return [Path(entry).name for entry in notebooks]

    def seconds(self) -> dict[str, float]:
        """How long chapters took: here when they were last executed, else for the reference."""
        known = {row["chapter"]: row["seconds"] for row in _json(self.reference) or []}
        for chapter in self.chapters():
            if executed := _json(self.executed(chapter)):
                made_by = executed["metadata"].get("latephase", {})
                known |= {chapter: made_by["seconds"]} if "seconds" in made_by else {}
        return known

    def parameters(self, chapter: str) -> dict:
        """The profile's papermill parameters of a chapter; BookError if it has no entry for it."""
        chapters = read_yaml(path := self.root / "profiles" / f"{self.profile}.yml")
        found = chapters.get(chapter) if isinstance(chapters, dict) else None
        if not isinstance(found, dict):
            none = f"no parameters for the chapter {chapter!r} (a mapping, may be {{}})"
            raise BookError(f"{path}: {none}")
        return found


def _json(path: Path):
    """What is in a file, None where there is none or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _entries(toc) -> Iterator[str]:
    if isinstance(toc, dict):
        for key in ("root", "file"):
            if key in toc:
                yield str(toc[key]).removesuffix(".ipynb").removesuffix(".md")
        for part in ("parts", "chapters", "sections"):
            for entry in toc.get(part, ()):
                yield from _entries(entry)
