"""The margin bound of spectrally normalized networks, and the test error beside it.

For a network x ↦ A_L σ(⋯ σ(A_1 x)) with activations that are 1-Lipschitz and zero at zero, a bound
of this form (Bartlett, Foster and Telgarsky 2017) says: up to constants, logarithms and a term
that knows nothing of the network, the test error is at most the share of training examples with a
margin below γ plus

    ‖X‖_F R_A/(γ n),   R_A = Π ‖A_l‖_2 · (Σ (‖A_lᵀ‖_{2,1}/‖A_l‖_2)^{2/3})^{3/2}.

It does not change when a layer is scaled and γ with it: it is a function of the layers' directions
alone. A squared ReLU is not Lipschitz, and nothing here is said of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from latephase.flow.trajectory import Trajectory
from latephase.problem.task import Task
from latephase.training.scale_free import error_rate, snapshot
from latephase.training.settings import Settings
from latephase.training.train import train as train_network


def dense_layers(module: nn.Module) -> list[np.ndarray]:
    """Return the weights [out, in] of a network's dense layers, in the order of its modules.

    Raises ValueError for a bias or a parameter of any other layer, which the bound does not know.
    """
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    known = sum(layer.weight.numel() for layer in layers)
    if not layers or known != sum(p.numel() for p in module.parameters()):
        raise ValueError("module: expected dense layers without biases and no other parameter")
    return [layer.weight.detach().double().cpu().numpy() for layer in layers]


def spectral_product(layers: Sequence[np.ndarray]) -> float:
    """Return Π ‖A_l‖_2."""
    return float(np.prod([np.linalg.norm(layer, 2) for layer in layers]))


def spectral_complexity(layers: Sequence[np.ndarray]) -> float:
    """Return R_A of weights [out, in]; ‖Aᵀ‖_{2,1} is the sum of the norms of A's rows."""
    ratios = [np.linalg.norm(layer, axis=1).sum() / np.linalg.norm(layer, 2) for layer in layers]
    return spectral_product(layers) * float(np.sum(np.power(ratios, 2 / 3)) ** 1.5)


def margin_complexity(layers: Sequence[np.ndarray], x: Tensor | np.ndarray, margin: float) -> float:
    """Return ‖X‖_F R_A/(γ n) for inputs x [n, ...] and the margin γ of these very weights.

    +inf for a margin that is not positive: the bound says nothing about it.
    """
    if not margin > 0.0:
        return float("inf")
    size = float(np.linalg.norm(np.asarray(x, dtype=float)))
    return size * spectral_complexity(layers) / (float(margin) * len(x))


def complexities(flow: Trajectory, module: nn.Module, x: Tensor) -> np.ndarray:
    """Return `margin_complexity` with the smallest margin, at each record of a flow of the module.

    The module is left with the direction of the last record.
    """
    values = []
    for record, margin in enumerate(flow.normalized_margin):
        layers = dense_layers(flow.write_to(module, record, normalized=True))
        values.append(margin_complexity(layers, x, margin))
    return np.array(values)


def errors_along(flow: Trajectory | None, module: nn.Module, test: Task) -> np.ndarray:
    """Return the share of test inputs on the wrong side at each record of a flow of the module.

    The module is left with the direction of the last record. Empty for None, a flow that never
    separated its examples.
    """
    return np.array(
        [
            error_rate(flow.write_to(module, record, normalized=True), test.x, test.y)
            for record in range(0 if flow is None else len(flow))
        ]
    )


def spread(values: Sequence[float] | np.ndarray) -> float:
    """Return the largest minus the smallest value, +inf for none."""
    return float(np.ptp(values)) if len(values) else float("inf")


@dataclass(frozen=True)
class Fitted:
    """A training run beside the margin bound; first axis = checkpoints, K of them.

    steps, smoothed_margin, test_error [K]; wrong [K]: training examples on the wrong side;
    complexity [K]: `margin_complexity` with the smallest margin; margins [K, n], test_margins
    [K, m]: over ‖X‖_F R_A/n, so that the complexity is one over the smallest of them.
    """

    steps: np.ndarray
    smoothed_margin: np.ndarray
    test_error: np.ndarray
    wrong: np.ndarray
    complexity: np.ndarray
    margins: np.ndarray
    test_margins: np.ndarray

    @property
    def first_perfect(self) -> int | None:
        """The first checkpoint from which on every training example is right, None if none is."""
        wrong = np.flatnonzero(self.wrong)
        place = int(wrong[-1]) + 1 if len(wrong) else 0
        return place if place < len(self.steps) else None


def fitted(module: nn.Module, train: Task, test: Task, settings: Settings) -> Fitted:
    """Train a network of dense layers in place and return how it stands to the bound."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="latephase-") as folder:
        run = train_network(module, train.x, train.y, settings, folder)
        for k in range(len(run)):
            run.load(k, module)
            now, unseen = (snapshot(module, t.x, t.y, settings.loss) for t in (train, test))
            unit = margin_complexity(dense_layers(module), train.x, 1.0)
            rows.append((now, unseen, unit))
    states, unseen, units = zip(*rows, strict=True)
    margins = np.array([s.margins / u for s, u in zip(states, units, strict=True)])
    smallest = margins.min(1)
    return Fitted(
        steps=np.array(run.steps),
        smoothed_margin=np.array([s.smoothed_margin for s in states]),
        test_error=np.array([np.mean(s.margins <= 0) for s in unseen]),
        wrong=np.sum(margins <= 0, axis=1),
        complexity=np.where(smallest > 0, 1.0 / np.where(smallest > 0, smallest, 1.0), np.inf),
        margins=margins,
        test_margins=np.array([s.margins / u for s, u in zip(unseen, units, strict=True)]),
    )
