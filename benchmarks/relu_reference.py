"""Where small explicit steps take the networks of relu_networks.yml: the flow's reference.

    OMP_NUM_THREADS=1 python benchmarks/relu_reference.py [NAME …]

Each network is followed from its start at three relative arc lengths a step, to α = 100 or over
the relative arc length of the settings. What is kept of the smallest steps, at α = 10 and 100, is
the direction [levels reached, P], the norm and the margins [levels reached, n]; `apart` has, for
each level, the distances of the larger steps' directions from it, in the settings' order. Where the
two do not fall with the step, the flow is not unique or close to it. It takes about 20 minutes of
one core. Each network is kept in `_build/relu_reference` once it is done, so that an interrupted
run goes on; at the end results/relu_reference.json and .npz have the forty, and
results/relu_held_out those that are held out.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from explicit_relu import explicit_relu_flow
from problems import RESULTS, save
from relu_networks import LIST, entries, held_out, network

from latebook import BookError, provenance, records

SETTINGS = {"steps": [4e-5, 2e-5, 1e-5], "levels": [10.0, 100.0], "arc": 40.0}
# Those that are held out are asked for errors of 1e-2, which a quarter of the work resolves.
HELD_OUT = SETTINGS | {"steps": [1.6e-4, 8e-5, 4e-5]}
ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "_build" / "relu_reference"


def main(names: list[str] | None = None) -> None:
    for name in names or entries() | held_out():
        done = part(name)
        print(f"{name:<14}P {done['parameters']:>5} " + told(done), flush=True)
    if not names:
        assemble("relu_reference", entries(), SETTINGS)
        assemble("relu_held_out", held_out(), HELD_OUT)


def part(name: str) -> dict:
    """The record of one network, which is made where it is missing or of other settings."""
    listed = entries()
    settings = SETTINGS if name in listed else HELD_OUT
    entry = (listed | held_out())[name]
    try:
        done = records.recorded(name, PARTS)
        if done["settings"] == settings and done["data"]["content"] == entry:
            return done
    except BookError:
        pass
    module, x, y = network(name)
    start = [w.detach().numpy() for w in module.parameters()]
    ends, runs = [], []
    for step in settings["steps"]:
        begin = time.process_time()
        end = explicit_relu_flow(
            start, x.numpy(), y.numpy(), step, settings["levels"], settings["arc"]
        )
        ends.append(end)
        runs.append(
            {
                "step": step,
                "arc": end.steps * step,
                "separated": None if end.separated is None else end.separated * step,
                "alpha": end.last,
                "levels": end.levels.tolist(),
                "dead": end.dead.tolist(),
                "moving": end.moving,
                "seconds": time.process_time() - begin,
            }
        )
    norms = [np.linalg.norm(end.weights, axis=1) for end in ends]
    directions = [end.weights / norm[:, None] for end, norm in zip(ends, norms, strict=True)]
    all_of_them = min(len(direction) for direction in directions)
    apart = [
        [float(np.linalg.norm(larger[k] - directions[-1][k])) for larger in directions[:-1]]
        for k in range(all_of_them)
    ]
    row = {
        "network": name,
        "parameters": sum(w.size for w in start),
        "runs": runs,
        "apart": apart,
    }
    arrays = {"direction": directions[-1], "norm": norms[-1], "margins": ends[-1].margins}
    told_by = provenance_of(entry, settings, sum(run["seconds"] for run in runs))
    save(name, row | told_by, arrays, PARTS)
    return records.recorded(name, PARTS)


def provenance_of(content: dict, settings: dict, duration: float) -> dict:
    return {
        "settings": settings,
        "data": {"name": LIST.name, "content": content},
        "commit": provenance.commit(ROOT),
        "duration": duration,
        "seed": "each network's own",
    }


def told(row: dict) -> str:
    """A row in a line: the arc length and α of the end, and the larger steps' distances."""
    run = row["runs"][-1]
    separated = "never" if run["separated"] is None else f"{run['separated']:.3f}"
    return (
        f"arc {run['arc']:6.2f}  α {run['alpha']:8.3g}  separated at {separated}  "
        f"apart {', '.join(' '.join(f'{a:.1e}' for a in each) for each in row['apart'])}  "
        f"dead {run['dead']} "
        f"{sum(r['seconds'] for r in row['runs']):6.1f} s"
    )


def assemble(record: str, chosen: dict[str, dict], settings: dict) -> None:
    rows, arrays = [], {}
    for name in chosen:
        done = part(name)
        rows.append({k: done[k] for k in ("network", "parameters", "runs", "apart")})
        for key, array in done["arrays"].items():
            arrays[f"{name}_{key}"] = array
    separated = sum(row["runs"][-1]["separated"] is not None for row in rows)
    print(f"{separated} of {len(rows)} were separated")
    duration = sum(run["seconds"] for row in rows for run in row["runs"])
    save(record, {"rows": rows} | provenance_of(chosen, settings, duration), arrays, RESULTS)


if __name__ == "__main__":
    main(sys.argv[1:])
