"""The degree of homogeneity of a module in its parameters, measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latephase.problem.checks import call_with, checked_inputs, frozen_copy, parameter_slots
from latephase.problem.task import Task
from latephase.problem.vectors import root_mean_square, to_numpy

# A module counts as homogeneous when Φ(cw) = c^L Φ(w) holds to this relative accuracy; rounding
# leaves 1e-15 times the condition of the network, a bias of any visible size far more.
HOMOGENEITY_TOLERANCE = 1e-9


def homogeneity_degree(
    module: torch.nn.Module, x: Tensor | np.ndarray | Task
) -> tuple[float | None, float]:
    """Return (degree L or None, defect) of the outputs in the trainable parameters.

    The defect is the largest ‖Φ(cw) - c^L Φ(w)‖ / ‖c^L Φ(w)‖ over c = ½, 2 and randomly perturbed
    parameters (zero-initialized biases would hide otherwise), for the best L; the degree is None
    where it exceeds HOMOGENEITY_TOLERANCE; ∞ where outputs change sign or vanish. At most 64
    examples are used.

    >>> import torch, latephase
    >>> layers = [torch.nn.Linear(3, 5, bias=False), torch.nn.ReLU(), torch.nn.Linear(5, 1)]
    >>> x = torch.ones(4, 3)
    >>> latephase.homogeneity_degree(torch.nn.Sequential(*layers), x)[0]  # a bias at the end
    >>> _ = layers[2].bias.requires_grad_(False).zero_()
    >>> latephase.homogeneity_degree(torch.nn.Sequential(*layers), x)[0]
    2.0
    """
    module = frozen_copy(module)
    x = x.x if isinstance(x, Task) else x
    return _degree(module, _few(module, x), frozenset())


def checked_degree(module: torch.nn.Module, x: Tensor, degree: float | None) -> float:
    """Return the measured degree; raise ValueError if there is none or it is not the given one.

    The message names the parameters without which the module would be homogeneous.
    """
    measured, defect = homogeneity_degree(module, x)
    if measured is None:
        raise ValueError(_why_not(frozen_copy(module), _few(module, x), defect))
    if degree is not None and abs(degree - measured) > 1e-6:
        raise ValueError(
            f"degree: got {degree:g}, but the module's measured degree is {measured:g}"
        )
    if measured <= 0:
        raise ValueError(f"module: expected a positive degree of homogeneity, got {measured:g}")
    return measured


def _few(module: torch.nn.Module, x: Tensor | np.ndarray) -> Tensor:
    return checked_inputs(x)[:64].to(next(module.parameters()).device)


def _why_not(module: torch.nn.Module, x: Tensor, defect: float) -> str:
    tried = [_perturbed(module, seed, frozenset()) for seed in range(3)]
    if not any(np.any(_outputs(module, parameters, x)) for parameters in tried):
        return (
            "module: its outputs are all zero, at perturbed parameters too; expected examples of "
            "which some are not zero, and a module that passes them on"
        )
    culprits = _breaking_parameters(module, x)
    because = (
        f"without {', '.join(culprits)} it would be homogeneous"
        if culprits
        else "no bias explains it; an activation such as tanh may"
    )
    return (
        f"module: expected outputs homogeneous in the parameters, Φ(cw) = c^L Φ(w); the "
        f"relative defect is {defect:.2g} at perturbed parameters: {because}"
    )


def _perturbed(module: torch.nn.Module, seed: int, zeroed: frozenset[str]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    perturbed = []
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            noise = noise.to(weight.device)
            step = 0.5 * (root_mean_square(to_numpy(weight)) or 1.0) * noise
            perturbed.append(0.0 * noise if name in zeroed else weight.detach() + step)
    return perturbed


def _degree(
    module: torch.nn.Module, x: Tensor, zeroed: frozenset[str]
) -> tuple[float | None, float]:
    exponents, defects = [], []
    for seed in range(3):
        parameters = _perturbed(module, seed, zeroed)
        one = _outputs(module, parameters, x)
        if not np.any(one):
            continue
        for c in (0.5, 2.0):
            other = _outputs(module, [c * w for w in parameters], x)
            ratio = np.vdot(other, one) / np.vdot(one, one)
            if ratio <= 0.0:
                return None, float("inf")
            exponents.append(np.log(ratio) / np.log(c))
            defects.append(np.linalg.norm(other - ratio * one) / np.linalg.norm(other + 1e-300))
    if not exponents:
        return None, float("inf")
    degree = float(np.mean(exponents))
    if abs(degree - round(degree)) < 1e-8:
        degree = float(round(degree))
    # c^(e - L) - 1 with |ln c| = ln 2.
    apart = np.max(np.abs(np.array(exponents) - degree))
    spread = float(np.expm1(min(np.log(2.0) * apart, 700.0)))
    defect = float(max(np.max(defects), spread))
    return (degree if defect <= HOMOGENEITY_TOLERANCE else None), defect


def _outputs(module: torch.nn.Module, parameters: list[Tensor], x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return to_numpy(call_with(module, parameter_slots(module), parameters, x))


def _breaking_parameters(module: torch.nn.Module, x: Tensor) -> list[str]:
    """Return parameters whose presence alone makes the module inhomogeneous, if it is they."""
    shapes = {name: w.shape for name, w in module.named_parameters() if w.requires_grad}
    vectors = frozenset(name for name, shape in shapes.items() if len(shape) <= 1)
    if vectors and _degree(module, x, vectors)[0] is not None:
        return sorted(v for v in vectors if _degree(module, x, vectors - {v})[0] is None)
    return [name for name in shapes if _degree(module, x, frozenset({name}))[0] is not None]
