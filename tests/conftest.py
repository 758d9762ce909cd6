"""A small book, built by the same Snakefile as the large one, in which faults can be planted."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]

CLAIM = {
    "id": "first/small",
    "chapter": "first",
    "kind": "prediction",
    "statement": "The number is small.",
    "source": "this fixture",
    "metric": "the number",
    "relation": "<=",
    "bound": 1.0,
    "tolerance": {"relative": 0.1, "floor": 0.01},
    "reason": "one is small",
    "controls": {"large": "a large number"},
    "cases": 1,
    "few": "a fixture",
}

# What `execute` writes down of the run of a chapter.
_PARTS = ("cells", "library", "pipeline", "parameters", "claims", "lock", "environment")
MADE_BY = {
    "profile": "quick",
    "parameters": {"number": 0.5},
    "seconds": 1.5,
    "commit": "c" * 40,
    "date": "2026-11-28T12:00:00+00:00",
    "inputs": "1" * 64,
    "parts": dict.fromkeys(_PARTS, "2" * 64),
    "opened": {"results/one.json": "3" * 64},
    "environment": {
        **{"python": "3.12.3", "system": "Linux x86_64", "cores": 2, "device": "cpu"},
        **{"threads": 1, "versions": {"torch": "2.15.0"}},
    },
}


def chapter(name: str, *code: str, value: str = "number") -> nbformat.NotebookNode:
    """A chapter with a parameters cell, the given code cells and a last cell that records."""
    last = f"claims.record('{name}/small', [{value}], control={{'large': [2.0]}}, seeds=[0])"
    return new_notebook(
        cells=[
            new_markdown_cell(f"# The {name} chapter\n\nIt measures a number, $x \\le 1$."),
            new_code_cell("from latebook import claims"),
            new_code_cell("number = 0.5", metadata={"tags": ["parameters"]}),
            *[new_code_cell(source) for source in code],
            new_code_cell(last),
        ],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )


def recorded(notebook: nbformat.NotebookNode, text=None, **change) -> nbformat.NotebookNode:
    """The notebook as a run without a fault leaves it, but for a change of what it recorded."""
    # Not above: test_mutants.py has the library imported from elsewhere.
    from latebook.claims import MIME

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for position, cell in enumerate(code, start=1):
        cell.execution_count = position
    payload = {"id": "first/small", "values": ["0.5"], "seeds": [0], "dropped": {}}
    payload |= {"controls": {"large": {"values": ["2.0"], "seeds": [0]}}} | change
    data = {MIME: payload, "text/plain": text or "first/small: 0.5 <= 1 — prediction: confirmed"}
    code[-1].outputs = [new_output("display_data", data)]
    return notebook


class FixtureBook:
    """A two-chapter book in its own folder; `build()` runs the pipeline on it."""

    def __init__(self, root: Path):
        self.root = root
        (root / "book").mkdir(parents=True)
        (root / "profiles").mkdir()
        for name in ("Snakefile", "_config.yml", "CITATION.cff"):
            shutil.copy(ROOT / name, root / name)
        for name in ("_static", "_inventories"):
            shutil.copytree(ROOT / "book" / name, root / "book" / name)
        (root / "book" / "references.bib").write_text("")
        generated = (
            "```{include} _generated/counts.md\n```\n```{include} _generated/claims.md\n```\n"
        )
        index = f"# A small book\n\n{generated}"
        (root / "book" / "index.md").write_text(index)
        self.write_chapters("first", "second")

    def write_chapters(self, *names: str) -> None:
        toc = {
            "format": "jb-book",
            "root": "book/index",
            "chapters": [{"file": f"book/{n}"} for n in names],
        }
        self.write_yaml("_toc.yml", toc)
        self.write_yaml(
            "book/claims.yml", [CLAIM | {"id": f"{n}/small", "chapter": n} for n in names]
        )
        for profile in ("quick", "full", "paper"):
            self.write_yaml(f"profiles/{profile}.yml", {n: {"number": 0.5} for n in names})
        for name in names:
            self.write_notebook(name, chapter(name))

    def show_library(self) -> None:
        """Add the library's pages; those that refer to each other, hence all."""
        shutil.copytree(ROOT / "book" / "library", self.root / "book" / "library")
        front = "# Names\n\n```{include} _generated/library/front.md\n```\n"
        (self.root / "book" / "api.md").write_text(front)
        toc = self.read_yaml("_toc.yml")
        doors = sorted(path.stem for path in (self.root / "book" / "library").glob("*.md"))
        toc["chapters"] += [{"file": "book/api"}, *({"file": f"book/library/{d}"} for d in doors)]
        self.write_yaml("_toc.yml", toc)

    def write_yaml(self, name: str, content) -> None:
        (self.root / name).write_text(yaml.safe_dump(content, sort_keys=False))

    def read_yaml(self, name: str):
        return yaml.safe_load((self.root / name).read_text())

    def write_notebook(self, name: str, notebook) -> None:
        nbformat.write(notebook, self.root / "book" / f"{name}.ipynb")

    def build(self, *options: str) -> subprocess.CompletedProcess:
        return self.call("build", *options)

    def call(self, step: str, *options: str) -> subprocess.CompletedProcess:
        cores = () if "--cores" in options else ("--cores", "2")
        command = [sys.executable, "-m", "latebook", step, *options, *cores]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=300)


@pytest.fixture
def book(tmp_path) -> FixtureBook:
    return FixtureBook(tmp_path / "book root")


@pytest.fixture
def limited(monkeypatch):
    """Have the kernel refuse files of more than so many bytes, as on a full disk; None: no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python does not notice that a module's bytecode was cut off, and would read it for ever.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def begin(size=1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield begin
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
