"""A user's module as a function of weights and inputs, which leaves all that is the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps

import torch
from torch import Tensor

from latephase.problem.checks import checked_outputs, in_mode, own_line, undisturbed
from latephase.problem.lending import copied


def checked_module(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module; ValueError unless it is one with trainable parameters that have values."""
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    if not any(w.requires_grad for w in module.parameters()):
        raise ValueError("module: expected at least one trainable parameter, got none")
    for name, w in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(w, torch.nn.parameter.UninitializedTensorMixin):
            raise ValueError(
                f"module: {name!r} of a lazy layer has no shape yet; call the module on data first"
            )
        if w.is_meta:
            raise ValueError(
                f"module: {name!r} is on the meta device, which holds no numbers; expected "
                "parameters and buffers on a real device"
            )
        if w.is_complex():
            raise ValueError(
                f"module: {name!r} is complex ({w.dtype}); expected real numbers, of which the "
                "norms, angles and gradients here are"
            )
        if w.requires_grad and torch._debug_has_internal_overlap(w) == 1:
            raise ValueError(
                f"module: entries of {name!r} share their memory, as torch.expand makes them; "
                "expected its clone()"
            )
    return module


def differentiating(door: Callable) -> Callable:
    """Return a function that works under `torch.no_grad` and `torch.inference_mode` as well.

    Under the caller's `torch.autocast` it computes as it does outside. What the module's forward
    does to random states and to PyTorch's default type is undone.
    """

    @wraps(door)
    def opened(*args, **kwargs):
        with undisturbed(), torch.inference_mode(False), torch.enable_grad(), _without_autocast():
            return door(*args, **kwargs)

    return opened


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Switch the caller's autocast off, and its store of weights that were cast before."""
    kinds = [kind for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)]
    stores = torch.is_autocast_cache_enabled()
    try:
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)
            torch.set_autocast_cache_enabled(False)
        yield
    finally:
        for kind in kinds:
            torch.set_autocast_enabled(kind, True)
            torch.set_autocast_cache_enabled(stores)
            torch.clear_autocast_cache()


def frozen_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a float64 copy of the module in evaluation mode; ValueError without parameters."""
    # torch.func takes no module in a wrapper that copies it, nor one that torch.compile has made.
    module = module.module if isinstance(module, torch.nn.DataParallel) else module
    module = getattr(module, "_orig_mod", module)
    return cast_copy(checked_module(module), torch.float64).eval()


def cast_copy(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Return a `copied` module in a floating dtype; ValueError where that cannot be.

    TorchScript has its types written into it, and some devices have no float64.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise ValueError(
            f"module: TorchScript cannot be cast to {dtype}; expected the module it was made from"
        )
    try:
        return copied(module).to(dtype)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"module: cannot be cast to {dtype}: {error}") from error


def coarsest(module: torch.nn.Module) -> float:
    """Return the largest ε of the floating types that the module's parameters have."""
    types = {w.dtype for w in module.parameters() if w.is_floating_point()}
    return max(torch.finfo(dtype).eps for dtype in types)


def called(module: torch.nn.Module, x: Tensor) -> Tensor:
    """Return the logits of module(x); it gets a copy of x, into which it may write."""
    try:
        output = module(x.clone())
    except Exception as error:
        raise ValueError(f"module: it raised {_said(error)}{own_line(error)}") from error
    return logits(output)


def _said(error: Exception) -> str:
    """Return an error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {f'{error}'.partition(chr(10))[0]}"


def logits(output: object) -> Tensor:
    """Return the logits in what a module returns: itself, or the obvious tensor in a container.

    That is `.logits` or ["logits"], else the only floating tensor with one or two axes. Raises
    ValueError where there is none, or more than one.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else None
    named = getattr(output, "logits", None) if named is None else named
    if isinstance(named, Tensor):
        return named
    if isinstance(output, Mapping):
        values = output.values()
    elif dataclasses.is_dataclass(output):
        values = [getattr(output, field.name) for field in dataclasses.fields(output)]
    else:
        values = output if isinstance(output, Iterable) and not isinstance(output, str) else []
    found = [v for v in values if isinstance(v, Tensor) and v.ndim in (1, 2)]
    found = [tensor for tensor in found if tensor.is_floating_point()]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"module: expected outputs of shape [n], [n, 1] or [n, k], alone or as the logits of a "
        f"container, got {type(output).__name__} with {len(found)} tensors that could be those"
    )


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
    """Return the logits of module(x) with its trainable parameters replaced, as `called`.

    It gets copies of its buffers, too: a transform of `torch.func` lets it write into no others.
    """
    replaced = {name: buffer.clone() for name, buffer in module.named_buffers()}
    replaced |= {name: parameters[index] for name, index in slots}
    outputs = torch.func.functional_call(module, replaced, (x.clone(),), tie_weights=False)
    return logits(outputs)


def first_outputs(module: torch.nn.Module, x: Tensor) -> Tensor:
    """Return the module's outputs of the first two examples, in evaluation mode, finite or not.

    Raises ValueError where it does not take them, for outputs that are no logits, and where the
    call changes which parameters there are to train.
    """
    parameters = _trained(module)
    with in_mode(module, training=False), torch.no_grad():
        try:
            outputs = module(x[:2].clone())
        except Exception as error:
            whole = "" if x.is_floating_point() else "; make numbers that are no indices floating"
            raise ValueError(
                f"x: the module does not take examples of shape {list(x.shape[1:])} and type "
                f"{x.dtype}: {_said(error)}{own_line(error)}{whole}"
            ) from error
    changed = [name for name, _ in _trained(module).items() ^ parameters.items()]
    if changed:
        raise ValueError(
            f"module: its forward makes or freezes parameters ({changed[0]!r} among them); "
            "expected that those to train are there before it is called"
        )
    return checked_outputs(logits(outputs), len(x[:2]), finite=False).detach()


def _trained(module: torch.nn.Module) -> dict[str, int]:
    """Return the identities of the parameters to train, by name."""
    return {name: id(w) for name, w in module.named_parameters() if w.requires_grad}
