"""Vectors of weights: unit vectors, angles without cancellation, lengths of paths on the sphere.

Lengths and angles are in radians.
"""

from __future__ import annotations

import numpy as np
import torch

# Entries that are divided at a time: of more, copies take longer than the arithmetic.
_PIECE = 2**20


def unit(vector: np.ndarray) -> np.ndarray:
    """Return v / ‖v‖; raises ValueError for v = 0 or a norm that is not finite."""
    return vector / _norm(vector)


def _norm(vector: np.ndarray) -> float:
    norm = length(vector)
    if not 0.0 < norm < np.inf:
        raise ValueError(f"expected a vector of positive finite norm, got norm {norm}")
    return norm


def length(vector: np.ndarray) -> float:
    """Return ‖v‖, also where the squares of its entries leave float64."""
    largest = max(float(vector.max(initial=0.0)), -float(vector.min(initial=0.0)))
    if 1e-140 < largest < 1e140 or largest in (0.0, np.inf):
        return float(np.linalg.norm(vector))
    return largest * float(np.linalg.norm(vector / largest))


def arc(chord: np.ndarray | float) -> np.ndarray | float:
    """Return 2 asin(c/2), the angle between unit vectors at distance c; accurate for small c."""
    return 2.0 * np.arcsin(np.minimum(1.0, 0.5 * chord))


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """Return the angle between two vectors."""
    return float(arc(np.linalg.norm(unit(a) - unit(b))))


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner products [m] of the rows of a [m, P] and of b."""
    return np.einsum("ij,ij->i", a, b)


def norms(v: np.ndarray) -> np.ndarray:
    """Return the lengths [m] of the rows of v [m, P], whose squares stay within float64."""
    return np.sqrt(dots(v, v))


def alignment(w: np.ndarray, gradient: np.ndarray) -> float:
    """Return cos(W, ∇α), equal to cos(W, -∇R)."""
    a, b = _norm(w), _norm(gradient)
    pieces = [slice(i, i + _PIECE) for i in range(0, len(w), _PIECE)]
    return sum(float((w[rows] / a) @ (gradient[rows] / b)) for rows in pieces)


def misalignment(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1 - cos of the angle between two vectors, as ½‖â - b̂‖², which does not cancel."""
    return 0.5 * float(np.sum((unit(a) - unit(b)) ** 2))


def path_length(directions: np.ndarray) -> np.ndarray:
    """Return the length [records] of the polygon through directions [records, P] up to each.

    Each piece is the angle between successive unit vectors, a lower bound on the curve's.
    """
    chords = np.linalg.norm(np.diff(directions, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(arc(chords))])


def slots(owner: np.ndarray, owners: int) -> tuple[np.ndarray, int]:
    """Return where each row stands if every owner has room for as many, and how many those are.

    owner: whose each row is, of 0 to owners - 1.
    """
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=owners)
    width = int(counts.max())
    place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner[order]]
    found = np.empty_like(order)
    found[order] = owner[order] * width + place
    return found, width


def root_mean_square(array: np.ndarray) -> float:
    """Return √(mean of squares), 0 of no numbers."""
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array, without its graph and from any device."""
    return tensor.detach().cpu().numpy()
