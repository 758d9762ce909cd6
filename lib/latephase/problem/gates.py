"""A module run with the gates of its kinks as constants, whatever its code calls them.

A kink bends its argument z, out = lo z + (hi - lo) s z, by a gate s in [0, 1] (s = 1 where z > 0),
or chooses between two tensors, max(a, b) = b + s z with z = a - b; a maximum of more is a
tournament of such pairs. Calls are replaced while the module runs, so its code and its weights stay
as they are. Calls on one tensor or on its negative, or on one pair, are one kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Site:
    """The kinks of one call, or of several on one tensor.

    z has `copies` rows for each example along `axis`, and `inner` are its other axes. keep: the
    flat positions of an example that are kinks, None for all of them: a window of a pooling that
    hangs over the edge has fewer.
    """

    name: str
    where: str
    inner: tuple[int, ...] = ()
    axis: int = 0
    copies: int = 1
    keep: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """z's shape for an example; of the positions kept, their number."""
        if self.keep is not None:
            return (len(self.keep),)
        return self.inner if self.copies == 1 else (self.copies, *self.inner)

    def fits(self, z: Tensor, examples: int) -> bool:
        """Return whether z is of the shape found first, for so many examples."""
        outer = [*self.inner]
        outer.insert(self.axis, examples * self.copies)
        return z.shape == torch.Size(outer)

    def flat(self, z: Tensor, examples: int) -> Tensor:
        """Return the kinks' values [examples, size]."""
        rows = z.movedim(self.axis, 0).reshape(examples, -1)
        return rows if self.keep is None else rows.index_select(1, self.keep)

    def spread(self, values: Tensor, examples: int) -> Tensor:
        """Return values [examples, size] in z's shape, 0 at positions that are no kinks."""
        if self.keep is not None:
            whole = values.new_zeros(examples, self.copies * math.prod(self.inner))
            values = whole.index_copy(1, self.keep, values)
        return values.reshape(examples * self.copies, *self.inner).movedim(0, self.axis)


def placed(name: str, where: str) -> str:
    """Return the name of a call with the path of the part of the module that makes it."""
    return f"{name} in {where!r}" if where else f"{name} in the module's own forward"


@dataclass
class Plan:
    """What a module calls, in order: found once, and the same in every later run.

    followed: for each call that may have kinks, whether it is replaced. steps: the site of each
    bend or choice, and whether it has the site's argument (1) or the negative (-1). decisions:
    what a replaced call found out about its arguments. feeds [sites, sites]: whether the second's
    arguments depend on the first's results.
    """

    followed: list[bool] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    decisions: list[object] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    feeds: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))


@dataclass(frozen=True)
class Layer:
    """A call of linear or of a convolution; trainable weights and biases by their index.

    options: stride, padding, dilation and groups of a convolution.
    """

    name: str
    weight: int | Tensor
    bias: int | Tensor | None
    input: Tensor
    output: Tensor
    kernel: tuple[int, ...]
    options: tuple

    @property
    def trained(self) -> bool:
        """Whether its weight or its bias is trainable."""
        return isinstance(self.weight, int) or isinstance(self.bias, int)


@dataclass(frozen=True)
class Bend:
    """A replaced call of a function of one tensor."""

    site: int
    low: float | Tensor
    high: float | Tensor


