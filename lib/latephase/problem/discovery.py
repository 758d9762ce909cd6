"""Finds the kinks of a module by calling it, and refuses by name what it cannot follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from latephase.problem.culprit import watched
from latephase.problem.gates import GatedCalls, Plan, Site, exponent, placed
from latephase.problem.operations import FOLLOWED
from latephase.problem.refusals import (
    JUMPS,
    KNOWN,
    TO_PYTHON,
    guards,
    is_root,
    is_square,
    refuse_hidden,
    why_not,
)


class Discovery(GatedCalls):
    """Runs a module with its own gates and writes the plan down; refuses what it cannot follow.

    The weights must require gradients: what depends on them is told by that, and by `tainted`
    where a result carries none. unconnected: the calls of an earlier run whose results did not
    reach the margins with their gates; they are left as they are.
    """

    def __init__(self, examples: int, unconnected: frozenset[int] = frozenset()) -> None:
        super().__init__(Plan(), examples, None)
        self.unconnected = unconnected
        self.path: list[str] = []
        # Masks over z of the positions that are kinks.
        self.valid: list[Tensor | None] = []
        # Of each replaced call, its number and the results that depend on its gates.
        self.results: list[tuple[int, list[Tensor]]] = []
        # What the module sees of those calls, and its version then.
        self.visible: list[tuple[Tensor, int]] = []
        # id -> (tensor, its version, the site whose argument it is, sign)
        self.known: dict[tuple[int, ...], tuple] = {}
        self.negatives: dict[int, tuple[Tensor, Tensor]] = {}
        # Squares, whose square root is the absolute value.
        self.squares: dict[int, Tensor] = {}
        # id -> (tensor, what made it jump; "" where a gradient was only cut off)
        self.tainted: dict[int, tuple[Tensor, str]] = {}

    @property
    def where(self) -> str:
        """The path of the part that is running."""
        return self.path[-1] if self.path else ""

    def watching(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """Follow which part of the module runs."""
        return watched(module, self.path)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        own = getattr(func, "__name__", "")
        name = own.strip("_")
        if name == "get":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        tensors = [*_tensors(args), *_tensors((kwargs or {}).values())]
        carries = any(t.requires_grad for t in tensors)
        origins = [self.tainted[id(t)][1] for t in tensors if id(t) in self.tainted]
        if not carries and not origins:
            return super().__torch_function__(func, types, args, kwargs)
        if own in TO_PYTHON:
            raise self.refuse(
                name,
                "it makes a Python value of what depends on the weights; control flow on values "
                "is not followed",
            )
        jump = next((origin for origin in origins if origin), "")
        if carries and jump:
            raise ValueError(
                f"module: {jump} jumps with the weights, and {self.named(name)} uses the result as "
                f"a mask or an index; expected kinks of the kinds {KNOWN}"
            )
        why = why_not(name, args, kwargs or {})
        if why and carries and name not in JUMPS:
            raise self.refuse(name, why)
        if is_root(name, args) and id(args[0]) in self.squares:
            raise self.refuse(name, "the square root of a square has a kink; expected torch.abs")
        root = name == "sqrt" or (name == "pow" and 0.0 < exponent(args) < 1.0)
        if root and self.known_bent(args[0]):
            raise self.refuse(name, "its slope at the kink of its argument is infinite")
        behind = [t.grad_fn for t in tensors]
        result = super().__torch_function__(func, types, args, kwargs)
        if name == "neg":
            self.negatives[id(result)] = (result, args[0])
        if is_square(name, args):
            self.squares[id(result)] = result
        for one in _tensors([result]):
            if carries and name not in FOLLOWED:
                refuse_hidden(one, f"{self.named(name)} makes", behind)
            cut = not one.requires_grad and not name.endswith("_like") and name[:4] != "new_"
            if cut and id(one) not in self.tainted:
                self.tainted[id(one)] = (one, self.named(name) if why else jump)
        return result

    def named(self, name: str) -> str:
        """Return a call's name with the path of the part that makes it."""
        return placed(name, self.where)

    def refuse(self, name: str, why: str) -> ValueError:
        return ValueError(f"module: {self.named(name)}: {why}")

    def depends(self, value: object) -> bool:
        """Return whether a value depends on the weights."""
        return isinstance(value, Tensor) and (value.requires_grad or id(value) in self.tainted)

    def follows(self, name: str, args: tuple, kwargs: dict) -> bool:
        values = [*_tensors(args), *_tensors(kwargs.values())]
        call = len(self.plan.followed)
        followed = call not in self.unconnected and any(t.requires_grad for t in values)
        if name in ("clamp", "clamp_min", "clip"):
            bounds = [*args[1:], *kwargs.values()]
            followed = followed and not (len(bounds) == 1 and guards(bounds[0]))
        self.plan.followed.append(followed)
        if followed:
            self.results.append((call, []))
        return followed

    def finish(self) -> None:
        """A plan in the making is complete when the calls are."""

    def decide(self, find: Callable[[], object]) -> object:
        self.plan.decisions.append(find())
        return self.plan.decisions[-1]

    def jumping(self, result: Tensor, name: str) -> Tensor:
        self.tainted[id(result)] = (result, f"the index of {self.named(name)}")
        return result

    def bend(self, name, z, low, high=1.0, inplace=False) -> Tensor:
        steps = len(self.plan.steps)
        out = super().bend(name, z, low, high, inplace)
        if len(self.plan.steps) == steps:
            self.results[-1][1].append(out)
        else:
            self._remember(out, *[] if inplace else [z])
        return out

    def choose(self, *args, **kwargs) -> Tensor:
        out = super().choose(*args, **kwargs)
        self._remember(out)
        return out

    def _remember(self, *visible: Tensor) -> None:
        self.results[-1][1].append(self.outputs[self.plan.steps[-1][0]][-1][0])
        self.visible += [(one, one._version) for one in visible]

    @property
    def overwritten(self) -> bool:
        """Whether the module wrote into a result of a replaced call, or into its argument."""
        return any(one._version != version for one, version in self.visible)

    def _gate(
        self, name: str, z: Tensor, source: tuple[Tensor, ...], valid: Tensor | None = None
    ) -> tuple[int, Tensor]:
        found = self._site_of(source)
        if found is None:
            found = len(self.plan.sites), 1
            self.plan.sites.append(Site(name, self.where))
            self.z.append(z)
            self.outputs.append([])
            self.valid.append(None if valid is None else valid.expand_as(z))
            self._know(source, found[0])
        self.plan.steps.append(found)
        return found[0], (z.detach() > 0).to(z.dtype)

    def _know(self, source: tuple[Tensor, ...], site: int) -> None:
        def note(tensors: tuple[Tensor, ...], sign: int) -> None:
            versions = tuple(t._version for t in tensors)
            self.known[tuple(map(id, tensors))] = (tensors, versions, site, sign)

        note(source, 1)
        if len(source) == 2:
            note(source[::-1], -1)
        elif id(source[0]) in self.negatives:
            note((self.negatives[id(source[0])][1],), -1)

    def _site_of(self, source: tuple[Tensor, ...]) -> tuple[int, int] | None:
        """Return the site that has this argument or its negative, and the sign."""
        for tensors, sign in ((source, 1), (self._negated(source), -1)):
            found = self.known.get(tuple(map(id, tensors or ())))
            if found and found[1] == tuple(t._version for t in tensors):
                return found[2], sign * found[3]
        return None

    def _negated(self, source: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if len(source) == 1 and id(source[0]) in self.negatives:
            return (self.negatives[id(source[0])][1],)
        return None


def find_plan(margins: Callable[[Discovery], Tensor]) -> Plan:
    """Return the plan of a module's calls.

    margins: calls the module in the given context on `context.examples` examples and returns their
    margins, with a graph to weights that require gradients. Raises ValueError, with the call's name
    and where it stands, for kinks that are not followed.
    """

    def run(examples: int, unconnected: frozenset[int]) -> tuple[Discovery, Tensor]:
        found = Discovery(examples, unconnected)
        return found, margins(found)

    first, p = run(2, frozenset())
    refuse_hidden(p)
    unconnected = frozenset(c for c, results in first.results if not any(_reached(p, results)))
    two, _ = run(2, unconnected)
    three, _ = run(3, unconnected)
    if [s.name for s in two.plan.sites] != [s.name for s in three.plan.sites]:
        raise ValueError(
            "module: its calls differ between two and three examples; expected the same calls for "
            "all, without control flow on values"
        )
    for index, z in enumerate(two.z):
        two.plan.sites[index] = _placed(two, index, z, three.z[index])
    two.plan.feeds = _feeds(two)
    two.plan.overwritten = two.overwritten
    return two.plan


def _feeds(found: Discovery) -> np.ndarray:
    """Return [sites, sites] which site's results the arguments of which depend on."""
    feeds = np.zeros((len(found.z), len(found.z)), dtype=bool)
    sites = [site for site, outs in enumerate(found.outputs) for _ in outs]
    results = [out for outs in found.outputs for out, _ in outs]
    for later, z in enumerate(found.z):
        for site, reached in zip(sites, _reached(z, results), strict=True):
            feeds[site, later] |= reached
    return feeds


def _placed(two: Discovery, index: int, z: Tensor, larger: Tensor) -> Site:
    """Return a site with the axis of the examples: the one that grows with their number."""
    site = two.plan.sites[index]
    axes = [
        i
        for i, (a, b) in enumerate(zip(z.shape, larger.shape, strict=False))
        if a != b and 3 * a == 2 * b
    ]
    if z.ndim != larger.ndim or len(axes) != 1:
        raise ValueError(
            f"module: {placed(site.name, site.where)} acts on a tensor of shape {list(z.shape)} "
            f"that has no axis of examples; expected kinks in what single examples pass through"
        )
    axis = axes[0]
    inner = tuple(z.movedim(axis, 0).shape[1:])
    site = replace(site, inner=inner, axis=axis, copies=z.shape[axis] // 2)
    if (valid := two.valid[index]) is None:
        return site
    return replace(site, keep=site.flat(valid, 2)[0].nonzero().reshape(-1))


def _reached(of: Tensor, results: list[Tensor]) -> list[bool]:
    """Return which results a tensor depends on."""
    # Within torch.no_grad a call gives results that nothing depends on.
    own = [result for result in results if result.requires_grad]
    if not own:
        return [False] * len(results)
    gradients = torch.autograd.grad(of.sum(), own, retain_graph=True, allow_unused=True)
    pairs = zip(own, gradients, strict=True)
    reached = {id(result) for result, gradient in pairs if gradient is not None}
    return [id(result) in reached for result in results]


def _tensors(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
