"""The margin bound of spectrally normalized networks: the quantities that it is made of.

For a network x ↦ A_L σ(⋯ σ(A_1 x)) with activations that are 1-Lipschitz and zero at zero, a bound
of this form (Bartlett, Foster and Telgarsky 2017) says: up to constants, logarithms and a term
that knows nothing of the network, the test error is at most the share of training examples with a
margin below γ plus

    ‖X‖_F R_A/(γ n),   R_A = Π ‖A_l‖_2 · (Σ (‖A_lᵀ‖_{2,1}/‖A_l‖_2)^{2/3})^{3/2}.

It does not change when a layer is scaled and γ with it: it is a function of the layers' directions
alone. A squared ReLU is not Lipschitz, and nothing here is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn


def dense_layers(module: nn.Module) -> list[np.ndarray]:
    """Return the weights [out, in] of a network's dense layers, in the order of its modules.

    Raises ValueError for a bias or a parameter of any other layer, which the bound does not know.
    """
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    known = sum(layer.weight.numel() for layer in layers)
    if not layers or known != sum(p.numel() for p in module.parameters()):
        raise ValueError("module: expected dense layers without biases and no other parameter")
    return [layer.weight.detach().double().cpu().numpy() for layer in layers]


def spectral_complexity(layers: Sequence[np.ndarray]) -> float:
    """Return R_A of weights [out, in]; ‖Aᵀ‖_{2,1} is the sum of the norms of A's rows."""
    spectral = np.array([np.linalg.norm(layer, 2) for layer in layers])
    rows = np.array([np.linalg.norm(layer, axis=1).sum() for layer in layers])
    return float(np.prod(spectral) * np.sum((rows / spectral) ** (2 / 3)) ** 1.5)


def margin_complexity(layers: Sequence[np.ndarray], x: np.ndarray, margin: float) -> float:
    """Return ‖X‖_F R_A/(γ n) for inputs x [n, ...] and the margin γ of these very weights.

    +inf for a margin that is not positive: the bound says nothing about it.
    """
    if not margin > 0.0:
        return float("inf")
    size = float(np.linalg.norm(np.asarray(x, dtype=float)))
    return size * spectral_complexity(layers) / (margin * len(x))
