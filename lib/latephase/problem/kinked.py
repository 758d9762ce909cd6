"""Kinks of a module and their gates."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from latephase.problem.chain import Chain, Link
from latephase.problem.margins import Problem
from latephase.problem.vectors import to_numpy


def kinked(problem: Problem):
    """Return the fastest description of a problem's kinks."""
    chain = _chain(problem)
    if chain is None:
        raise NotImplementedError
    return chain


def _chain(problem: Problem) -> Chain | None:
    parts = [part for part in problem.module.modules() if not list(part.children())]
    offsets = np.cumsum([0, *problem.sizes])
    slots = dict(problem.slots)
    names = {id(part): name for name, part in problem.module.named_modules()}
    links: list = []
    for part in parts:
        if isinstance(part, nn.Linear) and part.bias is None:
            slot = slots.get(f"{names[id(part)]}.weight")
            weight = (
                to_numpy(part.weight) if slot is None else slice(offsets[slot], offsets[slot + 1])
            )
            links.append(Link(weight, tuple(part.weight.shape), 1.0, 1.0, "", ""))
        elif isinstance(part, nn.ReLU | nn.LeakyReLU) and links and not links[-1].bent:
            last = links[-1]
            low = getattr(part, "negative_slope", 0.0)
            name = "relu" if isinstance(part, nn.ReLU) else "leaky_relu"
            links[-1] = Link(last.weight, last.shape, low, 1.0, name, names[id(part)])
        elif isinstance(part, nn.Identity | nn.Flatten):
            continue
        else:
            return None
    return Chain(to_numpy(problem.x.reshape(problem.n, -1)), signs(problem), links)


def signs(problem: Problem) -> np.ndarray:
    """Return S [n·pairs, outputs]: margin r is S[r] · outputs of example r // pairs."""
    if problem.classes == 1:
        return to_numpy(problem.y)[:, None].astype(float)
    rows = torch.eye(problem.classes, dtype=torch.float64)
    y = problem.y.cpu()
    others = problem._others.cpu()
    return to_numpy(rows[y][:, None] - rows[others]).reshape(-1, problem.classes)
