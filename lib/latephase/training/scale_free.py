"""Margins and layers of networks with or without a degree, in units that do not need one.

Margins of a network without a degree of homogeneity have no natural unit ‖W‖^L. Of those here

    mean        the mean |p_i| over the training set
    logits      the root mean square, over the training set, of the norm of the centred logits
    frobenius   Π ‖W_l‖_F over the layers
    spectral    Π ‖W_l‖_2 over the layers, of a convolution the norm of the linear operator
    norm        ‖W‖^L, for a network of degree L only

the first two ask nothing of the network: they are as large as its outputs are, whatever makes them
so, and keep the shape of the margin distribution alone. The products are of degree one in every
layer, as the margins are in each layer of a network without biases. With batch normalization a
layer can be scaled without any change of the function, and the products have no meaning.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor, nn

from latephase.measures.layers import layers
from latephase.measures.settling import successive_distances
from latephase.problem import vectors
from latephase.problem.batches import BATCH, Batches, resolves_duals
from latephase.problem.checks import in_mode
from latephase.problem.losses import default_loss, pairwise_margins, true_margins
from latephase.problem.task import Task
from latephase.training.train import Run, Settings
from latephase.training.train import train as train_network


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One network on its training set: margins of W itself [n], and what they are measured by.

    logit_size: root mean square over the examples of ‖f - mean f‖; alignment: cos(W, -∇R) over all
    examples, NaN where float32 does not resolve the dual variables; weights: each trainable
    parameter's tensor, flat, float32.
    """

    margins: np.ndarray
    logit_size: float
    smoothed_margin: float
    alignment: float
    weights: dict[str, np.ndarray]


def snapshot(
    module: nn.Module, x: Tensor, y: Tensor, loss: str | None = None, batch_size: int = BATCH
) -> Snapshot:
    """Return the `Snapshot` of a module on labelled images, in evaluation mode; restores the mode.

    loss None is the exponential loss for one output, cross-entropy for several.
    """
    batches = Batches(module, x, batch_size)
    with in_mode(module, training=False):
        raw = batches.outputs()
        outputs = raw.double().reshape(len(raw), -1)
        p = pairwise_margins(outputs, y.to(outputs.device))
        chosen = default_loss(loss, outputs.shape[1])
        alpha, log_dual = chosen.smoothed_margin_and_log_duals(p)
        cosine = float("nan")
        if resolves_duals(p, batches.coarsest):
            gradient = batches.weighted_gradient(y, log_dual.exp())
            if gradient.any():
                cosine = vectors.alignment(batches.weights(), gradient)
    centred = outputs - outputs.mean(1, keepdim=True) if outputs.shape[1] > 1 else outputs
    trainable = [(name, w.detach()) for name, w in module.named_parameters() if w.requires_grad]
    return Snapshot(
        true_margins(p).cpu().numpy(),
        float((centred**2).sum(1).mean().sqrt()),
        float(alpha),
        cosine,
        {name: w.cpu().numpy().ravel().copy() for name, w in trainable},
    )


def error_rate(module: nn.Module, x: Tensor, y: Tensor, batch_size: int = BATCH) -> float:
    """Return the share of images on whose label another class wins or ties, in evaluation mode."""
    with in_mode(module, training=False):
        outputs = Batches(module, x, batch_size).outputs().cpu()
    return float((true_margins(pairwise_margins(outputs, y.cpu())) <= 0).double().mean())


