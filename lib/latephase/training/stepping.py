"""One step of discrete training, and the evaluation of the whole training set.

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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latephase.problem.batches import BATCH
from latephase.problem.checks import in_mode
from latephase.problem.losses import Loss, log_sum_exp, pairwise_margins, true_margins

# Relative weights below this are zero: in float32 they could not change a sum, and as subnormal
# numbers they would slow the backward pass down many times.
_NEGLIGIBLE = 1e-20
# A mean loss of e^20 is no training any more.
DIVERGED = 20.0


def log_risk_and_gradient(outputs: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Return (ln R, ∂ln R/∂outputs) of the mean risk R of outputs [b], [b, 1] or [b, k].

    In float64 whatever the outputs' dtype; the gradient has the outputs' shape, entries of at most
    one in size, and zeros for those below 1e-20.
    """
    outputs = outputs.detach().double()
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        z = y * outputs.reshape(-1)
    else:
        # f_j - f_y = -p_ij, and exp(z_i - p_ij) is their softmax over the other classes.
        label = y[:, None]
        others = (outputs - outputs.gather(1, label)).scatter(1, label, -math.inf)
        z = -torch.logsumexp(others, 1)
    value = loss.log_value(z)
    log_risk = log_sum_exp(value, 0) - math.log(len(value))
    weights = torch.exp(torch.log_softmax(value, 0) + loss.log_rate(z))
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        gradient = (-weights * y).reshape(outputs.shape)
    else:
        gradient = weights[:, None] * torch.softmax(others, 1)
        gradient.scatter_(1, label, -weights[:, None])
    return log_risk, torch.where(gradient.abs() < _NEGLIGIBLE, 0.0, gradient)


class EpochRejected(Exception):
    """Raised within an epoch that left the range of numbers, under a schedule that judges them."""


class Stepper:
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
        default_generator(x.device).manual_seed(
            (self.settings.seed * 1_000_003 + self.step) % 2**63
        )
        with self._precision(x.device):
            outputs = self.module(x)
        log_risk, gradient = log_risk_and_gradient(outputs, y, self.loss)
        log_risk = log_risk.item()
        if not log_risk < DIVERGED:
            self._stop(f"ln R = {log_risk:g}")
        gradients = torch.autograd.grad(
            outputs,
            self.parameters,
            gradient.to(outputs.dtype),
            allow_unused=True,
            materialize_grads=True,
        )
        norm = 0.0
        if self.schedule.needs_norm:
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
            for begin in range(0, len(self.x), BATCH):
                rows = slice(begin, begin + BATCH)
                outputs = self.module(self.x[rows]).double()
                parts.append(pairwise_margins(outputs, self.labels[rows]))
        p = torch.cat(parts)
        log_risk = self.loss.log_risk(p).item() - math.log(len(p))
        return log_risk, float((true_margins(p) > 0).double().mean())


def default_generator(device: torch.device) -> torch.Generator:
    """Return the generator from which modules on the device draw."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device()]
