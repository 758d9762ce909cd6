"""Recorded runs of this book's image networks, and the frames in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from experiments.frames import stacked
from experiments.late_training import (
    Settling,
    euler_defect,
    largest_exponent,
    pace,
    settling,
    single_exponent_defect,
)
from experiments.nonhomogeneous_networks import ALPHA, distributions, shifted, while_learning
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

    def wrong(self, record: int = -1) -> int:
        """Return how many training images are on the wrong side, at the end of the first stage."""
        return int((self.separate.margins[record] <= 0).sum())

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

PACE = "distance per e-fold of α"


def _of(run: Recorded, parts: Iterable[Mapping]) -> pd.DataFrame:
    """Return the frames of these columns beside the network and the name of the run."""
    return stacked({"network": run.kind, "run": run.name, **part} for part in parts)


def rows(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Return the table of runs: what they are, where they came to, and how long they took."""
    return pd.DataFrame({
        "run": run.name, "network": run.kind, "images": run.late.margins.shape[1],
        "weights": run.record["parameters"],
        "separated after epochs": round(
            run.separate.steps[-1] / run.record["steps_per_epoch"]["separate"]
        ),
        "wrong then": run.wrong(), "late steps": int(run.late.steps[-1]),
        "last α": round(run.late.smoothed_margin[-1]),
        "‖W‖ grew by": round(float(np.exp(run.late.log_norm[-1] - run.late.log_norm[0])), 2),
        "cos(W, −∇R)": round(float(run.late.alignment[-1]), 2),
        "test error": round(float(run.late.test_error[-1]), 3),
        "hours": round((run.record["duration"] + run.record["measuring"]) / 3600, 2),
    } for run in runs)  # fmt: skip


def quantiles(run: Recorded, levels: Iterable[float] = (1.0, 10.0, 100.0, 1e3)) -> pd.DataFrame:
    """Return sorted margins over their mean, at the first checkpoints with these levels of α."""
    alpha = run.late.smoothed_margin
    places = {int(np.argmax(alpha >= level)) for level in levels if alpha[-1] >= level}
    return _of(run, [distributions(run.late, sorted({0, *places, len(alpha) - 1}))])


def paces(run: Recorded) -> pd.DataFrame:
    """Return distances per e-fold of α, of the direction and of the margins' shape."""
    shapes = successive_distances(run.late.normalized_margins("mean"))
    return _per_fold(
        run, {"direction W/‖W‖": successive(run.groups), "shape of the margins": shapes}
    )


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
    parts["all weights"] = None
    return _per_fold(run, {part: successive(run.groups, group) for part, group in parts.items()})


def _per_fold(run: Recorded, series: Mapping[str, np.ndarray]) -> pd.DataFrame:
    found = ((part, *pace(run.clock, distances)) for part, distances in series.items())
    return _of(run, ({"part": part, ALPHA: np.exp(at), PACE: pace} for part, at, pace in found))


