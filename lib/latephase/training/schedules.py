"""Step sizes of discrete training, as factors of the bounded gradient ∇ln R.

Training moves by W ← W - η ∇R_B with the mean risk R_B of a batch B. Since ∇R_B = R_B ∇ln R_B and
∇ln R_B neither under- nor overflows, a schedule answers with the one number s = η R_B in

    W ← W - s ∇ln R_B,

formed from logarithms, so that η itself, 1e800 and beyond, is never formed. ln is natural.
A schedule that judges epochs has those in which R rose done again; one that needs the norm is told
‖∇ln R_B‖, which costs a pass over the gradient.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

# Factors beyond this are no steps any more: float32 weights overflow soon after.
_LARGEST_LOG = 60.0


@dataclass
class Constant:
    """η = rate: plain (stochastic) gradient descent. It comes to rest where R_B underflows."""

    rate: float

    judges_epochs, needs_norm = False, False

    def factor(self, log_risk: float, gradient_norm: float) -> float:
        """Return s of a batch with ln R_B = log_risk and ‖∇ln R_B‖ = gradient_norm."""
        return self.rate * math.exp(min(log_risk, _LARGEST_LOG))

    def state(self) -> dict:
        """Return what a checkpoint must hold, as numbers that JSON keeps exactly."""
        return asdict(self)


@dataclass
class Normalized:
    """η = rate max(1, -ln R_B)^growth / (R_B max(1, ‖∇ln R_B‖²)), the loss-normalized step.

    rate/R_B alone (Nacson et al. 2019) grows with R as it must, but is unstable for a network of
    degree L > 2: the curvature of ln R grows like ‖∇ln R‖², that is as ‖W‖^{2L-2}. The bound needs
    no degree. With growth = 0 no step lowers ln R_B by more than `rate` to first order, and -ln R
    grows linearly in the steps t. With 0 < growth < 1 it grows like t^{1/(1 - growth)}, at the
    price of margins that swing by (-ln R)^growth, still o(-ln R). Once the bound binds, a step
    turns the direction by at most s‖∇ln R_B‖/‖W‖ ≈ rate (-ln R)^{growth - 1}/L, like 1/t for any
    growth: the sum of the angles diverges and that of their squares does not, as stochastic
    approximation asks.

    Each batch is divided by its own risk. For the full batch that is the direction of the
    gradient of R; for smaller batches it is that of the mean of ln R_B over batches, in which
    every batch counts alike, however easy.
    """

    rate: float
    growth: float = 0.0

    judges_epochs, needs_norm = False, True

    def factor(self, log_risk: float, gradient_norm: float) -> float:
        """Return s of a batch with ln R_B = log_risk and ‖∇ln R_B‖ = gradient_norm."""
        return self.rate * max(1.0, -log_risk) ** self.growth / max(1.0, gradient_norm**2)

    def state(self) -> dict:
        """Return what a checkpoint must hold, as numbers that JSON keeps exactly."""
        return asdict(self)


@dataclass
class LossBased:
    """Lyu and Li's schedule (2019): η = α/R with R the training risk at the epoch's start.

    α, here `relative`, begins at 0.1 (`rate`), is multiplied by 2^{1/5} after an epoch in which R
    did not rise, and divided by 2^{1/10} after one in which it rose or left the range of numbers;
    such an epoch is done again from its start. reference: ln R at the epoch's start, None before
    the first one. redone, redone_in_a_row: how many epochs were done again so far.
    """

    relative: float
    reference: float | None = None
    redone: int = 0
    redone_in_a_row: int = 0

    judges_epochs, needs_norm = True, False
    UP, DOWN = 2.0**0.2, 2.0**-0.1

    def factor(self, log_risk: float, gradient_norm: float) -> float:
        """Return s of a batch with ln R_B = log_risk and ‖∇ln R_B‖ = gradient_norm."""
        return self.relative * math.exp(min(log_risk - self.reference, _LARGEST_LOG))

    def accepts(self, log_risk: float) -> bool:
        """Judge an epoch by ln R at its end, adapt α, and say whether the epoch stands."""
        if log_risk <= self.reference:
            self.relative *= self.UP
            self.reference, self.redone_in_a_row = log_risk, 0
            return True
        self.relative *= self.DOWN
        self.redone += 1
        self.redone_in_a_row += 1
        return False

    def state(self) -> dict:
        """Return what a checkpoint must hold, as numbers that JSON keeps exactly."""
        return asdict(self)


NAMES = ("constant", "loss_based", "normalized")


def schedule(name: str, rate: float, growth: float) -> Constant | LossBased | Normalized:
    """Return the schedule of that name at its start."""
    if name == "normalized":
        return Normalized(rate, growth)
    return {"constant": Constant, "loss_based": LossBased}[name](rate)
