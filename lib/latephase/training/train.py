"""Discrete training of float32 networks far beyond the smallest number, with exact resume.

`train` runs SGD or full-batch descent with the step rules of `latephase.training.rules` and writes
states spread evenly in ln(steps), from which a killed run continues bit for bit. `Run` reads them.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latephase.problem.batches import cast_inputs
from latephase.problem.checks import checked_labels, checked_numbers, finite_inputs
from latephase.problem.losses import default_loss
from latephase.problem.modules import checked_module, differentiating, first_outputs
from latephase.problem.task import Task, inputs_and_labels
from latephase.training import checkpoints
from latephase.training.checkpoints import Run, architecture_of, read_run
from latephase.training.loop import Trainer
from latephase.training.settings import Settings

__all__ = ["Run", "Settings", "read_run", "train"]


@differentiating
def train(
    module: torch.nn.Module,
    x: Tensor | np.ndarray | Task,
    y: Tensor | np.ndarray | Settings | None = None,
    settings: Settings | str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    *,
    at: Sequence[float] = (),
    save_every: float = 60.0,
    progress: bool = False,
    callback: Callable[[int, torch.nn.Module], object] | None = None,
) -> Run:
    """Train `module` in place and return the run whose checkpoints are in `folder`.

    Called as train(module, x, y, settings, folder) or train(module, task, settings, folder).

    x [n, ...] in the module's dtype or another floating one; y as `gradient_flow` takes it. The
    module is trained in its own dtype, and in training mode throughout. A folder with checkpoints
    of the same settings, data and architecture is continued from its newest state, whatever weights
    the module comes with: with the same versions, machine and number of threads the weights are bit
    for bit those of a run that was never interrupted. (On a GPU as far as the network's operations
    are deterministic.)
    `settings.steps` may be another then, not below the newest state: a run that has ended is so
    continued, under "loss_based" best at an end of an epoch.
    at: ascending levels of the smoothed margin α of the whole training set. With them checkpoints
    lie at the ends of the first epochs beyond each level (for the full batch, of the first steps)
    instead of evenly in ln(steps), and the run ends beyond the last level, or after
    `settings.steps` steps without having reached it.
    save_every: seconds of work that a kill may cost; beside the checkpoints a latest state is
    written that often, under "loss_based" or with `at` at the next end of an epoch. progress:
    shows ln R and accuracy of the last batch and the time left. callback: f(step, module), called
    at every checkpoint once it is written, in evaluation mode; one that changes the module's
    parameters or buffers is refused.

    Raises ValueError for input it cannot use, for a folder of another run, and for a damaged
    checkpoint; FloatingPointError, naming the step, when the loss is no number or exceeds e^20;
    OSError when a checkpoint cannot be written. Earlier checkpoints stay intact. Warns where the
    run was begun with other versions or another number of threads, since bits may differ then.
    """
    if isinstance(y, Settings):
        if settings is not None and folder is not None:
            raise ValueError(
                f"expected one folder after a task and Settings, got {settings!r} and {folder!r}"
            )
        y, settings, folder = None, y, folder if settings is None else settings
    x, y = inputs_and_labels(x, y)
    if not isinstance(settings, Settings) or not isinstance(folder, str | os.PathLike):
        raise ValueError(f"expected Settings and a folder, got {settings!r} and {folder!r}")
    like = next(p for p in checked_module(module).parameters() if p.requires_grad)
    if like.is_inference():
        raise ValueError(
            "module: its parameters were made under torch.inference_mode, which lets nothing write "
            "into them; expected a module made outside, or a copy.deepcopy of this one"
        )
    levels = _checked_levels(at, settings)
    checked_numbers(save_every=save_every)
    if not (callback is None or callable(callback)):
        raise ValueError(f"callback: expected a function f(step, module), got {callback!r}")
    folder, x = Path(folder), cast_inputs(finite_inputs(x), like.dtype)
    try:
        x = x.to(settings.device)
        module.to(settings.device)
    except (RuntimeError, AssertionError) as error:
        said = f"{error}".partition("\n")[0]
        raise ValueError(f"device: {settings.device!r} cannot be used: {said}") from error
    first = first_outputs(module, x)
    loss = default_loss(settings.loss, 1 if first.ndim == 1 else first.shape[1])
    settings = replace(settings, loss=loss.name)
    y, outputs = checked_labels(y, first, len(x), loss.name)
    identity = {
        "settings": settings.stored(),
        "architecture": architecture_of(module),
        "frozen": sorted(n for n, p in module.named_parameters() if not p.requires_grad),
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
        outputs,
        settings,
        loss,
        folder,
        identity,
        levels,
        callback,
    )
    with checkpoints.held(folder), torch.backends.cudnn.flags(enabled=True, deterministic=True):
        due, latest = (checkpoints.listed(folder, p) for p in (checkpoints.DUE, checkpoints.LATEST))
        for state in due + latest:
            state.check_identity(identity)
        if due or latest:
            newest = max(due + latest, key=lambda state: state.step)
            newest.warn_of_change(identity)
            if newest.step > settings.steps:
                raise ValueError(
                    f"steps: expected at least those of the newest state in {folder}, "
                    f"{newest.step}, got {settings.steps}"
                )
            # The last checkpoint tells whether it is the same function.
            for state in due[-1:] + [newest] * (newest not in due[-1:]):
                trainer.restore(state)
        trainer.run(save_every, progress)
    return read_run(folder)


def _checked_levels(at: Sequence[float], settings: Settings) -> list[float]:
    try:
        levels = [float(level) for level in at]
    except (TypeError, ValueError) as error:
        raise ValueError(f"at: expected a list of levels of α, got {at!r}") from error
    ascending = all(np.diff(levels) > 0) and all(map(math.isfinite, levels))
    if levels and (settings.schedule == "loss_based" or not ascending):
        raise ValueError(
            f"at: expected ascending levels of α, and none under 'loss_based'; got {levels} "
            f"with schedule={settings.schedule!r}"
        )
    return levels


def _digest(x: Tensor, y: Tensor) -> str:
    digest = sha256()
    for tensor in (x, y):
        digest.update(f"{list(tensor.shape)} {tensor.dtype}".encode())
        # By its bytes: NumPy does not have every type.
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
