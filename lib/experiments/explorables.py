"""The states that the page of explorables shows where a browser would take too long.

A browser follows a two-layer network to α = 100 while a reader drags a point. What lies beyond is
computed here, for the points that the page begins with, and kept in book/_static/explore/given.js;
`.ci/explorables.py` writes that file anew, and a test compares it with what is computed now.
"""

from __future__ import annotations

import numpy as np
import torch

from latephase.flow.gradient_flow import gradient_flow
from latephase.zoo.networks import two_layer
from latephase.zoo.tasks import sector_points

LEVELS = (1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e6, 1e9, 1e15, 1e30)
WIDTH = 48
# Pairs of sectors of alternating labels, and the gap between them.
POINTS = {"two half-planes": (1, 0.12), "six sectors": (3, 0.25)}


def given(name: str, seed: int = 4) -> dict[str, np.ndarray]:
    """Return points, start and flow of a set of POINTS: x [12, 2], y [12], start [P] and direction
    [levels, P], P = 2 WIDTH, of the network of squared ReLUs with fixed signs.

    Coordinates of points and start are rounded to four digits, so that a page has the very same.
    """
    sectors, gap = POINTS[name]
    task = sector_points(12, sectors, gap, seed=seed)
    x, y = task.x.numpy().round(4), task.y.numpy().astype(int)
    network = starting_network(seed)
    flow = gradient_flow(network, x, y, tol=1e-4, at=LEVELS)
    at = [flow.at(level).index for level in LEVELS]
    start = network[0].weight.detach().numpy().ravel()
    return {"x": x, "y": y, "start": start, "direction": flow.direction[at]}


def starting_network(seed: int) -> torch.nn.Sequential:
    """Return the network at its start, of which the page knows four digits."""
    generator = torch.Generator().manual_seed(seed)
    network = two_layer(2, WIDTH, "squared_relu", fixed_signs=True, generator=generator, scale=2.0)
    network[0].weight.data = torch.round(network[0].weight.data, decimals=4)
    return network
