"""The exact flow of the networks of relu_networks.yml: CPU seconds, steps, where each ends."""

from __future__ import annotations

import argparse
import time

import numpy as np
from benchmarks.relu_networks import entries, network

import latephase as lp


def row(name: str, tol: float, until: float) -> dict[str, object]:
    """Return what following one network to α = until took, and how it ended."""
    module, x, y = network(name)
    started = time.process_time()
    try:
        flow, end = lp.gradient_flow(module, x, y, until=until, tol=tol), "arrived"
    except lp.SolverError as error:
        flow, end = error.trajectory, f"{type(error).__name__}: {error}"
    seconds = time.process_time() - started
    weights = sum(w.numel() for w in module.parameters())
    steps = 0 if flow is None else flow.steps
    alpha = np.nan if flow is None else float(flow.smoothed_margin[-1])
    return {
        "name": name, "weights": weights, "seconds": seconds, "steps": steps, "alpha": alpha,
        "end": end,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--until", type=float, default=1e12)
    parser.add_argument("--names", nargs="*", default=list(entries()))
    arguments = parser.parse_args()
    for name in arguments.names:
        r = row(name, arguments.tol, arguments.until)
        print(
            f"{r['name']:16} P {r['weights']:5} {r['seconds']:6.2f} s {r['steps']:4} steps "
            f"α {r['alpha']:.3g} {r['end']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
