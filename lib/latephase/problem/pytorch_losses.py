"""PyTorch's own losses by the names that this library has for them."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

# What a loss of PyTorch's must be set to; `reduction` only scales the risk.
_PLAIN = {"weight": None, "pos_weight": None, "label_smoothing": 0.0, "ignore_index": -100}
_FUNCTIONS = {F.cross_entropy: "cross_entropy", F.soft_margin_loss: "logistic"}
_MODULES = {nn.CrossEntropyLoss: "cross_entropy", nn.SoftMarginLoss: "logistic"}
_OF_ZERO_AND_ONE = (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)


def name_of(loss: object) -> object:
    """Return the name of a loss of PyTorch's; anything else as it is.

    The risk is the sum over examples whatever its `reduction` says. Raises ValueError for weights
    of classes and smoothed labels, and for a loss with labels 0 and 1.
    """
    if loss in _OF_ZERO_AND_ONE or isinstance(loss, _OF_ZERO_AND_ONE[0]):
        raise ValueError(
            'loss: binary cross-entropy takes labels 0 and 1; expected loss="logistic", which is '
            "the same for labels -1 and +1, that is 2 * y - 1"
        )
    name = _FUNCTIONS.get(loss) if callable(loss) else None
    name = next((name for kind, name in _MODULES.items() if type(loss) is kind), name)
    for setting, plain in _PLAIN.items() if name else ():
        value = getattr(loss, setting, plain)
        if value is not plain and value != plain and not (setting == "ignore_index" and value < 0):
            raise ValueError(
                f"loss: expected {type(loss).__name__} with {setting}={plain}, got "
                f"{value}; that risk has another late phase"
            )
    return loss if name is None else name
