"""The loop of discrete training: steps, epochs, evaluations, and states that resume exactly.

ln R_B and ∇ln R_B come from the margins in float64,

    ln R_B = ln Σ_i ℓ(z_i) - ln|B|,    ∂ln R_B/∂p_ij = -w_i |(ln ℓ)'(z_i)| exp(z_i - p_ij),

with w = softmax(ln ℓ(z)): nothing here under- or overflows, so the network, in float32 as it
comes, is never shown a number too small for it. What float32 does limit is the resolution of the
margins themselves: logits of size M are rounded by 6e-8 M, and the weights exp(-p) with them by
as much in relative terms; at a loss of 1e-800 (M about 2e3) that is 1e-4, at M = 1e7 no digit of
the weights is left and training proceeds on the examples of smallest margin alone.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latephase import checkpoints
from latephase.inputs import in_mode
from latephase.losses import Loss, log_sum_exp, other_classes, pairwise_margins, soft_margins

# Relative weights below this are zero: in float32 they could not change a sum, and as subnormal
# numbers they would slow the backward pass down many times.
_NEGLIGIBLE = 1e-20
# A mean loss of e^20 is no training any more.
_DIVERGED = 20.0
# Epochs done again in a row, after which α has fallen by 2^{-20} in vain.
_PATIENCE = 200
EVALUATION_BATCH = 256


def log_risk_and_gradient(outputs: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Return (ln R, ∂ln R/∂outputs) of the mean risk R of outputs [b], [b, 1] or [b, k].

    In float64 whatever the outputs' dtype; the gradient [b, 1] or [b, k], whose entries are at
    most one in size, has those below 1e-20 set to zero.
    """
    p = pairwise_margins(outputs.detach().double(), y)
    z = soft_margins(p)
    value = loss.log_value(z)
    log_risk = log_sum_exp(value, 0) - math.log(len(value))
    weights = torch.exp(torch.log_softmax(value, 0) + loss.log_rate(z))
    weights = torch.where(weights < _NEGLIGIBLE, 0.0, weights)
    if p.ndim == 1:
        return log_risk, (-weights * y).reshape(outputs.shape)
    pairs = weights[:, None] * torch.softmax(-p, 1)
    pairs = torch.where(pairs < _NEGLIGIBLE, 0.0, pairs)
    gradient = torch.empty(outputs.shape, dtype=torch.float64, device=outputs.device)
    gradient.scatter_(1, other_classes(y, outputs.shape[1]), pairs)
    gradient.scatter_(1, y[:, None], -pairs.sum(1, keepdim=True))
    return log_risk, gradient


class EpochRejected(Exception):
    """Raised within an epoch that left the range of numbers, under a schedule that judges them."""


