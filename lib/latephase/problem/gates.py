"""A module run with the gates of its kinks as constants, whatever its code calls them.

A kink bends its argument z, out = lo z + (hi - lo) s z, by a gate s in [0, 1] (s = 1 where z > 0),
or chooses between two tensors, max(a, b) = b + s z with z = a - b; a maximum of more is a
tournament of such pairs. Calls are replaced while the module runs, so its code and its weights stay
as they are. Calls on one tensor or on its negative, or on one pair, are one kink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latephase.problem.operations import FOLLOWED

# The names of calls that make some kinks differentiable; of layers; of averages; and of what is a
# linear layer where it is of a weight or, but for the first, of its transpose.
_SMOOTHING = {"square", "pow", "mul", "multiply"}
_LAYERS = {"linear", "conv1d", "conv2d"}
_AVERAGES = {"avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean"}
_PRODUCTS = {"matmul", "mm", "mv"}
_TRANSPOSES = {"t", "T", "mT", "transpose", "swapaxes", "swapdims"}


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
    arguments depend on the first's results. overwritten: whether later calls write into either.
    """

    followed: list[bool] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    decisions: list[object] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    feeds: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    overwritten: bool = True


@dataclass(frozen=True)
class Layer:
    """A call of linear or of a convolution; trainable weights and biases by their index.

    A product of a batch and a matrix, or vector, is a call of linear as well. transposed: whether
    its weight stands as [in, out]. options: stride, padding, dilation and groups of a convolution.
    """

    name: str
    weight: int | Tensor
    bias: int | Tensor | None
    input: Tensor
    output: Tensor
    kernel: tuple[int, ...] = ()
    options: tuple = ()
    transposed: bool = False

    @property
    def trained(self) -> bool:
        """Whether its weight or its bias is trainable."""
        return isinstance(self.weight, int) or isinstance(self.bias, int)


@dataclass(frozen=True)
class Bend:
    """A replaced call of a function of one tensor, its argument and its result."""

    site: int
    low: float | Tensor
    high: float | Tensor
    z: Tensor
    output: Tensor


@dataclass(frozen=True)
class Choice:
    """The maxima of a and b, and what else of a tournament goes on with them, if anything."""

    site: int
    a: Tensor
    b: Tensor
    output: Tensor
    rest: Tensor | None


