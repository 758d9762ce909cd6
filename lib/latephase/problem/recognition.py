"""Which modules are chains: linear layers with kinks, powers of ReLU or smoothed ReLUs in between.

What is read off the calls is compared with the module itself at random weights.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latephase.problem.bends import Power, Smoothed
from latephase.problem.chain import Chain, Link
from latephase.problem.gates import Bend
from latephase.problem.losses import other_classes
from latephase.problem.margins import Problem
from latephase.problem.vectors import to_numpy

if TYPE_CHECKING:
    from latephase.problem.kinked import Kinked


def as_chain(kinked: Kinked) -> Chain | None:
    """Return the same as a `Chain`, if the module is one."""
    problem = kinked.problem
    w = kinked.nearby(3)
    with torch.no_grad():
        _, calls = kinked.run(kinked.tensor(w), np.arange(problem.n), None, record=True)
    if len(kinked.plan.steps) != len(kinked.plan.sites) or not calls.events:
        return None
    ends = np.cumsum(problem.sizes)
    links, trained, output = [], [], None
    for event in calls.events:
        if isinstance(event, Bend):
            if not links or links[-1].bent:
                return None
            site = kinked.plan.sites[event.site]
            low, high = (_plain(bound) for bound in (event.low, event.high))
            links[-1] = replace(links[-1], low=low, high=high, name=site.name, where=site.where)
            continue
        if event.name != "linear" or event.bias is not None or event.input.ndim != 2:
            return None
        shape = event.output[0].numel(), event.input.shape[1]
        if isinstance(event.weight, int):
            end = ends[event.weight]
            weight = slice(end - problem.sizes[event.weight], end)
            trained.append(event.weight)
        elif links:
            weight = to_numpy(event.weight)
        else:
            # Before the first trained layer: part of what the data are.
            continue
        if links:
            smooth = _smooth(output, event.input, problem.kink_smoothing)
            links[-1] = replace(links[-1], smooth=smooth)
        else:
            inputs = to_numpy(event.input)
        output = event.output.reshape(len(event.output), -1)
        links.append(Link(weight, shape, 1.0, 1.0, "", "", transposed=event.transposed))
    if sorted(trained) != [*range(len(problem.sizes))] or links[-1].bent:
        return None
    if any(one.shape[0] != link.shape[1] for one, link in pairwise(links)):
        return None
    chain = Chain(inputs, _signs(problem), links, problem.jacobian_bytes)
    return chain if _agrees(kinked, chain, w) else None


def _agrees(kinked: Kinked, chain: Chain, w: np.ndarray) -> bool:
    """Return whether margins, kinks and gradients of a chain are these."""
    if (chain.K, chain.P) != (kinked.K, kinked.P):
        return False
    lam, none = np.linspace(1.0, 2.0, kinked.n), np.zeros(0)
    p, z, gates = kinked.evaluate_natural(w)
    mine, other = kinked.at(w, gates, none), chain.at(w, gates, none)
    pairs = [(p, other.p), (z, other.z)]
    pairs += zip(mine.pull(lam, none), other.pull(lam, none), strict=True)
    pairs.append(tuple(point.curvature(lam, none, w[::-1].copy()) for point in (mine, other)))
    return all(
        np.abs(a - b).max(initial=0.0) <= 1e-9 * np.abs(a).max(initial=0.0) for a, b in pairs
    )


def _smooth(before: Tensor, after: Tensor, epsilon: float | None) -> Power | Smoothed | None:
    """Return the σ of after = σ(before), None where it is none of these."""
    if before.shape != after.shape or before.ndim != 2:
        return None
    known = [Power(2), Power(3)] + ([] if epsilon is None else [Smoothed(epsilon)])
    z, after = to_numpy(before), to_numpy(after)
    # Products in another order than the module's round otherwise.
    near = 1e-12 * np.abs(after).max(initial=0.0)
    return next((one for one in known if np.abs(one.at(z)[0] - after).max() <= near), None)


def _plain(bound: float | Tensor) -> float | np.ndarray:
    return to_numpy(bound).reshape(-1) if isinstance(bound, Tensor) else float(bound)


def _signs(problem: Problem) -> np.ndarray:
    """Return S [n·pairs, outputs]: margin r is S[r] · outputs of example r // pairs."""
    y = problem.y.cpu()
    if problem.classes == 1:
        return to_numpy(y)[:, None].astype(float)
    basis = torch.eye(problem.classes, dtype=torch.float64)
    apart = basis[y][:, None] - basis[other_classes(y, problem.classes)]
    return to_numpy(apart).reshape(-1, problem.classes)
