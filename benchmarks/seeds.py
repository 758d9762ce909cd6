"""Sweeps over seeds: 32 starts of a two-layer network together, beside one alone and one by one.

    OMP_NUM_THREADS=1 python benchmarks/seeds.py

`latephase.training.together` steps runs of one architecture together, as arrays with the run in
front. The network is two-layer with squared ReLUs, as in the chapters (20 examples); a sweep is
followed by the flow of order 4 to α = 1 and by 1,000 steps of loss-normalized descent. A gradient
of the 32 starts by the passes written out there is timed beside `torch.func.vmap`, of the whole
gradient and of the forward pass alone. Seconds are of the CPU, in one thread, medians of
alternations; ratios are of the same alternation.

`latephase.gradient_flows` follows 5 and 32 trained two-layer networks to α = 1e6, beside
`gradient_flow` from each start in turn; starts that are not separated are left out. The largest
angle between the two ends of a start is recorded. Saves results/seeds.json.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from problems import save

from experiments import discrete_time
from latephase import SolverError, Task, gradient_flow, gradient_flows
from latephase.problem.vectors import angle
from latephase.training import together
from latephase.zoo import networks
from latephase.zoo.tasks import separable_points

SEEDS, ALTERNATIONS, STEPS, GRADIENTS = 32, 15, 1000, 200
WIDTHS = {"width 8 in 4 dimensions": (8, 4), "width 16 in 10 dimensions": (16, 10)}


def starts(width: int, dimension: int, seeds: range) -> tuple[together.Family, np.ndarray]:
    """Return the family of networks and data drawn from the seeds, and their weights."""
    made = [
        networks.two_layer(
            dimension,
            width,
            "squared_relu",
            fixed_signs=True,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in seeds
    ]
    tasks = [separable_points(20, dimension, margin=0.1, seed=seed) for seed in seeds]
    return together.family(made, tasks)


def sweep(family: together.Family, w: np.ndarray) -> float:
    """Return the seconds of both ways from the weights w [r, P]."""
    begin = time.process_time()
    end = discrete_time.flow_to(family, w, level=1.0)[-1]
    # A level that no run reaches: all take the same number of steps.
    together.descend(family, end, 0.1, levels=1e9, rule="logarithmic", steps=STEPS)
    return time.process_time() - begin


def gradients(family: together.Family) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return three ways to -∇ln R [r, P] at the weights w [r, P]."""
    module = copy.deepcopy(family.network).double()
    trainable = {n: p.shape for n, p in module.named_parameters() if p.requires_grad}
    x, y = torch.from_numpy(family.x), torch.from_numpy(family.y)

    def forward(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        parts = w.split([shape.numel() for shape in trainable.values()])
        named = zip(trainable.items(), parts, strict=True)
        weights = {name: part.view(shape) for (name, shape), part in named}
        return torch.func.functional_call(module, weights, (x,)).reshape(-1)

    def log_risk(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(-y * forward(w, x), 0)

    many, whole = torch.vmap(forward), torch.vmap(torch.func.grad(log_risk))

    def by_hand(w: np.ndarray) -> np.ndarray:
        p, pull_back = family.margins_and_pull_back(w)
        return pull_back(together.shares(p)[0])

    def forward_by_vmap(w: np.ndarray) -> np.ndarray:
        leaf = torch.from_numpy(w).requires_grad_(True)
        risks = torch.logsumexp(-y * many(leaf, x), 1)
        return -torch.autograd.grad(risks.sum(), leaf)[0].numpy()

    def all_by_vmap(w: np.ndarray) -> np.ndarray:
        return -whole(torch.from_numpy(w), x, y).detach().numpy()

    return {"by hand": by_hand, "vmap forward": forward_by_vmap, "vmap": all_by_vmap}


def gradient_seconds(family: together.Family, w: np.ndarray) -> dict[str, list[float]]:
    """Return seconds a gradient by each way, in alternations."""
    ways = gradients(family)
    seconds = {name: [] for name in ways}
    for _ in range(ALTERNATIONS):
        for name, gradient in ways.items():
            np.testing.assert_allclose(gradient(w), ways["by hand"](w), rtol=1e-9, atol=1e-12)
            begin = time.process_time()
            for _ in range(GRADIENTS):
                gradient(w)
            seconds[name].append((time.process_time() - begin) / GRADIENTS)
    return seconds


def flows(width: int, dimension: int) -> list[dict]:
    """Return a row for each number of starts: seconds together and in turn, the largest angle."""
    found: list[tuple[torch.nn.Module, Task]] = []
    ends, seconds = [], []
    for seed in range(10 * SEEDS):
        rng = torch.Generator().manual_seed(seed)
        network = networks.two_layer(dimension, width, "squared_relu", generator=rng)
        task, begin = separable_points(20, dimension, margin=0.1, seed=seed), time.process_time()
        try:
            ends.append(gradient_flow(network, task).direction[-1])
        except SolverError:
            continue
        seconds.append(time.process_time() - begin)
        found.append((network, task))
        if len(found) == SEEDS:
            break
    rows = []
    for count in (5, SEEDS):
        modules, tasks = zip(*found[:count], strict=True)
        begin = time.process_time()
        at_once = gradient_flows(modules, tasks)
        taken = time.process_time() - begin
        pairs = zip(at_once, ends, strict=False)
        apart = max(angle(flow.direction[-1], end) for flow, end in pairs)
        row = {"starts": count, "together": taken, "in_turn": sum(seconds[:count])}
        rows.append(row | {"one": statistics.median(seconds), "angle": apart})
        print(f"{count} flows: {taken:.2f} s, in turn {row['in_turn']:.2f} s, {apart:.1e} apart")
    return rows


def main() -> None:
    started, rows = time.process_time(), []
    for name, (width, dimension) in WIDTHS.items():
        family, w = starts(width, dimension, range(SEEDS))
        alone, together, ratios = [], [], []
        for turn in range(ALTERNATIONS):
            seed = turn % SEEDS
            alone.append(sweep(family.rows([seed]), w[[seed]]))
            together.append(sweep(family, w))
            ratios.append(together[-1] / alone[-1])
        each = gradient_seconds(family, w)
        one_by_one = sum(sweep(family.rows([k]), w[[k]]) for k in range(SEEDS))
        rows.append(
            {
                "network": name,
                "parameters": w.shape[1],
                "alone": alone,
                "together": together,
                "one_by_one": one_by_one,
                "ratio": statistics.median(ratios),
                "gradient": each,
                "flows": flows(width, dimension),
            }
        )
        print(
            f"{name}: one start {statistics.median(alone):.3f} s, {SEEDS} together "
            f"{statistics.median(together):.3f} s, ratio {rows[-1]['ratio']:.2f}; one by one "
            f"{one_by_one:.2f} s; a gradient of all "
            + ", ".join(f"{way} {1e6 * statistics.median(t):.0f} µs" for way, t in each.items()),
            flush=True,
        )
    save("seeds", {"seeds": SEEDS, "rows": rows, "duration": time.process_time() - started})


if __name__ == "__main__":
    main()
