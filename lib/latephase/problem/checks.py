"""Checks of a module, inputs and labels, each ending in a ValueError that says what came."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DRIFTS = (
    "module: its outputs for the same weights and data differ from call to call; expected that "
    "nothing but the weights and the example decides them"
)

NO_GRADIENT = (
    "module: its outputs do not depend on its trainable parameters as far as autograd sees; "
    "expected that its forward neither detaches what it computes nor leaves PyTorch for NumPy"
)


FALSE_GRADIENT = (
    "PyTorch's gradient of the outputs is not their derivative; expected that the forward detaches "
    "nothing that depends on the weights, and that no hook or function has a gradient of its own"
)


def own_line(error: Exception) -> str:
    """Return, in brackets, the last line of the user's code that an error passed, "" for none."""
    libraries = Path(torch.__file__).parent, Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(Path(frame.filename).is_relative_to(library) for library in libraries):
            return f" ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
    return ""


def checked_inputs(x: Any) -> Tensor:
    """Return x as `finite_inputs` does, but float64 where floating."""
    x = finite_inputs(x)
    return x.double() if x.is_floating_point() else x


def finite_inputs(x: Any) -> Tensor:
    """Return x as a tensor; ValueError if empty or not finite.

    Of its own dtype if that is floating, int32 or int64, which a module may use as indices; other
    integers and booleans are numbers, as pictures have them, and become floating unscaled.
    """
    x = _as_tensor("x", x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x: expected at least one example, got shape {list(x.shape)}")
    if x.is_complex():
        raise ValueError(f"x: expected a floating or integer dtype, got {x.dtype}")
    if not (x.is_floating_point() or x.dtype in (torch.int32, torch.int64)):
        x = x.to(torch.float32 if x.element_size() < 4 else torch.float64)
    if x.is_floating_point():
        bad = int((~torch.isfinite(x)).reshape(len(x), -1).any(1).sum())
        if bad:
            raise ValueError(f"x: NaN or infinite values in {bad} of {len(x)} examples")
    return x


def checked_outputs(output: Tensor, n: int, finite: bool = True) -> Tensor:
    """Return a module's output; ValueError unless it is [n], [n, 1] or [n, k], and finite."""
    shape = list(output.shape)
    if len(shape) not in (1, 2) or shape[0] != n or 0 in shape:
        raise ValueError(
            f"module: expected outputs of shape [n], [n, 1] or [n, k], got {shape} of {n} examples"
        )
    if not output.is_floating_point() or output.layout != torch.strided:
        what = output.dtype if output.layout == torch.strided else output.layout
        raise ValueError(f"module: expected outputs that are dense floating numbers, got {what}")
    if finite and not bool(torch.isfinite(output).all()):
        raise ValueError("module: its outputs contain NaN or infinite values")
    return output


def _as_tensor(name: str, values: Any) -> Tensor:
    """Return numbers of any kind as a dense tensor, float64 where Python's or wider."""
    if isinstance(values, Mapping):
        if len(values) != 1:
            raise ValueError(
                f"{name}: expected numbers, got a dictionary with {list(values)[:8]}; expected one "
                "of its entries, for a module of one argument"
            )
        (values,) = values.values()
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        try:
            values = torch.stack(tuple(values))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{name}: expected tensors of one shape: {error}") from error
    if not isinstance(values, Tensor):
        return torch.from_numpy(_as_array(name, values))
    strided = values.layout == torch.strided
    if values.is_meta or values.is_nested or values.is_quantized or not strided:
        what = (
            "that is nested"
            if values.is_nested
            else f"of {values.dtype if strided else values.layout}"
        )
        what = "on the meta device, which has none" if values.is_meta else what
        raise ValueError(f"{name}: expected a dense tensor of numbers, got one {what}")
    values = values.detach().resolve_neg()
    # Autograd takes none that was made under `torch.inference_mode`.
    return values.clone() if values.is_inference() else values


def _as_array(name: str, values: Any) -> np.ndarray:
    """Return numbers as an array that PyTorch can share: native, writeable, strides positive."""
    kind = getattr(values, "dtype", type(values).__name__)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers, got {kind}: {error}") from error
    # A table with columns of several types.
    if array.dtype == object and all(isinstance(v, (Real, np.bool_)) for v in array.flat):
        array = array.astype(float)
    if array.dtype.kind not in "fiubc":
        coded = "; write np.unique(y, return_inverse=True)[1]" if name == "y" and array.ndim else ""
        of = "" if hasattr(values, "dtype") else f" of {array.dtype}"
        if hasattr(values, "select_dtypes"):
            others = list(values.select_dtypes(exclude=["number", "bool"]).columns)
            of = f" of {array.dtype}, with other values in {others[:8] or 'places'}"
        raise ValueError(f"{name}: expected numbers, got {kind}{of}{coded}")
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: expected a value everywhere, got a masked array")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    array = np.require(array, float if wide else array.dtype.newbyteorder("="), ["W"])
    return array.copy() if any(step < 0 for step in array.strides) else array


def points_and_signs(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return points [n, d] and labels -1 and +1 [n] in float64; ValueError for anything else."""
    x, y = (values.cpu().double().numpy() for values in (finite_inputs(x), finite_labels(y)))
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"expected x [n, d] and y [n], got {list(x.shape)} and {list(y.shape)}")
    if not set(y.tolist()) <= {-1.0, 1.0}:
        raise ValueError(f"y: expected labels -1 and +1, got {sorted(set(y.tolist()))[:8]}")
    return x, y


def finite_labels(y: Any) -> Tensor:
    """Return labels, of shape [n] where they come as [n, 1]; ValueError unless real and finite."""
    y = _as_tensor("y", y)
    if y.is_complex():
        raise ValueError(f"y: expected real labels, got {y.dtype}")
    if y.is_floating_point() and not bool(torch.isfinite(y).all()):
        raise ValueError("y: NaN or infinite labels")
    return y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y


def checked_labels(y: Any, output: Tensor, n: int, loss_name: str) -> tuple[Tensor, int]:
    """Return (labels, number of outputs) for a module with such an output; ValueError if wrong.

    Binary labels come back float64 in {-1, +1}, others int64 in 0..k-1.
    """
    y = finite_labels(y)
    if y.shape != (n,):
        one_hot = "; write y.argmax(1)" if y.ndim == 2 and len(y) == n else ""
        raise ValueError(
            f"y: expected {n} labels, one for each example, got shape {list(y.shape)}{one_hot}"
        )
    binary = output.ndim == 1 or output.shape[1] == 1
    found = sorted(set(y.tolist()))
    if binary:
        if not set(found) <= {-1, 1}:
            instead = "; write 2.0 * np.asarray(y) - 1" if set(found) <= {0, 1} else ""
            raise ValueError(
                f"y: expected labels -1 and +1 for a single output, got {found[:8]}{instead}"
            )
        if loss_name == "cross_entropy":
            raise ValueError(
                "loss: cross_entropy expects outputs [n, k] with k >= 2; for a single output and "
                "labels -1, +1 the same loss is called logistic"
            )
        return y.double(), 1
    classes = output.shape[1]
    if not all(float(label).is_integer() and 0 <= label < classes for label in found):
        counted = found == [*range(1, classes + 1)]
        instead = "; write np.asarray(y) - 1" if counted else ""
        instead = "; write np.asarray(y) > 0" if found == [-1, 1] else instead
        raise ValueError(
            f"y: expected integer labels 0..{classes - 1} for {classes} outputs, got "
            f"{found[:8]}{instead}"
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
    # NumPy has no floating numbers of less than four bytes but its own half.
    x = x.float() if x.is_floating_point() and x.element_size() < 4 else x
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
    # A module that torch.export has made stays in its own.
    with suppress(NotImplementedError):
        module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def checked_count(name: str, value: Any) -> int:
    """Return a number of things; ValueError unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)


def checked_flags(**values: Any) -> None:
    """Raise ValueError unless all values are True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected True or False, got {value!r}")


def drifted(before: Tensor, now: Tensor) -> bool:
    """Return whether the same outputs, computed again, differ by more than rounding."""
    return not bool((before - now).abs().max() <= 1e-9 * before.abs().max())


def checked_numbers(**values: Any) -> None:
    """Raise ValueError unless all values are real numbers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name}: expected a number, got {value!r}")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back, at the end, the random states and PyTorch's default type."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    default, python = torch.get_default_dtype(), random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
