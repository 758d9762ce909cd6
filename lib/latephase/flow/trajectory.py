"""The frozen result of following a flow: arrays over the recorded states, saved without pickle."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from latephase.files import plain_arrays, write_whole
from latephase.flow.state import State
from latephase.flow.tuning import TUNING
from latephase.problem import kkt, vectors
from latephase.problem.modules import differentiating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
# Series that earlier files do not have: zeros.
_OF_KINKS = {"active_kinks", "kink_distance", "branchings"}
_SCALARS = {"degree", "evaluations", "steps", "settings"}


@dataclass(frozen=True, eq=False)
class Record:
    """One recorded state: the fields of `Trajectory` of the same names, at its number `index`.

    direction [P], margins [n] and dual [n] or [n, k-1] are rows, all others floats.
    """

    index: int
    smoothed_margin: float
    log_norm: float
    log_time: float
    normalized_margin: float
    normalized_smoothed_margin: float
    raw_normalized_margin: float
    alignment: float
    kkt_stationarity: float
    kkt_complementarity: float
    path_length: float
    dual_gap: float
    active_kinks: float
    kink_distance: float
    branchings: float
    direction: np.ndarray = field(repr=False)
    margins: np.ndarray = field(repr=False)
    dual: np.ndarray = field(repr=False)


# What a trajectory holds one of for each record: first numbers, then rows.
RECORDED = tuple(f.name for f in dataclasses.fields(Record))[1:]
_SERIES = RECORDED[:-3]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """The recorded states of a gradient flow; float64 arrays whose first axis is the record.

    smoothed_margin              α = ℓ⁻¹(Σℓ(p))
    log_norm                     ln‖W‖
    log_time                     ln t, t the physical time of dW/dt = -∇R since the start
    normalized_margin            min_i p_i / ‖W‖^L
    normalized_smoothed_margin   α / ‖W‖^L; never falls from α = 2 on, before that within tol
    raw_normalized_margin        normalized_margin of the module as given; differs from it only
                                 where kinks were smoothed
    alignment                    cos(W, -∇R); 1 less it cancels: `misalignment` does not
    kkt_stationarity             ε of the (ε, δ) approximate KKT point (Lyu and Li 2019)
    kkt_complementarity          δ of the same
    path_length                  length of the curve W/‖W‖ since the start, radians
    dual_gap                     KL divergence of the carried dual variables from those of the
                                 computed margins; α exceeds its primal value by it
    active_kinks                 kinks along which the flow slides, 0 of a smooth module
    kink_distance                largest |z| on them, in units of its layer's root mean square
    branchings                   kinks that until then stopped sliding because either side had come
                                 to lead away: there the flow is not unique
    direction [records, P]       W/‖W‖
    margins   [records, n]       margins / ‖W‖^L; several classes: true logit minus largest other
    dual      [records, n] or [records, n, k-1]   dual variables q = ∂α/∂p
    log_dual  as one row of `dual`: ln q of the last state, from which `extend` continues
    degree, evaluations, steps, settings          scalars and dictionaries

    Equality and hash are the object's identity: whether two hold the same numbers is a question
    for `numpy.array_equal` of their fields. A copy through pickle is as a saved and loaded one.
    """

    smoothed_margin: np.ndarray
    log_norm: np.ndarray
    log_time: np.ndarray
    normalized_margin: np.ndarray
    normalized_smoothed_margin: np.ndarray
    raw_normalized_margin: np.ndarray
    alignment: np.ndarray
    kkt_stationarity: np.ndarray
    kkt_complementarity: np.ndarray
    path_length: np.ndarray
    dual_gap: np.ndarray
    active_kinks: np.ndarray
    kink_distance: np.ndarray
    branchings: np.ndarray
    direction: np.ndarray
    margins: np.ndarray
    dual: np.ndarray
    log_dual: np.ndarray
    degree: float
    evaluations: dict[str, int]
    steps: int
    settings: dict[str, Any]
    continuation: Callable[[Trajectory, float], Trajectory] | None = None

    def __repr__(self) -> str:
        alpha = self.smoothed_margin
        reached = f"α {alpha.min():.3g} to {alpha.max():.3g}, " if len(self) else ""
        return (
            f"Trajectory({len(self)} records, {reached}degree {self.degree:g}, "
            f"{self.direction.shape[-1]} parameters, {self.margins.shape[-1]} examples)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # The continuation holds the module and the loss, and either may refuse to be pickled.
        return self.__dict__ | {"continuation": None}

    def __copy__(self) -> Trajectory:
        return self.replace()

    def __deepcopy__(self, memo: dict) -> Trajectory:
        # The continuation is shared: each call of it makes a flow of its own.
        fields = {name: value for name, value in vars(self).items() if name != "continuation"}
        return self.replace(**copy.deepcopy(fields, memo))

    def __len__(self) -> int:
        return len(self.smoothed_margin)

    def record(self, index: int = -1) -> Record:
        """Return the record of that number, counted from the end where it is negative.

        Raises IndexError where there is none.
        """
        number = range(len(self))[index]
        found = {name: getattr(self, name)[number] for name in RECORDED}
        return Record(number, **(found | {name: float(found[name]) for name in _SERIES}))

    def at(self, alpha: float) -> Record:
        """Return the record whose smoothed margin is nearest to α = `alpha` in ln α.

        Raises ValueError for an α that the records, each within a thousandth, do not reach.
        """
        positive = np.maximum(self.smoothed_margin, np.finfo(float).tiny)
        first, last = self.smoothed_margin.min(), self.smoothed_margin.max()
        within = (first / (1.0 + TUNING.landing), last * (1.0 + TUNING.landing))
        number = np.ndim(alpha) == 0 and isinstance(alpha, (int, float, np.number))
        if not number or alpha <= 0.0 or not within[0] <= alpha <= within[1]:
            raise ValueError(
                f"at: expected a positive smoothed margin that the {len(self)} records reach, from "
                f"{first:.6g} to {last:.6g}, got {alpha!r}"
            )
        return self.record(int(np.argmin(np.abs(np.log(positive) - np.log(alpha)))))

    @property
    def misalignment(self) -> np.ndarray:
        """1 - cos(W, -∇R) [records], as ½‖Ŵ - ĝ‖² from ε, which does not cancel.

        1 - `alignment` while some margin is not positive, where ε is NaN.
        """
        root = np.maximum(self.normalized_margin, 0.0) ** (1.0 / self.degree)
        apart = 0.5 * (self.kkt_stationarity * root) ** 2
        return np.where(np.isnan(apart), 1.0 - self.alignment, apart)

    @differentiating
    def extend(self, until: float) -> Trajectory:
        """Return the trajectory continued to smoothed margin `until`.

        Raises ValueError for a trajectory that was loaded or unpickled, which holds no module.
        """
        if self.continuation is None:
            raise ValueError(
                "extend: this trajectory holds no module and data (it was loaded from a file or "
                "unpickled); run gradient_flow with the larger `until` instead"
            )
        return self.continuation(self, until)

    def write_to(
        self, module: torch.nn.Module, record: int = -1, normalized: bool = False
    ) -> torch.nn.Module:
        """Return `module` with its trainable parameters set to the recorded W in place.

        normalized=True writes W/‖W‖ instead. Raises ValueError when the module has another number
        of parameters, or when W does not fit into its dtype.
        """
        parameters = [w for w in module.parameters() if w.requires_grad]
        sizes = [w.numel() for w in parameters]
        count = sum(sizes)
        if count != self.direction.shape[1]:
            raise ValueError(
                f"write_to: expected a module with {self.direction.shape[1]} trainable "
                f"parameters, got {count}"
            )
        log_norm = 0.0 if normalized else float(self.log_norm[record])
        limit = min(float(np.log(torch.finfo(w.dtype).max)) for w in parameters)
        if log_norm >= limit:
            raise ValueError(
                f"write_to: ln‖W‖ = {log_norm:.4g} does not fit into the module's dtype (at most "
                f"{limit:.4g}); pass normalized=True"
            )
        parts = torch.from_numpy(np.exp(log_norm) * self.direction[record]).split(sizes)
        with torch.no_grad():
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.copy_(part.reshape(parameter.shape))
        return module

    def plot(self) -> Figure:
        """Return a figure of α/‖W‖^L and of the misalignment against α; needs the extra `plot`."""
        from latephase.figures.plots import trajectory_summary

        return trajectory_summary(self)

    def to_dataframe(self) -> pd.DataFrame:
        """Return the scalar series, one row a record, one column a field."""
        return pd.DataFrame({name: getattr(self, name) for name in _SERIES})

    def save(self, path: str | os.PathLike) -> None:
        """Write a compressed .npz without pickle; the file appears whole or not at all.

        Raises OSError naming the path where the file system refuses.
        """
        arrays = {name: getattr(self, name) for name in (*RECORDED, "log_dual")}
        scalars = {"format": FORMAT} | {name: getattr(self, name) for name in sorted(_SCALARS)}
        arrays["scalars"] = np.array(json.dumps(scalars))
        write_whole(path, lambda stream: np.savez_compressed(stream, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trajectory:
        """Return the trajectory saved at `path`; raises ValueError if it is not one."""
        wanted = {"scalars", "log_dual", *RECORDED}
        arrays = plain_arrays(Path(path), wanted - _OF_KINKS, _OF_KINKS)
        for name in _OF_KINKS - arrays.keys():
            arrays[name] = np.zeros(len(arrays["smoothed_margin"]))
        try:
            scalars = json.loads(str(arrays.pop("scalars")))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not a trajectory: its scalars are no JSON") from error
        version = scalars.pop("format", None) if isinstance(scalars, dict) else None
        if version != FORMAT:
            raise ValueError(
                f"{path}: trajectory of another format, {version!r}; this version of latephase "
                f"reads format {FORMAT}"
            )
        if set(scalars) != _SCALARS:
            raise ValueError(
                f"{path}: not a trajectory: expected the scalars {sorted(_SCALARS)}, "
                f"got {sorted(scalars)}"
            )
        return cls(**arrays, **scalars)

    def replace(self, **changes: Any) -> Trajectory:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def trajectory_of(
    states: list[State],
    degree: float,
    raw_margins: Callable[[np.ndarray], np.ndarray] | None = None,
    **rest: Any,
) -> Trajectory:
    """Return the trajectory through states, of a flow or of descent, for a module of a degree L.

    raw_margins: the margins of the module as given at a unit direction, where its kinks were
    smoothed. rest: evaluations, steps, settings and continuation.
    """
    rows = []
    for state in states:
        q = np.exp(state.log_dual)
        margins = state.p if state.p.ndim == 1 else state.p.min(1)
        raw = margins if raw_margins is None else raw_margins(state.direction)
        residuals = kkt.kkt_residual(state.direction, state.gradient, state.p, q, degree)
        rows.append(
            {
                "smoothed_margin": state.smoothed_margin,
                "log_norm": state.log_norm,
                "log_time": state.log_time,
                "normalized_margin": float(margins.min()),
                "normalized_smoothed_margin": state.normalized_smoothed_margin,
                "raw_normalized_margin": float(raw.min()),
                "alignment": vectors.alignment(state.direction, state.gradient),
                "kkt_stationarity": residuals[0],
                "kkt_complementarity": residuals[1],
                "path_length": state.path_length,
                "dual_gap": state.dual_gap,
                "active_kinks": float(state.active_kinks),
                "kink_distance": state.kink_distance,
                "branchings": float(state.branchings),
                "direction": state.direction,
                "margins": margins,
                "dual": q,
            }
        )
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Trajectory(**columns, log_dual=states[-1].log_dual, degree=degree, **rest)


def largest_drop(normalized_smoothed_margin: np.ndarray) -> float:
    """Return the largest relative drop max_k (γ̃_k - γ̃_{k+1})/|γ̃_k|, 0 if γ̃ never falls.

    Along the flow of a homogeneous network γ̃ = α/‖W‖^L never falls once α > 0 (Lyu and Li 2019).
    The series [steps] is read from its first positive value on; a fall below zero is a drop of
    more than 1. +inf if fewer than two values are left.
    """
    series = np.asarray(normalized_smoothed_margin, dtype=float)
    late = series[np.argmax(series > 0) :] if (series > 0).any() else series[:0]
    if len(late) < 2:
        return float("inf")
    return max(0.0, float(np.max((late[:-1] - late[1:]) / np.abs(late[:-1]))))
