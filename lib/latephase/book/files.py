"""Reading YAML strictly and writing files whole."""

import contextlib
import os
from pathlib import Path

import yaml

from latephase.book import BookError


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part.

    Raises BookError when the disk refuses; the old file is then untouched.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf8") as file:
            file.write(text)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise BookError(f"cannot write {path}: {error.strerror or error}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win in silence; here the second one is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise BookError(f"{self.name}, line {line}: the key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path):
    """The content of a YAML file; BookError if it is missing, malformed or has a key twice."""
    try:
        with open(path, encoding="utf8") as file:
            return yaml.load(file, Loader=_StrictLoader)
    except OSError as error:
        raise BookError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BookError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
