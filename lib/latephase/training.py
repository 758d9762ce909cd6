"""Discrete training of float32 networks far beyond the smallest number, with exact resume.

`train` runs SGD or full-batch descent with the steps of `latephase.schedules` and writes states
spread evenly in ln(steps), from which a killed run continues bit for bit. `Run` reads them.
"""

from __future__ import annotations

import math
import os
import platform
import warnings
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latephase import checkpoints, schedules
from latephase.inputs import checked_labels, finite_inputs, in_mode
from latephase.losses import named_loss
from latephase.trainer import Trainer, module_tensors


@dataclass(frozen=True)
class Settings:
    """What determines a run besides the module's start and the data.

    steps: gradient steps in all; epochs done again under "loss_based" do not count.
    batch: examples a step; None is the full batch. An epoch is cut into batches of nearly equal
        size, none larger than this.
    schedule: "constant", η = rate; "normalized", η = rate/(R_B max(1, ‖∇ln R_B‖²)); "loss_based",
        Lyu and Li's η = α/R with α beginning at rate. R_B is the mean risk of the batch, R that
        of the training set; see `latephase.schedules`.
    momentum: μ in Δ ← μ Δ - η ∇R_B, W ← W + Δ. Steps are accumulated, not gradients, whose sizes
        differ by any number of orders; with a constant η the two are the same. None under
        "loss_based", whose judgement needs steps that shrink with α.
    seed: of the order of the examples, drawn afresh each epoch, and of dropout if there is any.
    loss: "cross_entropy" for outputs [n, k], "logistic" for one output, or "exponential".
    checkpoints: at most that many, spread evenly in ln(steps), from step 0 to the last. Early
        steps that would coincide are one; under "loss_based" they lie at ends of epochs.
    autocast: "bfloat16" or None. bfloat16 resolves logits to 0.4 %, so that the weights of the
        examples lose their meaning once margins exceed a hundred or so.
    channels_last: memory format of 4-axis weights and inputs; numbers agree to rounding.
    device: where to train, such as "cpu" or "cuda".
    labels: "fixed", or "renewed": uniformly random ones drawn anew each epoch.
    growth: under "normalized", s is multiplied by max(1, -ln R_B)^growth; below 1.
    """

    steps: int
    batch: int | None = None
    schedule: str = "constant"
    rate: float = 0.1
    momentum: float = 0.0
    seed: int = 0
    loss: str = "cross_entropy"
    checkpoints: int = 40
    autocast: str | None = None
    channels_last: bool = False
    device: str = "cpu"
    labels: str = "fixed"
    growth: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("checkpoints", 2), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "batch":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an integer of {least} or more, got {value!r}")
        if not (0.0 < self.rate < math.inf):
            raise ValueError(f"rate: expected a positive number, got {self.rate!r}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum: expected 0 or more and below 1, got {self.momentum!r}")
        if not 0.0 <= self.growth < 1.0:
            raise ValueError(f"growth: expected 0 or more and below 1, got {self.growth!r}")
        if self.schedule == "loss_based" and self.momentum:
            raise ValueError(
                f"momentum: expected 0 under 'loss_based', got {self.momentum!r}: steps carried "
                "over do not shrink with α, so an epoch done again could rise forever"
            )
        for name, known in (
            ("schedule", list(schedules.NAMES)),
            ("loss", ["cross_entropy", "exponential", "logistic"]),
            ("autocast", [None, "bfloat16"]),
            ("labels", ["fixed", "renewed"]),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")


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
        _check_architecture(found[0], _architecture(module))
        stored = found[0].tensors()
        with torch.no_grad():
            for name, tensor in module_tensors(module).items():
                tensor.copy_(stored[name])
        return module


def train(
    module: torch.nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    settings: Settings,
    folder: str | os.PathLike,
    *,
    save_every: float = 60.0,
    progress: bool = False,
) -> Run:
    """Train `module` in place and return the run whose checkpoints are in `folder`.

    x [n, ...] in the module's dtype or another floating one; y as `gradient_flow` takes it. The
    module is trained in its own dtype. A folder with checkpoints of the same settings, data and
    architecture is continued from its newest state, whatever weights the module comes with: with
    the same versions, machine and number of threads the weights are bit for bit those of a run
    that was never interrupted. (On a GPU as far as the network's operations are deterministic.)
    save_every: seconds of work that a kill may cost; beside the checkpoints a latest state is
    written that often, under "loss_based" at the next end of an epoch. progress: shows ln R and
    accuracy of the last batch and the time left.

    Raises ValueError for input it cannot use, for a folder of another run, and for a damaged
    checkpoint; FloatingPointError, naming the step, when the loss is no number or exceeds e^20;
    OSError when a checkpoint cannot be written. Earlier checkpoints stay intact. Warns where the
    run was begun with other versions or another number of threads, since bits may differ then.
    """
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    like = next((p for p in module.parameters() if p.requires_grad), None)
    if like is None:
        raise ValueError("module: expected at least one trainable parameter, got none")
    folder, loss = Path(folder), named_loss(settings.loss)
    x = finite_inputs(x).to(settings.device)
    x = x.to(like.dtype) if x.is_floating_point() else x
    module.to(settings.device)
    y, outputs = checked_labels(y, _first_outputs(module, x), len(x), loss.name)
    identity = {
        "settings": asdict(settings),
        "architecture": _architecture(module),
        "data_sha256": _digest(x, y),
        "versions": {name: version(name) for name in ("latephase", "numpy", "torch")},
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    trainer = Trainer(
        module,
        x,
        y.to(settings.device),
        max(outputs, 2),
        settings,
        loss,
        schedules.schedule(settings.schedule, settings.rate, settings.growth),
        folder,
        identity,
    )
    due = due_steps(settings, trainer.per_epoch)
    with checkpoints.held(folder), torch.backends.cudnn.flags(deterministic=True):
        states = checkpoints.listed(folder, checkpoints.RECORD)
        states += checkpoints.listed(folder, checkpoints.LATEST)
        for state in states:
            _check_identity(state, identity)
        if states:
            newest = max(states, key=lambda state: state.step)
            _warn_of_change(newest, identity)
            trainer.restore(newest)
        trainer.run(due, save_every, progress)
    return read_run(folder)


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
        _check_identity(state, first)
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


def due_steps(settings: Settings, per_epoch: int) -> list[int]:
    """Return the steps of the checkpoints: 0, then evenly in ln(steps) up to the last."""
    grid = np.geomspace(1.0, settings.steps, settings.checkpoints - 1)
    steps = np.round(grid).astype(int)
    if settings.schedule == "loss_based":
        steps = np.minimum(-(-steps // per_epoch) * per_epoch, settings.steps)
    return np.unique([0, *steps, settings.steps]).tolist()


def _first_outputs(module: torch.nn.Module, x: Tensor) -> Tensor:
    """Return the outputs of two examples; ValueError if the module does not take them."""
    with in_mode(module, training=False), torch.no_grad():
        try:
            outputs = module(x[:2])
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"x: the module does not take examples of shape {list(x.shape[1:])}: {error}"
            ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2):
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"module: expected outputs [n], [n, 1] or [n, k], got {shape}")
    return outputs


def _architecture(module: torch.nn.Module) -> dict[str, list]:
    """Return the shape and dtype of every parameter and buffer by name."""
    return {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in module_tensors(module).items()
    }


def _digest(x: Tensor, y: Tensor) -> str:
    digest = sha256()
    for tensor in (x, y):
        digest.update(f"{list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()))
    return digest.hexdigest()


def _check_identity(state: checkpoints.Checkpoint, identity: dict) -> None:
    """Raise ValueError unless the state is one of this run."""
    remedy = "give train another folder, or the settings, data and architecture of this one"
    _check_architecture(state, identity["architecture"])
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


def _check_architecture(state: checkpoints.Checkpoint, architecture: dict) -> None:
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


def _warn_of_change(state: checkpoints.Checkpoint, identity: dict) -> None:
    for name in ("versions", "threads", "machine"):
        if state.content[name] != identity[name]:
            warnings.warn(
                f"{state.path}: begun with {name} {state.content[name]}, continued with "
                f"{identity[name]}: the weights need not be bit for bit those of an "
                "uninterrupted run",
                stacklevel=3,
            )
