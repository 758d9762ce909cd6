"""The loop of discrete training: single steps, epochs, those done again, and states that resume.

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
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latephase.problem.batches import BATCH
from latephase.problem.checks import in_mode
from latephase.problem.losses import Loss, log_sum_exp, pairwise_margins, true_margins
from latephase.problem.modules import called
from latephase.training import checkpoints
from latephase.training.rules import Own
from latephase.training.settings import Settings

# Relative weights below this are zero: in float32 they could not change a sum, and as subnormal
# numbers they would slow the backward pass down many times.
_NEGLIGIBLE = 1e-20
# A mean loss of e^20 is no training any more.
_DIVERGED = 20.0
# Epochs done again in a row, after which their step has shrunk by 2^{-20} in vain.
_PATIENCE = 200


def log_risk_and_gradient(outputs: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Return (ln R, ∂ln R/∂outputs) of the mean risk R of outputs [b], [b, 1] or [b, k].

    In float64 whatever the outputs' dtype; the gradient has the outputs' shape, entries of at most
    one in size, and zeros for those below 1e-20.
    """
    outputs = outputs.detach().double()
    single = outputs.ndim == 1 or outputs.shape[1] == 1
    if single:
        z = y * outputs.reshape(-1)
    else:
        # f_j - f_y = -p_ij, and exp(z_i - p_ij) is their softmax over the other classes.
        label = y[:, None]
        others = (outputs - outputs.gather(1, label)).scatter(1, label, -math.inf)
        z = -torch.logsumexp(others, 1)
    value = loss.log_value(z)
    log_risk = log_sum_exp(value, 0) - math.log(len(value))
    weights = torch.exp(torch.log_softmax(value, 0) + loss.log_rate(z))
    if single:
        gradient = (-weights * y).reshape(outputs.shape)
    else:
        gradient = weights[:, None] * torch.softmax(others, 1)
        gradient.scatter_(1, label, -weights[:, None])
    return log_risk, torch.where(gradient.abs() < _NEGLIGIBLE, 0.0, gradient)


class EpochRejected(Exception):
    """Raised within an epoch that left the range of numbers, under a rule that judges them."""


