"""The networks of relu_networks.yml, made by name; the file says how they were chosen."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from latebook.files import read_yaml
from latephase.zoo.images import bundled_fashion_mnist, pooled

LIST = Path(__file__).with_suffix(".yml")


def entries() -> dict[str, dict]:
    """The forty entries of the list by name, in its order."""
    return {name: entry for name, entry in read_yaml(LIST).items() if name != "held_out"}


def held_out() -> dict[str, dict]:
    """The entries that are held out, by name."""
    return read_yaml(LIST)["held_out"]


def network(name: str) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Return (module, x [n, d], y [n] of ±1) of the named entry, all float64.

    The module is Linear, ReLU, …, Linear without biases, with PyTorch's initial weights for the
    entry's seed. Raises ValueError for a name that is not in the list.
    """
    known = entries() | held_out()
    if name not in known:
        raise ValueError(f"expected a network of {LIST.name}, got {name!r}: {', '.join(known)}")
    entry = known[name]
    x, y = INPUTS[entry["inputs"]](entry)
    widths = [x.shape[1], *[entry["width"]] * (entry["depth"] - 1), 1]
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entry["seed"])
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double(), x, y


def _circle(entry: dict) -> tuple[torch.Tensor, torch.Tensor]:
    rng, quadrant = np.random.default_rng(entry["seed"]), np.arange(entry["n"]) % 4
    angle = quadrant * np.pi / 2 + rng.uniform(0.1, np.pi / 2 - 0.1, entry["n"])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return torch.from_numpy(x), torch.from_numpy(np.sign(x[:, 0] * x[:, 1]))


def _gaussian(entry: dict) -> tuple[torch.Tensor, torch.Tensor]:
    rng, dimension = np.random.default_rng(entry["seed"]), 40
    x = rng.standard_normal((entry["n"], dimension)) / np.sqrt(dimension)
    y = np.sign(x @ rng.standard_normal(dimension))
    return torch.from_numpy(x), torch.from_numpy(y)


def _pictures(entry: dict) -> tuple[torch.Tensor, torch.Tensor]:
    task = pooled(bundled_fashion_mnist(entry["classes"], per_class=entry["n"] // 2), 4)
    return task.x.flatten(1).double(), task.y.double()


INPUTS = {"circle": _circle, "gaussian": _gaussian, "pictures": _pictures}
