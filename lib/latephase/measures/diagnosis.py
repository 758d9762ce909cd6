"""`diagnose`: every late-phase measure of a network trained anywhere, at its present parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from latephase.measures.precision import COUPLED, alignment_error, without_statistics
from latephase.measures.spectral import empty_table, layer_table
from latephase.problem import kkt, vectors
from latephase.problem.batches import Batches, resolves_duals
from latephase.problem.checks import (
    DRIFTS,
    FALSE_GRADIENT,
    checked_count,
    checked_labels,
    finite_inputs,
    raise_on_contradiction,
)
from latephase.problem.culprit import coarsest_call
from latephase.problem.degree import Homogeneity, few_of, first_break, homogeneity
from latephase.problem.examples import adapted
from latephase.problem.generalized import KINK_TOL, checked_kink_tol, least_norm
from latephase.problem.lending import lent
from latephase.problem.losses import Loss, default_loss, pairwise_margins, true_margins
from latephase.problem.margins import Problem
from latephase.problem.modules import (
    cast_copy,
    checked_module,
    differentiating,
    first_outputs,
)
from latephase.problem.task import inputs_and_labels

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

    alignment_error: by how much rounding moves the alignment: what a change of all weights by
    their last bit does to that of the examples with the largest duals. missing: why, for each of
    the other fields that is None, NaN or infinite.
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
    alignment_error: float | None = None
    missing: dict[str, str] = field(default_factory=dict)

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
        if (self.alignment_error or 0.0) > 1e-6 * abs(self.alignment or 0.0):
            aligned += f" ± {self.alignment_error:.1g}"
        degree = "no degree" if self.degree is None else f"degree {self.degree:g}"
        return (
            f"<Diagnosis: {len(self.margins)} examples, training error {self.training_error:.3g}, "
            f"{degree}, smoothed margin {self.smoothed_margin:.6g}, alignment {aligned}>"
        )


@differentiating
def diagnose(
    module: torch.nn.Module,
    x: Any,
    y: Any = None,
    loss: str | Loss | Callable | None = None,
    degree: float | bool | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    kink_tol: float = KINK_TOL,
    *,
    dtype: torch.dtype | None = None,
    layers: bool = True,
    forward: Callable | None = None,
    inputs: str | list[str] | None = None,
) -> Diagnosis:
    """Return the `Diagnosis` of a module on data, on the module's own device.

    x, y: inputs [n, ...] and labels [n], in tensors, arrays, lists or tables; or alone, as x, a
    Task, or a Dataset, a DataLoader or other batches (x, y), read once into memory. Dictionaries of
    tensors do as x and as batches, the labels among them, under a name that y may say; `inputs`
    names the entries that the module takes as keywords (one name: as its argument), or `forward`,
    f(module, batch), calls it. loss None is the exponential loss for one output, cross-entropy for
    several; PyTorch's own objects and functions for these are taken, too. Of outputs in a container
    the logits are taken if there is one obvious choice.

    dtype None computes in the module's own precision, torch.float64 in a copy of that. Evaluates in
    evaluation mode; parameters, buffers, attributes, mode and x are afterwards as they were.

    degree None measures it on at most 64 examples, False does not; layers False leaves their table
    out. The gradient takes a second pass over the batches, whose weights are the dual variables of
    the first, so that it is that of the whole data set. batch_size None is 256, less for large
    inputs. progress None shows a bar on a terminal for what takes more than a second. kink_tol is
    that of `generalized_gradient`, whose least-norm gradient is taken, in float64, where a Jacobian
    of all margins and the kinks need at most 128 MiB each.

    Raises ValueError as `gradient_flow` does, except that a module need not be homogeneous and may
    have kinks that are not followed, and where outputs depend on the rest of the batch.

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
    module, x = adapted(module, x, forward, inputs)
    checked_module(module)
    if batch_size is not None:
        batch_size = checked_count("batch_size", batch_size)
    checked_kink_tol(kink_tol)
    if not isinstance(degree, bool | None) and not (isinstance(degree, Real) and 0 < degree < 1e3):
        raise ValueError(f"degree: expected a positive number, None or False, got {degree!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype: expected a floating torch.dtype, got {dtype!r}")
    x = finite_inputs(x)
    if dtype is not None or any(w.is_inference() for w in module.parameters()):
        own = next(w.dtype for w in module.parameters() if w.is_floating_point())
        module = cast_copy(module, dtype or own)
    with lent(module) as put_back:
        batches = Batches(module, x, batch_size, progress, put_back)
        loss, p, y = _margins(batches, y, loss)
        if degree is None or degree is True:
            few = batches.fed(slice(len(few_of(x))))
            found = homogeneity(module, few, batches.bar)
            if found.breaks and (call := first_break(module, few)):
                why = f"{found.why}; the first call that is not homogeneous is {call}"
                found = replace(found, why=why)
        elif degree is False:
            found = Homogeneity(None, math.nan, "it was not asked for")
        else:
            found = Homogeneity(float(degree), math.nan)
        table = layer_table(module, batches.bar) if layers else empty_table()
        return _diagnosis(batches, p, y, loss, found, table, kink_tol)


