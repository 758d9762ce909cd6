"""Live networks into their late phase, how far they are from homogeneous, and what moves."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from experiments.frames import stacked
from experiments.late_training import settling
from latephase.measures.settling import successive_distances
from latephase.problem import vectors
from latephase.problem.task import Task
from latephase.training.scale_free import History, followed, history
from latephase.training.train import Settings, train

# Loss-normalized steps of all examples at once: until all are right, and from there on.
EARLY = {"schedule": "normalized", "rate": 0.2, "momentum": 0.9, "channels_last": True}
# Levels of α on the way to the last image, which may be passed several at a time.
_LEARNING = [*-np.geomspace(300.0, 1.0, 5), 0.0]
LATE = {"schedule": "normalized", "growth": 0.75, "checkpoints": 2, "channels_last": True}


@dataclass(frozen=True, eq=False)
class Live:
    """A live run: the stage that separates its images, and the late one from there."""

    early: History
    late: History


def live(
    module: torch.nn.Module, sets: tuple[Task, Task], steps: int, levels: Sequence[float], **rule
) -> Live:
    """Train a module in place to the last level of α, or for that many late steps.

    sets: to train on, and to test on. The early stage has 512 steps and ends where the last image
    is learned; the late one has checkpoints at the levels. rule: `rate` and `momentum` of the late
    stage.
    """
    with tempfile.TemporaryDirectory(prefix="latephase-") as folder:
        settings = Settings(512, **EARLY)
        first = train(module, sets[0], settings, f"{folder}/early", at=_LEARNING)
        early = history(first, module, *sets)
        settings = Settings(steps, **LATE, **rule)
        second = train(module, sets[0], settings, f"{folder}/late", at=list(levels))
        return Live(early, history(second, module, *sets))


def thrown(
    h_alexnet: torch.nn.Module, densenet: torch.nn.Module, sets: tuple[Task, Task]
) -> dict[str, History]:
    """Return runs that never rest: with labels renewed in every epoch, and in steps too long."""
    descent = {"loss": "cross_entropy", "schedule": "normalized", "momentum": 0.9}
    blind = Settings(512, rate=0.2, labels="renewed", checkpoints=19, **descent)
    edge = Settings(128, rate=5.0, checkpoints=15, **descent)
    return {
        "renewed labels": followed(h_alexnet, *sets, blind),
        "edge": followed(densenet, *sets, edge),
    }


def states(module: torch.nn.Module, task: Task) -> dict[str, np.ndarray]:
    """Return weights [P] before the first step, after it, and where α is first positive."""
    found, module = {"start": _weights(module)}, copy.deepcopy(module)
    for name, steps, at in (("one step", 1, []), ("separated", 512, [0.0])):
        one = copy.deepcopy(module)
        with tempfile.TemporaryDirectory(prefix="latephase-") as folder:
            run = train(one, task, Settings(steps, **EARLY), folder, at=at)
            found[name] = _weights(run.load(-1, one))
    return found


def _weights(module: torch.nn.Module) -> np.ndarray:
    # Weights in the format channels_last have no flat view.
    return torch.cat([w.detach().double().flatten() for w in module.parameters()]).numpy()


def rounded(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy in which every weight is changed by one part in ten million, up or down."""
    other, signs = copy.deepcopy(module), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight *= 1 + 1e-7 * torch.randn(weight.shape, generator=signs).sign()
    return other


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the angle between the directions of two runs, in each of their `states`."""
    return {name: vectors.angle(w, other[name]) for name, w in one.items()}


def rounding(modules: Sequence[torch.nn.Module], task: Task) -> pd.DataFrame:
    """Return how far rounding takes each network, as `apart`, a row each.

    "next": how far it and the next network are apart where α is first positive; NaN for the last.
    """
    ends = [states(module, task) for module in modules]
    again = [states(rounded(module), task) for module in modules]
    pairs = pd.DataFrame([apart(one, other) for one, other in zip(ends, again, strict=True)])
    nexts = [apart(one, other)["separated"] for one, other in pairwise(ends)]
    return pairs.assign(next=[*nexts, np.nan])


# No powers of two, by which float64 multiplies without rounding.
_SCALES = (3 / 7, 3.0)


def scaling(module: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Return (L, defect): by which power outputs follow the scale of the weights, and how badly.

    With f the outputs on x at weights W + noise, a tenth of each tensor's root mean square (zero
    biases would hide), in evaluation mode and float64: L_c = ln(‖f(cW)‖/‖f(W)‖)/ln c for c =
    3/7 and 3, by which weights are rounded; L is their mean, and the defect the largest of their
    difference and of the distances of f(cW)/‖f(cW)‖ from f(W)/‖f(W)‖. Zero for a homogeneous
    network, finite where outputs are not 0.
    """
    net = copy.deepcopy(module).double().eval()
    rng = torch.Generator().manual_seed(0)
    outputs = {}
    with torch.no_grad():
        for w in net.parameters():
            size = w.square().mean().sqrt().item() or 1.0
            w += 0.1 * size * torch.randn(w.shape, generator=rng, dtype=w.dtype)
        noisy = copy.deepcopy(net.state_dict())
        for c in (1.0, *_SCALES):
            net.load_state_dict(noisy)
            for w in net.parameters():
                w *= c
            outputs[c] = net(x.double())
    size = {c: f.norm().item() for c, f in outputs.items()}
    degree = [np.log(size[c] / size[1.0]) / np.log(c) for c in _SCALES]
    shape = {c: f / size[c] for c, f in outputs.items()}
    apart = [(shape[c] - shape[1.0]).norm().item() for c in _SCALES]
    return float(np.mean(degree)), float(max(*apart, abs(degree[1] - degree[0])))


