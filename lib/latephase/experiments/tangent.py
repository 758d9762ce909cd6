"""Neural-tangent predictors: maximum margin in the features ∂Φ/∂W at a fixed W.

What a network would converge to if its features stayed those of its start: the comparison for
trained networks, whose features move.
"""

from __future__ import annotations

import numpy as np
import torch

from latephase.measures.max_margin import hard_margin
from latephase.problem.margins import Problem
from latephase.problem.vectors import unit


def tangent_features(module: torch.nn.Module, x: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return ∂Φ(x_i; W)/∂W at the module's parameters, [n, P]; one output, x [n, ...]."""
    problem = Problem(module, x, np.ones(len(x)))
    if problem.pairs != 1:
        raise ValueError(f"module: expected one output, got {problem.classes}")
    return problem.jacobian(problem.w0)


def tangent_predictor(module: torch.nn.Module, x, y, points) -> np.ndarray:
    """Return ⟨v, ∂Φ(·; W)/∂W⟩ at `points` [m], v of norm one with the largest margin on x, y.

    The limit of the flow of the network linearized at its parameters, up to a positive factor.
    """
    weights, _ = hard_margin(tangent_features(module, x), y)
    return tangent_features(module, points) @ weights


def kernel_predictor(gram: np.ndarray, y: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Return the values [m] of the maximum-margin function of a kernel, of norm one.

    gram: k(x_i, x_j) [n, n]; cross: k(point, x_j) [m, n]. Directions in which the Gram matrix is
    below 1e-12 of its largest eigenvalue are left out.
    """
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    weights, _ = hard_margin(vectors * np.sqrt(values), y)
    return cross @ (vectors @ (weights / np.sqrt(values)))


def squared_relu_tangent_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the tangent kernel of infinitely many squared ReLUs with fixed outer weights.

    ⟨a, b⟩ · E[relu⟨w, a⟩ relu⟨w, b⟩] over standard Gaussian w, up to a factor: a [m, d], b [n, d].
    The expectation is the arc-cosine kernel of order one,
    ‖a‖‖b‖ (sin t + (π - t) cos t)/(2π) with t the angle between a and b.
    """
    inner = a @ b.T
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    cosine = np.clip(inner / lengths, -1.0, 1.0)
    t = np.arccos(cosine)
    return inner * lengths * (np.sin(t) + (np.pi - t) * cosine) / (2.0 * np.pi)


def function_distance(f: np.ndarray, g: np.ndarray) -> float:
    """Return ‖f/‖f‖ - g/‖g‖‖ of two functions given by their values at the same points.

    0 for the same function up to a positive factor, √2 for orthogonal ones, 2 for opposite ones.
    """
    return float(np.linalg.norm(unit(np.ravel(f)) - unit(np.ravel(g))))
