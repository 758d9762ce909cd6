"""The exact flow of the networks of relu_networks.yml: cost, ends, and error against the reference.

For each network: CPU seconds and steps to α = 1e12, and the distance of W/‖W‖ at α = 10 and 100
from that of small explicit steps (results/relu_reference.npz). Where that exceeds 10 tol, the
flow is asked for its `companion` to α = 100: whose angles beyond 10 tol say that the direction is
not known to tol. One thread. With --held-out it is the networks that the list holds out, which no
number of the solver was chosen by.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from statistics import median

import numpy as np
from benchmarks.problems import RESULTS, save
from benchmarks.relu_networks import entries, held_out, network

import latephase as lp

LEVELS = [10.0, 100.0]


def row(name: str, reference: str, tol: float, until: float) -> dict[str, object]:
    """Return what following one network to α = until took, how it ended, and its errors."""
    module, x, y = network(name)
    started = time.process_time()
    try:
        flow, end = lp.gradient_flow(module, x, y, tol=tol, at=[*LEVELS, until]), "arrived"
    except lp.SolverError as error:
        flow, end = error.trajectory, f"{type(error).__name__}: {error}"
    seconds = time.process_time() - started
    steps, errors, told = 0, [float("nan")] * len(LEVELS), []
    if end == "arrived":
        with np.load(RESULTS / f"{reference}.npz", allow_pickle=False) as small_steps:
            expected = small_steps[f"{name}_direction"]
        apart = flow.direction[: len(expected)] - expected
        steps, errors[: len(apart)] = flow.steps, np.linalg.norm(apart, axis=1).tolist()
        if max(errors) > 10 * tol:
            short = lp.gradient_flow(module, x, y, tol=tol, at=LEVELS, companion=True)
            told = short.settings["companion_angles"]
    weights = sum(w.numel() for w in module.parameters())
    return {
        "network": name,
        "parameters": weights,
        "seconds": seconds,
        "steps": steps,
        "end": end,
        "errors": errors,
        "companion_angles": told,
        "active_kinks": 0.0 if flow is None else float(flow.active_kinks[-1]),
    }


def main() -> None:
    """Print a line for each network, then the medians; of the whole list, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--until", type=float, default=1e12)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--names", nargs="*")
    arguments = parser.parse_args()
    known, reference, result = entries(), "relu_reference", "relu_flow"
    if arguments.held_out:
        known, reference, result = held_out(), "relu_held_out", "relu_flow_held_out"
    # What PyTorch imports for its first derivative is no part of a flow.
    import_module("torch._dynamo")
    rows, began = [], time.perf_counter()
    for name in arguments.names or known:
        r = row(name, reference, arguments.tol, arguments.until)
        rows.append(r)
        print(
            f"{name:16} P {r['parameters']:5} {r['seconds']:6.2f} s {r['steps']:4} steps errors "
            f"{r['errors'][0]:.1e} {r['errors'][1]:.1e} kinks {r['active_kinks']:4.0f} "
            f"{r['end']}",
            flush=True,
        )
    arrived = [r for r in rows if r["end"] == "arrived"]
    print(f"{len(arrived)} of {len(rows)} arrived", end="")
    for most in (1500, 5000):
        seconds = [r["seconds"] for r in arrived if r["parameters"] <= most]
        if seconds:
            said = f"median {median(seconds):.2f} s, most {max(seconds):.2f} s"
            print(f"; P ≤ {most}: {said}", end="")
    accurate = sum(max(r["errors"]) <= 10 * arguments.tol for r in arrived)
    others = [r for r in arrived if max(r["errors"]) > 10 * arguments.tol]
    told = sum(max(r["companion_angles"]) > 10 * arguments.tol for r in others)
    print(f"; {accurate} within 10 tol of the reference at α = 10 and 100", end="")
    print(f"; of {len(others)} others the companion says so of {told}")
    if not arguments.names:
        settings = {"tol": arguments.tol, "until": arguments.until}
        content = {"seed": "each network's own", "settings": settings, "rows": rows}
        save(result, content | {"duration": time.perf_counter() - began})


if __name__ == "__main__":
    main()