def shifted(run: History, units: Sequence[str]) -> float:
    """Return how far the margins' distribution moves while α is squared for the last time.

    The Wasserstein distance of the distributions at the last checkpoint with α ≤ √α_last and at
    the end, over the later mean, in the worst of the units.
    """
    last = max(run.smoothed_margin[-1], 1.0)
    place = np.flatnonzero(run.smoothed_margin[:-1] <= np.sqrt(last))
    start = int(place[-1]) if len(place) else 0
    return _distance(run, units, start, -1)


def moved(run: History, units: Sequence[str], end: int = -1) -> float:
    """Return the same while the number of steps doubles up to record `end`, of any run."""
    start = int(np.searchsorted(run.steps, run.steps[end] / 2, side="right")) - 1
    return _distance(run, units, start, end)


def while_learning(run: History, units: Sequence[str]) -> float:
    """Return `moved` over the doubling that ends where for the first time the most are right."""
    return moved(run, units, int(np.argmax((run.margins > 0).sum(axis=1))))


def _distance(run: History, units: Sequence[str], start: int, end: int) -> float:
    pairs = [run.normalized_margins(unit)[[start, end]] for unit in units]
    return max(float(successive_distances(pair)[0]) for pair in pairs)


ALPHA = "smoothed margin α"


def distributions(run: History, places: Sequence[int]) -> pd.DataFrame:
    """Return eighty margins over their mean at each checkpoint, evenly from least to largest."""
    share, margins = (np.arange(80) + 0.5) / 80, run.normalized_margins("mean")
    return stacked({
        ALPHA: float(f"{max(run.smoothed_margin[k], 1.0):.2g}"),
        "margin / mean |margin|": np.quantile(margins[k], share),
        "share of images below": share, "checkpoint": k,
    } for k in places)  # fmt: skip


def shapes(live: Mapping[str, Sequence[Live]]) -> pd.DataFrame:
    """Return `distributions` of the first run of each network, in column "network" its name."""
    firsts = {name: run.late for name, (run, *_) in live.items()}
    return stacked(
        distributions(run, range(1, len(run.steps))).assign(network=name)
        for name, run in firsts.items()
    )


# Units that compare shapes, and units that weights give.
SHAPES = ("mean", "logits")
NORMS = ("frobenius", "spectral", "norm")