def _margins(batches: Batches, y: Tensor | np.ndarray, loss: object) -> tuple[Loss, Tensor, Tensor]:
    """Return the loss, the margins [n, ·] in the network's type, and the labels as checked."""
    module, x = batches.module, batches.x
    two = batches.fed(slice(0, 2))
    first = first_outputs(module, two)
    batches.put_back()
    eps, again = coarsest_call(module, two)
    batches.coarsest = max(batches.coarsest, eps)
    chosen = default_loss(loss, 1 if first.ndim == 1 else first.shape[1])
    y, outputs = checked_labels(y, first, len(x), chosen.name)
    raise_on_contradiction(x, y)
    out = batches.outputs()
    size = math.sqrt(torch.finfo(out.dtype).eps) * float(out.abs().max())
    if not float((again - first).abs().max()) <= size:
        raise ValueError(DRIFTS)
    if len(x) > 2 and not float((out[:2] - first).abs().max()) <= size:
        raise ValueError(
            f"{COUPLED}{without_statistics(module)}; margins of single examples are not defined"
        )
    p = pairwise_margins(out, y.to(out.device))
    return chosen, p.reshape(-1) if p.ndim == 2 and outputs == 2 else p, y


def _diagnosis(batches, p, y, loss, found, table, kink_tol) -> Diagnosis:
    margins = true_margins(p)
    # In float64: the sums over examples are not to add rounding to what the network's dtype has.
    wide = p.cpu().double()
    alpha = float(loss.smoothed_margin(wide))
    direction = batches.weights()
    norm, degree = float(np.linalg.norm(direction)), found.degree
    if not np.isfinite(norm) or norm == 0.0:
        raise ValueError(f"module: expected parameters of positive finite norm, got {norm}")
    shrink = None if degree is None else math.exp(-degree * math.log(norm))
    dual = error = None
    own: tuple = (None, None, None)
    least: dict = {"least_norm_missing": _UNRESOLVED}
    missing = {}
    if degree is None:
        missing = dict.fromkeys(_OF_A_DEGREE, "no degree") | {"degree": found.why}
    if math.isnan(found.defect):
        given = "the degree was given" if degree is not None else found.why
        missing["homogeneity_defect"] = given
    elif math.isinf(found.defect):
        missing["homogeneity_defect"] = f"infinite: {found.why}"
    if resolves_duals(p, batches.coarsest):
        q = loss.dual_variables(wide)
        dual = q.numpy()

        def stand(gradient: np.ndarray) -> tuple[float | None, ...]:
            """Return the alignment and the KKT residuals of a gradient of α."""
            if not np.any(gradient):
                return None, None, None
            alignment = vectors.alignment(direction, gradient)
            if shrink is None:
                return alignment, None, None
            unit = direction / norm, gradient * norm ** (1.0 - degree)
            return alignment, *kkt.kkt_residual(*unit, wide.numpy() * shrink, dual, degree)

        own = stand(batches.weighted_gradient(y, q))
        error, honest = alignment_error(batches, y, q, loss)
        least = _least_norm(batches, y, loss, dual, kink_tol, stand)
        if not honest:
            own, error = (None, None, None), None
            missing |= dict.fromkeys(("alignment", *_RESIDUALS), FALSE_GRADIENT)
        elif own[0] is None:
            missing["alignment"] = "the gradient is zero"
    else:
        missing |= dict.fromkeys(("alignment", "dual", *_RESIDUALS), _UNRESOLVED)
    alignment, stationarity, complementarity = own
    if stationarity is not None and math.isnan(stationarity):
        missing |= dict.fromkeys(_RESIDUALS, "not every margin is positive")
    return Diagnosis(
        smoothed_margin=alpha,
        log_norm=math.log(norm),
        normalized_margin=None if shrink is None else float(margins.min()) * shrink,
        normalized_smoothed_margin=None if shrink is None else alpha * shrink,
        alignment=alignment,
        alignment_error=error,
        kkt_stationarity=stationarity,
        kkt_complementarity=complementarity,
        margins=margins.cpu().double().numpy(),
        dual=dual,
        degree=degree,
        homogeneity_defect=found.defect,
        training_error=float((margins <= 0).cpu().double().mean()),
        layers=table,
        loss=loss.name,
        missing=missing,
        **least,
    )


_UNRESOLVED = "the dtype does not resolve the dual variables"
_RESIDUALS = ("kkt_stationarity", "kkt_complementarity")
_OF_A_DEGREE = ("normalized_margin", "normalized_smoothed_margin", *_RESIDUALS)
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


def _plain(value):
    """Return a value as JSON can hold it: lists for arrays, null for what is not finite."""
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
