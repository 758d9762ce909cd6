"""Make recorded runs: train a network on images as `recordings/runs.yml` says, keep what is drawn.

    python recordings/make.py NAME ...        (`make record RUN=NAME` calls it, each run a job)

The named runs, made anew or from where they were interrupted. Their checkpoints stay in
`_build/recordings/`, the records go to `results/`.
`--runs recordings/paper.yml` reads other runs; `--steps 3` makes a trial of that many steps, whose
record goes to `_build/trials/` and is never drawn.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from latebook import BookError, provenance, records
from latebook.files import held, require_room
from latephase.files import plain_arrays
from latephase.problem.task import Task
from latephase.training import scale_free
from latephase.training.parameter_groups import parameter_groups
from latephase.training.train import Settings, train
from latephase.zoo.image_networks import NETWORKS
from latephase.zoo.images import jpeg_npz, keras_npz

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recordings import writing

ROOT = Path(__file__).resolve().parents[1]
# A run has one training, or stages by name, each with a training of its own: the first begins at
# the drawn weights, the others each where the first ended.
TRAINED = {"epochs", "training"}
KEYS = {"about", "data", "network", "sizes", "seed"}
READERS = {"keras": keras_npz, "jpeg": jpeg_npz}
# The arrays of a file of each layout, of which runs.yml has the content's hash.
ARRAYS = {
    "keras": [f"{array}_{split}" for split in ("train", "test") for array in "xy"],
    "jpeg": [f"{a}_{split}" for split in ("train", "test") for a in ("jpeg", "offset", "y")],
}


def main(words: list[str] | None = None) -> int:
    """Make the records that are asked for; 0, or 1 with what is wrong on the standard error."""
    parser = argparse.ArgumentParser(prog="recordings/make.py", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="runs to make")
    parser.add_argument("--runs", type=Path, default=ROOT / "recordings" / "runs.yml")
    parser.add_argument("--steps", type=int, help="a trial of that many steps")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; 1 by default")
    parser.add_argument("--progress", action="store_true", default=sys.stderr.isatty())
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    build = Path(os.environ.get("LATEPHASE_BUILD", ROOT / "_build"))
    results = build / "trials" if options.steps else ROOT / "results"
    try:
        runs = read_runs(options.runs)
        if unknown := sorted(set(options.names) - set(runs)):
            raise BookError(f"{options.runs}: no run {', '.join(unknown)}; known: {list(runs)}")
        require_room(results)  # found out now and not after the training
        for name in options.names:
            folder = build / "recordings" / (f"{name}-{options.steps}" if options.steps else name)
            print(f"{name}: {runs[name]['about']}", flush=True)
            with held(folder.with_name(f".{folder.name}.lock"), f"the run {name}"):
                path = make(name, runs[name], folder, results, options.steps, options.progress)
            print(f"{name}: {path}", flush=True)
    except (BookError, ValueError, OSError, FloatingPointError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("record: interrupted; the same command goes on from here", file=sys.stderr)
        return 1
    return 0


def read_runs(path: Path) -> dict[str, dict]:
    """The runs of a file by name; BookError where one has a key too many or too few."""
    runs = records.runs(path)
    for name, run in runs.items():
        trained = {"stages"} if "stages" in run else TRAINED
        if set(run) != KEYS | trained:
            raise BookError(
                f"{path}: {name}: expected the keys {sorted(KEYS | trained)}, got {sorted(run)}"
            )
        for stage, content in run.get("stages", {}).items():
            if not TRAINED <= set(content) <= TRAINED | {"until", "levels"}:
                raise BookError(
                    f"{path}: {name}: {stage}: expected epochs, training and perhaps until and "
                    f"levels, got {sorted(content)}"
                )
        if run["network"] not in NETWORKS or run["data"].get("layout") not in READERS:
            raise BookError(
                f"{path}: {name}: expected a network of {sorted(NETWORKS)} and data with a "
                f"layout of {sorted(READERS)}, got {run['network']!r} and {run['data']}"
            )
    return runs


def read_data(data: dict) -> tuple[Task, Task]:
    """Training and test images; ValueError where the variable names no file, or other arrays.

    The content of the arrays decides, `data["content"]`; the file may be compressed in another way
    than the one that `data["sha256"]` is the hash of.
    """
    named = os.environ.get(data["variable"])
    if not named:
        raise ValueError(f"set {data['variable']} to the file of {data['name']}, see README.md")
    if not Path(named).is_file():
        raise ValueError(f"{named}: no such file; expected {data['name']}, see README.md")
    found = records.content_sha256(plain_arrays(Path(named), ARRAYS[data["layout"]]))
    if found != data["content"]:
        raise ValueError(
            f"{named}: expected {data['name']}, arrays whose content has the sha256 "
            f"{data['content']}, got {found}; README.md says how to make the file"
        )
    read = READERS[data["layout"]]
    taken = {"train": data.get("per_class"), "test": None}
    sets = [read(Path(named), per_class=taken[s], split=s, pixels="symmetric") for s in taken]
    return sets[0], sets[1]


def make(
    name: str,
    run: dict,
    folder: Path,
    results: Path,
    steps: int | None = None,
    progress: bool = False,
) -> Path:
    """Train, measure, write the record and return its path."""
    train_set, test_set = read_data(run["data"])
    generator = torch.Generator().manual_seed(run["seed"])
    image = tuple(train_set.x.shape[1:])
    network = NETWORKS[run["network"]](
        train_set.class_count, image=image, generator=generator, **run["sizes"]
    )
    first, facts, arrays = None, {}, {}
    for stage, content in run.get("stages", {"": run}).items():
        training = content["training"] | {"device": os.environ.get("LATEPHASE_DEVICE", "cpu")}
        per_epoch = -(-len(train_set) // (training.get("batch") or len(train_set)))
        settings = Settings(
            steps=steps or content["epochs"] * per_epoch, seed=run["seed"], **training
        )
        if first is not None:
            first.load(-1, network)
        done = train(
            network, train_set, settings, folder / stage, at=levels(content), progress=progress
        )
        first, begin = first or done, time.monotonic()
        measured = scale_free.history(done, network, train_set, test_set)
        found = vars(measured) | {
            "log_risk": done.log_risk,
            "accuracy": done.accuracy,
            "seconds": done.seconds,
        }
        if stage:
            found |= vars(parameter_groups(done, network, train_set))
        arrays |= {f"{stage}.{key}" if stage else key: array for key, array in found.items()}
        facts[stage] = {
            "settings": asdict(done.settings),
            "steps_per_epoch": per_epoch,
            "first_perfect": measured.first_perfect if measured.first_perfect < 1e18 else None,
            "duration": float(done.seconds[-1]),
            "measuring": time.monotonic() - begin,
        }
    if "stages" in run:
        # Each fact by stage, but the time, of which there is a whole.
        facts[""] = {key: {s: fact[key] for s, fact in facts.items()} for key in facts[stage]}
        facts[""] |= {key: sum(facts[""][key].values()) for key in ("duration", "measuring")}
    environment = provenance.environment()
    record = {
        "about": run["about"],
        "run": run,
        **facts[""],
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": {
            "name": run["data"]["name"],
            "sha256": train_set.sha256,
            "content": run["data"]["content"],
        },
        "seed": run["seed"],
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, "
        f"{torch.get_num_threads()} thread(s)",
        "device": _device(os.environ.get("LATEPHASE_DEVICE", "cpu")),
        "versions": {name: environment["versions"][name] for name in provenance.PACKAGES},
        "python": environment["python"],
        "commit": provenance.commit(ROOT),
    }
    return writing.write(name, results, record, arrays)


def levels(content: dict) -> list[float]:
    """The levels of α at which a stage has checkpoints, evenly spaced in ln α from 1 on."""
    if "until" not in content:
        return []
    count = content.get("levels", 1)
    return [content["until"]] if count == 1 else np.geomspace(1.0, content["until"], count).tolist()


def _device(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    sys.exit(main())
