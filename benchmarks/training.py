"""Training: throughput beside a plain PyTorch loop, the cost of diagnosis, and the loss at 1e-800.

    OMP_NUM_THREADS=1 python benchmarks/training.py

The network is Lyu and Li's (2019) for 28×28 images: convolution 32 of 5×5, pooling, convolution 64
of 3×3, pooling, dense 1024, dense 10; a bias in the first layer only, so that its degree is 4.
Throughputs are ratios within one run, medians of alternating blocks of steps; other seconds are
of the CPU, in one thread. bfloat16 depends on the processor: with instructions for it (AVX512_BF16)
it is the fastest variant; without AVX-512 (as under ONEDNN_MAX_CPU_ISA=AVX2) it is emulated so
slowly that it is timed once. The record says which it was.

The headline is run on the first ten images of each class, so that it ends in minutes: an epoch is
five steps of 20 images. Loss-normalized steps, of two growths, end after 2,300 and 600 epochs, Lyu
and Li's after 300 accepted ones. The best schedule is set beside the 9,000 epochs that they publish
for all 60,000 images, and beside a goal of a fiftieth of those. Normalized margins are compared
between neighbouring checkpoints, the default 40. Saves results/training.json; with `throughput`
or names of headline runs behind the command, only these are run, into the record that is there.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from problems import RESULTS, save
from torch import nn

import latephase
from latephase.flow.trajectory import largest_drop
from latephase.problem.losses import CROSS_ENTROPY, pairwise_margins, true_margins
from latephase.training.train import Run, Settings, train
from latephase.zoo.images import bundled_fashion_mnist

DEGREE, GOAL = 4.0, -800.0 * math.log(10.0)
NORMALIZED = {"batch": 20, "schedule": "normalized", "rate": 0.5, "momentum": 0.9}
HEADLINE = {
    "growth 0.5": Settings(steps=11_500, growth=0.5, **NORMALIZED),
    "growth 0.75": Settings(steps=3000, growth=0.75, **NORMALIZED),
    "Lyu and Li": Settings(steps=1500, batch=20, schedule="loss_based", rate=0.1),
}
ALTERNATIONS, STEPS = 15, 10
PUBLISHED_EPOCHS, GOAL_EPOCHS = 9000, 180


def lyu_li(seed: int = 0) -> nn.Sequential:
    """Return their four-layer network with He's initialization."""
    network = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding="same", bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 1024, bias=False),
        nn.ReLU(),
        nn.Linear(1024, 10, bias=False),
    )
    generator = torch.Generator().manual_seed(seed)
    nn.init.zeros_(network[0].bias)
    for layer in network:
        if hasattr(layer, "weight"):
            deviation = (2.0 / layer.weight[0].numel()) ** 0.5
            nn.init.normal_(layer.weight, 0.0, deviation, generator=generator)
    return network


# Throughput.


