"""The problems of the benchmarks, their linearizations for other solvers, and where results go."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recordings import writing

RESULTS = Path(__file__).parents[1] / "results"
# What may decide a result, and as what it is imported.
PACKAGES = {name: name for name in ("latephase", "torch", "numpy", "scipy")}
PACKAGES["scikit-sundae"] = "sksundae"


@dataclass(frozen=True)
class Case:
    """A module with data; product maps w to the vector of a linear predictor, or to None."""

    module: nn.Module
    x: np.ndarray
    y: np.ndarray
    product: Callable[[np.ndarray], np.ndarray | None] = lambda w: None


class TwoLayerSquared(nn.Module):
    """v · relu(A x)², of degree 3 and differentiable."""

    def __init__(self, width: int, scale: float, rng: np.random.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.from_numpy(scale * rng.normal(size=(width, 3))))
        self.v = nn.Parameter(torch.from_numpy(scale * rng.normal(size=width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.a.T).square() @ self.v


def separable(n: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    w = rng.normal(size=dims)
    w /= np.linalg.norm(w)
    x = rng.normal(size=(n, dims))
    y = np.sign(x @ w)
    return x + 0.3 * y[:, None] * w, y


def deep_linear(depth: int, n: int, dims: int, width: int, scale: float = 0.5) -> Case:
    widths = [dims, *[width] * (depth - 1), 1]
    layers = [nn.Linear(a, b, bias=False).double() for a, b in pairwise(widths)]
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for layer in layers:
            noise = rng.normal(size=layer.weight.shape) / np.sqrt(layer.weight.shape[1])
            layer.weight.copy_(torch.from_numpy(scale * noise))
    shapes = [tuple(layer.weight.shape) for layer in layers]

    def product(w: np.ndarray) -> np.ndarray:
        parts = np.split(w, np.cumsum([a * b for a, b in shapes])[:-1])
        result = parts[0].reshape(shapes[0])
        for part, shape in zip(parts[1:], shapes[1:], strict=True):
            result = part.reshape(shape) @ result
        return result[0]

    return Case(nn.Sequential(*layers), *separable(n, dims), product)


def squared(width: int, scale: float, n: int = 60) -> Case:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    y = np.where(np.sin(1.5 * x[:, 0]) + 0.6 * x[:, 1] > 0, 1.0, -1.0)
    # The generator goes on: from a seed of their own the weights would repeat the points.
    return Case(TwoLayerSquared(width, scale, rng), np.c_[x, np.ones(n)], y)


CASES = {
    "linear": partial(deep_linear, 1, 100, 20, 0, scale=0.05),
    "deep 3": partial(deep_linear, 3, 60, 10, 8),
    "deep 4": partial(deep_linear, 4, 60, 10, 8),
    "squared 200": partial(squared, 50, 0.3),
    "squared 200, n = 20": partial(squared, 50, 0.3, 20),
    "squared 200, n = 500": partial(squared, 50, 0.3, 500),
    "squared 500": partial(squared, 125, 0.2),
    "squared 2000": partial(squared, 500, 0.15),
}


def save(name: str, content: dict, arrays: dict | None = None, folder: Path = RESULTS) -> Path:
    """Write name.json and, with arrays, name.npz to the folder, with the machine's description.

    They appear whole or not at all. The seed is 0 where the content does not say another.
    """
    content = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} thread",
        "device": "cpu",
        "seed": 0,
        "versions": {name: version(name) for name, at in PACKAGES.items() if find_spec(at)},
    } | content
    return writing.write(name, folder, content, arrays)


torch.set_num_threads(1)
