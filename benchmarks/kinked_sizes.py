"""The exact flow at size: convolutions with max-pooling, thousands of kinks, α = 1e30.

    python benchmarks/kinked_sizes.py [--runs 3] [--smoothed FOLDER] [CASE …]

Each run in a process of its own, one after the other: CPU seconds (median of the runs), steps, the
most kinks active at once and the largest memory, at tol 1e-3. One thread. FOLDER: a checkout of
commit 98d4629, whose flow of smoothed kinks follows the case of 12 units as well. Prints a line for
each case; all of them are saved in results/kinked_sizes.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
import torch
from problems import save
from torch import nn

import latephase as lp
from latephase.zoo.images import bundled_fashion_mnist, pooled

LIBRARY = Path(lp.__file__).parents[1]
UNTIL, TOL = 1e12, 1e-3


def pooled_convolution(stride: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """50 pictures of 8 × 8 in two classes; pooling of windows of 2 × 2."""
    task = pooled(bundled_fashion_mnist([0, 1], per_class=25), 4)
    x, y = task.x.double().reshape(50, 1, 8, 8), task.y.double()
    left, width = {1: (5, 6), 2: (3, 17)}[stride]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2, stride=stride),
            nn.Flatten(),
            nn.Linear(6 * left * left, width, bias=False),
            nn.ReLU(),
            nn.Linear(width, 1, bias=False),
        )
    return module.double(), x, y


def two_layers() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """200 units on 150 Gaussian points in 40 dimensions with labels of a linear function."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((150, 40)) / np.sqrt(40)
    y = np.sign(x @ rng.standard_normal(40))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, last = nn.Linear(40, 200, bias=False), nn.Linear(200, 1, bias=False)
    return nn.Sequential(first, nn.ReLU(), last).double(), torch.from_numpy(x), torch.from_numpy(y)


CASES = {
    "convolution, pooling of stride 1": lambda: pooled_convolution(1),
    "convolution, pooling of stride 2": lambda: pooled_convolution(2),
    "two layers, 200 units": two_layers,
}
# Run by this library and by an earlier one: a process of its own knows only one of them.
TWELVE_UNITS = """
import json, sys, time, numpy, torch, torch._dynamo, latephase
torch.set_num_threads(1)
torch.manual_seed(1)
layers = [torch.nn.Linear(2, 12, bias=False), torch.nn.ReLU(), torch.nn.Linear(12, 1, bias=False)]
angle = numpy.random.default_rng(0).uniform(0.1, 1.4, 20) + numpy.arange(20) * numpy.pi / 2
x = numpy.stack([numpy.cos(angle), numpy.sin(angle)], 1)
y = numpy.sign(x[:, 0] * x[:, 1])
began = time.process_time()
flow = latephase.gradient_flow(
    torch.nn.Sequential(*layers), x, y, loss="exponential", until=1e30, tol=1e-3,
    kink_smoothing=json.loads(sys.argv[1]),
)
margin = float(flow.normalized_margin[-1])
print(json.dumps({"seconds": time.process_time() - began, "margin": margin, "steps": flow.steps}))
"""


def measured(name: str) -> dict[str, object]:
    """Return what one run of a case took."""
    module, x, y = CASES[name]()
    # What PyTorch imports for its first derivative is no part of the flow.
    import_module("torch._dynamo")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    flow = lp.gradient_flow(module, x, y, until=UNTIL, tol=TOL, records=600)
    return {
        "seconds": time.process_time() - started,
        "parameters": flow.direction.shape[1],
        "examples": len(x),
        "steps": flow.steps,
        "active_kinks": int(flow.active_kinks.max()),
        "alignment": float(flow.alignment[-1]),
        "mebibytes_before": before / 1024,
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def twelve_units(library: Path, smoothing: float | None) -> dict[str, float]:
    """Return what 12 units took to α = 1e30, followed by the library in that folder.

    smoothing: asked for, because without it the earlier library smooths only where it collapses.
    """
    environment = os.environ | {"PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWELVE_UNITS, json.dumps(smoothing)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def middle(runs: list[dict]) -> dict:
    """Return the first run with the median of all seconds."""
    seconds = [run["seconds"] for run in runs]
    return runs[0] | {"seconds": median(seconds), "all_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--smoothed", type=Path)
    arguments = parser.parse_args()
    rows, started = [], time.perf_counter()
    for name in arguments.cases:
        runs = []
        for _ in range(arguments.runs):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                runs.append(process.apply(measured, (name,)))
        row = {"case": name} | middle(runs)
        rows.append(row)
        print(
            f"{name:<34} P {row['parameters']:>5}  {row['seconds']:7.1f} s  {row['steps']:>4} steps"
            f"  {row['active_kinks']:>5} kinks  {row['mebibytes']:6.0f} MiB",
            flush=True,
        )
    if arguments.smoothed is not None:
        earlier = arguments.smoothed / "lib"
        for name, library, smoothing in (("exact", LIBRARY, None), ("smoothed", earlier, 0.01)):
            row = {"case": f"12 units to 1e30, {name}"}
            row |= middle([twelve_units(library, smoothing) for _ in range(arguments.runs)])
            rows.append(row)
            print(f"{row['case']:<34} {row['seconds']:.2f} s  {row['steps']} steps", flush=True)
    if len(rows) == len(CASES) + 2:
        save("kinked_sizes", {"rows": rows, "duration": time.perf_counter() - started})


if __name__ == "__main__":
    main()
