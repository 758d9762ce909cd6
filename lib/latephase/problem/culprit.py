"""Which call of a module is the first that is not homogeneous in the weights, or that rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latephase.problem.gates import placed
from latephase.problem.modules import called

# Numbers of a result that are looked at; those of a homogeneous one scale alike.
_SAMPLE = 2**14


class _Calls(TorchFunctionMode):
    """Lists each call that returns numbers: its name, its place, and two numbers for the result.

    Those are the norm and the product with a fixed vector; both scale with a homogeneous result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.calls: list[tuple[str, str, float, float]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        # Recurrent layers and attention return tuples.
        first = next(iter(result), None) if isinstance(result, (tuple, list)) else result
        if isinstance(first, Tensor) and first.is_floating_point() and name != "get":
            flat = first.detach().reshape(-1)
            flat = flat[:: flat.numel() // _SAMPLE | 1].cpu().double()
            at = torch.cos(1.7 * torch.arange(flat.numel(), dtype=torch.float64))
            where = self.path[-1] if self.path else ""
            self.calls.append((name, where, float(flat.norm()), float(flat @ at)))
        return result


class _Unrounded(TorchFunctionMode):
    """Refuses a call whose result depends on the weights and is coarser than float64."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.requires_grad and _coarse(result.dtype):
            name = getattr(func, "__name__", "").strip("_")
            raise ValueError(
                f"module: {placed(name, self.path[-1] if self.path else '')}: it rounds to "
                f"{result.dtype}, and margins far into the late phase need float64; expected a "
                "module that computes in the type of its weights"
            )
        return result


class _Coarsest(TorchFunctionMode):
    """Keeps the largest ε of the results that depend on the weights."""

    eps = 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.requires_grad:
            self.eps = max(self.eps, torch.finfo(result.dtype).eps)
        return result


def coarsest_call(module: torch.nn.Module, x: Tensor) -> tuple[float, Tensor]:
    """Return (ε, module(x)), the largest of what it computes, coarser than its weights perhaps."""
    with torch.enable_grad(), _Coarsest() as calls:
        outputs = called(module, x)
    return calls.eps, outputs.detach()


def _coarse(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).eps > torch.finfo(torch.float64).eps


@contextmanager
def unrounded(module: torch.nn.Module) -> Iterator[None]:
    """Refuse calls by which the module, called within, would lose digits of float64 weights."""
    calls = _Unrounded()
    with watched(module, calls.path), calls:
        yield


@contextmanager
def watched(module: torch.nn.Module, path: list[str]) -> Iterator[None]:
    """Keep in `path` the names of the parts of the module that are running."""

    def leave(*_) -> None:
        path.pop()

    handles = []
    for name, part in module.named_modules():

        def enter(*_, name=name) -> None:
            path.append(name)

        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def calls_of(module: torch.nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Return (name, place) of each call that returns numbers, of module(x)."""
    calls = _Calls()
    with watched(module, calls.path), torch.no_grad(), calls:
        module(x.clone())
    return [(name, where) for name, where, _, _ in calls.calls]


def first_inhomogeneous_call(
    module: torch.nn.Module,
    run: Callable[[float, AbstractContextManager], object],
    tolerance: float,
) -> str:
    """Return the name and the place of that call; "" where none of the visible calls is it.

    run: calls the module, in a context, with its weights multiplied by a number.
    """
    seen = []
    for c in (1.0, 2.0):
        calls = _Calls()
        with watched(module, calls.path):
            run(c, calls)
        seen.append(calls.calls)
    for (name, where, size, product), (other, _, scaled, moved) in zip(*seen, strict=False):
        if name != other:
            return f"{placed(name, where)}, after which the calls depend on the weights' size"
        if not abs(moved * size - product * scaled) <= tolerance * size * max(scaled, 1e-300):
            return placed(name, where)
        if size and not scaled:
            return placed(name, where)
    return ""
