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
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from latephase import diagnostics, training
from latephase.convergence import successive_distances
from latephase.data import Task
from latephase.inputs import in_mode
from latephase.losses import named_loss, pairwise_margins, true_margins
from latephase.training import Settings

# Dual variables are exp(-p) up to a factor: rounding of p by more than this leaves no digit.
_RESOLVED = 0.01


@dataclass(frozen=True)
class Layer:
    """A dense or convolutional layer as a linear operator: name, kind and its norms.

    frobenius and spectral are norms of the operator from one image to one image, which a
    convolution's are not of its kernel; smallest_ratio is the lower bound 1/√rank of
    spectral/frobenius, with the largest rank that the shape allows.
    """

    name: str
    kind: str
    frobenius: float
    spectral: float
    smallest_ratio: float

    @property
    def ratio(self) -> float:
        """‖A‖_2/‖A‖_F, 1 exactly at rank one."""
        return self.spectral / self.frobenius


def layers(module: nn.Module, image: Sequence[int], convolutions: bool = True) -> list[Layer]:
    """Return the dense and convolutional layers of a network for images (channels, height, width).

    In the order in which an image passes them; convolutions=False leaves those out. Raises
    ValueError for grouped or dilated convolutions, of which `convolution_norms` knows nothing.
    """
    passed, hooks = [], []
    kinds = (nn.Conv2d, nn.Linear) if convolutions else nn.Linear
    for name, part in module.named_modules():
        if isinstance(part, kinds):
            note = _noting(passed, name)
            hooks.append(part.register_forward_hook(note))
    parameter = next(module.parameters())
    try:
        with in_mode(module, training=False), torch.no_grad():
            module(torch.zeros(1, *image, dtype=parameter.dtype, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [_layer(name, part, size) for name, part, size in passed]


def _noting(passed: list, name: str):
    def note(part, inputs, _):
        passed.append((name, part, tuple(inputs[0].shape[2:])))

    return note


def _layer(name: str, part: nn.Module, size: tuple[int, int]) -> Layer:
    weight = part.weight.detach().double().cpu()
    if isinstance(part, nn.Linear):
        norms = float(torch.linalg.vector_norm(weight)), _largest_singular_value(weight)
        return Layer(name, "dense", *norms, min(weight.shape) ** -0.5)
    if part.groups != 1 or part.dilation != (1, 1) or isinstance(part.padding, str):
        raise ValueError(
            f"{name}: expected a convolution without groups, dilation or named padding"
        )
    spectral, frobenius, shape = convolution_norms(weight, size, part.stride, part.padding)
    return Layer(name, "convolution", frobenius, spectral, min(shape) ** -0.5)


def convolution_norms(
    kernel: Tensor,
    size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> tuple[float, float, tuple[int, int]]:
    """Return (‖A‖_2, ‖A‖_F, shape of A) of x ↦ conv2d(x, kernel) on images of `size`.

    kernel [out, in, height, width]; size (height, width) of an input. ‖A‖_2 is the largest
    singular value, by Lanczos' iteration with the convolution and its adjoint, to a relative 1e-8;
    ‖A‖_F counts how often each entry of the kernel meets a pixel and not the padding.
    """
    kernel = kernel.detach().double().cpu()
    inputs = (1, kernel.shape[1], *size)
    outputs = F.conv2d(torch.zeros(inputs, dtype=torch.float64), kernel, None, stride, padding)
    # The adjoint's adjoint: every output pixel asks once for each input pixel under its window.
    ones = torch.ones((1, 1, *size), dtype=torch.float64)
    met = torch.nn.grad.conv2d_weight(
        ones, (1, 1, *kernel.shape[2:]), torch.ones_like(outputs[:, :1]), stride, padding
    )
    frobenius = float(((kernel**2).sum((0, 1)) * met[0, 0]).sum().sqrt())
    shape = outputs.numel(), int(np.prod(inputs))

    def gram(vector: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(vector)).reshape(inputs)
        after = F.conv2d(image, kernel, None, stride, padding)
        return torch.nn.grad.conv2d_input(inputs, kernel, after, stride, padding).numpy().ravel()

    return _root_of_largest_eigenvalue(gram, shape[1]), frobenius, shape


def _largest_singular_value(matrix: Tensor) -> float:
    """Return ‖A‖_2: exactly where that is cheap, by Lanczos' iteration for large matrices."""
    if min(matrix.shape) <= 64:
        return float(torch.linalg.matrix_norm(matrix, 2))
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).numpy()
    return _root_of_largest_eigenvalue(lambda v: wide @ (wide.T @ v), len(wide))


def _root_of_largest_eigenvalue(gram, order: int) -> float:
    # A fixed start makes the result a function of the matrix alone.
    start = np.random.default_rng(0).standard_normal(order)
    if not np.any(gram(start)):
        return 0.0
    operator = LinearOperator((order, order), matvec=gram, dtype=np.float64)
    largest = eigsh(operator, 1, which="LA", v0=start, tol=1e-8, return_eigenvectors=False)
    return float(np.sqrt(max(0.0, largest[0])))


def homogeneity_defect(module: nn.Module, x: Tensor, degree: float, factor: float = 1.5) -> float:
    """Return ‖f(x; cW) - c^L f(x; W)‖ / ‖c^L f(x; W)‖ with c = `factor`, all trainable W scaled.

    0 for a network of that degree, on a float64 copy, in evaluation mode.
    """
    copied = deepcopy(module).double().cpu()
    x = x.detach().double().cpu()
    with in_mode(copied, training=False), torch.no_grad():
        expected = factor**degree * copied(x)
        for parameter in copied.parameters():
            parameter.mul_(factor if parameter.requires_grad else 1.0)
        found = copied(x)
    norm = torch.linalg.vector_norm
    return float(norm(found - expected) / norm(expected))


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
    module: nn.Module, x: Tensor, y: Tensor, loss: str = "cross_entropy", batch_size: int = 256
) -> State:
    """Return the `State` of a module on labelled images, in evaluation mode; restores the mode."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    device = next(iter(parameters.values())).device
    parts = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    parts = [(a.to(device), b.to(device)) for a, b in parts]
    with in_mode(module, training=False):
        with torch.no_grad():
            outputs = torch.cat([module(a) for a, _ in parts]).double()
        p = pairwise_margins(outputs, torch.cat([b for _, b in parts]))
        alpha, log_dual = named_loss(loss).smoothed_margin_and_log_duals(p)
        cosine = float("nan")
        if torch.finfo(torch.float32).eps * float(p.abs().max()) <= _RESOLVED:
            cosine = _cosine(module, list(parameters.values()), parts, log_dual.exp())
    centred = outputs - outputs.mean(1, keepdim=True) if outputs.shape[1] > 1 else outputs
    return State(
        true_margins(p).cpu().numpy(),
        float((centred**2).sum(1).mean().sqrt()),
        float(alpha),
        cosine,
        {n: w.detach().cpu().numpy().ravel().copy() for n, w in parameters.items()},
    )


def _cosine(module, parameters: list[Tensor], parts: list, dual: Tensor) -> float:
    """Return cos(W, Σ q_i ∇p_i)."""
    total, begin = [torch.zeros_like(w, dtype=torch.float64) for w in parameters], 0
    for a, b in parts:
        weighted = pairwise_margins(module(a), b)
        weights = dual[begin : begin + len(b)].to(weighted.dtype)
        begin += len(b)
        gradients = torch.autograd.grad((weighted * weights).sum(), parameters)
        total = [t + g for t, g in zip(total, gradients, strict=True)]
    w = np.concatenate([v.detach().cpu().double().numpy().ravel() for v in parameters])
    g = np.concatenate([v.cpu().numpy().ravel() for v in total])
    return diagnostics.alignment(w, g) if np.any(g) else float("nan")


def error_rate(module: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> float:
    """Return the share of images on whose label another class wins or ties, in evaluation mode."""
    device = next(module.parameters()).device
    with in_mode(module, training=False), torch.no_grad():
        outputs = torch.cat([module(part.to(device)).cpu() for part in x.split(batch_size)])
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
        run = training.train(module, train.x, train.y, settings, folder)
        return series(run, module, train, test, settings.loss)


def series(
    run: training.Run, module: nn.Module, train: Task, test: Task, loss: str = "cross_entropy"
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
    return diagnostics.angle(before.astype(float), after.astype(float))
