"""A user's module, copied or borrowed: whatever a forward does to it is undone afterwards."""

from __future__ import annotations

import argparse
import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from latephase.problem.checks import in_mode


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy of the module, and of results that it keeps of its last call, as values.

    What cannot be copied, such as a lock or an open file, is shared. Functions that the module
    holds, as a forward of its own or hooks, are those of the copy, where they refer to parts or
    weights of the module. Raises ValueError where the module itself cannot be copied.
    """
    kept: dict[int, Any] = {}
    for part in module.modules():
        for tensor in _tensors(vars(part).values()):
            if not tensor.is_leaf:
                kept[id(tensor)] = _value(tensor)
    try:
        return _rebound(copy.deepcopy(module, memo := dict(kept)), memo)
    except Exception:
        for part in module.modules():
            for name, value in vars(part).items():
                if name not in _HELD and not _copies(value, kept):
                    kept[id(value)] = value
    try:
        return _rebound(copy.deepcopy(module, kept), kept)
    except Exception as error:
        raise ValueError(
            f"module: expected one that copy.deepcopy can copy, got {type(error).__name__}: {error}"
        ) from error


# The attributes in which a module holds its parameters, buffers and parts.
_HELD = {"_parameters", "_buffers", "_modules"}


def _copies(value: object, kept: dict) -> bool:
    try:
        copy.deepcopy(value, dict(kept))
    except Exception:
        return False
    return True


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


def _rebound(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Let the functions that a copied module holds refer to the copy; memo: copies by identity.

    `copy.deepcopy` shares functions, and with them what their closures hold.
    """

    def of_copy(value: Any) -> Any:
        if isinstance(value, FunctionType) and value.__closure__:
            try:
                cells = [cell.cell_contents for cell in value.__closure__]
            except ValueError:  # not filled yet
                return value
            own = [of_copy(one) for one in cells]
            if all(a is b for a, b in zip(own, cells, strict=True)):
                return value
            parts = value.__code__, value.__globals__, value.__name__, value.__defaults__
            function = FunctionType(*parts, tuple(map(CellType, own)))
            function.__kwdefaults__ = value.__kwdefaults__
            return function
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            owner = of_copy(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        return memo.get(id(value), value) if isinstance(value, nn.Module | Tensor) else value

    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, FunctionType):
                vars(part)[name] = of_copy(value)
            elif name.endswith("_hooks") and isinstance(value, dict):
                value.update({key: of_copy(hook) for key, hook in value.items()})
    return module


@contextmanager
def lent(module: nn.Module) -> Iterator[Callable[..., None]]:
    """Borrow the user's module in evaluation mode; all that it holds is put back afterwards.

    Yields what puts it back at once: parameters (not for parameters=False), buffers, attributes,
    the contents of containers, arrays and tensors among them, the states of generators of random
    numbers, and plain objects of the classes' own packages; gradients are put back at the end.
    """
    with in_mode(module, training=False):
        weights = [(w, w.detach().clone(), w.requires_grad) for w in module.parameters()]
        gradients = [(w, w.grad, _value(w.grad)) for w, *_ in weights if w.grad is not None]
        parts = [(part, dict(vars(part))) for part in module.modules()]
        seen = {id(one) for one, *_ in (*weights, *parts)}
        # A lazy layer takes its hooks away when it is first called, and itself becomes another.
        held = [v for _, own in parts for n, v in own.items() if not n.endswith("_hooks")]
        packages = {_package(part) for part, _ in parts} - {"torch"} | {"__main__"}
        contents = list(_contents(held, seen, packages))

        def put_back(parameters: bool = True) -> None:
            for part, attributes in parts:
                vars(part).clear()
                vars(part).update(attributes)
            for value, before in contents:
                _refill(value, before)
            for tensor, before, trained in weights if parameters else ():
                _refill(tensor, before)
                tensor.requires_grad_(trained)

        try:
            yield put_back
        finally:
            put_back()
            for weight, *_ in weights:
                if weight.is_leaf and weight.grad is not None:
                    weight.grad = None
            for weight, gradient, before in gradients:
                _refill(gradient, before)
                weight.grad = gradient


_REFILLED = {list, set, deque, dict, OrderedDict, defaultdict, Counter}
_WALKED = (list, tuple, set, deque, dict)
# Generators of random numbers, with what tells their state and what sets it.
_GENERATORS = {
    torch.Generator: ("get_state", "set_state"),
    np.random.RandomState: ("get_state", "set_state"),
    random.Random: ("getstate", "setstate"),
}
# Data are not copied.
_LEFT = (type, Dataset, DataLoader)


def _package(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def _contents(held: list, seen: set[int], packages: set[str]) -> Iterator[tuple[Any, Any]]:
    """Yield (object, copy) of what objects hold and `_refill` puts back, but of those seen."""
    stack = list(held)
    while stack:
        value = stack.pop()
        if id(value) in seen or value is None or isinstance(value, str | bytes | int | float):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.is_meta or value.is_nested:
                continue
            if (before := _value(value)).shape == value.shape:
                yield value, before
        elif isinstance(value, np.ndarray):
            yield value, value.copy()
        elif isinstance(value, _WALKED):
            if type(value) in _REFILLED:
                yield value, copy.copy(value)
            stack.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, np.random.Generator):
            yield value, value.bit_generator.state
        elif isinstance(value, tuple(_GENERATORS)):
            yield value, getattr(value, _calls(value)[0])()
        elif isinstance(value, nn.Module | SimpleNamespace | argparse.Namespace) or (
            _package(value) in packages and not isinstance(value, _LEFT)
        ):
            own, slots = _attributes(value)
            yield value, (own, slots)
            stack.extend([*own.values(), *slots.values()])


def _calls(generator: object) -> tuple[str, str]:
    return next(calls for kind, calls in _GENERATORS.items() if isinstance(generator, kind))


def _attributes(value: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of a plain object, and those that it has in slots."""
    slots: list[str] = []
    for kind in type(value).__mro__:
        own = vars(kind).get("__slots__", ())
        slots += [own] if isinstance(own, str) else own
    held = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
    return dict(getattr(value, "__dict__", {})), {
        slot: one for slot, one in held.items() if not slot.startswith("__")
    }


def _refill(value: Any, before: Any) -> None:
    """Put the copy of what `_contents` yields back into it."""
    if isinstance(value, Tensor):
        with torch.no_grad():
            dense = value.layout == torch.strided
            if not (dense and torch.equal(value, before)):
                value.data.copy_(before)
    elif isinstance(value, np.ndarray):
        if value.flags.writeable:
            value[...] = before
    elif isinstance(value, dict | set):
        value.clear()
        value.update(before)
    elif isinstance(value, list | deque):
        value.clear()
        value.extend(before)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = before
    elif isinstance(value, tuple(_GENERATORS)):
        getattr(value, _calls(value)[1])(before)
    else:
        own, slots = before
        if hasattr(value, "__dict__"):
            vars(value).clear()
            vars(value).update(own)
        for slot, one in slots.items():
            object.__setattr__(value, slot, one)
