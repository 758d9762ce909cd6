"""Checks of a module, inputs and labels, each ending in a ValueError that says what came."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DRIFTS = (
    "module: its outputs for the same weights and data differ from call to call; expected that "
    "nothing but the weights and the example decides them"
)


def own_line(error: Exception) -> str:
    """Return, in brackets, the last line of the user's code that an error passed, "" for none."""
    libraries = Path(torch.__file__).parent, Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(Path(frame.filename).is_relative_to(library) for library in libraries):
            return f" ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
    return ""


def checked_inputs(x: Tensor | np.ndarray) -> Tensor:
    """Return x as a tensor, float64 unless of integer type; ValueError if empty or not finite."""
    x = finite_inputs(x)
    return x.double() if x.is_floating_point() else x


def finite_inputs(x: Tensor | np.ndarray) -> Tensor:
    """Return x as a tensor of its own dtype; ValueError if empty or not finite."""
    x = _as_tensor("x", x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x: expected at least one example, got shape {list(x.shape)}")
    if not (x.is_floating_point() or x.dtype in (torch.int32, torch.int64)):
        raise ValueError(f"x: expected a floating or integer dtype, got {x.dtype}")
    if x.is_floating_point():
        bad = int((~torch.isfinite(x)).reshape(len(x), -1).any(1).sum())
        if bad:
            raise ValueError(f"x: NaN or infinite values in {bad} of {len(x)} examples")
    return x


def checked_outputs(output: Tensor, finite: bool = True) -> Tensor:
    """Return a module's output; ValueError unless it is [n], [n, 1] or [n, k], and finite."""
    if not isinstance(output, Tensor) or output.ndim not in (1, 2):
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"module: expected outputs of shape [n], [n, 1] or [n, k], got {shape}")
    if finite and not bool(torch.isfinite(output).all()):
        raise ValueError("module: its outputs contain NaN or infinite values")
    return output


def _as_tensor(name: str, values: object) -> Tensor:
    try:
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"{name}: expected numbers, got {kind}: {error}") from error


def checked_labels(
    y: Tensor | np.ndarray, output: Tensor, n: int, loss_name: str
) -> tuple[Tensor, int]:
    """Return (labels, number of outputs) for a module with such an output; ValueError if wrong.

    Binary labels come back float64 in {-1, +1}, others int64 in 0..k-1.
    """
    y = _as_tensor("y", y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y.reshape(-1)
    if y.shape != (n,):
        raise ValueError(f"y: expected {n} labels, one for each example, got shape {list(y.shape)}")
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        raise ValueError("y: NaN or infinite labels")
    binary = output.ndim == 1 or output.shape[1] == 1
    found = sorted(set(y.tolist()))
    if binary:
        if not set(found) <= {-1, 1}:
            raise ValueError(f"y: expected labels -1 and +1 for a single output, got {found[:8]}")
        if loss_name == "cross_entropy":
            raise ValueError(
                "loss: cross_entropy expects outputs [n, k] with k >= 2; for a single output and "
                "labels -1, +1 the same loss is called logistic"
            )
        return y.double(), 1
    classes = output.shape[1]
    if not all(float(label).is_integer() and 0 <= label < classes for label in found):
        raise ValueError(
            f"y: expected integer labels 0..{classes - 1} for {classes} outputs, got {found[:8]}"
        )
    if loss_name == "logistic":
        raise ValueError(
            "loss: logistic expects a single output; for outputs [n, k] it is called cross_entropy"
        )
    return y.long(), classes


def raise_on_contradiction(x: Tensor, y: Tensor) -> None:
    """Raise ValueError if two equal examples carry different labels: no module separates them."""
    first_with: dict[bytes, int] = {}
    labels = y.tolist()
    for i, row in enumerate(x.cpu().reshape(len(x), -1).numpy() + 0.0):
        j = first_with.setdefault(row.tobytes(), i)
        if labels[i] != labels[j]:
            raise ValueError(
                f"x: examples {j} and {i} are the same point with labels {labels[j]:g} and "
                f"{labels[i]:g}; no model separates them"
            )


@contextmanager
def in_mode(module: torch.nn.Module, training: bool) -> Iterator[None]:
    """Put the module into training or evaluation mode, and its parts back into theirs after."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
