"""Images of clothes, made small, and the networks whose flows two pages follow on them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from latephase.problem.task import Task
from latephase.zoo import networks, tasks
from latephase.zoo.images import bundled_fashion_mnist

CLASSES = {"clothes": (1, 2, 5, 8, 9), "shirts": (0, 6), "shoes": (5, 7)}


@cache
def images(name: str) -> tuple[Task, Task]:
    """Return training and test images of the classes of that name, averaged to 7 × 7 pixels.

    The training images' mean is subtracted; but for shoes, which stay pictures, they are vectors
    [49] over the mean norm of the training images.
    """
    both = [bundled_fashion_mnist(classes=CLASSES[name], split=s) for s in ("train", "test")]
    small = [torch.nn.functional.avg_pool2d(task.x.double(), 4) for task in both]
    centred = [x - small[0].mean(0) for x in small]
    if name != "shoes":
        size = centred[0].flatten(1).norm(dim=1).mean()
        centred = [(x / size).flatten(1) for x in centred]
    return tuple(replace(task, x=x) for task, x in zip(both, centred, strict=True))


def deep_linear(seed: int, count: int) -> tuple[torch.nn.Module, Task]:
    """Return a deep linear network and as many T-shirts and shirts of each class, of one seed."""
    draw = torch.Generator().manual_seed(seed)
    network = networks.deep_linear([49, 3, 1], generator=draw, scale=0.5)
    return network, tasks.drawn(images("shirts")[0], count, seed)


def convolutional(seed: int) -> tuple[torch.nn.Module, torch.Generator]:
    """Return a convolutional network with squared ReLUs for shoes, and its generator after it."""
    draw = torch.Generator().manual_seed(seed)
    kind = ((1, 7, 7), (2,), "squared_relu", "average")
    return networks.convolutional(*kind, generator=draw, scale=0.8), draw
