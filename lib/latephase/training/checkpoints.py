"""States of a training run on disk, what makes a state one of a run, and the run as a result.

A state is a pair NAME.safetensors and NAME.json, tensors in the one and everything else in the
other. Each file is written aside, flushed to the disk and renamed, the JSON last: it carries the
size and hash of the tensors, so a state exists once its JSON does, and then it is whole. Whatever
is left by a process that died in between is ignored and cleared away by the next one.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from latephase.files import ASIDE, write_whole
from latephase.measures.diagnosis import diagnose
from latephase.problem.lending import copied
from latephase.problem.task import inputs_and_labels
from latephase.training.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
# Checkpoints, and the newest state for resuming; the step follows in ten digits.
DUE, LATEST = "step-", "latest-"


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
        path, content = self.path.with_suffix(".safetensors"), self.content
        data = path.read_bytes() if path.exists() else None
        if data is None:
            fault = f"missing, though {self.path.name} is there"
        elif len(data) != content["bytes"]:
            fault = f"expected {content['bytes']} bytes, got {len(data)}: truncated or foreign"
        elif sha256(data).hexdigest() != content["sha256"]:
            fault = f"its sha256 is not the one in {self.path.name}: damaged or foreign"
        else:
            try:
                return safetensors.torch.load(data)
            except safetensors.SafetensorError as error:
                fault = f"no safetensors file: {error}"
        raise ValueError(
            f"{path}: {fault}; restore it, or delete {path.name} and {self.path.name} together: "
            "training then continues from the state before, and other states stay readable"
        )

    def check_identity(self, identity: dict) -> None:
        """Raise ValueError unless the state is one of the run with that identity."""
        self.check_architecture(identity["architecture"], dtypes=True)
        stored, asked = self.content["settings"], identity["settings"]
        names, fault = [field.name for field in fields(Settings)], ""
        if set(stored) != set(names):
            fault = f"settings {sorted(stored)}, expected {names}"
        elif other := [n for n in names if n != "steps" and stored[n] != asked[n]]:
            had, asks = (f"{other[0]}={side[other[0]]!r}" for side in (stored, asked))
            fault = f"a checkpoint of a run with {had}, asked for {asks}"
        elif None not in (frozen := [side.get("frozen") for side in (self.content, identity)]) and (
            frozen[0] != frozen[1]
        ):
            had, asks = (", ".join(names) or "none" for names in frozen)
            fault = f"a checkpoint of a run with frozen parameters {had}, asked for {asks}"
        elif self.content["data_sha256"] != identity["data_sha256"]:
            fault = "a checkpoint of a run on other data, or on these in another order"
        if fault:
            raise ValueError(
                f"{self.path}: {fault}; give train another folder, or the settings, data and "
                "architecture of this one"
            )

    def check_architecture(self, architecture: dict, dtypes: bool = False) -> None:
        """Raise ValueError unless the shapes are the state's, and with `dtypes` these.

        Otherwise they may differ: a checkpoint may be read into a float64 module.
        """
        stored = self.content["architecture"]
        for name in {**stored, **architecture}:
            had, has = (
                " of ".join(map(str, side.get(name, ["absent"])[: 1 + dtypes]))
                for side in (stored, architecture)
            )
            if had != has:
                raise ValueError(
                    f"{self.path}: a checkpoint of another architecture, where {name} is {had}; in "
                    f"the module it is {has}. Give the module that was trained, or another folder"
                )

    def warn_of_change(self, identity: dict) -> None:
        """Warn where the run is continued under other conditions than it was begun."""
        for name in ("versions", "threads", "machine"):
            if self.content[name] != identity[name]:
                warnings.warn(
                    f"{self.path}: begun with {name} {self.content[name]}, continued with "
                    f"{identity[name]}: the weights need not be bit for bit those of an "
                    "uninterrupted run",
                    stacklevel=3,
                )


# Files.


def write(folder: Path, name: str, tensors: dict[str, Tensor], content: dict) -> Checkpoint:
    """Write the state `name`, which appears whole or not at all.

    Raises OSError, with the path and what to do, where the file system refuses (a full disk);
    nothing is left behind then, and earlier states stand.
    """
    # Copies, since the format has no tensors that share their memory.
    dense = torch.contiguous_format
    data = safetensors.torch.save(
        {name: t.detach().cpu().clone(memory_format=dense) for name, t in tensors.items()}
    )
    digest = sha256(data).hexdigest()
    content = {"format": FORMAT, **content, "bytes": len(data), "sha256": digest}
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
        # As it was called until commit 98d4629.
        rule = content.get("schedule", {})
        if "relative" in rule:
            rule["coefficient"] = rule.pop("relative")
        found.append(Checkpoint(path, content))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes and clear away what a dead one left unfinished.

    The lock ends with the process, however it ends. Raises ValueError if another holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"folder: expected one, or a place for it, got {folder}, which is a file "
            "or lies below one"
        ) from error
    try:
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder}: another process is training there; wait for it or take another folder"
        ) from error
    with lock:
        for prefix in (DUE, LATEST):
            for path in folder.glob(f"{prefix}[0-9]*{ASIDE}"):
                path.unlink()
            for path in folder.glob(f"{prefix}[0-9]*.safetensors"):
                if not path.with_suffix(".json").exists():
                    path.unlink()
        yield


def _flush_folder(folder: Path) -> None:
    """Make the renames last through a loss of power, where a folder can be opened (not Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The run.

# What `Run.diagnose` has of each checkpoint.
SCALARS = (
    "smoothed_margin",
    "log_norm",
    "normalized_margin",
    "normalized_smoothed_margin",
    "alignment",
    "kkt_stationarity",
    "kkt_complementarity",
    "degree",
    "training_error",
)


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """The checkpoints of a training run; arrays with one entry a checkpoint.

    steps [k]      gradient steps taken, ascending, the first 0
    log_risk [k]   ln of the mean loss over the whole training set, in evaluation mode
    accuracy [k]   share of the training set classified correctly
    seconds [k]    of training so far, evaluations at checkpoints and writing left out
    schedule       what the step rule held at each, a tuple of dictionaries
    provenance     versions, threads, machine, architecture and hash of the data, a dictionary

    With renewed labels, risk and accuracy are those of the labels last trained on.
    """

    settings: Settings
    folder: Path
    steps: np.ndarray
    log_risk: np.ndarray
    accuracy: np.ndarray
    seconds: np.ndarray
    schedule: tuple[dict, ...]
    provenance: dict

    def __repr__(self) -> str:
        last = f"ln R {self.log_risk[-1]:.4g} at step {self.steps[-1]}"
        return f"Run({len(self)} checkpoints, {last}, in {str(self.folder)!r})"

    def __len__(self) -> int:
        return len(self.steps)

    def load(self, k: int, module: torch.nn.Module) -> torch.nn.Module:
        """Return `module` with the weights and buffers of checkpoint k copied in, in its dtype.

        k counts as in a list, -1 is the last. Raises ValueError for a module of another
        architecture and for a file that is damaged or missing.
        """
        step = int(self.steps[k])
        found = [c for c in listed(self.folder, DUE) if c.step == step]
        if not found:
            raise ValueError(
                f"{self.folder}: the checkpoint of step {step} is gone; train again with the same "
                "settings in a new folder"
            )
        found[0].check_architecture(architecture_of(module))
        stored = found[0].tensors()
        with torch.no_grad():
            for name, tensor in module_tensors(module).items():
                tensor.copy_(stored[name])
        return module

    def diagnose(
        self, module: torch.nn.Module, x: Any, y: Any = None, **options: Any
    ) -> pd.DataFrame:
        """Return what `latephase.diagnose` says of each checkpoint, a row each with its step.

        x, y, options: as `diagnose` takes them; the loss is the run's where none is given. The
        module is left as it is. The columns are `SCALARS`; what is None there is missing here.
        """
        x, y = inputs_and_labels(x, y)
        options = {"loss": self.settings.loss, "progress": False} | options
        other, rows = copied(module), []
        for k, step in enumerate(self.steps):
            found = vars(diagnose(self.load(k, other), x, y, **options))
            rows.append({"step": int(step)} | {name: found[name] for name in SCALARS})
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Return a figure of the loss and the training error over the steps.

        Needs the extra `plot`.
        """
        from latephase.figures import plots

        return plots.training_summary(self)


def read_run(folder: str | os.PathLike) -> Run:
    """Return the run whose checkpoints are in `folder`, finished or not, without training.

    Its settings are those of the last checkpoint: `steps` may have been raised after the others.

    Raises ValueError if there are none or one is not whole.
    """
    folder = Path(folder)
    states = listed(folder, DUE)
    if not states:
        raise ValueError(f"{folder}: no checkpoints of a training run there")
    first = states[0].content
    for state in states:
        state.check_identity(first)
    columns = {
        name: np.array([state.content[name] for state in states], dtype=float)
        for name in ("log_risk", "accuracy", "seconds")
    }
    known = ("architecture", "data_sha256", "versions", "threads", "machine")
    return Run(
        settings=Settings.read(states[-1].content["settings"]),
        folder=folder,
        steps=np.array([state.step for state in states]),
        schedule=tuple(state.content["schedule"] for state in states),
        provenance={name: first[name] for name in known},
        **columns,
    )


def architecture_of(module: torch.nn.Module) -> dict[str, list]:
    """Return the shape and dtype of every parameter and buffer by name."""
    return {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in module_tensors(module).items()
    }


def module_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name; what is shared appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
