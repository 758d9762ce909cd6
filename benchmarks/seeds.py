"""Sweeps over seeds: 32 starts of a two-layer network together, beside one alone and one by one.

    OMP_NUM_THREADS=1 python benchmarks/seeds.py

`latephase.experiments.discrete` steps runs of one architecture together, as arrays with the run
in front. The network is two-layer with squared ReLUs, as in the chapters (20 examples); a sweep is
followed by the flow of order 4 to α = 1 and by 1,000 steps of loss-normalized descent. Seconds are
of the CPU, in one thread, medians of alternations; ratios are of the same alternation. Saves
results/seeds.json.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch
from problems import save

from latephase.experiments import discrete
from latephase.zoo import networks
from latephase.zoo.tasks import separable_points

SEEDS, ALTERNATIONS, STEPS = 32, 15, 1000
WIDTHS = {"width 8 in 4 dimensions": (8, 4), "width 16 in 10 dimensions": (16, 10)}


def starts(width: int, dimension: int, seeds: range) -> tuple[discrete.Family, np.ndarray]:
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
    return discrete.together(made, tasks)


def sweep(family: discrete.Family, w: np.ndarray) -> float:
    """Return the seconds of both ways from the weights w [r, P]."""
    begin = time.process_time()
    end = discrete.flow_to(family, w, level=1.0)[-1]
    # A level that no run reaches: all take the same number of steps.
    rates, levels = np.full(len(w), 0.1), np.full(len(w), 1e9)
    discrete.descend(family, end, rates, levels, rule="normalized", steps=STEPS)
    return time.process_time() - begin


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
        one_by_one = sum(sweep(family.rows([k]), w[[k]]) for k in range(SEEDS))
        rows.append(
            {
                "network": name,
                "parameters": w.shape[1],
                "alone": alone,
                "together": together,
                "one_by_one": one_by_one,
                "ratio": statistics.median(ratios),
            }
        )
        print(
            f"{name}: one start {statistics.median(alone):.3f} s, {SEEDS} together "
            f"{statistics.median(together):.3f} s, ratio {rows[-1]['ratio']:.2f}; one by one "
            f"{one_by_one:.2f} s",
            flush=True,
        )
    save("seeds", {"seeds": SEEDS, "rows": rows, "duration": time.process_time() - started})


if __name__ == "__main__":
    main()
