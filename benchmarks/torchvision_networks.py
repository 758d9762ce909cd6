"""Eight classifiers of torchvision at their start and after a short training on bundled images.

    OMP_NUM_THREADS=1 python benchmarks/torchvision_networks.py

What is homogeneous, in which weights, and how well gradient and weights are aligned. Forty pictures
of Fashion-MNIST, enlarged to 32 × 32; forty steps of SGD on all of them. Measured in evaluation
mode with the running statistics of batch normalization taken anew. Saves
results/torchvision_networks.json, which the page *On your own network* draws.
"""

from __future__ import annotations

import copy
import time

import torch
import torchvision
from problems import save
from torch.nn import functional as F

import latephase
from latephase.zoo.images import bundled_fashion_mnist

NETWORKS = (
    "resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x0_5",
    "squeezenet1_1", "mnasnet0_5", "regnet_y_400mf",
)  # fmt: skip
STEPS = 40
SGD = {"lr": 0.02, "momentum": 0.9}


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pictures [40, 3, 32, 32] and their classes."""
    task = bundled_fashion_mnist(per_class=4)
    wide = F.interpolate(task.x.float(), size=(32, 32), mode="bilinear")
    return wide.expand(-1, 3, -1, -1).contiguous(), task.y


def of_last_layer(network: torch.nn.Module, x: torch.Tensor) -> float | None:
    """Return the degree in the weights of the last layer with parameters alone."""
    alone = copy.deepcopy(network).requires_grad_(False)
    last = [part for part in alone.modules() if [*part.parameters(recurse=False)]][-1]
    last.requires_grad_(True)
    return latephase.homogeneity_degree(alone, x)[0]


def state(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict:
    """Return what is said of a network, in evaluation mode."""
    torch.optim.swa_utils.update_bn([x], network)
    found = latephase.diagnose(network.eval(), x, y, layers=False, progress=False)
    kept = ("training_error", "smoothed_margin", "alignment", "alignment_error")
    return {name: getattr(found, name) for name in kept} | {
        "degree": found.degree,
        "why": found.missing.get("degree", ""),
        "degree_of_last_layer": of_last_layer(network, x),
    }


def measured(name: str) -> dict:
    """Return both states of one network."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=10)
    x, y = pictures()
    found = {"network": name, "parameters": sum(w.numel() for w in network.parameters())}
    found["at the start"] = state(network, x, y)
    optimizer = torch.optim.SGD(network.train().parameters(), **SGD)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    found["trained"] = state(network, x, y)
    return found


def main() -> None:
    """Measure all of them."""
    begin, rows = time.perf_counter(), []
    for name in NETWORKS:
        rows.append(measured(name))
        print(name, {k: rows[-1][k]["alignment"] for k in ("at the start", "trained")}, flush=True)
    content = {"seed": 0, "settings": {"steps": STEPS, **SGD}, "rows": rows}
    save("torchvision_networks", content | {"duration": time.perf_counter() - begin})


if __name__ == "__main__":
    main()
