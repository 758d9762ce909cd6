"""Notebooks as the gate needs them, read with json: importing nbformat takes seconds."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from latebook import BookError
from latebook.files import broken_seal


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook; `content` is its JSON object."""

    content: dict

    @property
    def is_code(self) -> bool:
        return self.content["cell_type"] == "code"

    @property
    def source(self) -> str:
        return joined(self.content["source"])

    @property
    def tags(self) -> list[str]:
        return self.content["metadata"].get("tags", [])

    @property
    def outputs(self) -> list[dict]:
        return self.content.get("outputs", [])

    @property
    def execution_count(self) -> int | None:
        return self.content.get("execution_count")


@dataclass(frozen=True)
class Notebook:
    """A notebook of format 4; `content` is the whole JSON object."""

    content: dict

    @property
    def cells(self) -> list[Cell]:
        return [Cell(cell) for cell in self.content["cells"]]

    @property
    def outputs(self) -> list[dict]:
        """Those of all cells, in their order."""
        return [output for cell in self.cells for output in cell.outputs]

    @property
    def made_by(self) -> dict:
        """What `execute` wrote down of the run that made it."""
        return self.content["metadata"]["latephase"]

    def text(self) -> str:
        return json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"


def read_executed(path: Path) -> Notebook:
    """The executed notebook at `path`; BookError if it is not as `execute` wrote it."""
    if path.exists() and (wrong := broken_seal(path)):
        raise BookError(f"{wrong}; `make book` makes it again")
    return read(path)


def read(path: Path) -> Notebook:
    """The notebook at `path`; BookError if it is missing, not JSON, or not of format 4."""
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        cells = content["cells"]
        if content["nbformat"] != 4 or not all(
            c["source"] is not None and c["metadata"] is not None and c["cell_type"] for c in cells
        ):
            raise ValueError("expected format 4")
    except OSError as error:
        raise BookError(f"cannot read the notebook {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BookError(
            f"{path} is not a readable notebook: {type(error).__name__} {error}"
        ) from error
    notebook = Notebook(content)
    for output in notebook.outputs:
        for texts, key in ((output, "text"), (output.get("data", {}), "text/plain")):
            if key in texts:
                texts[key] = joined(texts[key])
    return notebook


def joined(text: str | list[str]) -> str:
    """A text of a notebook's JSON, which may stand there as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def cells_sha256(cells: list[Cell]) -> str:
    """A hash of what a notebook computes and says: type, source and tags of its cells."""
    essence = [[cell.content["cell_type"], cell.source, cell.tags] for cell in cells]
    return hashlib.sha256(json.dumps(essence).encode()).hexdigest()
