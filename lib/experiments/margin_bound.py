"""A margin bound beside the test error.

For a network x ↦ A_L σ(⋯ σ(A_1 x)) with activations that are 1-Lipschitz and zero at zero, the
bound of Bartlett, Foster and Telgarsky (2017) says: up to constants, logarithms and a term that
knows nothing of the network, the test error is at most the share of training examples with a margin
below γ plus ‖X‖_F R_A/(γ n), R_A = Π ‖A_l‖_2 · (Σ (‖A_lᵀ‖_{2,1}/‖A_l‖_2)^{2/3})^{3/2}. It does not
change when a layer is scaled and γ with it: it is a function of the layers' directions alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from latephase.problem.task import Task
from latephase.training.scale_free import snapshot
from latephase.training.settings import Settings
from latephase.training.train import train as train_network


def dense_weights(module: nn.Module) -> list[np.ndarray]:
    """Return the weights [out, in] of a network's dense layers, in the order of its modules.

    Raises ValueError for a bias or a parameter of any other layer, which the bound does not know.
    """
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
    known = sum(weight.numel() for weight in weights)
    if not weights or known != sum(weight.numel() for weight in module.parameters()):
        raise ValueError("module: expected dense layers without biases and no other parameter")
    # Copies: a flow writes one record after the other into one module.
    return [weight.detach().double().cpu().numpy().copy() for weight in weights]


def spectral_product(weights: Sequence[np.ndarray]) -> float:
    """Return Π ‖A_l‖_2."""
    return float(np.prod([np.linalg.norm(weight, 2) for weight in weights]))


def spectral_complexity(weights: Sequence[np.ndarray]) -> float:
    """Return R_A of weights [out, in]; ‖Aᵀ‖_{2,1} is the sum of the norms of A's rows."""
    ratios = [np.linalg.norm(w, axis=1).sum() / np.linalg.norm(w, 2) for w in weights]
    return spectral_product(weights) * float(np.sum(np.power(ratios, 2 / 3)) ** 1.5)


def margin_complexity(
    weights: Sequence[np.ndarray], x: Tensor | np.ndarray, margin: float
) -> float:
    """Return ‖X‖_F R_A/(γ n) for inputs x [n, ...] and the margin γ of these very weights.

    +inf for a margin that is not positive: the bound says nothing about it.
    """
    if not margin > 0.0:
        return float("inf")
    size = float(np.linalg.norm(np.asarray(x, dtype=float)))
    return size * spectral_complexity(weights) / (float(margin) * len(x))


def spread(values: Sequence[float] | np.ndarray) -> float:
    """Return the largest minus the smallest value, +inf for none."""
    return float(np.ptp(values)) if len(values) else float("inf")


@dataclass(frozen=True, eq=False)
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
            unit = margin_complexity(dense_weights(module), train.x, 1.0)
            rows.append((now.smoothed_margin, now.margins / unit, unseen.margins / unit))
    alphas, margins, unseen = map(np.array, zip(*rows, strict=True))
    smallest = margins.min(1)
    return Fitted(
        steps=np.array(run.steps),
        smoothed_margin=alphas,
        test_error=np.mean(unseen <= 0, axis=1),
        wrong=np.sum(margins <= 0, axis=1),
        complexity=np.where(smallest > 0, 1.0 / np.where(smallest > 0, smallest, 1.0), np.inf),
        margins=margins,
        test_margins=unseen,
    )
