"""The flow against general stiff solvers and against discrete gradient descent.

    OMP_NUM_THREADS=1 python benchmarks/peers.py [repeats]

Two-layer squared ReLU, n = 60. scipy's Radau, BDF and LSODA solve the same reparametrized
equation from the same start with the exact Jacobian and stop at α = 1e6 or at a time limit; each
runs at the loosest of its tolerances whose direction error there is within 2e-5, as this library
does. torchdiffeq (where installed), plain, loss-normalized and normalized gradient descent are
given as many seconds as this library took to reach 1e6 and report the α they reach. Ratios come
from one run, medians of several. Saves benchmarks/results/peers.json and peers.svg.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from contextlib import suppress

import matplotlib.pyplot as plt
import numpy as np
import torch
from problems import CASES, RESULTS, save

import latephase
from latephase.diagnostics import angle
from latephase.problem import Problem
from latephase.reference import stiff_direction_flow

UNTIL, ACCURACY, DEGREE = 1e6, 2e-5, 3.0
TOLERANCES = {"Radau": (1e-4, 1e-5), "BDF": (1e-5, 1e-6), "LSODA": (1e-5, 1e-6)}


def timed(function):
    begin = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begin


def median_of(repeats, function):
    results = [timed(function) for _ in range(repeats)]
    return results[0][0], statistics.median(seconds for _, seconds in results)


def compare_stiff(name: str, limit: float, repeats: int) -> dict:
    """Return seconds of the late phase, ours and the peers', from one separated start."""
    case = CASES[name]()
    start = latephase.gradient_flow(case.module, case.x, case.y, until=2.5, tol=1e-5)
    module = start.write_to(CASES[name]().module)
    reference = latephase.gradient_flow(module, case.x, case.y, until=UNTIL, tol=1e-7)
    for tol in (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6):
        ours, seconds = median_of(
            repeats,
            lambda tol=tol: latephase.gradient_flow(module, case.x, case.y, until=UNTIL, tol=tol),
        )
        error = angle(ours.direction[-1], reference.direction[-1])
        if error <= ACCURACY:
            break
    problem = Problem(module, case.x, case.y)

    def linearized(theta):
        return problem.margins(theta), problem.jacobian(theta)

    inputs, labels = torch.from_numpy(case.x), torch.from_numpy(case.y)
    width = len(module.v)

    def gradient(theta, scale):
        # The leanest call we can give them: no module, one forward and one backward pass.
        w = torch.from_numpy(theta).requires_grad_(True)
        p = labels * (
            torch.relu(inputs @ w[: 3 * width].reshape(-1, 3).T).square() @ w[3 * width :]
        )
        q = torch.softmax(-scale * p.detach(), 0)
        (g,) = torch.autograd.grad(p, w, q)
        return p.detach().numpy(), q.numpy(), g.numpy()

    row = {
        "problem": name,
        "parameters": problem.w0.size,
        "ours": seconds,
        "tol": tol,
        "error": error,
        "limit": limit,
        "peers": {},
    }
    print(f"{name}: ours {seconds:.2f} s at tol {tol:g}, error {error:.1e}", flush=True)
    for method, tolerances in TOLERANCES.items():
        best = {"seconds": None, "alpha": 0.0}
        for tol in tolerances:
            deadline = time.perf_counter() + limit

            def attempt(method=method, tol=tol, deadline=deadline):
                return stiff_direction_flow(
                    gradient,
                    linearized,
                    problem.w0,
                    DEGREE,
                    UNTIL,
                    method,
                    tol,
                    deadline=lambda: time.perf_counter() > deadline,
                )

            (direction, alpha), seconds = timed(attempt)
            off = angle(direction, reference.direction[-1])
            best["alpha"] = max(best["alpha"], alpha)
            if alpha >= 0.999 * UNTIL and off <= ACCURACY:
                best |= {"seconds": seconds, "error": off, "tol": tol}
                break
            if alpha < 0.999 * UNTIL:
                break
        arrived = best["seconds"] is not None
        best["ratio"] = (best["seconds"] if arrived else limit) / row["ours"]
        row["peers"][method] = best
        print(
            f"  {method:<6} {'' if arrived else '≥ '}{best['ratio']:.1f} times our seconds; "
            f"α = {best['alpha']:.2e}",
            flush=True,
        )
    return row