class GatedCalls(TorchFunctionMode):
    """Context in which a module's kinks have the given gates, or their own for None.

    gates: for each site in z's shape. Afterwards `z` holds the argument of each site and `outputs`
    the results that depend on its gate, each with its ∂/∂s divided by z (a float or tensor).
    Raises ValueError where the calls differ from the plan's.
    """

    def __init__(self, plan: Plan, examples: int, gates: Sequence[Tensor] | None) -> None:
        super().__init__()
        self.plan, self.examples, self.gates = plan, examples, gates
        self.z: list[Tensor] = []
        self.outputs: list[list[tuple[Tensor, float | Tensor]]] = [[] for _ in plan.sites]
        # id of a bent tensor -> (that tensor, held so that its id stays its own; z; lo; hi)
        self.bent: dict[int, tuple] = {}
        # id of a parameter -> its index; where given, layers and bends are listed in `events`.
        self.parameters: dict[int, int] = {}
        self.events: list[Layer | Bend] = []
        self.calls = self.step = self.decision = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        bare = name.strip("_")
        if bare in _FOLLOWED and self.follows(bare, args, kwargs):
            if name.endswith("_") and not name.endswith("__"):
                kwargs = {**kwargs, "inplace": True}
            return _FOLLOWED[bare](self, *args, **kwargs)
        if self.bent and bare in _SMOOTHING:
            args = self._smooth(bare, args)
        result = func(*args, **kwargs)
        if self.parameters and name in ("linear", "conv1d", "conv2d"):
            self.events.append(self._layer(name, result, *args, **kwargs))
            # Or a call in place would overwrite what is listed.
            result = result.clone()
        return result

    def _layer(self, name, output, input, weight, bias=None, *options, **named) -> Layer:
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        given = dict(zip(defaults, options, strict=False)) | named
        options = tuple((defaults | given).values())
        kernel = tuple(weight.shape[2:])
        weight, bias = (self.parameters.get(id(w), w) for w in (weight, bias))
        return Layer(name, weight, bias, input, output, kernel, options)

    def follows(self, name: str, args: tuple, kwargs: dict) -> bool:
        """Return whether a call is to be replaced."""
        self.calls += 1
        if self.calls > len(self.plan.followed):
            raise self.changed(name)
        return self.plan.followed[self.calls - 1]

    def decide(self, find: Callable[[], object]) -> object:
        """Return what `find` found when the calls were first seen."""
        self.decision += 1
        return self.plan.decisions[self.decision - 1]

    def jumping(self, result: Tensor, name: str) -> Tensor:
        """Return a result of a replaced call that jumps with the weights, as it is."""
        return result

    def refuse(self, name: str, why: str) -> ValueError:
        """Return the error that names a call."""
        return ValueError(f"module: {name}: {why}")

    def changed(self, name: str) -> ValueError:
        """Return the error of calls that differ from those found first."""
        return ValueError(
            f"module: a call of {name} was not there, or had another shape, when the module was "
            f"called before on the same data; expected the same calls at all weights, without "
            f"control flow on values"
        )

    def finish(self) -> None:
        """Raise ValueError unless all the plan's calls were made."""
        if self.step < len(self.plan.steps):
            site = self.plan.sites[self.plan.steps[self.step][0]]
            raise self.changed(placed(site.name, site.where))

    def bend(
        self,
        name: str,
        z: Tensor,
        low: float | Tensor,
        high: float | Tensor = 1.0,
        inplace: bool = False,
    ) -> Tensor:
        """Return lo z + (hi - lo) s z."""
        source, z = z, z.clone() if inplace else z
        site, gate = self._gate(name, z, (source,))
        gain = gate if _is(low, 0.0) and _is(high, 1.0) else low + (high - low) * gate
        out = gain * z
        self.outputs[site].append((out, high - low))
        self.bent[id(out)] = (out, z, low, high)
        if self.parameters:
            self.events.append(Bend(site, low, high))
        return source.copy_(out) if inplace else out

    def choose(
        self, name: str, a: Tensor, b: Tensor, sign: int, valid: Tensor | None = None
    ) -> Tensor:
        """Return max(a, b) for sign 1, min(a, b) for -1; a where b is not valid."""
        z = a - b
        site, gate = self._gate(name, z, (a, b), valid)
        out = b + gate * z if sign > 0 else a - gate * z
        self.outputs[site].append((out, float(sign)))
        return out if valid is None else torch.where(valid, out, a)

    def tournament(
        self, name: str, entries: Tensor, sign: int, counts: Tensor | None = None
    ) -> Tensor:
        """Return the maxima (minima for sign -1) over the last axis.

        counts [positions]: how many entries, from the first, the axis before the last has at each
        of its positions; all for None.
        """
        while entries.shape[-1] > 1:
            pairs = entries.shape[-1] // 2
            a, b = entries[..., 0 : 2 * pairs : 2], entries[..., 1 : 2 * pairs : 2]
            valid = None
            if counts is not None:
                second = 2 * torch.arange(pairs, device=counts.device) + 1
                valid = second < counts[:, None]
                valid = None if bool(valid.all()) else valid
                counts = (counts + 1) // 2
            winners = self.choose(name, a, b, sign, valid)
            entries = torch.cat([winners, entries[..., 2 * pairs :]], -1)
        return entries[..., 0]

    def _gate(
        self, name: str, z: Tensor, source: tuple[Tensor, ...], valid: Tensor | None = None
    ) -> tuple[int, Tensor]:
        """Return the site of a bend or choice and the gate for z as it came."""
        self.step += 1
        if self.step > len(self.plan.steps):
            raise self.changed(name)
        index, sign = self.plan.steps[self.step - 1]
        site = self.plan.sites[index]
        if not site.fits(z, self.examples):
            raise self.changed(placed(name, site.where))
        if index == len(self.z):
            self.z.append(z)
        if self.gates is None:
            return index, (z.detach() > 0).to(z.dtype)
        return index, self.gates[index] if sign > 0 else 1.0 - self.gates[index]

    def _smooth(self, name: str, args: tuple) -> tuple:
        """Return the arguments with a bent tensor unbent by gates where its kink goes.

        The square of a bent tensor, a power of at least 2, or the product with itself or with its
        own argument is differentiable: it needs no gate.
        """
        if name == "square" or (name == "pow" and _exponent(args) >= 2.0):
            return (self._natural(args[0]), *args[1:])
        if name in ("mul", "multiply") and len(args) > 1:
            a, b = args[:2]
            if a is b or self._argument(a) is b or self._argument(b) is a:
                return (self._natural(a), self._natural(b), *args[2:])
        return args

    def _argument(self, out: object) -> Tensor | None:
        return self.bent[id(out)][1] if id(out) in self.bent else None

    def _natural(self, out: Tensor) -> Tensor:
        if id(out) not in self.bent:
            return out
        _, z, low, high = self.bent[id(out)]
        return torch.where(z > 0, high * z, low * z)


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
    """Return torch.max or torch.min in all its three forms, fmax, amax and their like."""

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


def _exponent(args: tuple) -> float:
    return args[1] if len(args) > 1 and isinstance(args[1], (int, float)) else 0.0


def _is(value: float | Tensor, number: float) -> bool:
    return not isinstance(value, Tensor) and value == number


_AT_A_CONSTANT = (
    "at a constant other than zero it has no degree of homogeneity; expected a maximum or minimum "
    "of tensors of one degree, or relu"
)
_INDICES = "its indices jump with the weights; expected return_indices=False"
_SMOOTHING = {"square", "pow", "mul", "multiply"}
# By the name of the function, without the underscores of methods and calls in place.
_FOLLOWED: dict[str, Callable] = {
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
