"""The degree of homogeneity of a module in its parameters, measured."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latephase.problem.checks import checked_inputs, checked_numbers, checked_outputs
from latephase.problem.culprit import first_inhomogeneous_call
from latephase.problem.modules import called, coarsest, differentiating, frozen_copy
from latephase.problem.task import Task
from latephase.problem.vectors import root_mean_square, to_numpy

# A module counts as homogeneous when Φ(cw) = c^L Φ(w) holds to this relative accuracy; rounding
# leaves 1e-15 times the condition of the network, a bias of any visible size far more.
HOMOGENEITY_TOLERANCE = 1e-9
# Or to so many ε of a coarser type, in which a scale c of 2 or ½ is exact as well.
_ROUNDINGS = 16.0
# In coarser types a defect like this ends the measurement.
_PLAIN = 0.01
# Random numbers that are drawn for a weight, which repeat in a larger one.
_DRAWN = 2**20
# Examples that are used, at most; fewer where they are large, to this many numbers, but for two.
_MOST, _NUMBERS, _LEAST = 64, 2**18, 2


@dataclass(frozen=True)
class Homogeneity:
    """degree: L or None; defect: as `homogeneity_degree` says; why: there is none, "" if there is.

    degree None and defect NaN: it was not measured. breaks: a call may be to blame for the defect.
    """

    degree: float | None
    defect: float
    why: str = ""
    breaks: bool = False


@differentiating
def homogeneity_degree(
    module: torch.nn.Module, x: Tensor | np.ndarray | Task
) -> tuple[float | None, float]:
    """Return (degree L or None, defect) of the outputs in the trainable parameters, in float64.

    The defect is the largest ‖Φ(cw) - c^L Φ(w)‖ / ‖c^L Φ(w)‖ over c = ½, 2 and randomly perturbed
    parameters (zero-initialized biases would hide otherwise), for the best L; the degree is None
    where it exceeds HOMOGENEITY_TOLERANCE; ∞ where outputs change sign or vanish. At most 64
    examples are used, and of large ones at most 2^18 numbers or two examples.

    >>> import torch, latephase
    >>> layers = [torch.nn.Linear(3, 5, bias=False), torch.nn.ReLU(), torch.nn.Linear(5, 1)]
    >>> x = torch.ones(4, 3)
    >>> latephase.homogeneity_degree(torch.nn.Sequential(*layers), x)[0]  # a bias at the end
    >>> _ = layers[2].bias.requires_grad_(False).zero_()
    >>> latephase.homogeneity_degree(torch.nn.Sequential(*layers), x)[0]
    2.0
    """
    module = frozen_copy(module)
    found = homogeneity(module, _few(module, x.x if isinstance(x, Task) else x))
    return found.degree, found.defect


def checked_degree(module: torch.nn.Module, x: Tensor, degree: float | None) -> float:
    """Return the measured degree; raise ValueError if there is none or it is not the given one.

    The message names the parameters without which the module would be homogeneous.
    """
    if degree is not None:
        checked_numbers(degree=degree)
    module = frozen_copy(module)
    x = _few(module, x)
    measured = homogeneity(module, x)
    if measured.degree is None:
        raise ValueError(_why_not(module, x, measured))
    if degree is not None and not abs(degree - measured.degree) <= 1e-6:
        raise ValueError(
            f"degree: got {degree:g}, but the module's measured degree is {measured.degree:g}"
        )
    if measured.degree <= 0:
        raise ValueError(
            f"module: expected a positive degree of homogeneity, got {measured.degree:g}"
        )
    return measured.degree


def few_of(x: Tensor) -> Tensor:
    """Return the first examples of x, as many as the measurement of a degree takes."""
    numbers = x[0].numel()
    return x[: min(_MOST, max(_LEAST, _NUMBERS // max(1, numbers)))]


def homogeneity(
    module: torch.nn.Module,
    x: Tensor,
    bar: dict | None = None,
    zeroed: frozenset[str] = frozenset(),
) -> Homogeneity:
    """Return the `Homogeneity` of a module, measured in its own type on the examples x.

    Its parameters are overwritten and put back. bar: options of a bar to show. zeroed: names of
    parameters that are zero.
    """
    tolerance = _tolerance(module)
    # In float64 the defect is the largest of all draws.
    enough = _PLAIN if tolerance > HOMOGENEITY_TOLERANCE else np.inf
    # Below it numbers have fewer digits.
    least = smallest(module)
    exponents, defects = [], []
    with _Scaled(module, x) as outputs:
        for seed in tqdm(range(3), desc="degree", **(bar or {"disable": True})):
            parameters = _perturbed(outputs.start, seed, zeroed)
            one, *others = (outputs(parameters, c) for c in (1.0, 0.5, 2.0))
            if not all(np.isfinite(found).all() for found in (one, *others)):
                return Homogeneity(None, np.inf, _OUT_OF_RANGE)
            if not np.any(one):
                continue
            if max(np.abs(found).max() for found in (one, *others)) < least:
                return Homogeneity(None, np.inf, _OUT_OF_RANGE)
            # By a power of two, which leaves all digits: the squares stay in range.
            unit = 2.0 ** np.floor(np.log2(np.abs(one).max()))
            one, *others = (found / unit for found in (one, *others))
            for c, other in zip((0.5, 2.0), others, strict=True):
                ratio = np.vdot(other, one) / np.vdot(one, one)
                if ratio <= 0.0:
                    why = f"its outputs vanish or change sign as weights are scaled by {c:g}"
                    return Homogeneity(None, np.inf, why, breaks=True)
                exponents.append(np.log(ratio) / np.log(c))
                defects.append(np.linalg.norm(other - ratio * one) / np.linalg.norm(other + 1e-300))
            if defects[-1] > enough:
                break
    if not exponents:
        return Homogeneity(None, np.inf, _ALL_ZERO)
    degree = float(np.mean(exponents))
    if abs(degree - round(degree)) < 10.0 * tolerance:
        degree = float(round(degree))
    # c^(e - L) - 1 with |ln c| = ln 2.
    apart = np.max(np.abs(np.array(exponents) - degree))
    spread = float(np.expm1(min(np.log(2.0) * apart, 700.0)))
    defect = float(max(np.max(defects), spread))
    if defect <= tolerance:
        return Homogeneity(degree, defect)
    why = f"it is not homogeneous, with a relative defect {defect:.2g}"
    return Homogeneity(None, defect, why, breaks=True)


_OUT_OF_RANGE = "its outputs leave the range of its type"
_ALL_ZERO = "its outputs are all zero, at perturbed parameters too"


def first_break(module: torch.nn.Module, x: Tensor) -> str:
    """Return which call of the module is the first that is not homogeneous; "" where none is seen.

    That is at perturbed weights, which are put back.
    """
    with _Scaled(module, x) as outputs:
        parameters = _perturbed(outputs.start, 0, frozenset())
        return first_inhomogeneous_call(
            module, lambda *at: outputs(parameters, *at), _tolerance(module)
        )


def _tolerance(module: torch.nn.Module) -> float:
    return max(HOMOGENEITY_TOLERANCE, _ROUNDINGS * coarsest(module))


def smallest(module: torch.nn.Module) -> float:
    """Return a number of which the module's types have all digits, and of the last as well."""
    types = {w.dtype for w in module.parameters() if w.is_floating_point()}
    return max(torch.finfo(dtype).tiny / torch.finfo(dtype).eps for dtype in types)


