"""Examples as people keep them, in data sets, loaders and dictionaries, as inputs and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from latephase.problem.batches import BATCH
from latephase.problem.checks import undisturbed

# What the entry with the labels of a dictionary is called, where nobody says so.
_LABELS = ("labels", "label", "y", "target", "targets")


def collected(data: object, labels: str | None = None) -> tuple[Any, Tensor]:
    """Return (x, y) of a Dataset, a DataLoader, other batches or a dictionary, in memory.

    x: [n, ...] of batches (x, y); of dictionaries their tensors by name, without the labels, which
    stand under `labels` or under the one of the usual names that is there. What one pass over a
    loader yields is the data, in that order.

    Raises ValueError for what is none of these and for batches that do not fit together.
    """
    try:
        # Loaders draw from PyTorch's generator, even where they do not shuffle.
        with undisturbed():
            bar = tqdm(_batches(data), desc="data", delay=2.0, leave=False, disable=None)
            parts = [_pair(batch, labels) for batch in bar]
        if not parts:
            raise ValueError(f"x: expected at least one batch, got none from {kind(data)}")
        y = _joined("y", [y for _, y in parts])
        first = parts[0][0]
        if not isinstance(first, Mapping):
            return _joined("x", [x for x, _ in parts]), y
        return {name: _joined(name, [x[name] for x, _ in parts]) for name in first}, y
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"x: expected a data set whose examples make batches of tensors, got one that raised "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error


def _batches(data: object) -> Iterable:
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, Mapping):
        return [data]
    of_numbers = hasattr(data, "__array__") or isinstance(data, (list, tuple, str, bytes))
    listed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, Dataset) or (listed and not of_numbers):
        return DataLoader(cast(Dataset, data), batch_size=BATCH)
    if isinstance(data, Iterable) and not of_numbers:
        return data
    raise ValueError(
        f"y: expected labels beside inputs of type {kind(data)}, or a Task, a Dataset, a "
        "DataLoader or a dictionary alone"
    )


def _pair(batch: object, labels: str | None) -> tuple[Any, Any]:
    """Return (x, y) of a batch; x of a dictionary has its tensors and arrays by name."""
    if isinstance(batch, Mapping):
        names = [labels] if labels else [name for name in _LABELS if name in batch]
        if len(names) != 1 or names[0] not in batch:
            raise ValueError(
                f"y: expected the name of the labels among {list(batch)}, got {labels!r}"
            )
        return _tensors({n: v for n, v in batch.items() if n != names[0]}), batch[names[0]]
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and labels is None:
        return _tensors(batch[0]), batch[1]
    many = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    asked = "batches (x, y) or dictionaries" if labels is None else f"dictionaries with {labels!r}"
    raise ValueError(f"x: expected {asked}, got {type(batch).__name__}{many}")


def _tensors(x: Any) -> Any:
    """Return x, of a dictionary what it has of tensors and arrays."""
    if not isinstance(x, Mapping):
        return x
    return {name: value for name, value in x.items() if isinstance(value, (Tensor, np.ndarray))}


def _joined(name: str, parts: list) -> Tensor:
    try:
        tensors = [torch.as_tensor(part).detach() for part in parts]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {kind(parts[0])}: {error}") from error
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: expected examples of one shape, got {sorted(map(list, shapes))[:4]}; pad or "
            "resize them to one"
        )
    return torch.cat(tensors)


def adapted(
    module: nn.Module,
    x: Any,
    forward: Callable | None = None,
    inputs: str | list[str] | None = None,
) -> tuple[nn.Module, Any]:
    """Return (module, x) such that module(x) is what a call with x by its entries would be.

    x: a dictionary of tensors [n, ...], or inputs as they are. forward: f(module, batch), with the
    entries of x of a batch, that returns the outputs; None calls module(**batch), or module(value)
    for a single entry. inputs: the entries that are passed on, or the one that is.

    Raises ValueError where there are several entries and nobody says what is done with them; what
    is no module is returned as it is.
    """
    if not isinstance(module, nn.Module):
        return module, x
    if not isinstance(x, Mapping):
        if inputs is not None:
            raise ValueError(f"inputs: expected none beside x of type {kind(x)}, got {inputs!r}")
        return (module, x) if forward is None else (_Adapted(module, forward, None), x)
    names = list(x) if inputs is None else [inputs] if isinstance(inputs, str) else list(inputs)
    if not names or not set(names) <= x.keys():
        raise ValueError(f"inputs: expected names among {list(x)}, got {inputs!r}")
    if len(names) == 1 and forward is None and not isinstance(inputs, (list, tuple)):
        return module, x[names[0]]
    if inputs is None and forward is None:
        raise ValueError(
            f"inputs: expected the names of those of {names} that the module takes, or "
            "forward=f(module, batch)"
        )
    entries = {name: torch.as_tensor(x[name]) for name in names}
    counts = {len(entry) for entry in entries.values()}
    if len(counts) > 1:
        raise ValueError(f"x: expected entries of one length, got {sorted(counts)}")
    return _Adapted(module, forward or _by_name, entries), torch.arange(*counts)


def _by_name(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    return module(**batch)


class _Kept:
    """Holds what copies of a module share: the data are not copied with it."""

    def __init__(self, call: Callable, entries: dict[str, Tensor] | None) -> None:
        self.call, self.entries = call, entries

    def __deepcopy__(self, memo: dict) -> _Kept:
        return self


class _Adapted(nn.Module):
    """A module called by a function; with entries, as a function of the examples' numbers [n]."""

    def __init__(self, module: nn.Module, call: Callable, entries: dict | None) -> None:
        super().__init__()
        self.module = module
        self.kept = _Kept(call, entries)

    def forward(self, rows: Tensor) -> Any:
        if self.kept.entries is None:
            return self.kept.call(self.module, rows)
        like = next(self.module.parameters())
        batch = {}
        for name, entry in self.kept.entries.items():
            part = entry[rows.to(entry.device)]
            batch[name] = part.to(like) if part.is_floating_point() else part.to(like.device)
        return self.kept.call(self.module, batch)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the module's parameters under the names that they have there."""
        if recurse:
            yield from self.module.named_parameters(prefix, True, remove_duplicate)


def kind(value: object) -> str:
    """Return what a value is, for a message: a tensor's dtype, another's class."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
