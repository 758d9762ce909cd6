"""Recorded runs of this book's image networks, and the frames in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from experiments.late_training import (
    Settling,
    euler_defect,
    largest_exponent,
    settling,
    single_exponent_defect,
)
from experiments.nonhomogeneous_networks import shifted, while_learning
from latephase.measures.settling import successive_distances
from latephase.training.parameter_groups import ParameterGroups
from latephase.training.scale_free import History

# The parameters behind a network's last normalization, in torchvision's names: the last layer, and
# the gains and shifts whose outputs it reads, alone or as a sum.
LAST = {
    "ResNet": (
        ("1.fc.weight",),
        tuple(
            f"1.layer4.{place}.{kind}"
            for place in ("0.bn2", "0.downsample.1", "1.bn2")
            for kind in ("weight", "bias")
        ),
    ),
    "DenseNet": (
        ("1.classifier.weight",),
        ("1.features.norm5.weight", "1.features.norm5.bias"),
    ),
}


NETWORKS = ["H-AlexNet", "DenseNet", "ResNet", "with biases", "bare ResNet", "bare DenseNet"]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded run in three stages: `separate`, `late`, `twin`, each with its parameter groups.

    name: in runs.yml; kind: what readers call the network; record: all but the arrays.
    """

    name: str
    kind: str
    record: Mapping
    separate: History
    late: History
    twin: History
    groups: ParameterGroups
    twin_groups: ParameterGroups

    @property
    def clock(self) -> np.ndarray:
        """ln α of the late stage's checkpoints."""
        return np.log(np.maximum(self.late.smoothed_margin, 1e-9))

    @property
    def network(self) -> str:
        return self.record["run"]["network"]

    @property
    def wrong(self) -> int:
        """How many training images are on the wrong side when the first stage ends."""
        return int((self.separate.margins[-1] <= 0).sum())

    @property
    def wrong_at_first(self) -> int:
        return int((self.separate.margins[0] <= 0).sum())

    def direction(self, names: tuple[str, ...] | None = None) -> Settling:
        """Return whether the direction of some groups, or of all weights, settles."""
        return settling(self.clock, successive(self.groups, names))

    def units(self) -> dict[str, np.ndarray]:
        """Return margins [K, n] of the late stage in each unit that the network has."""
        found = {unit: self.late.normalized_margins(unit) for unit in self.late.units}
        if self.kind in LAST:
            last, norm = LAST[self.kind]
            found["last layer"] = in_seminorm(self.late, self.groups, last, 1.0)
            found["behind the last norm"] = in_seminorm(self.late, self.groups, (*last, *norm), 2.0)
        return found

    def margins(self) -> dict[str, Settling]:
        """Return for each unit whether the distribution of the margins settles."""
        units = self.units().items()
        return {unit: settling(self.clock, successive_distances(p)) for unit, p in units}


# Networks that have one name in runs.yml and another for readers: which sizes make the difference.
KINDS = {
    ("alexnet", "biases", True): "with biases",
    ("resnet", "normalized", False): "bare ResNet",
    ("densenet", "normalized", False): "bare DenseNet",
    ("alexnet", None, None): "H-AlexNet",
    ("resnet", None, None): "ResNet",
    ("densenet", None, None): "DenseNet",
}
# The degree of the deepest branch, where there is no normalization: layers one behind the other.
DEPTH = {"H-AlexNet": 8, "with biases": 8, "bare ResNet": 18, "bare DenseNet": 16}


def of_record(name: str, record: Mapping) -> Recorded:
    """Return a recorded run from what `latebook.records.recorded` gives of it."""
    run, arrays = record["run"], record["arrays"]
    kind = next(
        word
        for (network, size, value), word in KINDS.items()
        if network == run["network"] and (size is None or run["sizes"].get(size) == value)
    )
    (separate, _), (late, groups), (twin, twin_groups) = (
        _stage(arrays, stage) for stage in ("separate", "late", "twin")
    )
    about = {key: value for key, value in record.items() if key != "arrays"}
    return Recorded(name, kind, about, separate, late, twin, groups, twin_groups)


