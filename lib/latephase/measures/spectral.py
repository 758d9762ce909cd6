"""The table of a network's weights: norms, and how adjacent ones stand to each other.

Small matrices are decomposed; of large ones Lanczos' iteration finds what is extreme, from products
with the matrix alone, and stops at a certified gap: with the residual r of an eigenvalue θ and its
distance d to the next, the true one lies within min(‖r‖, ‖r‖²/d), its vector within ‖r‖/d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn
from tqdm import tqdm

from latephase.measures import layers

COLUMNS = [
    "layer",
    "shape",
    "frobenius_norm",
    "spectral_norm",
    "spectral_ratio",
    "alignment_with_next",
    "imbalance_with_next",
]
# Up to this smaller side a decomposition is as fast.
_SMALL = 256
# Relative gap of a squared norm and of an imbalance, error of a vector, and steps at most.
_GAP, _COARSE_GAP, _TURN, _STEPS = 1e-5, 1e-3, 0.05, 200


def layer_table(module: nn.Module, bar: dict | None = None) -> pd.DataFrame:
    """Return the table of trainable weights of two or more axes, kernels as [out, rest].

    The imbalance is ‖W₊ᵀW₊ - W Wᵀ‖_2 / ‖W‖_F². It and alignment_with_next are NaN where the shapes
    do not compose, the alignment also where Lanczos' iteration does not tell the top singular
    vectors from the next to 0.1; ratio, vectors and imbalance of a zero weight are NaN. Norms of
    matrices with both sides above 256 are right to a relative 1e-5, their imbalances to 1e-3. bar:
    options of a bar to show.
    """
    trained = [(n, w) for n, w in module.named_parameters() if w.requires_grad]
    named = [(n, w) for n, w in trained if w.ndim >= 2 and w.numel()]
    rows: list[dict] = []
    lower: tuple[Tensor, _Top] | None = None
    for name, w in tqdm(named, desc="layers", **(bar or {"disable": True})):
        matrix = _matrix(w)
        top = _top_singular(matrix)
        norm = float(torch.linalg.vector_norm(matrix, dtype=matrix.dtype).double())
        if lower is not None and w.ndim == 2 and matrix.shape[1] == len(lower[0]):
            rows[-1] |= _beside(*lower, matrix, top, rows[-1]["frobenius_norm"])
        row = {"layer": name, "shape": tuple(w.shape), "frobenius_norm": norm}
        row |= {"spectral_norm": top.value, "spectral_ratio": top.value / (norm or math.nan)}
        rows.append(row | {"alignment_with_next": math.nan, "imbalance_with_next": math.nan})
        lower = (matrix, top) if w.ndim == 2 else None
    return pd.DataFrame(rows, columns=COLUMNS)


def empty_table() -> pd.DataFrame:
    """Return the table of no weights."""
    return pd.DataFrame(columns=COLUMNS)


@dataclass(frozen=True)
class _Top:
    """The largest singular value, its unit vectors [out], [in], and the error of the first."""

    value: float
    left: Tensor
    right: Tensor
    turn: float = 0.0


def _matrix(weight: Tensor) -> Tensor:
    """Return a weight as [out, rest], in float64, or float32 if it is large and of that type."""
    matrix = weight.detach().reshape(len(weight), -1)
    if min(matrix.shape) <= _SMALL or matrix.dtype == torch.float64:
        return matrix.cpu().double()
    return matrix.float()


def _top_singular(matrix: Tensor) -> _Top:
    if min(matrix.shape) <= _SMALL:
        value, left, right = layers.top_singular(matrix.numpy())
        return _Top(value, torch.from_numpy(left), torch.from_numpy(right))
    size = torch.linalg.vector_norm(matrix)
    if not 0.0 < float(size) < math.inf:
        value, left, right = layers.top_singular(np.full((1, 1), float(size)))
        return _Top(value, matrix.new_full((len(matrix),), math.nan), matrix[0] * math.nan)
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    square, short, turn = _largest(lambda v: wide @ (wide.T @ v), wide[:, 0], _GAP, _TURN)
    image = wide.T @ short
    pair = short, image / torch.linalg.vector_norm(image)
    left, right = pair if wide is matrix else pair[::-1]
    return _Top(math.sqrt(abs(square)), left, right, turn)


def _beside(lower: Tensor, below: _Top, upper: Tensor, above: _Top, norm: float) -> dict:
    """Return alignment and imbalance of neighbouring weights lower [m, d] and upper [h, m]."""
    resolved = max(below.turn, above.turn) <= 2.0 * _TURN
    aligned = float(abs(above.right.double().cpu() @ below.left.double().cpu()))
    if len(lower) <= _SMALL:
        difference = layers.balancedness(lower.double().cpu().numpy(), upper.double().cpu().numpy())
    else:
        # Of other types where one of them is small.
        a, b = (
            (lower, upper.to(lower)) if lower.numel() > upper.numel() else (lower.to(upper), upper)
        )
        difference = abs(_largest(lambda v: b.T @ (b @ v) - a @ (a.T @ v), a[:, 0], _COARSE_GAP)[0])
    return {
        "alignment_with_next": aligned if resolved else math.nan,
        "imbalance_with_next": difference / norm**2 if norm else math.nan,
    }


def _largest(
    apply: Callable[[Tensor], Tensor], like: Tensor, gap: float, turn: float = math.inf
) -> tuple[float, Tensor, float]:
    """Return the eigenvalue of largest size of a symmetric map, its vector, and that one's error.

    like: a tensor [order] of the type and on the device of the vectors. The iteration stops where
    the value is certain to a relative `gap` and the vector to `turn`, or after _STEPS.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
    basis = like.new_empty(min(_STEPS, len(like)) + 1, len(like))
    basis[0] = start / torch.linalg.vector_norm(start)
    diagonal, beside = [], []
    for step in range(len(basis) - 1):
        after = apply(basis[step])
        diagonal.append(float(after @ basis[step]))
        done = basis[: step + 1]
        for _ in range(2):
            after = after - done.T @ (done @ after)
        beside.append(float(torch.linalg.vector_norm(after)))
        scale = max(map(abs, diagonal))
        ended = beside[-1] <= 1e-14 * scale or step == len(basis) - 2
        if ended or step % 5 == 4:
            values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside[:-1]))
            top = int(np.argmax(np.abs(values)))
            others = np.delete(values, top)
            apart = np.abs(others - values[top]).min(initial=math.inf)
            residual = beside[-1] * abs(vectors[-1, top])
            off = residual / apart if apart else math.inf
            if ended or (residual * min(1.0, off) <= gap * abs(values[top]) and off <= turn):
                break
        basis[step + 1] = after / beside[-1]
    coefficients = torch.from_numpy(vectors[:, top].copy()).to(basis)
    return float(values[top]), done.T @ coefficients, off