def plain_seconds(x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    """Return the seconds a step of a loop as anybody would write it."""
    network = lyu_li()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    begin, step = time.perf_counter(), 0
    while step < STEPS:
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
            if step == STEPS:
                break
    return (time.perf_counter() - begin) / STEPS


def our_seconds(x: torch.Tensor, y: torch.Tensor, batch: int, **changes) -> float:
    """Return the seconds a step of `train` as its run counts them: without its checkpoints."""
    settings = Settings(steps=STEPS, batch=batch, rate=0.01, checkpoints=2, **changes)
    with tempfile.TemporaryDirectory() as folder:
        return float(train(lyu_li(), x, y, settings, folder).seconds[-1]) / STEPS


def instructions() -> dict[str, bool]:
    """Return which vector instructions the processor has, of those that bfloat16 depends on."""
    found = torch.cpu.get_capabilities()
    return {name: bool(found.get(name)) for name in ("avx2", "avx512_f", "avx512_bf16")}


def throughput(batch: int) -> dict:
    """Return seconds a step of the plain loop and of ours, and medians of their ratios.

    Each ratio is that of two blocks of STEPS steps which ran one after the other.
    """
    task = bundled_fashion_mnist(per_class=50)
    last = {"channels_last": True}
    variants = {"ours": {}, "normalized": {"schedule": "normalized"}, "channels_last": last}
    half = "bfloat16, channels_last"
    per_step: dict[str, list[float]] = {"plain": []}
    repeats_half = instructions()["avx512_bf16"]
    for turn in range(ALTERNATIONS):
        timed = repeats_half or turn == 0
        now = {**variants, **({half: {**last, "autocast": "bfloat16"}} if timed else {})}
        per_step["plain"].append(plain_seconds(task.x, task.y, batch))
        for name, changes in now.items():
            per_step.setdefault(name, []).append(our_seconds(task.x, task.y, batch, **changes))
    ratios = {
        name: statistics.median(
            plain / ours for plain, ours in zip(per_step["plain"], seconds, strict=False)
        )
        for name, seconds in per_step.items()
    }
    for name, seconds in per_step.items():
        median = statistics.median(seconds)
        print(
            f"batch {batch:>3}  {name:<24}{1e3 * median:>8.1f} ms a step, throughput "
            f"{ratios[name]:.2f} of the plain loop",
            flush=True,
        )
    return {"batch": batch, "seconds_per_step": per_step, "throughput_ratio": ratios}


# The headline.


def measures(run: Run, x: torch.Tensor, y: torch.Tensor) -> dict[str, list[float]]:
    """Return normalized margins and norms of the checkpoints."""
    network, margins, smoothed, norms = lyu_li(), [], [], []
    for k in range(len(run)):
        run.load(k, network)
        with torch.no_grad():
            p = pairwise_margins(network(x).double(), y)
        weights = [w.detach().double() for w in network.parameters()]
        log_norm = 0.5 * math.log(sum(float(w.square().sum()) for w in weights))
        margins.append(float(true_margins(p).min()) * math.exp(-DEGREE * log_norm))
        # α of the cross-entropy summed over the examples, as elsewhere in the library.
        alpha = float(CROSS_ENTROPY.smoothed_margin(p))
        smoothed.append(alpha * math.exp(-DEGREE * log_norm))
        norms.append(math.exp(log_norm))
    return {"normalized_margin": margins, "normalized_smoothed_margin": smoothed, "norm": norms}


def headline(name: str, settings: Settings, folder: Path) -> tuple[Run, dict]:
    """Return the run and what it took to a training loss below 1e-800, or how far it came."""
    task = bundled_fashion_mnist(per_class=10)
    per_epoch = len(task.x) // settings.batch
    begin = time.process_time()
    run = train(lyu_li(settings.seed), task.x, task.y, settings, folder)
    seconds = time.process_time() - begin
    found = measures(run, task.x, task.y)
    below = np.flatnonzero(run.log_risk < GOAL)
    end = int(below[0]) if below.size else len(run) - 1
    # From the state on that every later one shares: all examples right, mean loss below ln 2 / n.
    separated = int(np.flatnonzero(run.log_risk >= math.log(math.log(2) / len(task.x)))[-1]) + 1
    share = seconds / run.seconds[-1]  # CPU seconds for each second of the clock in the run
    smoothed = np.array(found["normalized_smoothed_margin"])[separated : end + 1]
    margins = np.array(found["normalized_margin"])[separated : end + 1]
    falls = np.flatnonzero(np.diff(np.array(found["normalized_margin"])[: end + 1]) < 0)
    rising = int(falls[-1]) + 1 if falls.size else 0
    row = {
        "schedule": name,
        "images": len(task.x),
        "data_sha256": task.sha256,
        "settings": dict(vars(run.settings)),
        "reached": bool(below.size),
        "epochs": float(run.steps[end] / per_epoch),
        "epochs_before": float(run.steps[end - 1] / per_epoch),
        "redone": run.schedule[end].get("redone", 0),
        "cpu_seconds": float(share * run.seconds[end]),
        "log10_loss": float(run.log_risk[end] / math.log(10.0)),
        "separated_at_epoch": float(run.steps[separated] / per_epoch),
        "normalized_margin": found["normalized_margin"][end],
        "normalized_smoothed_margin": found["normalized_smoothed_margin"][end],
        "norm_start": found["norm"][0],
        "norm": found["norm"][end],
        "states_compared": int(end + 1 - separated),
        "nondecreasing_from_epoch": float(run.steps[rising] / per_epoch),
        "largest_drop": largest_drop(margins),
        "largest_drop_smoothed": largest_drop(smoothed),
        "total_cpu_seconds": seconds,
        "series": {
            "epoch": (run.steps / per_epoch).tolist(),
            "log10_loss": (run.log_risk / math.log(10.0)).tolist(),
            **found,
        },
    }
    print(
        f"{name:<12} loss 1e{row['log10_loss']:.1f} after {row['epochs']:.0f} epochs "
        f"({row['redone']} done again), {row['cpu_seconds']:.0f} s; normalized margin "
        f"{row['normalized_margin']:.3g}, nondecreasing from epoch "
        f"{row['nondecreasing_from_epoch']:.0f} on; largest relative fall "
        f"{row['largest_drop']:.2g} over {row['states_compared']} states from epoch "
        f"{row['separated_at_epoch']:.0f}",
        flush=True,
    )
    return run, row


def against_published(rows: list[dict]) -> dict:
    """Return the schedule that reached the loss in the fewest epochs, beside other numbers."""
    best = min((row for row in rows if row["reached"]), key=lambda row: row["epochs"])
    found = {
        "schedule": best["schedule"],
        "epochs": best["epochs"],
        "times_fewer_than_published": PUBLISHED_EPOCHS / best["epochs"],
        "goal_epochs": GOAL_EPOCHS,
        "goal_met": best["epochs"] <= GOAL_EPOCHS,
        "largest_drop": best["largest_drop"],
    }
    print(
        f"best: {best['schedule']}, {best['epochs']:.0f} epochs of {best['images']} images, "
        f"{found['times_fewer_than_published']:.0f} times fewer than {PUBLISHED_EPOCHS}; "
        f"the goal of {GOAL_EPOCHS} is {'met' if found['goal_met'] else 'missed'}"
    )
    return found


def diagnosis_cost(run: Run, cpu_share: float, every: int = 1) -> dict:
    """Return what `diagnose` costs at each checkpoint beside the training before it."""
    task = bundled_fashion_mnist(per_class=10)
    network, rows = lyu_li(), []
    degree = latephase.homogeneity_degree(network, task.x)[0]
    for before, k in pairwise(range(0, len(run), every)):
        run.load(k, network)
        begin = time.process_time()
        latephase.diagnose(network, task.x, task.y, "cross_entropy", degree=degree)
        seconds = time.process_time() - begin
        training = cpu_share * float(run.seconds[k] - run.seconds[before])
        rows.append({"step": int(run.steps[k]), "diagnose": seconds, "training": training})
    begin = time.process_time()
    latephase.diagnose(network, task.x, task.y, "cross_entropy")
    with_degree = time.process_time() - begin
    spent, trained = (sum(row[key] for row in rows) for key in ("diagnose", "training"))
    over = [row["step"] for row in rows if row["diagnose"] > 0.1 * row["training"]]
    print(
        f"diagnose: {statistics.median(row['diagnose'] for row in rows):.2f} s a checkpoint "
        f"({with_degree:.2f} s where it measures the degree itself); {spent / trained:.1%} of all "
        f"training, {rows[-1]['diagnose'] / rows[-1]['training']:.1%} of the last interval, below "
        f"10 % of each interval after step {max(over, default=0)}",
        flush=True,
    )
    return {
        "rows": rows,
        "share": spent / trained,
        "below_a_tenth_after_step": max(over, default=0),
        "seconds_measuring_the_degree": with_degree,
    }


def main() -> None:
    started, asked = time.process_time(), sys.argv[1:]
    content = json.loads((RESULTS / "training.json").read_text()) if asked else {"duration": 0.0}
    asked = asked or ["throughput", *HEADLINE]
    rows = {row["schedule"]: row for row in content.get("headline", [])}
    if "throughput" in asked:
        content["instructions"] = instructions()
        content["throughput"] = [throughput(batch) for batch in (100, 20)]
    with tempfile.TemporaryDirectory() as folder:
        for name in [name for name in asked if name != "throughput"]:
            run, rows[name] = headline(name, HEADLINE[name], Path(folder, name))
            if name == next(iter(HEADLINE)):
                share = rows[name]["total_cpu_seconds"] / float(run.seconds[-1])
                content["diagnose"] = diagnosis_cost(run, share)
    content["headline"] = [rows[name] for name in HEADLINE]
    content["best"] = against_published(content["headline"])
    published = {"epochs": PUBLISHED_EPOCHS, "images": 60_000, "normalized_margin": 1.2e-3}
    content["published"] = published
    content["duration"] += time.process_time() - started
    save("training", content)


if __name__ == "__main__":
    main()