def _stage(arrays: Mapping[str, np.ndarray], name: str) -> tuple[History, ParameterGroups]:
    prefix = f"{name}."
    own = {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
    names = [field.name for field in fields(ParameterGroups)]
    return History.of(own), ParameterGroups(**{name: own[name] for name in names})


def successive(groups: ParameterGroups, names: tuple[str, ...] | None = None) -> np.ndarray:
    """Return the distance [K - 1] of the direction of some groups, or all, from the one before."""
    return np.diagonal(groups.distances(names), 1)


def homogenized(groups: ParameterGroups, degree: float, place: int = -2) -> float:
    """Return how far margins at scale s are from s^degree times a limit, between two scales.

    The distance of d ln‖p(sW)‖/d ln s from the degree between scales `place` and the next, or the
    root mean square distance of p(sW)/‖p(sW)‖ at the two, whichever is larger.
    """
    near, far = groups.scaled_margins[place], groups.scaled_margins[place + 1]
    slope = groups.scaled_size[place + 1] - groups.scaled_size[place]
    slope /= np.log(groups.scales[place + 1] / groups.scales[place])
    return float(max(abs(slope - degree), np.sqrt(np.mean((far - near) ** 2))))


def in_seminorm(
    history: History, groups: ParameterGroups, names: tuple[str, ...], degree: float
) -> np.ndarray:
    """Return margins [K, n] over ‖·‖^degree of these groups, scaled to a last mean of 1.

    With exponents λ of the groups that are all the same, degree = 1/λ makes it the normalized
    margin in the seminorm of Kunin et al. (2023).
    """
    chosen = np.isin(groups.groups, names)
    size = np.log(np.linalg.norm(groups.norms[:, chosen], axis=1))
    margins = history.margins * np.exp(-degree * (size - size[-1]))[:, None]
    return margins / np.abs(margins[-1]).mean()


def foretold(run: Recorded) -> np.ndarray:
    """Return the exponents [P] that a network's layers give, the balanced ones.

    Each layer of H-AlexNet takes 1/8, and a bias what its layer and those before it have. Behind
    its last normalization a network is of degree one in the last weights, in the gains and shifts
    before them together, and in the last bias; all else is free, and taken as zero.
    """
    names = run.groups.groups.tolist()
    if run.network == "alexnet":
        order = {name: k + 1 for k, name in enumerate(n for n in names if n.endswith("weight"))}
        place = [order[name.replace("bias", "weight")] for name in names]
        return np.array(
            [k / 8 if "bias" in n else 1 / 8 for n, k in zip(names, place, strict=True)]
        )
    half = {*LAST[run.kind][0], *LAST[run.kind][1]}
    bias = LAST[run.kind][0][0].replace("weight", "bias")
    return np.array([1.0 if n == bias else 0.5 * (n in half) for n in names])


# Frames.

ALPHA = "smoothed margin α"


def rows(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Return the table of runs: what they are, where they came to, and how long they took."""
    return pd.DataFrame(
        {
            "run": run.name,
            "network": run.kind,
            "images": run.late.margins.shape[1],
            "weights": run.record["parameters"],
            "separated after epochs": round(
                run.separate.steps[-1] / run.record["steps_per_epoch"]["separate"]
            ),
            "wrong then": run.wrong,
            "late steps": int(run.late.steps[-1]),
            "last α": float(f"{run.late.smoothed_margin[-1]:.4g}"),
            "‖W‖ grew by": round(float(np.exp(run.late.log_norm[-1] - run.late.log_norm[0])), 2),
            "cos(W, −∇R)": round(float(run.late.alignment[-1]), 2),
            "test error": round(float(run.late.test_error[-1]), 3),
            "hours": round((run.record["duration"] + run.record["measuring"]) / 3600, 2),
        }
        for run in runs
    )


def quantiles(run: Recorded, levels: Iterable[float], count: int = 80) -> pd.DataFrame:
    """Return sorted margins over their mean, at the first checkpoints with these levels of α."""
    share = (np.arange(count) + 0.5) / count
    margins, alpha = run.late.normalized_margins("mean"), run.late.smoothed_margin
    places = sorted({int(np.argmax(alpha >= level)) for level in levels if alpha[-1] >= level})
    places = sorted({0, *places, len(alpha) - 1})
    return pd.concat(
        pd.DataFrame(
            {
                "network": run.kind,
                "run": run.name,
                ALPHA: float(f"{max(alpha[k], 1.0):.2g}"),
                "margin / mean |margin|": np.quantile(margins[k], share),
                "share of images below": share,
                "checkpoint": k,
            }
        )
        for k in places
    )


def paces(run: Recorded) -> pd.DataFrame:
    """Return distances per e-fold of α, of the direction and of the margins' shape."""
    series = {
        "direction W/‖W‖": successive(run.groups),
        "shape of the margins": successive_distances(run.late.normalized_margins("mean")),
    }
    return pd.concat(_per_fold(run, name, distances) for name, distances in series.items())


def of_groups(run: Recorded) -> pd.DataFrame:
    """Return distances per e-fold of α of each group's direction, and of all weights together.

    Of a network with batch normalization the groups are the last layer, the gains and shifts
    before it, all other gains and shifts, and the convolutions; of another one its tensors.
    """
    names = run.groups.groups.tolist()
    parts = {f"layer {k + 1}": (name,) for k, name in enumerate(names)}
    if run.kind in LAST:
        last, norm = LAST[run.kind]
        kept = {*last, *norm, last[0].replace("weight", "bias")}
        flat = {n for n in names if n not in run.groups.matrices.tolist()}
        parts = {
            "last layer": last,
            "last gains and shifts": norm,
            "other gains and shifts": tuple(flat - kept),
            "convolutions": tuple({*names} - flat - kept),
        }
    series = {part: successive(run.groups, group) for part, group in parts.items()}
    series["all weights"] = successive(run.groups)
    return pd.concat(_per_fold(run, part, distances) for part, distances in series.items())


def _per_fold(run: Recorded, part: str, distances: np.ndarray) -> pd.DataFrame:
    width, middle = np.diff(run.clock), (run.clock[1:] + run.clock[:-1]) / 2
    kept = (width > 1e-9) & (distances > 0)
    return pd.DataFrame(
        {
            "network": run.kind,
            "run": run.name,
            "part": part,
            ALPHA: np.exp(middle[kept]),
            "distance per e-fold of α": distances[kept] / width[kept],
        }
    )


def verdicts(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Return the exponents with their intervals, of directions and of margins in each unit."""
    found = []
    for run in runs:
        fits = {"direction": run.direction()} | run.margins()
        row = {"run": run.name, "network": run.kind}
        found.append(row | {name: f"{fit}{_mark(fit)}" for name, fit in fits.items()})
    return pd.DataFrame(found).fillna("")


def _mark(fit: Settling) -> str:
    return " settles" if fit.words == "settles" else ""


def exponents(runs: Iterable[Recorded], tolerance: float = 1e-4) -> pd.DataFrame:
    """Return what the measured system says of each run's exponents, and what the layers give."""
    found = []
    for run in runs:
        if run.kind.startswith("bare"):
            continue
        largest, defect, dimension = largest_exponent(run.groups, tolerance)
        given = foretold(run)
        found.append(
            {
                "run": run.name,
                "network": run.kind,
                "groups": len(given),
                "free": dimension,
                "largest exponent": round(largest, 3),
                "its defect": float(f"{defect:.1g}"),
                "from the layers": float(given.max()),
                "defect of these": float(f"{euler_defect(run.groups, given):.1g}"),
                "last bias / ‖W‖": _share(run),
            }
        )
    return pd.DataFrame(found)


def _share(run: Recorded) -> str:
    norms = run.groups.norms[[0, -1]]
    if not run.groups.groups[-1].endswith("bias"):
        return "none"
    first, last = norms[:, -1] / np.linalg.norm(norms, axis=1)
    return f"{first:.2g}, then {last:.2g}"


def errors(run: Recorded) -> pd.DataFrame:
    """Return test and training error from the start on, by step, and α of both branches."""
    begun, stages = int(run.separate.steps[-1]), []
    for name, history, before in (
        ("to separation", run.separate, 0),
        ("late phase", run.late, begun),
        ("plain SGD", run.twin, begun),
    ):
        stages.append(
            pd.DataFrame(
                {
                    "network": run.kind,
                    "run": run.name,
                    "stage": name,
                    "step": history.steps + before,
                    "step of the stage": history.steps,
                    "training error": (history.margins <= 0).mean(axis=1),
                    "test error": history.test_error,
                    ALPHA: history.smoothed_margin,
                }
            )
        )
    return pd.concat(stages)


def modes(run: Recorded, count: int = 200) -> pd.DataFrame:
    """Return the last margins over their mean, with batch normalization as it trains and not."""
    share = (np.arange(count) + 0.5) / count
    pair = {"evaluation": run.late.margins[-1], "training": run.groups.batch_margins[-1]}
    return pd.concat(
        pd.DataFrame(
            {
                "network": run.kind,
                "run": run.name,
                "mode": mode,
                "margin / mean |margin|": np.quantile(p / np.abs(p).mean(), share),
                "share of images below": share,
            }
        )
        for mode, p in pair.items()
    )


def mode_gap(run: Recorded) -> float:
    """Return the largest change of a last margin between the two modes, in units of the mean."""
    evaluation, training = run.late.margins[-1], run.groups.batch_margins[-1]
    return float(np.abs(evaluation - training).max() / np.abs(evaluation).mean())


def ratios(run: Recorded) -> pd.DataFrame:
    """Return ‖A‖₂/‖A‖_F of the dense layers, along both stages, in their first numbers of α."""
    found = []
    for place, layer in enumerate(np.flatnonzero(run.late.dense)):
        found.append(
            pd.DataFrame(
                {
                    "network": run.kind,
                    "run": run.name,
                    "dense layer": f"dense layer {place + 1}",
                    ALPHA: np.maximum(run.late.smoothed_margin, 1e-9),
                    "‖A‖₂/‖A‖_F": run.late.ratio[:, place],
                    "least": run.late.smallest_ratio[layer],
                    "at the start": run.separate.ratio[0, place],
                }
            )
        )
    return pd.concat(found)


def scales(run: Recorded) -> pd.DataFrame:
    """Return how far p(sW) is from s^L times a limit, for each two neighbouring scales s."""
    last = len(run.groups.scales) - 1
    return pd.DataFrame(
        {
            "network": run.kind,
            "run": run.name,
            "scale s": run.groups.scales[:-1],
            "distance from homogeneous": [
                max(homogenized(run.groups, DEPTH[run.kind], k), 1e-16) for k in range(last)
            ],
        }
    )


@dataclass(frozen=True, eq=False)
class Findings:
    """What is judged of recorded runs, by their names.

    direction: how W/‖W‖ settles; margins: how the margins do, in each unit; shift, learned: how far
    their shape moves while α is squared for the last time, and from the first step to separation.
    limits: of the nearly homogeneous, how far from a power of the scale at s = 64 and at s = 1.
    rise: of the narrow AlexNets, the ratio ‖A‖₂/‖A‖_F of the first two dense layers at the end over
    that at the start, the smaller of the two, in the late stage and in its twin.
    """

    direction: dict[str, Settling]
    margins: dict[str, dict[str, Settling]]
    shift: dict[str, float]
    learned: dict[str, float]
    limits: dict[str, tuple[float, float]]
    rise: dict[str, tuple[float, float]]


def findings(runs: Mapping[str, Recorded]) -> Findings:
    """Return the `Findings` of runs by their names."""
    return Findings(
        {name: run.direction() for name, run in runs.items()},
        {name: run.margins() for name, run in runs.items()},
        {name: shifted(run.late, ("mean",)) for name, run in runs.items()},
        {name: while_learning(run.separate, ("mean",)) for name, run in runs.items()},
        {
            run.name: (
                homogenized(run.groups, DEPTH[run.kind], -2),
                homogenized(run.groups, DEPTH[run.kind], 0),
            )
            for run in nearly_homogeneous(runs)
        },
        {
            run.name: tuple(
                float((one.ratio[-1] / one.ratio[0])[:2].min()) for one in (run.late, run.twin)
            )
            for run in narrow_alexnets(runs)
        },
    )


def nearly_homogeneous(runs: Mapping[str, Recorded]) -> list[Recorded]:
    """Return the runs of networks that come to a degree as their weights grow."""
    return [run for run in runs.values() if run.kind in DEPTH and run.kind != "H-AlexNet"]


def narrow_alexnets(runs: Mapping[str, Recorded]) -> list[Recorded]:
    """Return the runs of the narrow H-AlexNet and of its twin with biases."""
    return [run for run in runs.values() if run.network == "alexnet" and "small" in run.name]


def claimed(
    runs: Mapping[str, Recorded], found: Findings, unseen: list[str], known: tuple[dict, dict]
) -> dict[str, tuple[list, dict]]:
    """Return {claim: (its numbers, its controls)} of recorded runs.

    unseen: those that had not been made when the claims were registered; known: the bounds of the
    criterion, of directions and of margins, for flows that are known to settle.
    """
    direction, margins = ({"known limit": bounds} for bounds in known)
    new = [runs[name] for name in unseen]
    seen = [name for name in runs if name not in unseen]
    alexnets = [name for name in unseen if runs[name].network == "alexnet"]
    least = [min(fit.bound for fit in found.margins[name].values()) for name in alexnets]
    near = [found.limits[name] for name in found.limits if name in unseen]
    rise = [found.rise[name] for name in found.rise if name in unseen]
    layered = [run for run in runs.values() if not run.kind.startswith("bare")]
    fitting = [euler_defect(run.groups, foretold(run)) for run in layered]
    single = [single_exponent_defect(run.groups) for run in layered if run.kind == "with biases"]
    return {
        "recorded-separated": (
            [run.wrong for run in new],
            {"at the start": [run.wrong_at_first for run in new]},
        ),
        "recorded-figure": (
            [found.shift[name] for name in unseen],
            {"while learning": [found.learned[name] for name in unseen]},
        ),
        "recorded-direction": ([found.direction[name].bound for name in unseen], direction),
        "seen-direction": ([found.direction[name].bound for name in seen], direction),
        "recorded-margins": (least, margins),
        "exponents": (fitting, {"one exponent": dict(enumerate(single))}),
        "homogenized": ([end for end, _ in near], {"as trained": [first for _, first in near]}),
        "spectral-ratios": (
            [late for late, _ in rise],
            {"constant steps": [twin for _, twin in rise]},
        ),
    }


def numbers(runs: Mapping[str, Recorded], found: Findings) -> dict[str, float]:
    """Return what the page on these networks says of all recorded runs, by the number's name."""
    every = [*runs.values()]
    alphas = [run.twin.smoothed_margin[-1] for run in every]
    cosines = [run.late.alignment[-1] for run in every]
    ends = np.array([run.late.ratio[-1, :2] for run in narrow_alexnets(runs)])
    return {
        "shift-least": min(found.shift.values()), "shift-most": max(found.shift.values()),
        "learn-least": min(found.learned.values()),
        "direction-least": min(fit.low for fit in found.direction.values()),
        "cosine-least": min(cosines), "cosine-most": max(cosines),
        "reach-least": min(run.late.smoothed_margin[-1] for run in every),
        "homogenized-most": max(end for end, _ in found.limits.values()),
        "as-trained-least": min(first for _, first in found.limits.values()),
        "test-change": max(np.ptp(run.late.test_error[[0, -1]]) for run in every),
        "twin-least": min(alphas), "twin-most": max(alphas),
        "mode-gap": max(mode_gap(run) for run in every if run.late.batch_normalized),
        "ratio-least": min(late for late, _ in found.rise.values()),
        "ratio-lowest": ends.min(), "ratio-highest": ends.max(),
    }  # fmt: skip


def sentences(runs: Mapping[str, Recorded], found: Findings) -> dict[str, str]:
    """Return what the page on these networks says of all recorded runs in words, by their name."""

    def often(count: int) -> str:
        return f"all {len(runs)}" if count == len(runs) else f"{count} of {len(runs)}"

    wrong = [f"{name} ({run.wrong} wrong)" for name, run in runs.items() if run.wrong]
    ends = {name: run.late.smoothed_margin[-1] for name, run in runs.items()}
    shallow = [f"{name} ({alpha:.0f})" for name, alpha in ends.items() if alpha < 1000.0]
    settled = [
        f"{name} in the unit {unit}"
        for name, units in found.margins.items()
        for unit, fit in units.items()
        if fit.words == "settles"
    ]
    return {
        "resolved-count": often(
            sum(fit.words == "not resolved" for fit in found.direction.values())
        ),
        "separated-sentence": f"Not separated in their budget: {', '.join(wrong)}."
        if wrong
        else "All runs separate their images.",
        "figure-sentence": f"in {often(sum(shift < 0.25 for shift in found.shift.values()))} "
        "recorded runs the shape of the margin distribution moves by less than a quarter of its "
        "mean while α is squared for the last time",
        "shallow-sentence": f"These ended before α = 1,000: {', '.join(shallow)}."
        if shallow
        else "All of them reach α = 1,000.",
        "settled-sentence": f"By the criterion these margins settle: {'; '.join(settled)}."
        if settled
        else "By the criterion no margins settle.",
    }
