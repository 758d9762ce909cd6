"""What PyTorch calls kinks, each written by bends, choices and tournaments of `GatedCalls`.

Every function takes the context of the calls and the arguments of the function it replaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor


def _relu(calls, input, inplace=False):
    return calls.bend("relu", input, 0.0, inplace=inplace)


def _leaky_relu(calls, input, negative_slope=0.01, inplace=False):
    return calls.bend("leaky_relu", input, float(negative_slope), inplace=inplace)


def _rrelu(calls, input, lower=1.0 / 8, upper=1.0 / 3, training=False, inplace=False, **_):
    if training:
        raise calls.refuse("rrelu", "its slopes are random in training mode")
    return calls.bend("rrelu", input, (lower + upper) / 2.0, inplace=inplace)


def _prelu(calls, input, weight):
    if calls.decide(lambda: weight.requires_grad):
        raise calls.refuse(
            "prelu",
            "its slope is trainable, so that relu(z) and slope · relu(-z) have different degrees "
            "of homogeneity; expected a frozen slope (requires_grad_(False))",
        )
    slopes = weight if weight.numel() == 1 else weight.reshape(-1, *[1] * (input.ndim - 2))
    return calls.bend("prelu", input, slopes.detach())


def _abs(calls, input, inplace=False):
    if input.is_complex():
        raise calls.refuse("abs", "of complex numbers it is not followed; expected real ones")
    return calls.bend("abs", input, -1.0, inplace=inplace)


def _threshold(calls, input, threshold, value, inplace=False):
    if threshold != 0 or value != 0:
        raise calls.refuse("threshold", _AT_A_CONSTANT)
    return calls.bend("threshold", input, 0.0, inplace=inplace)


def _clamp(calls, input, min=None, max=None, inplace=False):
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        if inplace:
            raise calls.refuse("clamp", "between tensors in place; expected torch.maximum")
        low = input if min is None else _larger(calls, "clamp", input, min, 1)
        return low if max is None else _larger(calls, "clamp", low, max, -1)
    min = None if min == -math.inf else min
    max = None if max == math.inf else max
    if (min, max) == (0, None):
        return calls.bend("clamp", input, 0.0, inplace=inplace)
    if (min, max) == (None, 0):
        return calls.bend("clamp", input, 1.0, 0.0, inplace=inplace)
    raise calls.refuse("clamp", _AT_A_CONSTANT)


def _clamp_max(calls, input, max, inplace=False):
    return _clamp(calls, input, None, max, inplace)


def _larger(calls, name: str, a: Tensor, b: Tensor | float, sign: int) -> Tensor:
    """Return the larger (smaller for sign -1) of two tensors; with zero it is a relu."""

    def constant() -> int | None:
        """Return which of the two is zero, if one does not depend on the weights."""
        for which, tensor in enumerate((a, b)):
            if not calls.depends(tensor):
                if torch.as_tensor(tensor).any():
                    raise calls.refuse(name, _AT_A_CONSTANT)
                return which
        return None

    zero = calls.decide(constant)
    if zero is not None:
        other, like = (b, a) if zero == 0 else (a, b)
        if isinstance(like, Tensor):
            other = other.expand(torch.broadcast_shapes(other.shape, like.shape))
        return calls.bend(name, other, 0.0) if sign > 0 else calls.bend(name, other, 1.0, 0.0)
    return calls.choose(name, *torch.broadcast_tensors(a, b), sign)


def _extremum(name: str, sign: int) -> Callable:
    """Return max or min in its three forms: over all, along axes, of two tensors."""

    def call(calls, input, dim=None, keepdim=False, *, other=None, axis=None, **_):
        dim = axis if dim is None else dim
        if isinstance(dim, Tensor) or other is not None:
            return _larger(calls, name, input, dim if other is None else other, sign)
        if dim is None or dim == ():
            raise calls.refuse(
                name, "over all axes couples the examples of a batch; expected a dim"
            )
        dims = sorted({d % input.ndim for d in ((dim,) if isinstance(dim, int) else dim)})
        last = input.movedim(dims, [*range(-len(dims), 0)]).flatten(-len(dims))
        values = calls.tournament(name, last, sign)
        if keepdim:
            for d in dims:
                values = values.unsqueeze(d)
        if name in ("amax", "amin"):
            return values
        kind = torch.return_types.max if sign > 0 else torch.return_types.min
        return kind((values, calls.jumping(last.detach().argmax(-1), name)))

    return call


def _pool(dimensions: int) -> Callable:
    def call(
        calls,
        input,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode=False,
        return_indices=False,
    ):
        if return_indices:
            raise calls.refuse("max-pooling", _INDICES)
        several = [
            _each(value, dimensions)
            for value in (kernel_size, stride or kernel_size, padding, dilation)
        ]
        sizes = input.shape[-dimensions:]
        windows = [_window(*one, ceil_mode) for one in zip(sizes, *several, strict=True)]
        return _pooled(calls, f"max_pool{dimensions}d", input, windows)

    return call


def _adaptive_pool(dimensions: int) -> Callable:
    def call(calls, input, output_size, return_indices=False):
        if return_indices:
            raise calls.refuse("adaptive max-pooling", _INDICES)
        sizes = input.shape[-dimensions:]
        wanted = zip(sizes, _each(output_size, dimensions), strict=True)
        windows = [_adaptive_window(size, out or size) for size, out in wanted]
        return _pooled(calls, f"adaptive_max_pool{dimensions}d", input, windows)

    return call


def _pooled(calls, name: str, input: Tensor, windows: list[tuple[tuple[int, ...], ...]]) -> Tensor:
    sizes = tuple(input.shape[-len(windows) :])
    index, counts = _entries(sizes, tuple(windows))
    index, counts = index.to(input.device), counts.to(input.device)
    flat = input.flatten(-len(windows))
    entries = flat.index_select(-1, index.reshape(-1)).reshape(*flat.shape[:-1], *index.shape)
    pooled = calls.tournament(name, entries, 1, counts)
    return pooled.reshape(*flat.shape[:-1], *map(len, windows))


@lru_cache(maxsize=256)
def _window(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool):
    """Return the entries of each window along one axis, as PyTorch lays them."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil else span // stride) + 1
    # A window has to start inside of the input or its left padding.
    if ceil and (count - 1) * stride >= size + padding:
        count -= 1
    starts = (i * stride - padding for i in range(count))
    return tuple(
        tuple(j for j in range(s, s + dilation * kernel, dilation) if 0 <= j < size) for s in starts
    )