def compare_descent(name: str, seconds: float) -> dict[str, float]:
    """Return the α that discrete methods reach in as many seconds, from the module's start."""
    case = CASES[name]()
    x, y = torch.from_numpy(case.x), torch.from_numpy(case.y)
    reached = {}
    for rule in ("plain", "loss-normalized", "normalized"):
        best = -np.inf
        for rate in (1.0, 0.1, 0.01):
            module = CASES[name]().module
            parameters = list(module.parameters())
            deadline = time.perf_counter() + seconds
            while time.perf_counter() < deadline:
                alpha = -torch.logsumexp(-y * module(x), 0)
                gradients = torch.autograd.grad(alpha, parameters)
                value = alpha.item()
                if not np.isfinite(value):
                    break
                best = max(best, value)
                length = torch.sqrt(sum(g.square().sum() for g in gradients))
                # -∇R = e^{-α} ∇α: plain descent feels the loss, the others divide it away.
                factor = {
                    "plain": np.exp(-min(max(value, -50.0), 745.0)),
                    "loss-normalized": 1.0,
                    "normalized": 1.0 / length.item(),
                }[rule]
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter += rate * factor * gradient
        reached[rule] = best
    if importlib.util.find_spec("torchdiffeq"):
        reached["torchdiffeq dopri5"] = torchdiffeq_alpha(name, seconds)
    return reached


def torchdiffeq_alpha(name: str, seconds: float) -> float:
    """Return the α that dopri5 reaches on dW/dσ = ‖W‖ ∇α/‖∇α‖ within the time."""
    from torchdiffeq import odeint

    case = CASES[name]()
    problem = Problem(case.module, case.x, case.y)
    deadline, best = time.perf_counter() + seconds, [0.0]

    def velocity(_, w):
        if time.perf_counter() > deadline:
            raise TimeoutError
        alpha, _, _, gradient = problem.smoothed_margin(w.numpy())
        best[0] = max(best[0], alpha)
        unit = gradient / np.linalg.norm(gradient)
        return torch.from_numpy(np.linalg.norm(w.numpy()) * unit)

    with suppress(TimeoutError):
        odeint(
            velocity,
            torch.from_numpy(problem.w0),
            torch.tensor([0.0, 50.0]),
            rtol=1e-5,
            atol=1e-5,
            method="dopri5",
        )
    return best[0]


def draw(rows: list[dict]) -> None:
    figure, axes = plt.subplots(figsize=(5.0, 3.0), layout="constrained")
    for offset, method in enumerate(TOLERANCES):
        ratios = [row["peers"][method]["ratio"] for row in rows]
        bars = axes.bar(np.arange(len(rows)) + 0.25 * offset, ratios, 0.22, label=method)
        for row, bar in zip(rows, bars, strict=True):
            if row["peers"][method]["seconds"] is None:
                axes.annotate("≥", (bar.get_x(), bar.get_height()))
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set(yscale="log", ylabel="seconds / ours", xlabel="parameters")
    axes.set_xticks(np.arange(len(rows)) + 0.25, [row["parameters"] for row in rows])
    axes.legend()
    figure.savefig(RESULTS / "peers.svg")


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    limits = {"squared 200": 30.0, "squared 500": 30.0, "squared 2000": 60.0}
    rows = [compare_stiff(name, limit, repeats) for name, limit in limits.items()]
    whole = timed(lambda: latephase.gradient_flow(*_data("squared 200"), until=UNTIL))[1]
    descent = compare_descent("squared 200", whole)
    print(f"in the {whole:.1f} s that ours takes to α = 1e6 from the initialization:")
    for rule, alpha in descent.items():
        print(f"  {rule:<20} α = {alpha:.3g}")
    save("peers", {"rows": rows, "descent": descent, "descent_seconds": whole})
    draw(rows)


def _data(name: str):
    case = CASES[name]()
    return case.module, case.x, case.y


if __name__ == "__main__":
    main()