class Trainer:
    """A module, its data and everything that determines the next step."""

    def __init__(self, module, x, y, classes, settings, loss, schedule, folder, identity) -> None:
        self.module, self.x, self.y = module, x, y
        self.settings, self.loss, self.schedule = settings, loss, schedule
        self.folder, self.identity = Path(folder), identity
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.velocity = [torch.zeros_like(p) for p in self.parameters] if settings.momentum else []
        self.classes = classes
        self.step = 0
        self.seconds = 0.0
        self.labels = y
        self.batches: list[Tensor] = []
        size = min(settings.batch or len(x), len(x))
        self.per_epoch = math.ceil(len(x) / size)

    # The order of the examples, and the labels.

    def begin_epoch(self, epoch: int) -> None:
        """Draw the epoch's batches, and its labels if they are renewed, from seed and epoch."""
        n, seed = len(self.x), self.settings.seed
        if self.per_epoch == 1:
            # The full batch in its own order: no order to draw.
            self.batches = [None]
        else:
            order = np.random.default_rng([seed, epoch, 0]).permutation(n)
            parts = np.array_split(order, self.per_epoch)
            self.batches = [torch.from_numpy(part).to(self.x.device) for part in parts]
        if self.settings.labels == "renewed":
            rng = np.random.default_rng([seed, epoch, 1])
            drawn = rng.integers(self.classes, size=n)
            drawn = 2 * drawn - 1 if self.y.is_floating_point() else drawn
            self.labels = torch.from_numpy(drawn).to(self.y)

    # One step.

    def take_step(self, position: int) -> tuple[float, Tensor, Tensor]:
        """Take the step on one batch of the epoch; return (ln R_B, outputs, labels) before it.

        Raises FloatingPointError, or EpochRejected under a schedule that judges epochs.
        """
        rows = self.batches[position]
        x = self.x if rows is None else self.x.index_select(0, rows)
        y = self.labels if rows is None else self.labels.index_select(0, rows)
        if self.settings.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        # What randomness the module has (dropout) is a function of seed and step.
        _default_generator(x.device).manual_seed(self.settings.seed * 1_000_003 + self.step)
        with self._precision(x.device):
            outputs = self.module(x)
        log_risk, gradient = log_risk_and_gradient(outputs, y, self.loss)
        log_risk = log_risk.item()
        if not log_risk < _DIVERGED:
            self._stop(f"ln R = {log_risk:g}")
        gradients = torch.autograd.grad(
            outputs,
            self.parameters,
            gradient.to(outputs.dtype),
            allow_unused=True,
            materialize_grads=True,
        )
        norm = 0.0
        if self.settings.schedule == "normalized":
            norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
            if not math.isfinite(norm):
                self._stop(f"‖∇ln R‖ = {norm:g}")
        factor = self.schedule.factor(log_risk, norm)
        with torch.no_grad():
            if self.velocity:
                torch._foreach_mul_(self.velocity, self.settings.momentum)
                torch._foreach_add_(self.velocity, gradients, alpha=-factor)
                torch._foreach_add_(self.parameters, self.velocity)
            else:
                torch._foreach_add_(self.parameters, gradients, alpha=-factor)
        return log_risk, outputs, y

    def _precision(self, device: torch.device):
        dtype = torch.bfloat16
        return torch.autocast(device.type, dtype, enabled=self.settings.autocast is not None)

    def _stop(self, what: str) -> None:
        if self.schedule.judges_epochs:
            raise EpochRejected
        raise self.failure(self.step, what)

    def failure(self, step: int, what: str) -> FloatingPointError:
        """Return the error that says where training left the numbers and what to change."""
        advice = f"take a smaller rate than {self.settings.rate:g}"
        if self.settings.momentum:
            advice += f" or a smaller momentum than {self.settings.momentum:g}"
        if self.settings.autocast:
            advice += ", or leave autocast off: bfloat16 resolves logits to 0.4 % only"
        return FloatingPointError(
            f"step {step}: {what}; the training left the range of numbers. In a new folder, "
            f"{advice}. Checkpoints up to there are intact in {self.folder}"
        )

    # The whole training set.

    def evaluate(self) -> tuple[float, float]:
        """Return (ln of the mean loss, accuracy) on the training set in evaluation mode.

        Without autocast, with the labels of the epoch in force.
        """
        parts = []
        with in_mode(self.module, training=False), torch.no_grad():
            for begin in range(0, len(self.x), EVALUATION_BATCH):
                rows = slice(begin, begin + EVALUATION_BATCH)
                outputs = self.module(self.x[rows]).double()
                parts.append(pairwise_margins(outputs, self.labels[rows]))
        p = torch.cat(parts)
        log_risk = self.loss.log_risk(p).item() - math.log(len(p))
        smallest = p if p.ndim == 1 else p.amin(1)
        return log_risk, float((smallest > 0).double().mean())

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
            shown = _Shown(bar, self.loss)
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
        if math.isnan(schedule.reference) or self.settings.labels == "renewed":
            schedule.reference = self.evaluate()[0]
            if not schedule.reference < _DIVERGED:
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
        if not log_risk < _DIVERGED:
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

    def __init__(self, bar: tqdm, loss: Loss) -> None:
        self.bar, self.loss, self.next = bar, loss, 0.0

    def update(self, step: int, log_risk: float, outputs: Tensor, y: Tensor) -> None:
        if self.bar.disable:
            return
        self.bar.update(step - self.bar.n)
        if time.perf_counter() < self.next:
            return
        self.next = time.perf_counter() + 0.2
        p = pairwise_margins(outputs.detach(), y)
        right = float(((p if p.ndim == 1 else p.amin(1)) > 0).double().mean())
        self.bar.set_postfix_str(f"ln R {log_risk:.4g}, accuracy {right:.1%}", refresh=False)

    def reset(self, step: int) -> None:
        if not self.bar.disable:
            self.bar.n = step
            self.bar.refresh()


def module_tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name; what is shared appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device()]


def _gpus(device: torch.device) -> list[int]:
    return [torch.cuda.current_device()] if device.type == "cuda" else []
