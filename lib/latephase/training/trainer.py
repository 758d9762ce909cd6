"""The loop of discrete training: epochs, those done again, and states that resume exactly."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor
from tqdm import tqdm

from latephase.problem.checks import in_mode
from latephase.problem.losses import pairwise_margins, true_margins
from latephase.training import checkpoints
from latephase.training.runs import module_tensors
from latephase.training.stepping import DIVERGED, EpochRejected, Stepper

# Epochs done again in a row, after which α has fallen by 2^{-20} in vain.
_PATIENCE = 200


class Trainer(Stepper):
    """A `Stepper` that writes its states and continues from them."""

    # States.

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by their names, and momentum under `momentum/`."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        momentum = {f"momentum/{n}": v for n, v in zip(names, self.velocity, strict=False)}
        return {**module_tensors(self.module), **momentum}

    def save(self, prefix: str, log_risk: float | None, accuracy: float | None) -> None:
        """Write the state as it is; see `checkpoints.write` for what it raises."""
        content = {
            "step": self.step,
            "log_risk": log_risk,
            "accuracy": accuracy,
            "seconds": self.seconds,
            "schedule": self.schedule.state(),
            **self.identity,
        }
        checkpoints.write(self.folder, f"{prefix}{self.step:010d}", self.tensors(), content)

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Continue from a state whose identity has been checked."""
        stored, content = checkpoint.tensors(), checkpoint.content
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(stored[name])
        self.step, self.seconds = content["step"], content["seconds"]
        self.schedule = type(self.schedule)(**content["schedule"])

    # The loop.

    def run(self, due: list[int], save_every: float, progress: bool) -> None:
        """Train to the last due step; write a record at each, and a latest state in between."""
        due = {step for step in due if step >= self.step}
        with (
            in_mode(self.module, training=True),
            tqdm(total=max(due), initial=self.step, disable=not progress, unit="step") as bar,
            torch.random.fork_rng(_gpus(self.x.device)),
        ):
            shown = _Shown(bar)
            saved = time.perf_counter()
            if self.step == 0 and not checkpoints.listed(self.folder, checkpoints.RECORD):
                self.begin_epoch(0)
                self._record(*self.evaluate())
            while self.step < max(due):
                epoch, position = divmod(self.step, self.per_epoch)
                self.begin_epoch(epoch)
                end = min(self.step - position + self.per_epoch, max(due))
                if self.schedule.judges_epochs:
                    self._judged_epoch(end, due, shown)
                    saved = self._latest(saved, save_every, due)
                    continue
                while self.step < end:
                    self._timed_step(shown)
                    if self.step in due:
                        self._record(*self.evaluate())
                    saved = self._latest(saved, save_every, due)
        for old in checkpoints.listed(self.folder, checkpoints.LATEST):
            checkpoints.delete(old)

    def _timed_step(self, shown: _Shown) -> None:
        begin = time.perf_counter()
        seen = self.take_step(self.step % self.per_epoch)
        self.seconds += time.perf_counter() - begin
        self.step += 1
        shown.update(self.step, *seen)

    def _judged_epoch(self, end: int, due: set[int], shown: _Shown) -> None:
        """Do the epoch that ends at step `end`; leave the state before it if R rose."""
        begin, taken = time.perf_counter(), self.seconds
        start, kept = self.step, [t.detach().clone() for t in self.tensors().values()]
        schedule = self.schedule
        if schedule.reference is None or self.settings.labels == "renewed":
            schedule.reference = self.evaluate()[0]
            if not schedule.reference < DIVERGED:
                raise self.failure(self.step, f"ln R = {schedule.reference:g}")
        try:
            while self.step < end:
                self._timed_step(shown)
            reached, accuracy = self.evaluate()
        except EpochRejected:
            reached, accuracy = math.inf, math.nan
        accepted = schedule.accepts(reached)
        if not accepted:
            with torch.no_grad():
                for tensor, value in zip(self.tensors().values(), kept, strict=True):
                    tensor.copy_(value)
            self.step = start
            shown.reset(start)
        # The judgement is part of the training.
        self.seconds = taken + time.perf_counter() - begin
        if accepted and self.step in due:
            self._record(reached, accuracy)
        if schedule.redone_in_a_row > _PATIENCE:
            raise self.failure(
                start,
                f"ln R rose to {reached:g} in {_PATIENCE} tries of the epoch that begins here "
                "(with batch normalization or dropout it may rise however small the step)",
            )

    def _record(self, log_risk: float, accuracy: float) -> None:
        if not log_risk < DIVERGED:
            raise self.failure(self.step, f"ln R = {log_risk:g}")
        self.save(checkpoints.RECORD, log_risk, accuracy)

    def _latest(self, saved: float, save_every: float, due: set[int]) -> float:
        """Write the latest state if it is time to; return when a state was last written."""
        now = time.perf_counter()
        if self.step in due:
            return now
        if now - saved < save_every:
            return saved
        old = checkpoints.listed(self.folder, checkpoints.LATEST)
        self.save(checkpoints.LATEST, None, None)
        for checkpoint in old:
            if checkpoint.step != self.step:
                checkpoints.delete(checkpoint)
        return time.perf_counter()


class _Shown:
    """The progress bar: ln R and accuracy of the last batch, five times a second."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.next = bar, 0.0

    def update(self, step: int, log_risk: float, outputs: Tensor, y: Tensor) -> None:
        if self.bar.disable:
            return
        self.bar.update(step - self.bar.n)
        if time.perf_counter() < self.next:
            return
        self.next = time.perf_counter() + 0.2
        margins = true_margins(pairwise_margins(outputs.detach(), y))
        right = float((margins > 0).double().mean())
        self.bar.set_postfix_str(f"ln R {log_risk:.4g}, accuracy {right:.1%}", refresh=False)

    def reset(self, step: int) -> None:
        if not self.bar.disable:
            self.bar.n = step
            self.bar.refresh()


def _gpus(device: torch.device) -> list[int]:
    return [torch.cuda.current_device()] if device.type == "cuda" else []
