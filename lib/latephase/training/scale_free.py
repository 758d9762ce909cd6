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
from latephase.problem.losses import named_loss, pairwise_margins, true_margins
from latephase.problem.task import Task
from latephase.training.train import Run, Settings
from latephase.training.train import train as train_network


@dataclass(frozen=True)
class State:
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


def state(
    module: nn.Module, x: Tensor, y: Tensor, loss: str = "cross_entropy", batch_size: int = BATCH
) -> State:
    """Return the `State` of a module on labelled images, in evaluation mode; restores the mode."""
    batches = Batches(module, x, batch_size)
    with in_mode(module, training=False):
        raw = batches.outputs()
        outputs = raw.double()
        p = pairwise_margins(outputs, y.to(outputs.device))
        alpha, log_dual = named_loss(loss).smoothed_margin_and_log_duals(p)
        cosine = float("nan")
        if resolves_duals(p, raw.dtype):
            gradient = batches.weighted_gradient(y, log_dual.exp())
            if gradient.any():
                cosine = vectors.alignment(batches.weights(), gradient)
    centred = outputs - outputs.mean(1, keepdim=True) if outputs.shape[1] > 1 else outputs
    return State(
        true_margins(p).cpu().numpy(),
        float((centred**2).sum(1).mean().sqrt()),
        float(alpha),
        cosine,
        {
            name: w.detach().cpu().numpy().ravel().copy()
            for name, w in module.named_parameters()
            if w.requires_grad
        },
    )


def error_rate(module: nn.Module, x: Tensor, y: Tensor, batch_size: int = BATCH) -> float:
    """Return the share of images on whose label another class wins or ties, in evaluation mode."""
    with in_mode(module, training=False):
        outputs = Batches(module, x, batch_size).outputs().cpu()
    return float((true_margins(pairwise_margins(outputs, y.cpu())) <= 0).double().mean())


@dataclass(frozen=True)
class Series:
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

    def change(self, start: float, unit: str) -> float:
        """Return the distance of the distributions at the last checkpoint ≤ start and at the end.

        +inf for a run that ends with an example on the wrong side: it has no late phase.
        """
        if self.margins[-1].min() <= 0:
            return float("inf")
        first = self._at(start)
        return float(successive_distances(self.normalized_margins(unit)[[first, -1]])[0])

    def length(self, start: float) -> float:
        """Return the sum of the angles between successive directions from that checkpoint on, a
        lower bound on the length of the direction's path; +inf as for `change`.
        """
        if self.margins[-1].min() <= 0:
            return float("inf")
        return float(self.turn[self._at(start) :].sum())

    def _at(self, step: float) -> int:
        return int(np.searchsorted(self.steps, step, side="right")) - 1

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
    def of(cls, arrays: dict[str, np.ndarray]) -> Series:
        """Return the series in a record's arrays; ValueError names what is missing."""
        names = [f.name for f in fields(cls)]
        if missing := sorted(set(names) - set(arrays)):
            raise ValueError(f"expected arrays {', '.join(names)}; missing {', '.join(missing)}")
        return cls(**{name: np.asarray(arrays[name]) for name in names})


def followed(module: nn.Module, train: Task, test: Task, settings: Settings) -> Series:
    """Train a module in place and return its `Series`; checkpoints are kept meanwhile only."""
    with tempfile.TemporaryDirectory(prefix="latephase-") as folder:
        run = train_network(module, train.x, train.y, settings, folder)
        return series(run, module, train, test, settings.loss)


def series(
    run: Run, module: nn.Module, train: Task, test: Task, loss: str = "cross_entropy"
) -> Series:
    """Return the `Series` of a run of the module, which ends with the last checkpoint's weights."""
    normalizing = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    rows, turns, whole, before = [], [], [], None
    for k in range(len(run)):
        run.load(k, module)
        now = state(module, train.x, train.y, loss)
        table = layers(module, train.x.shape[1:], convolutions=not normalizing)
        error = error_rate(module, test.x, test.y)
        rows.append((now, table, error, _norm(now.weights)))
        if before is not None:
            pairs = [(before[name], w) for name, w in now.weights.items()]
            turns.append([_turn(a, b) for a, b in pairs])
            whole.append(_turn(*(np.concatenate(side) for side in zip(*pairs, strict=True))))
        before = now.weights
    states, tables, errors, norms = zip(*rows, strict=True)
    return Series(
        steps=np.array(run.steps, dtype=np.int64),
        smoothed_margin=np.array([s.smoothed_margin for s in states]),
        margins=np.array([s.margins for s in states], dtype=np.float32),
        alignment=np.array([s.alignment for s in states]),
        test_error=np.array(errors),
        logit_size=np.array([s.logit_size for s in states]),
        log_norm=np.log(norms),
        turn=np.array(whole),
        turns=np.array(turns, dtype=np.float32),
        parameters=np.array(list(before)),
        frobenius=np.array([[row.frobenius for row in table] for table in tables]),
        spectral=np.array([[row.spectral for row in table] for table in tables]),
        layers=np.array([row.name for row in tables[0]]),
        dense=np.array([row.kind == "dense" for row in tables[0]]),
        smallest_ratio=np.array([row.smallest_ratio for row in tables[0]]),
        degree=np.array(getattr(module, "degree", None) or 0),
        batch_normalized=np.array(normalizing),
    )


def _norm(weights: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(w.astype(float) ** 2) for w in weights.values())))


def _turn(before: np.ndarray, after: np.ndarray) -> float:
    """Return the angle between two vectors, 0 where one of them vanishes or they are equal."""
    if not np.any(before) or not np.any(after) or np.array_equal(before, after):
        return 0.0
    return vectors.angle(before.astype(float), after.astype(float))
