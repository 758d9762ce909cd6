"""States of a training run on disk: tensors in safetensors, everything else in JSON beside them.

A state is a pair NAME.safetensors and NAME.json. Each file is written aside, flushed to the disk
and renamed, the JSON last: it carries the size and hash of the tensors, so a state exists once its
JSON does, and then it is whole. Whatever is left by a process that died in between is ignored and
cleared away by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from latephase.files import ASIDE, write_whole

FORMAT = 1
# States of the record, and the newest state for resuming; the step follows in ten digits.
RECORD, LATEST = "step-", "latest-"


@dataclass(frozen=True)
class Checkpoint:
    """A state on disk: the path of its JSON and the JSON's content."""

    path: Path
    content: dict

    @property
    def step(self) -> int:
        return self.content["step"]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name; ValueError that says what to do if the file is damaged."""
        path = self.path.with_suffix(".safetensors")
        remedy = (
            f"restore it, or delete {path.name} and {self.path.name} together: training then "
            "continues from the state before, and other states stay readable"
        )
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise ValueError(f"{path}: missing, though {self.path.name} is there; {remedy}") from (
                error
            )
        if len(data) != self.content["bytes"]:
            raise ValueError(
                f"{path}: expected {self.content['bytes']} bytes, got {len(data)}: truncated or "
                f"foreign; {remedy}"
            )
        if sha256(data).hexdigest() != self.content["sha256"]:
            raise ValueError(
                f"{path}: its sha256 is not the one in {self.path.name}: damaged or foreign; "
                f"{remedy}"
            )
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: no safetensors file: {error}; {remedy}") from error


def write(folder: Path, name: str, tensors: dict[str, Tensor], content: dict) -> Checkpoint:
    """Write the state `name`, which appears whole or not at all.

    Raises OSError, with the path and what to do, where the file system refuses (a full disk);
    nothing is left behind then, and earlier states stand.
    """
    data = safetensors.torch.save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    )
    content = {
        "format": FORMAT,
        **content,
        "bytes": len(data),
        "sha256": sha256(data).hexdigest(),
    }
    path = folder / f"{name}.json"
    try:
        write_whole(path.with_suffix(".safetensors"), lambda stream: stream.write(data))
        text = json.dumps(content, indent=1) + "\n"
        write_whole(path, lambda stream: stream.write(text.encode()))
        _flush_folder(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path}: the state at step {content['step']} could not be written, "
            f"{error.strerror or error}; earlier states in the folder are intact. Make room for "
            f"{len(data) / 1e6:.1f} MB or repair the access, then call train again with the same "
            "folder: it continues from the last one",
        ) from error
    return Checkpoint(path, content)


def delete(checkpoint: Checkpoint) -> None:
    """Delete a state, its JSON first, so that it is never half there."""
    checkpoint.path.unlink(missing_ok=True)
    checkpoint.path.with_suffix(".safetensors").unlink(missing_ok=True)


def listed(folder: Path, prefix: str) -> list[Checkpoint]:
    """Return the states whose names begin with the prefix, by step.

    Raises ValueError for a JSON that is none of ours.
    """
    found = []
    for path in folder.glob(f"{prefix}[0-9]*.json"):
        remedy = "delete it, or give train another folder"
        try:
            content = json.loads(path.read_text(encoding="utf8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: truncated or no JSON: {error}; {remedy}") from error
        needed = {"format", "step", "bytes", "sha256", "architecture", "settings"}
        if not isinstance(content, dict) or not needed <= content.keys():
            raise ValueError(f"{path}: not a checkpoint of latephase; {remedy}")
        if content["format"] != FORMAT:
            raise ValueError(
                f"{path}: a checkpoint of format {content['format']}, expected {FORMAT}; {remedy}"
            )
        found.append(Checkpoint(path, content))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes and clear away what a dead one left unfinished.

    The lock ends with the process, however it ends. Raises ValueError if another holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder}: another process is training there; wait for it or take another folder"
            ) from error
        for prefix in (RECORD, LATEST):
            for path in folder.glob(f"{prefix}[0-9]*{ASIDE}"):
                path.unlink()
            for path in folder.glob(f"{prefix}[0-9]*.safetensors"):
                if not path.with_suffix(".json").exists():
                    path.unlink()
        yield


def _flush_folder(folder: Path) -> None:
    """Make the renames last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