@dataclass(frozen=True, eq=False)
class History:
    """A training run as this book draws it; first axis = checkpoints, K of them.

    steps, smoothed_margin, alignment, test_error, logit_size, log_norm: [K]; margins [K, n] of W
    itself, float32. parameters: names of the P trainable tensors; turns [K - 1, P]: the angle in
    radians between each one's successive directions, 0 while it stands still or is 0; turn [K - 1]
    that of the whole network. layers: names of the M dense and convolutional layers in their order
    (with batch normalization of the dense ones); dense [M]: which are dense; frobenius, spectral
    [K, M]: their norms as operators; smallest_ratio [M]. degree: 0 for a network without one;
    batch_normalized: whether it makes products of norms meaningless.
    """

    steps: np.ndarray
    smoothed_margin: np.ndarray
    margins: np.ndarray
    alignment: np.ndarray
    test_error: np.ndarray
    logit_size: np.ndarray
    log_norm: np.ndarray
    turn: np.ndarray
    turns: np.ndarray
    parameters: np.ndarray
    frobenius: np.ndarray
    spectral: np.ndarray
    layers: np.ndarray
    dense: np.ndarray
    smallest_ratio: np.ndarray
    degree: np.ndarray
    batch_normalized: np.ndarray

    @property
    def units(self) -> tuple[str, ...]:
        """The units in which this network's margins can be measured."""
        products = () if self.batch_normalized else ("frobenius", "spectral")
        return ("mean", "logits", *products, *(("norm",) if self.degree else ()))

    def normalized_margins(self, unit: str) -> np.ndarray:
        """Return the margins [K, n] in one of `units`; ValueError for another."""
        if unit not in self.units:
            raise ValueError(f"unit: expected one of {self.units}, got {unit!r}")
        size = {
            "mean": lambda: np.abs(self.margins).mean(1),
            "logits": lambda: self.logit_size,
            "frobenius": lambda: np.exp(np.log(self.frobenius).sum(1)),
            "spectral": lambda: np.exp(np.log(self.spectral).sum(1)),
            "norm": lambda: np.exp(self.degree * self.log_norm),
        }[unit]()
        # A network of zeros has margins of zero in any unit.
        return self.margins.astype(float) / np.where(size > 0, size, 1.0)[:, None]

    def distances(self, unit: str) -> np.ndarray:
        """Return the distance [K - 1] of each margin distribution from the one before it."""
        return successive_distances(self.normalized_margins(unit))

    @property
    def ratio(self) -> np.ndarray:
        """‖A‖_2/‖A‖_F of the dense layers, [K, dense layers]."""
        return (self.spectral / self.frobenius)[:, self.dense]

    @property
    def first_perfect(self) -> float:
        """The first checkpoint's step from which on every training example is right; +inf."""
        wrong = np.flatnonzero(self.margins.min(1) <= 0)
        place = wrong[-1] + 1 if len(wrong) else 0
        return float(self.steps[place]) if place < len(self.steps) else float("inf")

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> History:
        """Return the history in the arrays of a recorded run; ValueError names what is missing."""
        names = [f.name for f in fields(cls)]
        if missing := sorted(set(names) - set(arrays)):
            raise ValueError(f"expected arrays {', '.join(names)}; missing {', '.join(missing)}")
        return cls(**{name: np.asarray(arrays[name]) for name in names})


def followed(module: nn.Module, train: Task, test: Task, settings: Settings) -> History:
    """Train a module in place and return its `History`; checkpoints are kept meanwhile only."""
    with tempfile.TemporaryDirectory(prefix="latephase-") as folder:
        run = train_network(module, train, settings=settings, folder=folder)
        return history(run, module, train, test, settings.loss)


def history(
    run: Run, module: nn.Module, train: Task, test: Task, loss: str | None = None
) -> History:
    """Return the `History` of a run of the module, which ends with the last checkpoint's weights.

    loss None is the exponential loss for one output, cross-entropy for several.
    """
    normalizing = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    rows, turns, whole, before = [], [], [], {}
    for k in range(len(run)):
        run.load(k, module)
        now = snapshot(module, train.x, train.y, loss)
        table = layers(module, train.x.shape[1:], convolutions=not normalizing)
        everything = np.concatenate(list(now.weights.values()))
        rows.append(
            {
                "smoothed_margin": now.smoothed_margin,
                "margins": now.margins.astype(np.float32),
                "alignment": now.alignment,
                "test_error": error_rate(module, test.x, test.y),
                "logit_size": now.logit_size,
                "log_norm": np.log(np.linalg.norm(everything.astype(float))),
                "frobenius": [row.frobenius for row in table],
                "spectral": [row.spectral for row in table],
            }
        )
        if before:
            turns.append([_turn(before[name], w) for name, w in now.weights.items()])
            whole.append(_turn(np.concatenate(list(before.values())), everything))
        before = now.weights
    return History(
        steps=np.array(run.steps, dtype=np.int64),
        **{name: np.array([row[name] for row in rows]) for name in rows[0]},
        turn=np.array(whole),
        turns=np.array(turns, dtype=np.float32),
        parameters=np.array(list(before)),
        layers=np.array([row.name for row in table]),
        dense=np.array([row.kind == "dense" for row in table]),
        smallest_ratio=np.array([row.smallest_ratio for row in table]),
        degree=np.array(getattr(module, "degree", None) or 0),
        batch_normalized=np.array(normalizing),
    )


def _turn(before: np.ndarray, after: np.ndarray) -> float:
    """Return the angle between two vectors, 0 where one of them vanishes or they are equal."""
    if not np.any(before) or not np.any(after) or np.array_equal(before, after):
        return 0.0
    return vectors.angle(before.astype(float), after.astype(float))
