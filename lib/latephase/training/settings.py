"""The settings of a training run, checked as they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch

from latephase.problem.checks import checked_numbers
from latephase.problem.pytorch_losses import name_of
from latephase.training.rules import FIRST_ORDER, LossBased, Own, Rule, own_rule

_CHOICES = {
    "schedule": (*FIRST_ORDER, "loss_based"),
    "loss": (None, "cross_entropy", "exponential", "logistic"),
    "autocast": (None, "bfloat16"),
    "labels": ("fixed", "renewed"),
}


@dataclass(frozen=True)
class Settings:
    """What determines a run besides the module's start and the data.

    steps: gradient steps in all; epochs done again under "loss_based" do not count.
    batch: examples a step; None is the full batch. An epoch is cut into batches of nearly equal
        size, none larger than this.
    schedule: the step rule with its `rate`, one of `latephase.training.rules` but "curvature".
        R_B there is the mean risk of the batch. Or a rule of one's own: an object with a method
        factor(ln R_B, ‖∇ln R_B‖, ‖W‖) that returns s, the same for the same three numbers, and a
        repr that tells its settings, such as a dataclass; `rate` and `growth` are then not used.
    momentum: μ in Δ ← μ Δ - η ∇R_B, W ← W + Δ. Steps are accumulated, not gradients, whose sizes
        differ by any number of orders; with a constant η the two are the same. None under
        "loss_based", whose judgement needs steps that shrink with c.
    seed: of the order of the examples, drawn afresh each epoch, and of dropout if there is any.
    loss: "cross_entropy" for outputs [n, k], "logistic" for one output, or "exponential", or the
        loss of PyTorch's that is one of these, which is kept by its name; None is exponential for
        one output and cross-entropy for several, and the run then names it.
    checkpoints: at most that many, spread evenly in ln(steps), from step 0 to the last. Early
        steps that would coincide are one; under "loss_based" they lie at ends of epochs.
    autocast: "bfloat16" or None. bfloat16 resolves logits to 0.4 %, so that the weights of the
        examples lose their meaning once margins exceed a hundred or so.
    channels_last: memory format of 4-axis weights and inputs; numbers agree to rounding.
    device: where to train, such as "cpu" or "cuda", or a torch.device, kept by its name.
    labels: "fixed", or "renewed": uniformly random ones drawn anew each epoch.
    growth: under "normalized", s is multiplied by max(1, -ln R_B)^growth; below 1.
    """

    steps: int
    batch: int | None = None
    schedule: Any = "constant"
    rate: float = 0.1
    momentum: float = 0.0
    seed: int = 0
    loss: Any = None
    checkpoints: int = 40
    autocast: str | None = None
    channels_last: bool = False
    device: Any = "cpu"
    labels: str = "fixed"
    growth: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", name_of(self.loss))
        if not isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", own_rule(self.schedule))
        for name, least in (("steps", 1), ("batch", 1), ("checkpoints", 2), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "batch":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name}: expected an integer of {least} or more, got {value!r}")
            object.__setattr__(self, name, int(value))
        for name in ("rate", "momentum", "growth"):
            checked_numbers(**{name: getattr(self, name)})
            object.__setattr__(self, name, float(getattr(self, name)))
        if not (0.0 < self.rate < math.inf):
            raise ValueError(f"rate: expected a positive number, got {self.rate!r}")
        for name in ("momentum", "growth"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"{name}: expected 0 or more and below 1, got {getattr(self, name)!r}"
                )
        if self.schedule == "loss_based" and self.momentum:
            raise ValueError(
                f"momentum: expected 0 under 'loss_based', got {self.momentum!r}: steps carried "
                "over do not shrink with c, so an epoch done again could rise forever"
            )
        object.__setattr__(self, "device", _device(self.device))
        for name, known in _CHOICES.items():
            own = name == "schedule" and isinstance(self.schedule, Own)
            if not own and getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {list(known)}, got {getattr(self, name)!r}"
                )

    def stored(self) -> dict[str, Any]:
        """Return the settings as a checkpoint has them, a rule of the user's by its repr."""
        if not isinstance(self.schedule, Own):
            return asdict(self)
        return asdict(replace(self, schedule="constant")) | {
            "schedule": {"own": self.schedule.text}
        }

    @classmethod
    def read(cls, stored: dict[str, Any]) -> Settings:
        """Return the settings that `stored` returned."""
        own = stored["schedule"]
        return cls(**stored | {"schedule": Own(own["own"]) if isinstance(own, dict) else own})

    def rule(self) -> Rule | LossBased | Own:
        """Return the step rule at its start."""
        if isinstance(self.schedule, Own):
            return self.schedule
        if self.schedule == "loss_based":
            return LossBased(self.rate)
        return Rule(self.schedule, self.rate, self.growth)

    def due_steps(self, per_epoch: int) -> list[int]:
        """Return the steps of the checkpoints: 0, then evenly in ln(steps) up to the last."""
        grid = np.geomspace(1.0, self.steps, self.checkpoints - 1)
        steps = np.round(grid).astype(int)
        if self.schedule == "loss_based":
            steps = np.minimum(-(-steps // per_epoch) * per_epoch, self.steps)
        return np.unique([0, *steps, self.steps]).tolist()


def _device(given: Any) -> str:
    """Return the name of a device; ValueError for what is none that holds numbers."""
    try:
        device = torch.device(given) if isinstance(given, str | torch.device) else None
    except RuntimeError:
        device = None
    if device is None or device.type == "meta":
        raise ValueError(f"device: expected one such as 'cpu' or 'cuda', got {given!r}")
    return str(device)