def verdicts(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Return the exponents with their intervals, of directions and of margins in each unit."""
    found = []
    for run in runs:
        fits = {"direction": run.direction()} | run.margins()
        told = {n: f"{fit} settles" if fit.settles else str(fit) for n, fit in fits.items()}
        found.append({"run": run.name, "network": run.kind} | told)
    return pd.DataFrame(found).fillna("")


def exponents(runs: Iterable[Recorded], tolerance: float = 1e-4) -> pd.DataFrame:
    """Return what the measured system says of each run's exponents, and what the layers give."""
    found = []
    for run in (run for run in runs if not run.kind.startswith("bare")):
        largest, defect, dimension = largest_exponent(run.groups, tolerance)
        given = foretold(run)
        found.append({
            "run": run.name, "network": run.kind, "groups": len(given), "free": dimension,
            "largest exponent": round(largest, 3), "its defect": float(f"{defect:.1g}"),
            "from the layers": float(given.max()),
            "defect of these": float(f"{euler_defect(run.groups, given):.1g}"),
            "last bias / ‖W‖": _share(run),
        })  # fmt: skip
    return pd.DataFrame(found)


def _share(run: Recorded) -> str:
    norms = run.groups.norms[[0, -1]]
    if not run.groups.groups[-1].endswith("bias"):
        return "none"
    first, last = norms[:, -1] / np.linalg.norm(norms, axis=1)
    return f"{first:.2g}, then {last:.2g}"


def errors(run: Recorded) -> pd.DataFrame:
    """Return test and training error from the start on, by step, and α of both branches."""
    begun = int(run.separate.steps[-1])
    stages = {"to separation": run.separate, "late phase": run.late, "plain SGD": run.twin}
    return _of(run, ({
        "stage": name, "step": history.steps + (begun if history is not run.separate else 0),
        "step of the stage": history.steps, "test error": history.test_error,
        "training error": (history.margins <= 0).mean(axis=1), ALPHA: history.smoothed_margin,
    } for name, history in stages.items()))  # fmt: skip


def modes(run: Recorded) -> pd.DataFrame:
    """Return the last margins over their mean, with batch normalization as it trains and not."""
    share = (np.arange(200) + 0.5) / 200
    pair = {"evaluation": run.late.margins[-1], "training": run.groups.batch_margins[-1]}
    return _of(run, ({
        "mode": mode, "margin / mean |margin|": np.quantile(p / np.abs(p).mean(), share),
        "share of images below": share,
    } for mode, p in pair.items()))  # fmt: skip


def mode_gap(run: Recorded) -> float:
    """Return the largest change of a last margin between the two modes, in units of the mean."""
    evaluation, training = run.late.margins[-1], run.groups.batch_margins[-1]
    return float(np.abs(evaluation - training).max() / np.abs(evaluation).mean())


def ratios(run: Recorded) -> pd.DataFrame:
    """Return ‖A‖₂/‖A‖_F of the dense layers, along both stages, in their first numbers of α."""
    return _of(run, ({
        "dense layer": f"dense layer {place + 1}",
        ALPHA: np.maximum(run.late.smoothed_margin, 1e-9),
        "‖A‖₂/‖A‖_F": run.late.ratio[:, place], "least": run.late.smallest_ratio[layer],
        "at the start": run.separate.ratio[0, place],
    } for place, layer in enumerate(np.flatnonzero(run.late.dense))))  # fmt: skip


def scales(run: Recorded) -> pd.DataFrame:
    """Return how far p(sW) is from s^L times a limit, for each two neighbouring scales s."""
    near, degree = run.groups.scales[:-1], DEPTH[run.kind]
    distances = [max(homogenized(run.groups, degree, k), 1e-16) for k in range(len(near))]
    return _of(run, [{"scale s": near, "distance from homogeneous": distances}])


# What is judged and said.


def findings(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Return what is judged of recorded runs, a row each; NaN where it is of other networks.

    direction: how W/‖W‖ settles; margins: how the margins do, {unit: `Settling`}; shift, learned:
    how far their shape moves while α is squared for the last time, and from the first step to
    separation. large, small: of the nearly homogeneous, how far from a power of the scale at s = 64
    and at s = 1. rise, rise of the twin: of the narrow AlexNets, the ratio ‖A‖₂/‖A‖_F of the first
    two dense layers at the end over that at the start, the smaller of the two; layers: at the end.
    balanced, single: defects of the exponents that the layers give, and of one for all groups
    where there are no such.
    """
    found = []
    for run in runs:
        row = {"run": run.name, "network": run.kind, "alexnet": run.network == "alexnet"}
        row |= {"direction": run.direction(), "margins": run.margins(), "wrong": run.wrong()}
        row |= {"wrong at first": run.wrong(0), "shift": shifted(run.late, ("mean",))}
        row |= {"learned": while_learning(run.separate, ("mean",))}
        row |= {
            "end": run.late.smoothed_margin[-1],
            "end of the twin": run.twin.smoothed_margin[-1],
        }
        row |= {"cosine": run.late.alignment[-1], "test": np.ptp(run.late.test_error[[0, -1]])}
        row |= dict.fromkeys((*_AT, "mode gap", "rise", "rise of the twin", "balanced", "single"))
        if run.late.batch_normalized:
            row["mode gap"] = mode_gap(run)
        if nearly_homogeneous(run):
            row |= {n: homogenized(run.groups, DEPTH[run.kind], k) for n, k in _AT.items()}
        if narrow_alexnet(run):
            late, twin = ((one.ratio[-1] / one.ratio[0])[:2].min() for one in (run.late, run.twin))
            row |= {"rise": late, "rise of the twin": twin, "layers": run.late.ratio[-1, :2]}
        if run.kind.startswith("bare"):
            row["single"] = single_exponent_defect(run.groups)
        else:
            row["balanced"] = euler_defect(run.groups, foretold(run))
        found.append(row)
    return pd.DataFrame(found)


# Where two neighbouring scales of the weights are compared.
_AT = {"large": -2, "small": 0}


def nearly_homogeneous(run: Recorded) -> bool:
    """Return whether the network comes to a degree as its weights grow."""
    return run.kind in DEPTH and run.kind != "H-AlexNet"


def narrow_alexnet(run: Recorded) -> bool:
    """Return whether this is the narrow H-AlexNet or its twin with biases."""
    return run.network == "alexnet" and "small" in run.name


def claimed(
    found: pd.DataFrame, unseen: list[str], bounds: Mapping[str, Mapping[int, float]]
) -> dict[str, tuple[list, dict]]:
    """Return {claim: (its numbers, its controls)} of the `findings` on recorded runs.

    unseen: those that had not been made when the claims were registered; bounds: of
    controls of the criterion, {"flow": for directions that settle, "margins": for margins}.
    """
    direction, margins = ({"known limit": bounds[part]} for part in ("flow", "margins"))
    found = found.assign(bound=[fit.bound for fit in found.direction])
    new, seen = found[found.run.isin(unseen)], found[~found.run.isin(unseen)]
    least = [min(f.bound for f in fits.values()) for fits in new.margins[new.alexnet]]
    near, rise = new.dropna(subset="large"), new.dropna(subset="rise")
    single = dict(enumerate(found.single.dropna()))
    return _of_all("recorded", new, direction) | {
        "seen-direction": (seen.bound, direction),
        "recorded-margins": (least, margins),
        "exponents": (found.balanced.dropna(), {"bare networks": single}),
        "homogenized": (near.large, {"as trained": near.small}),
        "spectral-ratios": (rise.rise, {"constant steps": rise["rise of the twin"]}),
    }


def of_whole_set(found: pd.DataFrame, bounds: Mapping[str, Mapping[int, float]]) -> dict:
    """Return the same of the `findings` on the runs on all photographs: `claimed` has the words."""
    found = found.assign(bound=[fit.bound for fit in found.direction])
    return _of_all("whole", found, {"known limit": bounds["flow"]})


def _of_all(prefix: str, found: pd.DataFrame, direction: Mapping) -> dict[str, tuple[list, dict]]:
    return {
        f"{prefix}-separated": (found.wrong, {"at the start": found["wrong at first"]}),
        f"{prefix}-figure": (found["shift"], {"while learning": found.learned}),
        f"{prefix}-direction": (found.bound, direction),
    }


def numbers(found: pd.DataFrame) -> dict[str, float]:
    """Return what the page on these networks says of all recorded runs, by the number's name."""
    ends = np.concatenate([*found["layers"].dropna()])
    told = {
        "shift-least": found["shift"].min(), "shift-most": found["shift"].max(),
        "learn-least": found.learned.min(), "bare-least": found.single.min(),
        "direction-least": min(fit.low for fit in found.direction),
        "cosine-least": found.cosine.min(), "cosine-most": found.cosine.max(),
        "reach-least": found.end.min(),
        "homogenized-most": found.large.max(), "as-trained-least": found.small.min(),
        "test-change": found.test.max(),
        "twin-least": found["end of the twin"].min(), "twin-most": found["end of the twin"].max(),
        "mode-gap": found["mode gap"].max(),
        "ratio-least": found.rise.min(), "ratio-lowest": ends.min(), "ratio-highest": ends.max(),
    }  # fmt: skip
    return {name: float(number) for name, number in told.items()}


# The status of which claim stands where in the text.
VERDICTS = {
    "verdict-figure": "recorded-figure", "verdict-direction": "recorded-direction",
    "verdict-seen": "seen-direction", "verdict-margins": "recorded-margins",
    "verdict-exponents": "exponents", "verdict-homogenized": "homogenized",
    "verdict-ratios": "spectral-ratios", "verdict-whole-separated": "whole-separated",
    "verdict-whole-figure": "whole-figure", "verdict-whole-direction": "whole-direction",
}  # fmt: skip
# What is said of the runs in a list, and what if there are none.
_LISTS = {
    "separated": ("Not separated in their budget: {}.", "All runs separate their images."),
    "shallow": ("These ended before α = 1,000: {}.", "All of them reach α = 1,000."),
    "settled": (
        "By the criterion these margins settle: {}.",
        "By the criterion no margins settle.",
    ),
}


def sentences(found: pd.DataFrame) -> dict[str, str]:
    """Return what the page on these networks says of all recorded runs in words, by their name."""

    def often(which: Iterable[bool]) -> str:
        count = sum(which)
        return f"all {len(found)}" if count == len(found) else f"{count} of {len(found)}"

    listed = {"separated": [], "shallow": [], "settled": []}
    for row in found.itertuples():
        listed["separated"] += [f"{row.run} ({row.wrong} wrong)"] * (row.wrong > 0)
        listed["shallow"] += [f"{row.run} ({row.end:.0f})"] * (row.end < 1000.0)
        settled = [unit for unit, fit in row.margins.items() if fit.settles]
        listed["settled"] += [f"{row.run} in the unit {unit}" for unit in settled]
    said = {
        f"{name}-sentence": some.format(", ".join(listed[name])) if listed[name] else none
        for name, (some, none) in _LISTS.items()
    }
    return said | {
        "resolved-count": often(not fit.settles for fit in found.direction),
        "figure-sentence": f"in {often(found['shift'] < 0.25)} recorded runs the shape of the "
        "margin distribution moves by less than a quarter of its mean while α is squared for the "
        "last time",
    }