@lru_cache(maxsize=256)
def _adaptive_window(size: int, out: int):
    return tuple(tuple(range(i * size // out, -(-(i + 1) * size // out))) for i in range(out))


@lru_cache(maxsize=64)
def _entries(sizes: tuple[int, ...], windows: tuple) -> tuple[Tensor, Tensor]:
    """Return the flat entries of each window [windows, most], padded by its first, and how many."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    entries = [
        [sum(j * s for j, s in zip(at, strides, strict=True)) for at in product(*window)]
        for window in product(*windows)
    ]
    most = max(map(len, entries))
    padded = [one + one[:1] * (most - len(one)) for one in entries]
    return torch.tensor(padded), torch.tensor([len(one) for one in entries])


def _each(value: int | Sequence[int], dimensions: int) -> Sequence[int]:
    return [value] * dimensions if isinstance(value, int) or value is None else value


_AT_A_CONSTANT = (
    "at a constant other than zero it has no degree of homogeneity; expected a maximum or minimum "
    "of tensors of one degree, or relu"
)
_INDICES = "its indices jump with the weights; expected return_indices=False"
# By the name of the function, without the underscores of methods and calls in place.
FOLLOWED: dict[str, Callable] = {
    "abs": _abs,
    "absolute": _abs,
    "adaptive_max_pool1d": _adaptive_pool(1),
    "adaptive_max_pool1d_with_indices": _adaptive_pool(1),
    "adaptive_max_pool2d": _adaptive_pool(2),
    "adaptive_max_pool2d_with_indices": _adaptive_pool(2),
    "amax": _extremum("amax", 1),
    "amin": _extremum("amin", -1),
    "clamp": _clamp,
    "clamp_max": _clamp_max,
    "clamp_min": _clamp,
    "clip": _clamp,
    "fmax": _extremum("fmax", 1),
    "fmin": _extremum("fmin", -1),
    "leaky_relu": _leaky_relu,
    "max": _extremum("max", 1),
    "max_pool1d": _pool(1),
    "max_pool1d_with_indices": _pool(1),
    "max_pool2d": _pool(2),
    "max_pool2d_with_indices": _pool(2),
    "max_pool3d": _pool(3),
    "max_pool3d_with_indices": _pool(3),
    "maximum": _extremum("maximum", 1),
    "min": _extremum("min", -1),
    "minimum": _extremum("minimum", -1),
    "prelu": _prelu,
    "relu": _relu,
    "rrelu": _rrelu,
    "threshold": _threshold,
}