def changes(live: Mapping[str, Sequence[Live]]) -> dict[str, list[float]]:
    """Return for each network how far its margins' shape moves, one number for each start."""
    return {name: [shifted(run.late, SHAPES) for run in runs] for name, runs in live.items()}


def turns(live: Mapping[str, Sequence[Live]]) -> list[float]:
    """Return for each start the least bound of the criterion on the networks' directions."""
    bounds = [
        [
            settling(np.log(np.maximum(run.late.smoothed_margin, 1e-9)), run.late.turn).bound
            for run in runs
        ]
        for runs in live.values()
    ]
    return [min(of_start) for of_start in zip(*bounds, strict=True)]


def depths(live: Mapping[str, Sequence[Live]]) -> list[float]:
    """Return for each start the least α at which one of the networks ends."""
    starts = zip(*live.values(), strict=True)
    return [min(run.late.smoothed_margin[-1] for run in runs) for runs in starts]


def claimed(
    live: Mapping[str, Sequence[Live]],
    networks: Mapping[str, Sequence[torch.nn.Module]],
    x: torch.Tensor,
    edge: dict[int, float],
) -> dict[str, tuple[list[float], dict]]:
    """Return {claim: (its numbers, a start each, and its controls)} of live runs.

    networks: as trained; edge: how far margins move where steps throw a network about, by its seed.
    Where the median of the starts is judged, so it is of the control while they learn.
    """

    def learning(runs: Sequence[Live], of) -> dict[int, float]:
        middle = float(np.median([while_learning(run.early, of) for run in runs]))
        return {next(iter(edge)): middle}

    found, change = {}, changes(live)
    keys = ("h-alexnet", "biased", "densenet", "resnet")
    for key, (name, runs) in zip(keys, live.items(), strict=True):
        control = {"while learning": learning(runs, SHAPES), "edge": edge}
        found[f"{key}-settles"] = (change[name], control)
    degrees = {name: [scaling(one, x) for one in nets] for name, nets in networks.items()}
    broken = {name: [defect for _, defect in pairs] for name, pairs in degrees.items()}
    broken["biased twin"] = broken.pop("with biases")
    of_degree_8 = [max(defect, abs(degree - 8)) for degree, defect in degrees["H-AlexNet"]]
    starts = [*zip(*live.values(), strict=True)]
    homogeneous = live["H-AlexNet"]
    return found | {
        "degree": (of_degree_8, {n: broken[n] for n in ("biased twin", "DenseNet", "ResNet")}),
        "other-units": (
            [shifted(run.late, NORMS) for run in homogeneous],
            {"while learning": learning(homogeneous, NORMS)},
        ),
        "alignment": (
            [max(1 - run.late.alignment[-1] for run in runs) for runs in starts],
            {"at the start": [min(1 - run.early.alignment[0] for run in runs) for runs in starts]},
        ),
    }


def numbers(live: Mapping[str, Sequence[Live]], pairs: pd.DataFrame) -> dict[str, float]:
    """Return what the page says of live runs, by the number's name; pairs: of `rounding`."""
    found = {f"change-{n.lower().replace(' ', '-')}": v for n, v in changes(live).items()}
    found["change-norm"] = [shifted(run.late, ("norm",)) for run in live["H-AlexNet"]]
    found |= {
        "apart-least": pairs.separated.min(),
        "apart-most": pairs.separated.max(),
        "amplified": pairs.separated / pairs.start,
        "apart-seeds": pairs.next.dropna(),
        "apart-share": pairs.separated.median() / pairs.next.median(),
    }
    return {name: float(np.median(values)) for name, values in found.items()}


def sentences(live: Mapping[str, Sequence[Live]], seeds: Sequence[int]) -> dict[str, str]:
    """Return what the page says of live runs in words, by their name."""
    came = [f"{end:.0f} from start {seed}" for seed, end in zip(seeds, depths(live), strict=True)]
    return {
        "live-words": "not resolved" if min(turns(live)) >= -1.0 else "not all unresolved",
        "live-depth-words": f"the network that came least far reached {', '.join(came)}",
    }