class Trainer:
    """A module, its data and all that determines the next step; it writes states and resumes."""

    def __init__(
        self,
        module: torch.nn.Module,
        x: Tensor,
        y: Tensor,
        outputs: int,
        settings: Settings,
        loss: Loss,
        folder: Path,
        identity: dict,
        at: Sequence[float] = (),
        callback: Callable[[int, torch.nn.Module], object] | None = None,
    ) -> None:
        self.module, self.x, self.y, self.outputs = module, x, y, outputs
        self.settings, self.loss, self.rule = settings, loss, settings.rule()
        self.folder, self.identity, self.at, self.callback = folder, identity, at, callback
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.largest = min(torch.finfo(p.dtype).max for p in self.parameters)
        self.velocity = [torch.zeros_like(p) for p in self.parameters] if settings.momentum else []
        self.step, self.seconds = 0, 0.0
        self.epoch, self.batches, self.labels = -1, [], y
        self.per_epoch = math.ceil(len(x) / min(settings.batch or len(x), len(x)))

    # The order of the examples, and the labels.

    def begin_epoch(self, epoch: int) -> None:
        """Draw the epoch's batches, and its labels if they are renewed, from seed and epoch."""
        if epoch == self.epoch:
            return
        n, seed, self.epoch = len(self.x), self.settings.seed, epoch
        if self.per_epoch == 1:
            # The full batch in its own order: no order to draw.
            self.batches = [None]
        else:
            order = np.random.default_rng([seed, epoch, 0]).permutation(n)
            parts = np.array_split(order, self.per_epoch)
            self.batches = [torch.from_numpy(part).to(self.x.device) for part in parts]
        if self.settings.labels == "renewed":
            drawn = np.random.default_rng([seed, epoch, 1]).integers(max(self.outputs, 2), size=n)
            drawn = 2 * drawn - 1 if self.y.is_floating_point() else drawn
            self.labels = torch.from_numpy(drawn).to(self.y)

    # One step, and the whole training set.

    def take_step(self, position: int) -> tuple[float, Tensor, Tensor]:
        """Take the step on one batch of the epoch; return (ln R_B, outputs, labels) before it.

        Raises FloatingPointError, or EpochRejected under a rule that judges epochs.
        """
        rows = self.batches[position]
        x = self.x if rows is None else self.x.index_select(0, rows)
        y = self.labels if rows is None else self.labels.index_select(0, rows)
        if self.settings.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        # What randomness the module has (dropout) is a function of seed and step.
        drawn = (self.settings.seed * 1_000_003 + self.step) % 2**63
        _default_generator(x.device).manual_seed(drawn)
        random.seed(drawn)
        np.random.seed(drawn % 2**32)  # noqa: NPY002
        half = self.settings.autocast is not None
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            outputs = called(self.module, x)
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
        norms = 0.0, 0.0
        if self.rule.needs_norms:
            norms = _norm(gradients), _norm(self.parameters)
            if not math.isfinite(norms[0]):
                self._stop(f"‖∇ln R‖ = {norms[0]:g}")
        factor = self.rule.factor(log_risk, *norms)
        if not factor <= self.largest:
            self._stop(f"a step of {factor:g} times the gradient")
        with torch.no_grad():
            if self.velocity:
                torch._foreach_mul_(self.velocity, self.settings.momentum)
                torch._foreach_add_(self.velocity, gradients, alpha=-factor)
                torch._foreach_add_(self.parameters, self.velocity)
            else:
                torch._foreach_add_(self.parameters, gradients, alpha=-factor)
        return log_risk, outputs, y

    def evaluate(self) -> tuple[float, float]:
        """Return (ln of the mean loss, accuracy) on the training set in evaluation mode.

        Without autocast, with the labels of the epoch in force.
        """
        parts = []
        with in_mode(self.module, training=False), torch.no_grad():
            for begin in range(0, len(self.x), BATCH):
                rows = slice(begin, begin + BATCH)
                outputs = called(self.module, self.x[rows]).double()
                parts.append(pairwise_margins(outputs, self.labels[rows]))
        p = torch.cat(parts)
        log_risk = self.loss.log_risk(p).item() - math.log(len(p))
        return log_risk, float((true_margins(p) > 0).double().mean())

    def _stop(self, what: str) -> None:
        if self.rule.judges_epochs:
            raise EpochRejected
        raise self._failure(what)

    def _failure(self, what: str) -> FloatingPointError:
        """Return the error that says where training left the numbers and what to change."""
        own = isinstance(self.rule, Own)
        advice = "take a rule of smaller steps"
        advice = advice if own else f"take a smaller rate than {self.settings.rate:g}"
        if self.step == 0:
            advice = "begin with other weights, or with inputs in other units; or " + advice
        if self.settings.momentum:
            advice += f" or a smaller momentum than {self.settings.momentum:g}"
        if self.settings.autocast:
            advice += ", or leave autocast off: bfloat16 resolves logits to 0.4 % only"
        return FloatingPointError(
            f"step {self.step}: {what}; the training left the range of numbers. In a new folder, "
            f"{advice}. Checkpoints up to there are intact in {self.folder}"
        )

    # States on disk.

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by their names, and momentum under `momentum/`."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        momentum = {f"momentum/{n}": v for n, v in zip(names, self.velocity, strict=False)}
        return {**checkpoints.module_tensors(self.module), **momentum}

    def save(self, prefix: str, log_risk: float | None, accuracy: float | None) -> None:
        """Write the state as it is; see `checkpoints.write` for what it raises."""
        content = {
            "step": self.step,
            "log_risk": log_risk,
            "accuracy": accuracy,
            "seconds": self.seconds,
            "schedule": asdict(self.rule),
            **self.identity,
        }
        checkpoints.write(self.folder, f"{prefix}{self.step:010d}", self.tensors(), content)

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Continue from a state whose identity has been checked.

        Raises ValueError where it is a checkpoint, and the module computes something else now.
        """
        stored, content = checkpoint.tensors(), checkpoint.content
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(stored[name])
        self.step, self.seconds = content["step"], content["seconds"]
        if self.rule.judges_epochs:
            self.rule = type(self.rule)(**content["schedule"])
        was = content["log_risk"]
        if was is None or self.settings.labels == "renewed":
            return
        found = self.evaluate()[0]
        if not abs(found - was) <= 0.01 * (1.0 + abs(was)):
            raise ValueError(
                f"{checkpoint.path}: with these weights ln R was {was:.6g}, and of this module it "
                f"is {found:.6g}; expected the module that was trained, which computes the same, "
                "or another folder"
            )

    # The loop.

    def run(self, save_every: float, progress: bool) -> None:
        """Train to the last due step; write a checkpoint at each, a latest state in between."""
        last = self.settings.steps
        due = [0, last] if self.at else self.settings.due_steps(self.per_epoch)
        gpus = [torch.cuda.current_device()] if self.x.is_cuda else []
        with (
            in_mode(self.module, training=True),
            tqdm(total=last, initial=self.step, disable=not progress, unit="step") as bar,
            torch.random.fork_rng(gpus),
        ):
            saved = time.perf_counter()
            self.begin_epoch(self.step // self.per_epoch)
            if self.step == 0 and not checkpoints.listed(self.folder, checkpoints.DUE):
                self._checkpoint(*self.evaluate())
            passed = self._levels_passed() if self.at else -1
            while self.step < last and passed < len(self.at):
                self.begin_epoch(self.step // self.per_epoch)
                if self.rule.judges_epochs:
                    self._judged_epoch(due, bar)
                elif self.at:
                    passed = self._epoch_to_level(passed, bar)
                else:
                    self._timed_step(bar)
                    if self.step in due:
                        self._checkpoint(*self.evaluate())
                saved = self._latest(saved, save_every, due)
        for old in checkpoints.listed(self.folder, checkpoints.LATEST):
            checkpoints.delete(old)

    def _timed_step(self, bar: tqdm) -> float:
        begin = time.perf_counter()
        log_risk, outputs, y = self.take_step(self.step % self.per_epoch)
        self.seconds += time.perf_counter() - begin
        self.step += 1
        # True where the bar has just been drawn, which it is ten times a second at most.
        if bar.update(self.step - bar.n):
            right = true_margins(pairwise_margins(outputs.detach(), y)) > 0
            bar.set_postfix_str(
                f"ln R {log_risk:.4g}, accuracy {float(right.double().mean()):.1%}", refresh=False
            )
        return log_risk

    def _epoch_to_level(self, passed: int, bar: tqdm) -> int:
        """Do the epoch that begins here, with a checkpoint if it ends beyond a further level.

        passed: how many levels the checkpoints have reached; returns how many they now have.
        """
        end = min(self.step - self.step % self.per_epoch + self.per_epoch, self.settings.steps)
        risks = torch.tensor([self._timed_step(bar) for _ in range(end - self.step)]).double()
        # The batches' own risks cost nothing; the whole set is evaluated once they promise a level.
        seen = float(log_sum_exp(risks, 0)) - math.log(len(risks))
        last = end == self.settings.steps
        if not last and self._alpha(seen) < self.at[passed]:
            return passed
        begin = time.perf_counter()
        log_risk, accuracy = self.evaluate()
        self.seconds += time.perf_counter() - begin
        reached = int(np.searchsorted(self.at, self._alpha(log_risk), side="right"))
        if last or reached > passed:
            self._checkpoint(log_risk, accuracy)
        return max(passed, reached)

    def _levels_passed(self) -> int:
        """Return how many of the levels `at` the checkpoints have reached."""
        states = checkpoints.listed(self.folder, checkpoints.DUE)
        best = max(self._alpha(state.content["log_risk"]) for state in states)
        return int(np.searchsorted(self.at, best, side="right"))

    def _alpha(self, log_risk: float) -> float:
        """Return the smoothed margin of the whole set whose mean risk has that logarithm."""
        summed = torch.tensor(log_risk + math.log(len(self.x)), dtype=torch.float64)
        return float(self.loss.inverse(summed))

    def _judged_epoch(self, due: list[int], bar: tqdm) -> None:
        """Do the epoch that begins here; leave the state before it if R rose."""
        end = min(self.step - self.step % self.per_epoch + self.per_epoch, due[-1])
        begin, taken = time.perf_counter(), self.seconds
        start, kept = self.step, [t.detach().clone() for t in self.tensors().values()]
        rule = self.rule
        if rule.reference is None or self.settings.labels == "renewed":
            rule.reference = self.evaluate()[0]
            if not rule.reference < _DIVERGED:
                raise self._failure(f"ln R = {rule.reference:g}")
        try:
            while self.step < end:
                self._timed_step(bar)
            reached, accuracy = self.evaluate()
        except EpochRejected:
            reached, accuracy = math.inf, math.nan
        accepted = rule.accepts(reached)
        if not accepted:
            with torch.no_grad():
                for tensor, value in zip(self.tensors().values(), kept, strict=True):
                    tensor.copy_(value)
            self.step = bar.n = start
        # The judgement is part of the training.
        self.seconds = taken + time.perf_counter() - begin
        if accepted and self.step in due:
            self._checkpoint(reached, accuracy)
        if rule.redone_in_a_row > _PATIENCE:
            raise self._failure(
                f"ln R rose to {reached:g} in {_PATIENCE} tries of the epoch that begins here "
                "(with batch normalization or dropout it may rise however small the step)"
            )

    def _checkpoint(self, log_risk: float, accuracy: float) -> None:
        if not log_risk < _DIVERGED:
            raise self._failure(f"ln R = {log_risk:g}")
        self.save(checkpoints.DUE, log_risk, accuracy)
        if self.callback is not None:
            before = self._held(copied=True)
            with in_mode(self.module, training=False), torch.enable_grad():
                self.callback(self.step, self.module)
            after = self._held()
            changed = [n for n in before | after if not _same(before.get(n), after.get(n))]
            if changed:
                raise ValueError(
                    f"callback: it changed {changed[0]!r} of the module at step {self.step}; "
                    "expected that it leaves the module as it is, or a run that is resumed would "
                    "be another (measure a copy.deepcopy, or train it further in another run)"
                )

    def _latest(self, saved: float, save_every: float, due: list[int]) -> float:
        """Write the latest state if it is time to; return when a state was last written."""
        now = time.perf_counter()
        if self.step in due:
            return now
        if now - saved < save_every:
            return saved
        old = checkpoints.listed(self.folder, checkpoints.LATEST)
        self.save(checkpoints.LATEST, None, None)
        for state in old:
            if state.step != self.step:
                checkpoints.delete(state)
        return now

    def _held(self, copied: bool = False) -> dict[str, tuple[bool, Tensor]]:
        """Return parameters and buffers by name, with whether they are trained."""
        held = checkpoints.module_tensors(self.module)
        return {
            name: (tensor.requires_grad, tensor.detach().clone() if copied else tensor.detach())
            for name, tensor in held.items()
        }


def _same(before: tuple[bool, Tensor] | None, after: tuple[bool, Tensor] | None) -> bool:
    if before is None or after is None or before[0] != after[0]:
        return False
    (_, a), (_, b) = before, after
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))))


def _default_generator(device: torch.device) -> torch.Generator:
    """Return the generator from which modules on the device draw."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device()]
