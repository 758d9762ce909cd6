"""The checkpoints of a training run as a result, and what makes a checkpoint one of a run."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latephase.training import checkpoints
from latephase.training.settings import Settings


@dataclass(frozen=True)
class Run:
    """The checkpoints of a training run; arrays with one entry a checkpoint.

    steps [k]      gradient steps taken, ascending, the first 0
    log_risk [k]   ln of the mean loss over the whole training set, in evaluation mode
    accuracy [k]   share of the training set classified correctly
    seconds [k]    of training so far, evaluations at checkpoints and writing left out
    schedule       the schedule's state at each, a tuple of dictionaries
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

    def __len__(self) -> int:
        return len(self.steps)

    def load(self, k: int, module: torch.nn.Module) -> torch.nn.Module:
        """Return `module` with the weights and buffers of checkpoint k copied in, in its dtype.

        k counts as in a list, -1 is the last. Raises ValueError for a module of another
        architecture and for a file that is damaged or missing.
        """
        step = int(self.steps[k])
        found = [c for c in checkpoints.listed(self.folder, checkpoints.RECORD) if c.step == step]
        if not found:
            raise ValueError(
                f"{self.folder}: the checkpoint of step {step} is gone; train again with the same "
                "settings in a new folder"
            )
        check_architecture(found[0], architecture_of(module))
        stored = found[0].tensors()
        with torch.no_grad():
            for name, tensor in module_tensors(module).items():
                tensor.copy_(stored[name])
        return module


def read_run(folder: str | os.PathLike) -> Run:
    """Return the run whose checkpoints are in `folder`, finished or not, without training.

    Raises ValueError if there are none or one is not whole.
    """
    folder = Path(folder)
    states = checkpoints.listed(folder, checkpoints.RECORD)
    if not states:
        raise ValueError(f"{folder}: no checkpoints of a training run there")
    contents = [state.content for state in states]
    first = contents[0]
    for state in states:
        check_identity(state, first)
    known = ("architecture", "data_sha256", "versions", "threads", "machine")
    return Run(
        settings=Settings(**first["settings"]),
        folder=folder,
        steps=np.array([c["step"] for c in contents]),
        log_risk=np.array([c["log_risk"] for c in contents], dtype=float),
        accuracy=np.array([c["accuracy"] for c in contents], dtype=float),
        seconds=np.array([c["seconds"] for c in contents], dtype=float),
        schedule=tuple(c["schedule"] for c in contents),
        provenance={name: first[name] for name in known},
    )


def architecture_of(module: torch.nn.Module) -> dict[str, list]:
    """Return the shape and dtype of every parameter and buffer by name."""
    return {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in module_tensors(module).items()
    }


def check_identity(state: checkpoints.Checkpoint, identity: dict) -> None:
    """Raise ValueError unless the state is one of this run."""
    remedy = "give train another folder, or the settings, data and architecture of this one"
    check_architecture(state, identity["architecture"])
    stored, asked = state.content["settings"], identity["settings"]
    names = [field.name for field in fields(Settings)]
    if set(stored) != set(names):
        raise ValueError(f"{state.path}: settings {sorted(stored)}, expected {names}; {remedy}")
    for name in names:
        if stored[name] != asked[name]:
            raise ValueError(
                f"{state.path}: a checkpoint of a run with {name}={stored[name]!r}, asked for "
                f"{name}={asked[name]!r}; {remedy}"
            )
    if state.content["data_sha256"] != identity["data_sha256"]:
        raise ValueError(f"{state.path}: a checkpoint of a run on other data; {remedy}")


def check_architecture(state: checkpoints.Checkpoint, architecture: dict) -> None:
    stored = state.content["architecture"]
    # The dtype may differ: a checkpoint may be read into a float64 module.
    shapes = {name: entry[0] for name, entry in architecture.items()}
    for name in {**stored, **shapes}:
        had, has = stored.get(name, ["absent"])[0], shapes.get(name, "absent")
        if had != has:
            raise ValueError(
                f"{state.path}: a checkpoint of another architecture, where {name} is {had}; in "
                f"the module it is {has}. Give the module that was trained, or another folder"
            )


def warn_of_change(state: checkpoints.Checkpoint, identity: dict) -> None:
    for name in ("versions", "threads", "machine"):
        if state.content[name] != identity[name]:
            warnings.warn(
                f"{state.path}: begun with {name} {state.content[name]}, continued with "
                f"{identity[name]}: the weights need not be bit for bit those of an "
                "uninterrupted run",
                stacklevel=3,
            )


def module_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name; what is shared appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
