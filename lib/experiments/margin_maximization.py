"""The largest margin of any network of squared ReLUs, by linear programming, and a bound on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog


def circle_masses(vectors: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the sum of ‖w_j‖² over the vectors [m, 2] whose angle lies in each bin, [bins].

    edges [bins + 1]: ascending angles in radians that cover the circle once, from any angle on.
    """
    angles = np.arctan2(vectors[:, 1], vectors[:, 0])
    turned = (angles - edges[0]) % (2.0 * np.pi) + edges[0]
    return np.histogram(turned, bins=edges, weights=(vectors**2).sum(axis=1))[0]


@dataclass(frozen=True, eq=False)
class VariationMargin:
    """Solution of `variation_margin`: mass [2, k] of the neurons +, -; dual [n]; both sum to 1."""

    margin: float
    mass: np.ndarray
    dual: np.ndarray


def variation_margin(x, y, directions) -> VariationMargin:
    """Return the largest margin of infinitely many squared ReLUs with the given directions.

    A network Φ = Σ_j s_j relu(⟨w_j, x⟩)², s_j = ±1, ‖W‖² = Σ ‖w_j‖², is linear in the masses
    m_j = ‖w_j‖²: Φ = Σ_j s_j m_j relu(⟨d_j, x⟩)², d_j = w_j/‖w_j‖. Hence the linear program

        max t  subject to  y_i Σ_{s,k} s m_{sk} relu(⟨d_k, x_i⟩)² ≥ t,  Σ m = 1,  m ≥ 0,

    whose value, over all directions d, is the global maximum of min_i p_i over ‖W‖ = 1 for
    networks of any width (the margin in variation, or F1, norm). directions: [k, d], scaled to
    unit length here. With a finite grid the value is a lower bound; it is recomputed from the
    masses, so that it holds whatever the simplex method's rounding. It may be negative.
    Raises ValueError for arrays that do not fit together or are not finite.
    """
    x, y, d = (np.asarray(array, dtype=np.float64) for array in (x, y, directions))
    shapes = [list(array.shape) for array in (x, y, d)]
    if x.ndim != 2 or y.shape != (len(x),) or d.ndim != 2 or d.shape[1] != x.shape[1]:
        raise ValueError(f"expected x [n, d], y [n] and directions [k, d], got shapes {shapes}")
    lengths = np.linalg.norm(d, axis=1, keepdims=True)
    if not (np.isfinite(x).all() and set(y.tolist()) <= {-1.0, 1.0} and (lengths > 0).all()):
        raise ValueError("expected finite x, labels -1 and +1, and directions other than 0")
    features = y[:, None] * np.maximum(x @ (d / lengths).T, 0.0) ** 2
    features = np.hstack([features, -features])
    count = features.shape[1]
    solved = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.hstack([-features, np.ones((len(x), 1))]),
        b_ub=np.zeros(len(x)),
        A_eq=np.append(np.ones(count), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0.0, None)] * count + [(None, None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solved.status != 0:
        raise RuntimeError(f"the linear program was not solved: {solved.message}")
    mass = np.maximum(solved.x[:-1], 0.0)
    mass /= mass.sum()
    dual = np.maximum(-solved.ineqlin.marginals, 0.0)
    return VariationMargin(float((features @ mass).min()), mass.reshape(2, -1), dual / dual.sum())


def planar_variation_bound(x, y, dual) -> float:
    """Return max over all unit d of |Σ q_i y_i relu(⟨d, x_i⟩)²|, exactly; x [n, 2], q = `dual`.

    By duality an upper bound on the margin of every network of `variation_margin`, whatever
    q ≥ 0, Σq = 1: the margin is at most a weighted mean of margins, which is linear in the masses.
    Between the directions at which an example switches on or off the function is dᵀAd,
    A = Σ_{on} q_i y_i x_i x_iᵀ, whose extrema are eigenvectors; all are tried.
    """
    x, y, q = (np.asarray(array, dtype=np.float64) for array in (x, y, dual))
    shapes = [list(array.shape) for array in (x, y, q)]
    if x.ndim != 2 or x.shape[1] != 2 or y.shape != (len(x),) or q.shape != y.shape:
        raise ValueError(f"expected x [n, 2], y [n] and dual [n], got shapes {shapes}")
    if not (q.min() >= 0.0 and abs(q.sum() - 1.0) < 1e-9):
        raise ValueError(f"dual: expected q ≥ 0 with sum 1, got {q.min():g} and {q.sum():.9g}")
    angles = np.arctan2(x[:, 1], x[:, 0])
    switches = np.sort(np.concatenate([angles - np.pi / 2, angles + np.pi / 2]) % (2 * np.pi))
    middles = 0.5 * (switches + np.append(switches[1:], switches[0] + 2 * np.pi))
    on = np.stack([np.cos(middles), np.sin(middles)], axis=1) @ x.T > 0.0
    weighted = (q * y)[:, None, None] * x[:, :, None] * x[:, None, :]
    vectors = np.linalg.eigh(np.einsum("ai,ijk->ajk", on, weighted))[1]
    vectors = vectors.swapaxes(1, 2).reshape(-1, 2)
    edges = np.stack([np.cos(switches), np.sin(switches)], axis=1)
    tried = np.concatenate([vectors, -vectors, edges])
    return float(np.abs(np.maximum(tried @ x.T, 0.0) ** 2 @ (q * y)).max())
