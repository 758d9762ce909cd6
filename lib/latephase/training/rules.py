"""The step rules of discrete time: one vocabulary for every door of `latephase.training`.

Descent moves by W ← W - η ∇R. Since ∇R = R ∇ln R and ∇ln R neither under- nor overflows, a rule
answers with the one number s = η R in

    W ← W - s ∇ln R,

formed from logarithms, so that η itself, 1e800 and beyond, is never formed:

    "constant"     s = rate R: plain descent, η = rate; it comes to rest where R underflows
    "logarithmic"  s = rate: descent on ln R, η = rate/R (Nacson et al. 2019)
    "normalized"   s = rate max(1, -ln R)^growth / max(1, ‖∇ln R‖²)
    "relative"     s = rate ‖W‖/‖∇ln R‖: every step moves by that share of ‖W‖
    "curvature"    s = rate/λ, with a bound λ on the curvature of ln R; `gradient_descent` has it
    "loss_based"   s = c R/R_0, Lyu and Li's (2019); epochs are judged; `train` has it

R is the mean risk of the batch in `train`, the sum over the examples elsewhere; ln is natural.

"logarithmic" steps grow with 1/R as they must, but are unstable for a network of degree L > 2:
the curvature of ln R grows like ‖∇ln R‖², that is as ‖W‖^{2L-2}. The bound of "normalized" needs no
degree. With growth = 0 none of its steps lowers ln R_B by more than `rate` to first order, and
-ln R grows linearly in the steps t. With 0 < growth < 1 it grows like t^{1/(1 - growth)}, at the
price of margins that swing by (-ln R)^growth, still o(-ln R). Once the bound binds, a step turns
the direction by at most s‖∇ln R_B‖/‖W‖ ≈ rate (-ln R)^{growth - 1}/L, like 1/t for any growth: the
sum of the angles diverges and that of their squares does not, as stochastic approximation asks.

Each batch is divided by its own risk. For the full batch that is the direction of the gradient of
R; for smaller batches it is that of the mean of ln R_B over batches, in which every batch counts
alike, however easy.
"""

from __future__ import annotations

import math
import re
from dataclasses import InitVar, dataclass

import numpy as np

FIRST_ORDER = ("constant", "logarithmic", "normalized", "relative")
# Factors beyond this are no steps any more: float32 weights overflow soon after.
_LARGEST_LOG = 60.0


@dataclass
class Rule:
    """A rule of `FIRST_ORDER`, the same at every step."""

    name: str
    rate: float
    growth: float = 0.0

    judges_epochs = False

    @property
    def needs_norms(self) -> bool:
        """Whether `factor` must be told ‖∇ln R‖ and ‖W‖, which cost a pass over each."""
        return self.name in ("normalized", "relative")

    def factor(self, log_risk, gradient_norm, norm):
        """Return s where ln R = log_risk, ‖∇ln R‖ = gradient_norm and ‖W‖ = norm.

        All three are numbers, or arrays with one entry a run, as `rate` may be.
        """
        if self.name == "constant":
            return self.rate * _exp(log_risk)
        if self.name == "logarithmic":
            return self.rate
        if self.name == "relative":
            return self.rate * norm / gradient_norm
        grown = np.maximum(1.0, -log_risk) ** self.growth
        return self.rate * grown / np.maximum(1.0, gradient_norm**2)


@dataclass
class LossBased:
    """Lyu and Li's rule (2019): η = c/R_0 with R_0 the training risk at the epoch's start.

    c, the `coefficient`, begins at the rate, is multiplied by 2^{1/5} after an epoch in which R
    did not rise, and divided by 2^{1/10} after one in which it rose or left the range of numbers;
    such an epoch is done again from its start. reference: ln R_0, None before the first epoch.
    redone, redone_in_a_row: how many epochs were done again so far.
    """

    coefficient: float
    reference: float | None = None
    redone: int = 0
    redone_in_a_row: int = 0

    judges_epochs, needs_norms = True, False
    UP, DOWN = 2.0**0.2, 2.0**-0.1

    def factor(self, log_risk: float, gradient_norm: float, norm: float) -> float:
        """Return s of a batch with ln R_B = log_risk."""
        return self.coefficient * _exp(log_risk - self.reference)

    def accepts(self, log_risk: float) -> bool:
        """Judge an epoch by ln R at its end, adapt c, and say whether the epoch stands."""
        if log_risk <= self.reference:
            self.coefficient *= self.UP
            self.reference, self.redone_in_a_row = log_risk, 0
            return True
        self.coefficient *= self.DOWN
        self.redone += 1
        self.redone_in_a_row += 1
        return False


@dataclass
class Own:
    """A rule of the user's: an object with `factor` as `Rule` has it, which holds no state.

    text: its repr, which tells one run from another. of: None of a run that was read from its
    folder, where the rule itself is not.
    """

    text: str
    of: InitVar[object] = None

    judges_epochs, needs_norms = False, True

    def __post_init__(self, of: object) -> None:
        self._of = of

    def factor(self, log_risk: float, gradient_norm: float, norm: float) -> float:
        """Return s, a finite number of 0 or more."""
        if self._of is None:
            raise ValueError(
                f"schedule: the rule of this run was {self.text}, which its folder holds only the "
                "repr of; expected settings with the rule itself"
            )
        answer = self._of.factor(log_risk, gradient_norm, norm)
        try:
            factor = float(answer)
        except (TypeError, ValueError, RuntimeError):
            factor = math.nan
        if not 0.0 <= factor < math.inf:
            raise ValueError(
                f"schedule: {self.text} answered {answer!r} at ln R = {log_risk:g}, ‖∇ln R‖ = "
                f"{gradient_norm:g} and ‖W‖ = {norm:g}; expected a finite number of 0 or more"
            )
        return factor


def own_rule(given: object) -> Own:
    """Return the rule made of an object; ValueError for one that is none, or has no own repr."""
    if isinstance(given, Own):
        return given
    if not callable(getattr(given, "factor", None)) or isinstance(given, type):
        raise ValueError(
            f"schedule: expected one of {[*FIRST_ORDER, 'loss_based']}, or an object with a method "
            f"factor(log_risk, gradient_norm, norm), got {given!r}"
        )
    text = repr(given)
    if type(given).__repr__ is object.__repr__ or re.search(r" at 0x[0-9a-fA-F]+", text):
        raise ValueError(
            "schedule: expected a rule whose repr tells its settings, as that of a dataclass does, "
            f"for a run is known by it when it is continued; {text} tells a place in memory"
        )
    return Own(text, given)


def _exp(logarithm):
    if isinstance(logarithm, np.ndarray):
        return np.exp(np.minimum(logarithm, _LARGEST_LOG))
    # The C library's, whose last bit NumPy's does not share: runs resume to the bit.
    return math.exp(min(logarithm, _LARGEST_LOG))


def checked_rule(name: str, known: tuple[str, ...]) -> str:
    """Return the name; ValueError unless it is one of the known ones."""
    if name not in known:
        raise ValueError(f"rule: expected one of {', '.join(known)}, got {name!r}")
    return name
