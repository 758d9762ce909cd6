"""The flow against general stiff solvers, an explicit one and discrete gradient descent.

    OMP_NUM_THREADS=1 python benchmarks/peers.py [row …]

Two-layer squared ReLU. LSODA, BDF and Radau of scipy and CVODE of SUNDIALS (BDF and GMRES, where
scikit-sundae is installed) solve the equation of the late phase in ln‖W‖ from one start at α = 2.5,
with its exact derivative, CVODE with exact products of it. They have the network by hand in NumPy;
`gradient_flow` has a module that multiplies matrices, and the whole way from its start.

Of each solver the fastest setting counts that comes to α = 1e6 with an error of the direction
within 2e-5: peers are tried with five tolerances from 1e-4 to 1e-12, each with steps of ln‖W‖ up to
0.05 and of any length, up to the row's limit in seconds or ten times the best so far. Errors are
against `gradient_flow` at tol 1e-9; those of peers at 1e-12 say what that is worth. By how much the
flow multiplies an error on the way is seen from displaced starts (`amplification`). Times are
medians of five runs, one solver after the other in each turn; what takes more than 20 seconds is
run once. Then each of the others is asked for α = 1e12 and 1e30, peers also at tolerances 1e-12 and
1e-14; the farthest counts. At 2000 weights those that factor the matrix are tried with three
settings and asked for no more, or the row would take an hour.

At 200 weights and 60 examples also RK45 of scipy (Dormand and Prince, torchdiffeq's dopri5) on the
same equation, and plain, loss-normalized and normalized descent, whose `tol` is the rate. Seconds
are of the CPU. Saves results/peers.json, which the page "The instrument" draws, after each row;
with names of rows behind the command, only these are run, into the record that is there.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from itertools import product

import numpy as np
import torch
from fused import SquaredPoint
from problems import CASES, RESULTS, save
from stiff_flow import DirectionFlow, End, solved_by_cvode, solved_by_scipy

import latephase
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle

UNTIL, FURTHER, ACCURACY, DEGREE = 1e6, (1e12, 1e30), 2e-5, 3.0
REPEATS, PATIENCE, QUICK = 5, 10.0, 20.0
LIMITS = {
    "squared 200": 5.0,
    "squared 200, n = 20": 5.0,
    "squared 200, n = 500": 5.0,
    "squared 500": 10.0,
    "squared 2000": 60.0,
}
OURS = [(tol, np.inf) for tol in (1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)]
THEIRS = list(product((1e-12, 1e-10, 1e-8, 1e-6, 1e-4), (np.inf, 0.05)))
LARGE = [(1e-8, np.inf), (1e-8, 0.05), (1e-10, np.inf)]
FINEST = (1e-12, 1e-14)
DENSE, RULES = ("LSODA", "BDF", "Radau"), ("plain", "loss-normalized", "normalized")
EXPLICIT = [(1e-4, np.inf), (1e-6, np.inf)]
RATES = [(rate, np.inf) for rate in (1.0, 0.1, 0.01)]

# (tol, max_step, until, deadline) ↦ where it ends.
Solver = Callable[[float, float, float, Callable[[], bool]], End]


def start_of(name: str) -> Problem:
    """Return a problem at the start of the late phase."""
    case = CASES[name]()
    early = latephase.gradient_flow(case.module, case.x, case.y, until=2.5, tol=1e-5)
    return Problem(early.write_to(case.module), case.x, case.y)


def solvers(problem: Problem) -> dict[str, Solver]:
    """Return all of them by name, ours first."""
    x, y, w = problem.x.numpy(), problem.y.numpy(), problem.w0
    flow = DirectionFlow(partial(SquaredPoint, x, y), DEGREE)

    def ours(tol, _, until, deadline) -> End:
        end = latephase.gradient_flow(problem.module, x, y, until=until, tol=tol)
        return End(end.direction[-1], end.smoothed_margin[-1], "arrived")

    def scipys(method, tol, max_step, until, deadline) -> End:
        return solved_by_scipy(flow, w, until, method, tol, max_step, deadline)

    def cvode(tol, max_step, until, deadline) -> End:
        return solved_by_cvode(flow, w, until, tol, max_step, deadline=deadline)

    def descent(rule, rate, _, until, deadline) -> End:
        return descended(flow, w, until, rule, rate, deadline)

    found = {"gradient_flow": ours}
    found |= {method: partial(scipys, method) for method in DENSE}
    found |= {"CVODE": cvode} if find_spec("sksundae") else {}
    if (w.size, problem.n) == (200, 60):
        found |= {"RK45": partial(scipys, "RK45")}
        found |= {f"{rule} descent": partial(descent, rule) for rule in RULES}
    return found


def slow(solver: str, parameters: int) -> bool:
    """Return whether a run takes minutes: it factors matrices of 2000 rows and more."""
    return solver in DENSE and parameters >= 2000


def settings(solver: str, parameters: int) -> list[tuple[float, float]]:
    """Return the (tol, max_step) to try."""
    if solver in DENSE or solver == "CVODE":
        return LARGE if slow(solver, parameters) else THEIRS
    return {"gradient_flow": OURS, "RK45": EXPLICIT}.get(solver, RATES)


def attempt(solver: Solver, tol: float, max_step: float, until: float, limit: float) -> dict:
    """Return what came of one run, with its direction."""
    begin = time.process_time()
    end = solver(tol, max_step, until, lambda: time.process_time() - begin > limit)
    seconds = time.process_time() - begin
    bound = None if np.isinf(max_step) else max_step
    result = {"tol": tol, "max_step": bound, "seconds": seconds, "alpha": float(end.alpha)}
    return result | {"stopped": end.stopped, "direction": end.direction}


def measured(run: dict, reference: np.ndarray) -> dict:
    """Return a run with the error of its direction in place of that."""
    error = angle(run["direction"], reference)
    return {key: value for key, value in run.items() if key != "direction"} | {"error": error}


def arrived(run: dict) -> bool:
    return run["stopped"] == "arrived" and run["error"] <= ACCURACY


def search(solver: Solver, pairs: list, reference: np.ndarray, limit: float) -> list[dict]:
    """Return the runs of a solver to α = 1e6, one for each (tol, max_step)."""
    tried, patience = [], limit
    for tol, max_step in pairs:
        tried.append(measured(attempt(solver, tol, max_step, UNTIL, patience), reference))
        if arrived(tried[-1]):
            patience = min(patience, PATIENCE * tried[-1]["seconds"])
    return tried


def beyond(name: str, solver: Solver, best: dict, reference: np.ndarray, until: float, limit):
    """Return the farthest run of a solver that is asked for more."""
    tols = {best["tol"], *(() if name == "gradient_flow" else FINEST)}
    bound = best["max_step"] or np.inf
    runs = [attempt(solver, tol, bound, until, limit) for tol in sorted(tols)]
    farthest = max(runs, key=lambda run: (run["stopped"] == "arrived", run["alpha"]))
    return {"until": until} | measured(farthest, reference)


def compare(name: str, limit: float) -> dict:
    """Return what each solver does from one separated start: a row of the record."""
    problem, references = start_of(name), {}
    flow = latephase.gradient_flow(problem.module, problem.x, problem.y, until=UNTIL, tol=1e-9)
    for level in (UNTIL, *FURTHER):
        flow = flow.extend(level) if references else flow
        references[level] = flow.direction[-1]
    entries, best, by_name = {}, {}, solvers(problem)
    for each, solver in by_name.items():
        pairs = settings(each, problem.w0.size)
        tried = search(solver, pairs, references[UNTIL], limit)
        entries[each] = {"seconds": None, "tried": tried}
        if any(map(arrived, tried)):
            best[each] = min(filter(arrived, tried), key=lambda run: run["seconds"])
    quick = {each: run for each, run in best.items() if run["seconds"] <= QUICK}
    seconds = {each: [run["seconds"]] for each, run in best.items()}
    for _ in range(REPEATS - 1):
        for each, run in quick.items():
            bound = run["max_step"] or np.inf
            again = attempt(by_name[each], run["tol"], bound, UNTIL, np.inf)
            seconds[each].append(again["seconds"])
    for each, run in best.items():
        further = [
            beyond(each, by_name[each], run, references[until], until, limit)
            for until in FURTHER
            if each in quick and not slow(each, problem.w0.size)
        ]
        kept = {key: run[key] for key in ("tol", "max_step", "error")}
        entries[each] |= {"seconds": statistics.median(seconds[each]), "runs": seconds[each]}
        entries[each] |= kept | {"further": further}
    unit = entries["gradient_flow"]["seconds"]
    for each, entry in entries.items():
        entry["ratio"] = (entry["seconds"] or limit) / unit
        report(name, each, entry)
    growth = amplification(problem, references[UNTIL])
    print(f"{name:<21} a displacement of the start grows up to {growth:.2g} times", flush=True)
    data = problem.x.numpy().tobytes() + problem.y.numpy().tobytes()
    return {
        "problem": name,
        "parameters": problem.w0.size,
        "examples": problem.n,
        "data_sha256": sha256(data).hexdigest(),
        "limit": limit,
        "amplification": growth,
        "solvers": entries,
    }


def amplification(problem: Problem, end: np.ndarray) -> float:
    """Return how many times farther apart directions end than they start: the most of three."""
    start, module = problem.w0 / np.linalg.norm(problem.w0), copy.deepcopy(problem.module)
    rng, grown = np.random.default_rng(0), []
    for _ in range(3):
        noise = rng.normal(size=start.size)
        moved = problem.w0 + 1e-4 * np.linalg.norm(problem.w0) * noise / np.linalg.norm(noise)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(moved), module.parameters())
        flow = latephase.gradient_flow(module, problem.x, problem.y, until=UNTIL, tol=1e-8)
        grown.append(angle(flow.direction[-1], end) / angle(moved, start))
    return max(grown)


def report(row: str, name: str, entry: dict) -> None:
    """Print a line."""
    if entry["seconds"] is None:
        run = max(entry["tried"], key=lambda run: run["alpha"])
        print(
            f"{row:<21} {name:<23} not within {ACCURACY:g}: α = {run['alpha']:.2g} in "
            f"{run['seconds']:.2g} s, error {run['error']:.1e}",
            flush=True,
        )
        return
    far = ", ".join(f"{run['alpha']:.1e} in {run['seconds']:.2g} s" for run in entry["further"])
    print(
        f"{row:<21} {name:<23} {entry['seconds']:6.2f} s, ratio {entry['ratio']:.2f}, "
        f"tol {entry['tol']:g}, max_step {entry['max_step']}, error {entry['error']:.1e}; "
        f"then α = {far}",
        flush=True,
    )


def descended(
    flow: DirectionFlow, w: np.ndarray, until: float, rule: str, rate: float, deadline
) -> End:
    """Return where descent from W [P] passes α = until, or its largest α at the deadline."""
    farthest = End(w, -np.inf, "out of time")
    with np.errstate(all="ignore"):
        while not deadline():
            point = flow.at(w)
            q, alpha = flow.duals(0.0, point.p)
            if not np.isfinite(alpha):
                return replace(farthest, stopped="diverged")
            if alpha > farthest.alpha:
                farthest = End(w, alpha, "out of time")
            if alpha >= until:
                return replace(farthest, stopped="arrived")
            gradient = point.pull(q)
            # -∇R = e^{-α} ∇α: plain descent feels the loss, the others divide it away.
            factor = {
                "plain": np.exp(-alpha),
                "loss-normalized": 1.0,
                "normalized": 1.0 / np.linalg.norm(gradient),
            }[rule]
            w = w + rate * factor * gradient
    return farthest


def main() -> None:
    # LSODA warns of what it also returns, and scipy of tolerances that rounding does not allow.
    warnings.filterwarnings("ignore", category=UserWarning, module="scipy")
    asked = sys.argv[1:]
    content = json.loads((RESULTS / "peers.json").read_text()) if asked else {}
    rows = {row["problem"]: row for row in content.get("rows", [])}
    duration = content.get("duration", 0.0)
    for name in asked or LIMITS:
        begin = time.process_time()
        rows[name] = compare(name, LIMITS[name])
        duration += time.process_time() - begin
        content = {
            "rows": [rows[each] for each in LIMITS if each in rows],
            "absent": [] if find_spec("sksundae") else ["CVODE"],
            "repeats": REPEATS,
            "accuracy": ACCURACY,
            "duration": duration,
        }
        save("peers", content)


if __name__ == "__main__":
    main()
