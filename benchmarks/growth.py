"""How the cost of a flow to α = 1e6 grows with examples, weights and classes.

    OMP_NUM_THREADS=1 python benchmarks/growth.py

Two-layer squared ReLU networks on points of the plane, in examples (200 weights) and in weights (60
examples), and a linear model in classes (100 examples in 10 dimensions), with the default tol and
loss. Each flow in a process of its own, which has followed a small one before: CPU seconds, steps,
evaluations, and by how many MiB its largest memory exceeds that after the small one. The exponent
is that of the seconds between neighbouring sizes. Prints a table and saves results/growth.json.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import time
from functools import partial

import numpy as np
import torch
from problems import CASES, Case, save, squared
from torch import nn

import latephase


def classes(k: int) -> Case:
    """Points with the label of the largest of k linear functions, all k of which occur."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 10))
    y = np.unique((x @ rng.normal(size=(10, k))).argmax(1), return_inverse=True)[1]
    torch.manual_seed(0)
    return Case(nn.Linear(10, y.max() + 1, bias=False).double(), x, y)


SWEEPS = {
    "examples": {n: partial(squared, 50, 0.3, n) for n in (50, 200, 1000, 5000)},
    "weights": {
        4 * width: partial(squared, width, 0.3 * (50 / width) ** 0.3)
        for width in (50, 125, 500, 2000)
    },
    "classes": {k: partial(classes, k) for k in (3, 5, 10, 20, 30)},
}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(sweep: str, size: int) -> dict:
    """Return what one flow took."""
    small, case = CASES["squared 200, n = 20"](), SWEEPS[sweep][size]()
    latephase.gradient_flow(small.module, small.x, small.y, until=10.0)
    before, began = peak(), time.process_time()
    flow = latephase.gradient_flow(case.module, case.x, case.y, until=1e6)
    return {
        "sweep": sweep,
        "size": case.module.weight.shape[0] if sweep == "classes" else size,
        "examples": len(case.x),
        "parameters": flow.direction.shape[1],
        "seconds": time.process_time() - began,
        "mebibytes": peak() - before,
        "steps": flow.steps,
        **flow.evaluations,
    }


def main() -> None:
    rows, began = [], time.perf_counter()
    for sweep, sizes in SWEEPS.items():
        for size in sizes:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                row = process.apply(measured, (sweep, size))
            last = rows[-1] if rows and rows[-1]["sweep"] == sweep else None
            row["exponent"] = last and (
                math.log(row["seconds"] / last["seconds"]) / math.log(row["size"] / last["size"])
            )
            rows.append(row)
            exponent = "" if last is None else f"exponent {row['exponent']:.2f}"
            print(
                f"{sweep:<9} {row['size']:>5} {row['seconds']:7.2f} s {row['steps']:>4} steps "
                f"{row['gradient']:>6} gradients {row['mebibytes']:6.0f} MiB  {exponent}",
                flush=True,
            )
    save("growth", {"rows": rows, "duration": time.perf_counter() - began})


if __name__ == "__main__":
    main()
