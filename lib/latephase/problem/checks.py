"""Checks of a module, inputs and labels, each ending in a ValueError that says what came."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterable, Iterator
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


def frozen_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a float64 copy of the module in evaluation mode; ValueError without parameters."""
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    if not any(w.requires_grad for w in module.parameters()):
        raise ValueError("module: expected at least one trainable parameter, got none")
    return copied(module).double().eval()


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """Return a deep copy of the module, and of results that it keeps of its last call, as values.

    Raises ValueError for a module that holds what cannot be copied.
    """
    kept = {}
    for part in module.modules():
        for tensor in _tensors(vars(part).values()):
            if not tensor.is_leaf:
                kept[id(tensor)] = _value(tensor)
    try:
        return copy.deepcopy(module, kept)
    except Exception as error:
        raise ValueError(
            f"module: expected one that copy.deepcopy can copy, got {type(error).__name__}: {error}"
        ) from error


def _value(tensor: Tensor) -> Tensor:
    """Return a tensor's values, none of one that a transform of `torch.func` has left behind."""
    try:
        return tensor.detach().clone()
    except RuntimeError:
        return torch.empty(0)


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among values, and in their lists, tuples and dictionaries."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def parameter_slots(module: torch.nn.Module) -> list[tuple[str, int]]:
    """Return (name, index) for each place that holds a trainable parameter.

    The index counts `named_parameters()`. A parameter shared by two modules fills two slots; a
    module registered twice is visited once, because functional_call does not restore a slot that
    it was handed twice.
    """
    trainable = (w for w in module.parameters() if w.requires_grad)
    order = {id(w): i for i, w in enumerate(trainable)}
    return [
        (f"{prefix}.{name}" if prefix else name, order[id(w)])
        for prefix, part in module.named_modules()
        for name, w in part.named_parameters(recurse=False, remove_duplicate=False)
        if id(w) in order
    ]


def call_with(
    module: torch.nn.Module, slots: list[tuple[str, int]], parameters: list[Tensor], x: Tensor
) -> Tensor:
    """Return module(x) with its trainable parameters replaced, the module left as it is."""
    replaced = {name: parameters[index] for name, index in slots}
    return torch.func.functional_call(module, replaced, (x,), tie_weights=False)


def first_outputs(module: torch.nn.Module, x: Tensor) -> Tensor:
    """Return the module's outputs of the first two examples, in evaluation mode, finite or not.

    Raises ValueError where it does not take them, and for outputs that are no logits.
    """
    with in_mode(module, training=False), torch.no_grad():
        try:
            outputs = module(x[:2])
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"x: the module does not take examples of shape {list(x.shape[1:])}: {error}"
            ) from error
    return checked_outputs(outputs, finite=False)


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