@dataclass(frozen=True)
class Average:
    """A call that averages `input`; `again` makes it of another tensor."""

    again: Callable[[Tensor], Tensor]
    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Bent:
    """What the module was given for its tensor `source`, and what is behind it.

    versions: of both, then; writing into one changes its. Held, so that their ids stay theirs.
    """

    out: Tensor
    source: Tensor
    versions: tuple[int, int]
    z: Tensor
    low: float | Tensor
    high: float | Tensor

    def natural(self) -> Tensor:
        """Return the result without a gate."""
        return torch.where(self.z > 0, self.high * self.z, self.low * self.z)

    def nonnegative(self) -> bool:
        """Return whether the result is nowhere negative, as ReLU's and an absolute value are."""
        signs = torch.as_tensor(self.low) <= 0.0, torch.as_tensor(self.high) >= 0.0
        return all(bool(sign.all()) for sign in signs)


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
        self.bent: dict[int, Bent] = {}  # by the id of what the module was given
        # id of a parameter -> its index; where given, what is called is listed in `events`.
        self.parameters: dict[int, int] = {}
        # id of a parameter's transpose -> (that tensor, its index)
        self.transposes: dict[int, tuple[Tensor, int]] = {}
        self.events: list[Layer | Bend | Choice | Average] = []
        # Where given, added to what layers return, so that no two values are the same.
        self.noise: torch.Generator | None = None
        self.calls = self.step = self.decision = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("out", self) is None:
            kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        name = getattr(func, "__name__", "")
        bare = name.strip("_")
        in_place = name.endswith("_") and not name.endswith("__")
        if bare in FOLLOWED and self.follows(bare, args, kwargs):
            if in_place:
                kwargs = {**kwargs, "inplace": True}
            return FOLLOWED[bare](self, *args, **kwargs)
        if self.bent and bare in _SMOOTHING and not in_place:
            if bare == "pow" and 1.0 < exponent(args) < 2.0 and self.known_bent(args[0]):
                return _powered(self.known_bent(args[0]).natural(), args[1])
            args = self._smooth(bare, args)
        result = func(*args, **kwargs)
        layer = self._listed(func, name, result, args, kwargs) if self.parameters else None
        if layer is None:
            return result
        if self.noise is not None and isinstance(layer, Layer):
            noise = torch.randn(result.shape, generator=self.noise, dtype=result.dtype)
            layer = replace(layer, output=result + noise.to(result.device))
        self.events.append(layer)
        # Or a call in place would overwrite what is listed.
        return layer.output.clone()

    def _listed(self, func, name: str, result, args: tuple, kwargs: dict) -> Layer | Average | None:
        """Return a call as a layer or an average, if it is one."""
        if name in _LAYERS:
            return self._layer(name, result, *args, **kwargs)
        if name in _AVERAGES and args and isinstance(result, Tensor):
            return Average(lambda x: func(x, *args[1:], **kwargs), args[0], result)
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")
        if name in _TRANSPOSES and id(args[0]) in self.parameters and args[0].ndim == 2:
            self.transposes[id(result)] = result, self.parameters[id(args[0])]
        if name.strip("_") in _PRODUCTS and len(args) == 2 and args[0].ndim == 2:
            return self._product(result, *args)
        return None

    def _product(self, output: Tensor, input: Tensor, weight: Tensor) -> Layer:
        if id(weight) in self.transposes:
            return Layer("linear", self.transposes[id(weight)][1], None, input, output)
        index, flat = self.parameters.get(id(weight)), weight.ndim == 1
        if index is not None:
            return Layer("linear", index, None, input, output, transposed=not flat)
        return Layer("linear", weight[None] if flat else weight.mT, None, input, output)

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
        bent = self.known_bent(z)
        if bent and bent.nonnegative():
            return self._above(bent, z, high, inplace)
        source, z = z, z.clone() if inplace or self.plan.overwritten else z
        site, gate = self._gate(name, z, (source,))
        gain = gate if _is(low, 0.0) and _is(high, 1.0) else low + (high - low) * gate
        out = gain * z
        self.outputs[site].append((out, high - low))
        if self.parameters:
            self.events.append(Bend(site, low, high, z, out))
        given = source.copy_(out) if inplace else self.lent(out)
        versions = given._version, source._version
        self.bent[id(given)] = Bent(given, source, versions, z, low, high)
        return given

    def _above(self, bent: Bent, z: Tensor, high: float | Tensor, inplace: bool) -> Tensor:
        """Return hi z of a z that is nowhere negative.

        It has no kink: where z is zero for good, its gate would mean nothing.
        """
        if not _is(high, 1.0):
            return z.mul_(high) if inplace else high * z
        out = z if inplace else z.clone()
        self.bent[id(out)] = replace(bent, out=out, versions=(out._version, bent.source._version))
        return out

    def lent(self, out: Tensor) -> Tensor:
        """Return a result for the module's own use: a copy where something writes into it."""
        return out.clone() if self.plan.overwritten else out

    def choose(
        self,
        name: str,
        a: Tensor,
        b: Tensor,
        sign: int,
        valid: Tensor | None = None,
        rest: Tensor | None = None,
    ) -> Tensor:
        """Return max(a, b) for sign 1, min(a, b) for -1; a where b is not valid.

        rest: what else of a tournament goes on.
        """
        z = a - b
        site, gate = self._gate(name, z, (a, b), valid)
        out = b + gate * z if sign > 0 else a - gate * z
        self.outputs[site].append((out, float(sign)))
        if self.parameters and sign > 0 and valid is None:
            self.events.append(Choice(site, a, b, out, rest))
        return self.lent(out) if valid is None else torch.where(valid, out, a)

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
            rest = entries[..., 2 * pairs :]
            entries = torch.cat([self.choose(name, a, b, sign, valid, rest), rest], -1)
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
        bent = [self.known_bent(one) for one in args[:2]]
        if name == "square" or (name == "pow" and exponent(args) >= 2.0):
            return (bent[0].natural(), *args[1:]) if bent[0] else args
        if name in ("mul", "multiply") and len(args) > 1:
            a, b = args[:2]
            own = any(one and one.source is c for one, c in zip(bent, (b, a), strict=True))
            if a is b or own:
                pairs = zip(bent, (a, b), strict=True)
                return (*(one.natural() if one else c for one, c in pairs), *args[2:])
        return args

    def known_bent(self, out: object) -> Bent | None:
        """Return what is behind a tensor, if it is one as the module was given it."""
        bent = self.bent.get(id(out))
        if bent and bent.versions == (out._version, bent.source._version):
            return bent
        return None


def exponent(args: tuple) -> float:
    """Return the constant exponent of a power, 0 for none."""
    return args[1] if len(args) > 1 and isinstance(args[1], (int, float)) else 0.0


def _powered(z: Tensor, power: float) -> Tensor:
    """Return z^p, 1 < p < 2, with derivatives that are 0 where z is: the second has none there."""
    return torch.where(z == 0.0, 0.0, torch.where(z == 0.0, 1.0, z).pow(power))


def _is(value: float | Tensor, number: float) -> bool:
    return not isinstance(value, Tensor) and value == number
