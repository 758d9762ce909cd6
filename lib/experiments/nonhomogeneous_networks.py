"""How far a network is from homogeneous, and how far its margins move, whatever it has learned."""

from __future__ import annotations

import copy

import numpy as np
import torch

from latephase.measures.settling import successive_distances
from latephase.training.scale_free import History


def scaling(module: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Return (L, defect): by which power outputs follow the scale of the weights, and how badly.

    With f the outputs on x at weights W + noise, a tenth of each tensor's root mean square (zero
    biases would hide), in evaluation mode and float64: L_c = ln(‖f(cW)‖/‖f(W)‖)/ln c for c = ½ and
    2; L is their mean, and the defect the largest of |L_2 - L_½| and of the distances of
    f(cW)/‖f(cW)‖ from f(W)/‖f(W)‖. Zero for a homogeneous network, finite where outputs are not 0.
    """
    net = copy.deepcopy(module).double().eval()
    rng = torch.Generator().manual_seed(0)
    outputs = {}
    with torch.no_grad():
        for w in net.parameters():
            size = w.square().mean().sqrt().item() or 1.0
            w += 0.1 * size * torch.randn(w.shape, generator=rng, dtype=w.dtype)
        noisy = copy.deepcopy(net.state_dict())
        for c in (1.0, 0.5, 2.0):
            net.load_state_dict(noisy)
            for w in net.parameters():
                w *= c
            outputs[c] = net(x.double())
    size = {c: f.norm().item() for c, f in outputs.items()}
    degree = [np.log(size[c] / size[1.0]) / np.log(c) for c in (0.5, 2.0)]
    shape = {c: f / size[c] for c, f in outputs.items()}
    apart = [(shape[c] - shape[1.0]).norm().item() for c in (0.5, 2.0)]
    return float(np.mean(degree)), float(max(*apart, abs(degree[1] - degree[0])))


def moved(run: History, units: tuple[str, ...], end: int = -1) -> float:
    """Return how far the margins' distribution moves while the steps up to record `end` double.

    The Wasserstein distance of the distributions at both ends over the later mean, in the worst of
    the units: `History.change`, but of any run, also of one that has examples on the wrong side.
    """
    pairs = [run.normalized_margins(unit)[[_half(run, end), end]] for unit in units]
    return max(float(successive_distances(pair)[0]) for pair in pairs)


def while_learning(run: History, units: tuple[str, ...]) -> float:
    """Return `moved` over the doubling that ends where for the first time the most are right."""
    return moved(run, units, int(np.argmax((run.margins > 0).sum(axis=1))))


def turned(run: History) -> float:
    """Return by which angle the direction turns in the last doubling, of any run."""
    return float(run.turn[_half(run, -1) :].sum())


def _half(run: History, end: int) -> int:
    """Return the last record with at most half of the steps of record `end`."""
    return int(np.searchsorted(run.steps, run.steps[end] / 2, side="right")) - 1