def _few(module: torch.nn.Module, x: Tensor | np.ndarray) -> Tensor:
    return few_of(checked_inputs(x)).to(next(module.parameters()).device)


def _why_not(module: torch.nn.Module, x: Tensor, measured: Homogeneity) -> str:
    if measured.why == _ALL_ZERO:
        return (
            f"module: {_ALL_ZERO}; expected examples of which some are not zero, and a module "
            "that passes them on"
        )
    if measured.why == _OUT_OF_RANGE and not first_break(module, x):
        return f"module: {_OUT_OF_RANGE}; expected inputs or weights in other units"
    culprits = _breaking_parameters(module, x)
    because = (
        f"without {', '.join(culprits)} it would be homogeneous"
        if culprits
        else f"no bias explains it; the first call that is not homogeneous is "
        f"{first_break(module, x) or 'none that is seen by itself'}"
    )
    return (
        f"module: expected outputs homogeneous in the parameters, Φ(cw) = c^L Φ(w); the "
        f"relative defect is {measured.defect:.2g} at perturbed parameters: {because}"
    )


class _Scaled:
    """The outputs of a module at other weights c · parameters; its own are put back at the end."""

    def __init__(self, module: torch.nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x
        self.weights = {n: w for n, w in module.named_parameters() if w.requires_grad}
        self.start = {name: w.detach().clone() for name, w in self.weights.items()}

    def __enter__(self) -> _Scaled:
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self.start.values(), 1.0)

    def __call__(
        self, parameters: list[Tensor], c: float, calls: AbstractContextManager | None = None
    ) -> np.ndarray:
        """Return the outputs, of a call in the context `calls`."""
        self._set(parameters, c)
        with torch.no_grad(), calls or nullcontext():
            outputs = checked_outputs(called(self.module, self.x), len(self.x), finite=False)
        return to_numpy(outputs.cpu().double())

    def _set(self, parameters: Iterable[Tensor], c: float) -> None:
        with torch.no_grad():
            for weight, parameter in zip(self.weights.values(), parameters, strict=True):
                # Through `data`: graphs that the caller has made hold these weights.
                torch.mul(parameter, c, out=weight.data)


def _perturbed(start: dict[str, Tensor], seed: int, zeroed: frozenset[str]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    perturbed = []
    for name, weight in start.items():
        # Types of two bytes have no random numbers of their own everywhere.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        noise = torch.randn(min(weight.numel(), _DRAWN), generator=generator, dtype=dtype)
        noise = noise.to(weight.device).repeat(-(-weight.numel() // _DRAWN))
        noise = noise[: weight.numel()].reshape(weight.shape)
        if weight.numel() > _DRAWN:
            size = float(torch.linalg.vector_norm(weight.to(dtype))) / weight.numel() ** 0.5 or 1.0
        else:
            size = root_mean_square(to_numpy(weight.to(dtype))) or 1.0
        # In place: weights may be many.
        perturbed.append(noise.zero_() if name in zeroed else noise.mul_(0.5 * size).add_(weight))
    return perturbed


def _breaking_parameters(module: torch.nn.Module, x: Tensor) -> list[str]:
    """Return the biases without any of which the module stays inhomogeneous, if it is they."""

    def without(names: Iterable[str]) -> bool:
        return homogeneity(module, x, zeroed=frozenset(names)).degree is not None

    shapes = {name: w.shape for name, w in module.named_parameters() if w.requires_grad}
    vectors = {name for name, shape in shapes.items() if len(shape) <= 1}
    if not vectors or not without(vectors):
        return []
    return sorted(v for v in vectors if not without(vectors - {v}))
