"""The flow against general stiff solvers and against discrete gradient descent.

    OMP_NUM_THREADS=1 python benchmarks/peers.py [repeats]

Two-layer squared ReLU, n = 60. scipy's Radau, BDF and LSODA solve the same reparametrized
equation from the same start with the exact Jacobian and stop at α = 1e6 or at a time limit; of
each, the fastest of its tolerances counts whose direction error there is within 2e-5, and this
library runs at the loosest of its own. torchdiffeq (where installed), plain, loss-normalized and
normalized gradient descent are given as many seconds as this library took to reach 1e6 and report
the α they reach. Seconds are of the CPU; ratios come from one run, medians of several. Saves
results/peers.json, which the page "The instrument" draws.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from contextlib import suppress
from hashlib import sha256

import numpy as np
import torch
from problems import CASES, save
from stiff_flow import stiff_direction_flow

import latephase
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle

UNTIL, ACCURACY, DEGREE = 1e6, 2e-5, 3.0
TOLERANCES = {"Radau": (1e-4, 1e-5), "BDF": (1e-5, 1e-6), "LSODA": (1e-5, 1e-6)}


def timed(function):
    begin = time.process_time()
    result = function()
    return result, time.process_time() - begin


def median_of(repeats, function, limit=np.inf):
    """Return (result, median seconds) of so many calls, fewer where they would exceed the limit."""
    result, first = timed(function)
    seconds = [first]
    while len(seconds) < repeats and sum(seconds) + first < limit:
        seconds.append(timed(function)[1])
    return result, statistics.median(seconds)


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
        "data_sha256": sha256(case.x.tobytes() + case.y.tobytes()).hexdigest(),
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

            def attempt(method=method, tol=tol):
                deadline = time.process_time() + limit
                return stiff_direction_flow(
                    gradient,
                    linearized,
                    problem.w0,
                    DEGREE,
                    UNTIL,
                    method,
                    tol,
                    deadline=lambda: time.process_time() > deadline,
                )

            (direction, alpha), seconds = median_of(repeats, attempt, limit)
            off = angle(direction, reference.direction[-1])
            best["alpha"] = max(best["alpha"], alpha)
            arrives = alpha >= 0.999 * UNTIL and off <= ACCURACY
            if arrives and (best["seconds"] is None or seconds < best["seconds"]):
                best |= {"seconds": seconds, "error": off, "tol": tol}
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
            deadline = time.process_time() + seconds
            while time.process_time() < deadline:
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
    deadline, best = time.process_time() + seconds, [0.0]

    def velocity(_, w):
        if time.process_time() > deadline:
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


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    begin = time.process_time()
    limits = {"squared 200": 30.0, "squared 500": 30.0, "squared 2000": 60.0}
    rows = [compare_stiff(name, limit, repeats) for name, limit in limits.items()]
    whole = timed(lambda: latephase.gradient_flow(*_data("squared 200"), until=UNTIL))[1]
    descent = compare_descent("squared 200", whole)
    print(f"in the {whole:.1f} s that ours takes to α = 1e6 from the initialization:")
    for rule, alpha in descent.items():
        print(f"  {rule:<20} α = {alpha:.3g}")
    save(
        "peers",
        {
            "rows": rows,
            "descent": descent,
            "descent_seconds": whole,
            "repeats": repeats,
            "duration": time.process_time() - begin,
        },
    )


def _data(name: str):
    case = CASES[name]()
    return case.module, case.x, case.y


if __name__ == "__main__":
    main()
