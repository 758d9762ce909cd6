"""`diagnose`: every late-phase measure of a network trained anywhere, at its present parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from latephase.measures import layers
from latephase.problem import kkt, vectors
from latephase.problem.batches import BATCH, Batches, resolves_duals
from latephase.problem.checks import checked_inputs, checked_labels, raise_on_contradiction
from latephase.problem.degree import homogeneity_degree
from latephase.problem.generalized import KINK_TOL, least_norm
from latephase.problem.losses import Loss, default_loss, pairwise_margins, true_margins
from latephase.problem.margins import Problem
from latephase.problem.modules import checked_module, lent
from latephase.problem.task import Task, inputs_and_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """The scalars of a `Trajectory` at one state; None where the theory has no such quantity.

    None without a degree of homogeneity: normalized_margin, normalized_smoothed_margin and the
    KKT residuals. None where the dtype does not resolve the dual variables, ε·max|p| > 0.01:
    alignment, dual and the KKT residuals. margins [n] are those of W itself; `layers` has a row
    for each weight of two or more axes. alignment is cos(W, -∇R) over the whole data; `loss` is its
    name. Two are equal only if they are one object.

    Near kinks the gradient is PyTorch's own choice; the fields least_norm_... are the same with the
    least-norm gradient over the gates of the `active_kinks` (`generalized_gradient`). None where
    that was not computed, and least_norm_missing then says why; it is empty otherwise.
    """

    smoothed_margin: float
    log_norm: float
    normalized_margin: float | None
    normalized_smoothed_margin: float | None
    alignment: float | None
    kkt_stationarity: float | None
    kkt_complementarity: float | None
    margins: np.ndarray
    dual: np.ndarray | None
    degree: float | None
    homogeneity_defect: float
    training_error: float
    layers: pd.DataFrame
    loss: str
    active_kinks: int | None = None
    least_norm_alignment: float | None = None
    least_norm_kkt_stationarity: float | None = None
    least_norm_kkt_complementarity: float | None = None
    least_norm_missing: str = ""

    @property
    def raw_margins(self) -> np.ndarray:
        """The margins [n] of W itself, as `margins`."""
        return self.margins

    @property
    def normalized_margins(self) -> np.ndarray | None:
        """The margins over ‖W‖^L [n], as a row of `Trajectory.margins`; None without a degree."""
        if self.degree is None:
            return None
        return self.margins * math.exp(-self.degree * self.log_norm)

    def to_json(self) -> str:
        """Return all fields as strict JSON (RFC 8259): null where undefined, infinite or NaN."""
        row = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        row["layers"] = [
            {name: _plain(value) for name, value in one.items()}
            for one in self.layers.to_dict("records")
        ]
        return json.dumps(row, indent=1, ensure_ascii=False, allow_nan=False)

    def plot(self) -> Figure:
        """Return a figure of the sorted margins and the ratios of the layers' norms.

        Needs the extra `plot`.
        """
        from latephase.figures import plots

        return plots.diagnosis_summary(self)

    def __repr__(self) -> str:
        aligned = "undefined" if self.alignment is None else f"{self.alignment:.6g}"
        degree = "no degree" if self.degree is None else f"degree {self.degree:g}"
        return (
            f"<Diagnosis: {len(self.margins)} examples, training error {self.training_error:.3g}, "
            f"{degree}, smoothed margin {self.smoothed_margin:.6g}, alignment {aligned}>"
        )


def diagnose(
    module: torch.nn.Module,
    x: Tensor | np.ndarray | Task,
    y: Tensor | np.ndarray | None = None,
    loss: str | Loss | Callable | None = None,
    degree: float | None = None,
    batch_size: int = BATCH,
    progress: bool | None = None,
    kink_tol: float = KINK_TOL,
) -> Diagnosis:
    """Return the `Diagnosis` of a module on data, on the module's own device and dtype.

    x, y: inputs [n, ...] and labels [n]; or a Task for x, and no y. loss None is the exponential
    loss for one output, cross-entropy for several.

    Evaluates in evaluation mode and restores the mode. degree None measures it on a float64 copy.
    The gradient takes a second pass over the batches, whose weights are the dual variables of the
    first, so that it is that of the whole data set. progress None shows a bar on a terminal when
    there are more than 20 batches. kink_tol is that of `generalized_gradient`, whose least-norm
    gradient is taken, in float64, where a Jacobian of all margins and the kinks need at most
    128 MiB each.

    Raises ValueError as `gradient_flow` does, except that a module need not be homogeneous and may
    have kinks that are not followed.

    >>> import numpy as np, torch, latephase
    >>> x = np.array([[0.5, 1.5], [1.5, 0.5], [-0.5, -1.5], [-1.5, -0.5]])
    >>> y = np.array([1, 1, -1, -1])
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> model.weight.data[:] = 3.0
    >>> found = latephase.diagnose(model, x, y, "logistic")
    >>> print(found.degree, round(found.normalized_margin, 6), round(found.alignment, 6))
    1.0 1.414214 1.0
    """
    x, y = inputs_and_labels(x, y)
    checked_module(module)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive integer, got {batch_size!r}")
    x = checked_inputs(x)
    measured, defect = (degree, math.nan) if degree is not None else homogeneity_degree(module, x)
    with lent(module) as put_back:
        batches = Batches(module, x, batch_size, progress, put_back)
        first = batches.outputs_of(slice(0, 2))
        loss = default_loss(loss, 1 if first.ndim == 1 else first.shape[1])
        y, outputs = checked_labels(y, first, len(x), loss.name)
        raise_on_contradiction(x, y)
        p = pairwise_margins(batches.outputs(), y.to(batches.like.device))
        if p.ndim == 2 and outputs == 2:
            p = p.reshape(-1)
        return _diagnosis(batches, p, y, loss, measured, defect, kink_tol)


def _diagnosis(batches, p, y, loss, degree, defect, kink_tol) -> Diagnosis:
    margins = true_margins(p)
    # In float64: the sums over examples are not to add rounding to what the network's dtype has.
    wide = p.double()
    alpha = float(loss.smoothed_margin(wide))
    direction = batches.weights()
    norm = float(np.linalg.norm(direction))
    if not np.isfinite(norm) or norm == 0.0:
        raise ValueError(f"module: expected parameters of positive finite norm, got {norm}")
    shrink = None if degree is None else math.exp(-degree * math.log(norm))
    dual = None
    own: tuple = (None, None, None)
    least: dict = {"least_norm_missing": "the dtype does not resolve the dual variables"}
    if resolves_duals(p, p.dtype):
        q = loss.dual_variables(wide)
        dual = q.cpu().numpy()

        def stand(gradient: np.ndarray) -> tuple[float | None, ...]:
            """Return the alignment and the KKT residuals of a gradient of α."""
            if not np.any(gradient):
                return None, None, None
            alignment = vectors.alignment(direction, gradient)
            if shrink is None:
                return alignment, None, None
            unit = direction / norm, gradient * norm ** (1.0 - degree)
            return alignment, *kkt.kkt_residual(*unit, wide.cpu().numpy() * shrink, dual, degree)

        own = stand(batches.weighted_gradient(y, q))
        least = _least_norm(batches, y, loss, dual, kink_tol, stand)
    alignment, stationarity, complementarity = own
    return Diagnosis(
        smoothed_margin=alpha,
        log_norm=math.log(norm),
        normalized_margin=None if shrink is None else float(margins.min()) * shrink,
        normalized_smoothed_margin=None if shrink is None else alpha * shrink,
        alignment=alignment,
        kkt_stationarity=stationarity,
        kkt_complementarity=complementarity,
        margins=margins.double().cpu().numpy(),
        dual=dual,
        degree=degree,
        homogeneity_defect=defect,
        training_error=float((margins <= 0).double().mean()),
        layers=_layers(batches.module),
        loss=loss.name,
        **least,
    )


# Bytes of a Jacobian of all margins, to which what the least norm takes is comparable.
_LEAST_NORM_BYTES = 2**27


def _least_norm(batches, y, loss, dual, kink_tol, stand) -> dict:
    """Return the fields of the least-norm gradient, or why they are missing."""
    size = 8 * dual.size * sum(w.numel() for w in batches.parameters)
    if size > _LEAST_NORM_BYTES:
        return {
            "least_norm_missing": f"a Jacobian of {dual.size} margins needs {size} bytes, more "
            f"than the {_LEAST_NORM_BYTES} up to which kinks are looked for"
        }
    try:
        problem = Problem(batches.module, batches.x, y, loss, _LEAST_NORM_BYTES)
        found = least_norm(problem, None, kink_tol, dual)
    except (ValueError, RuntimeError) as error:
        return {"least_norm_missing": str(error)}
    fields = ("alignment", "kkt_stationarity", "kkt_complementarity")
    row = {f"least_norm_{n}": v for n, v in zip(fields, stand(found.gradient), strict=True)}
    missing = "" if np.any(found.gradient) else "the least-norm gradient is zero"
    return {"active_kinks": found.active, **row, "least_norm_missing": missing}


_LAYER_COLUMNS = [
    "layer",
    "shape",
    "frobenius_norm",
    "spectral_norm",
    "spectral_ratio",
    "alignment_with_next",
    "imbalance_with_next",
]


def _layers(module: torch.nn.Module) -> pd.DataFrame:
    """Return the table of weights: norms, ratio of norms, alignment and balance with the next.

    alignment_with_next and imbalance_with_next are NaN where the shapes do not compose. The
    imbalance is ‖W₊ᵀW₊ - W Wᵀ‖_2 / ‖W‖_F². Ratio, vectors and imbalance of a zero weight are NaN.
    """
    weights = {
        name: w.detach().double().cpu().numpy()
        for name, w in module.named_parameters()
        if w.ndim >= 2 and w.requires_grad
    }
    # Kernels as [out, rest].
    tops = [layers.top_singular(weight.reshape(len(weight), -1)) for weight in weights.values()]
    rows, pairs = [], [*zip(weights.values(), tops, strict=True), (None, None)]
    for (name, w), top, (upper, above) in zip(weights.items(), tops, pairs[1:], strict=True):
        row = {"layer": name, "shape": tuple(w.shape), "frobenius_norm": float(np.linalg.norm(w))}
        norm = row["frobenius_norm"] or math.nan
        row |= {"spectral_norm": top[0], "spectral_ratio": top[0] / norm}
        row |= {"alignment_with_next": math.nan, "imbalance_with_next": math.nan}
        if upper is not None and w.ndim == upper.ndim == 2 and upper.shape[1] == len(w):
            row["alignment_with_next"] = float(abs(above[2] @ top[1]))
            row["imbalance_with_next"] = layers.balancedness(w, upper) / norm**2
        rows.append(row)
    return pd.DataFrame(rows, columns=_LAYER_COLUMNS)


def _plain(value):
    """Return a value as JSON can hold it: lists for arrays, null for what is not finite."""
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
