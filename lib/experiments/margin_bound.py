"""A margin bound beside the test error.

For a network x ↦ A_L σ(⋯ σ(A_1 x)) with activations that are 1-Lipschitz and zero at zero, the
bound of Bartlett, Foster and Telgarsky (2017) says: up to constants, logarithms and a term that
knows nothing of the network, the test error is at most the share of training examples with a margin
below γ plus ‖X‖_F R_A/(γ n), R_A = Π ‖A_l‖_2 · (Σ (‖A_lᵀ‖_{2,1}/‖A_l‖_2)^{2/3})^{3/2}. It does not
change when a layer is scaled and γ with it: it is a function of the layers' directions alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from experiments import clothes, rates
from experiments.frames import stacked
from latephase.flow.gradient_flow import gradient_flow
from latephase.measures.max_margin import hard_margin
from latephase.problem.margins import Problem
from latephase.problem.task import Task
from latephase.training.scale_free import History, error_rate, snapshot
from latephase.training.settings import Settings
from latephase.training.train import train as train_network
from latephase.zoo import networks, tasks

ALPHA = "smoothed margin α"


def dense_weights(module: nn.Module) -> list[np.ndarray]:
    """Return the weights [out, in] of a network's dense layers, in the order of its modules.

    Raises ValueError for a bias or a parameter of any other layer, which the bound does not know.
    """
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
    known = sum(weight.numel() for weight in weights)
    if not weights or known != sum(weight.numel() for weight in module.parameters()):
        raise ValueError("module: expected dense layers without biases and no other parameter")
    # Copies: a flow writes one record after the other into one module.
    return [weight.detach().double().cpu().numpy().copy() for weight in weights]


def spectral_product(weights: Sequence[np.ndarray]) -> float:
    """Return Π ‖A_l‖_2."""
    return float(np.prod([np.linalg.norm(weight, 2) for weight in weights]))


def spectral_complexity(weights: Sequence[np.ndarray]) -> float:
    """Return R_A of weights [out, in]; ‖Aᵀ‖_{2,1} is the sum of the norms of A's rows."""
    ratios = [np.linalg.norm(w, axis=1).sum() / np.linalg.norm(w, 2) for w in weights]
    return spectral_product(weights) * float(np.sum(np.power(ratios, 2 / 3)) ** 1.5)


def margin_complexity(
    weights: Sequence[np.ndarray], x: Tensor | np.ndarray, margin: float
) -> float:
    """Return ‖X‖_F R_A/(γ n) for inputs x [n, ...] and the margin γ of these very weights.

    +inf for a margin that is not positive: the bound says nothing about it.
    """
    if not margin > 0.0:
        return float("inf")
    size = float(np.linalg.norm(np.asarray(x, dtype=float)))
    return size * spectral_complexity(weights) / (float(margin) * len(x))


def spread(values: Sequence[float] | np.ndarray) -> float:
    """Return the largest minus the smallest value, +inf for none."""
    return float(np.ptp(values)) if len(values) else float("inf")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A training run beside the margin bound; first axis = checkpoints, K of them.

    steps, smoothed_margin, test_error [K]; wrong [K]: training examples on the wrong side;
    complexity [K]: `margin_complexity` with the smallest margin; margins [K, n], test_margins
    [K, m]: over ‖X‖_F R_A/n, so that the complexity is one over the smallest of them.
    """

    steps: np.ndarray
    smoothed_margin: np.ndarray
    test_error: np.ndarray
    wrong: np.ndarray
    complexity: np.ndarray
    margins: np.ndarray
    test_margins: np.ndarray

    @property
    def first_perfect(self) -> int | None:
        """The first checkpoint from which on every training example is right, None if none is."""
        wrong = np.flatnonzero(self.wrong)
        place = int(wrong[-1]) + 1 if len(wrong) else 0
        return place if place < len(self.steps) else None


def fitted(module: nn.Module, train: Task, test: Task, settings: Settings) -> Fitted:
    """Train a network of dense layers in place and return how it stands to the bound."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="latephase-") as folder:
        run = train_network(module, train.x, train.y, settings, folder)
        for k in range(len(run)):
            run.load(k, module)
            now, unseen = (snapshot(module, t.x, t.y, settings.loss) for t in (train, test))
            unit = margin_complexity(dense_weights(module), train.x, 1.0)
            rows.append((now.smoothed_margin, now.margins / unit, unseen.margins / unit))
    alphas, margins, unseen = map(np.array, zip(*rows, strict=True))
    smallest = margins.min(1)
    return Fitted(
        steps=np.array(run.steps),
        smoothed_margin=alphas,
        test_error=np.mean(unseen <= 0, axis=1),
        wrong=np.sum(margins <= 0, axis=1),
        complexity=np.where(smallest > 0, 1.0 / np.where(smallest > 0, smallest, 1.0), np.inf),
        margins=margins,
        test_margins=unseen,
    )


def fits(seeds: Sequence[int], per_class: int, hidden: int, steps: int) -> pd.DataFrame:
    """Return ReLU networks trained on five classes of clothes: labels, seed, run (`Fitted`).

    Each on the same images with true labels and with random ones, which are true ones permuted.
    """
    descent = {"loss": "cross_entropy", "schedule": "normalized", "rate": 0.8, "momentum": 0.9}
    # With an even number of intervals for each doubling of the steps, half of them is a checkpoint.
    settings = Settings(steps, checkpoints=2 * int(np.log2(steps)) + 2, **descent)
    images, unseen = clothes.images("clothes")
    rows = []
    for labels in ("true labels", "random labels"):
        for seed in seeds:
            task = tasks.drawn(images, per_class, seed)
            task = task if labels == "true labels" else tasks.with_permuted_labels(task, seed)
            draw = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float32}
            network = networks.mlp([49, hidden, 5], **draw)
            rows.append((labels, seed, fitted(network, task, unseen, settings)))
    return pd.DataFrame(rows, columns=["labels", "seed", "run"])


def by_step(found: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each checkpoint of `fits`.

    learned: whether it is the first from which on every training image is right; late: whether all
    are right there and α > ½.
    """
    return stacked({
        "labels": fit.labels, "seed": fit.seed, "loss-normalized steps": fit.run.steps,
        ALPHA: fit.run.smoothed_margin, "test error": fit.run.test_error,
        "complexity ‖X‖R/(γn)": fit.run.complexity,
        "learned": np.arange(len(fit.run.steps)) == fit.run.first_perfect,
        "late": (fit.run.smoothed_margin > 0.5) & (fit.run.wrong == 0),
    } for fit in found.itertuples())  # fmt: skip


def sorted_margins(found: pd.DataFrame, record: int) -> pd.DataFrame:
    """Return the shares of images of the first runs of `fits` below a margin, at a checkpoint."""
    share = np.linspace(0, 1, 61)
    return stacked({
        "labels": fit.labels, "images": images,
        "margin / (‖X‖R/n)": np.quantile(margins[record], share), "share of images below": share,
    } for fit in found.drop_duplicates("labels").itertuples()
      for images, margins in (("training", fit.run.margins), ("test", fit.run.test_margins))
    )  # fmt: skip


def of_fits(found: pd.DataFrame) -> pd.DataFrame:
    """Return what is judged of `fits`, a row for each seed.

    flat: how far the test error with true labels moves once all is learned; learning: until then;
    settles, unsettled: the relative change of the inverse complexity while the steps double for the
    last time, with true and random labels; factor: by how much random labels are more complex at
    their last α, 0 if not learned; other: the same of the next start's true labels. alpha, error,
    complexity, random: at the end.
    """
    true, permuted = ([*rows.run] for _, rows in found.groupby("labels", sort=False))
    rows = []
    for k, (run, other) in enumerate(zip(true, permuted, strict=True)):
        half = int(np.flatnonzero(run.steps == run.steps[-1] // 2)[0])
        first, neighbour = run.first_perfect, true[(k + 1) % len(true)]
        settles, unsettled = (
            abs(one.margins[half].min() / one.margins[-1].min() - 1) for one in (run, other)
        )
        at, at_next = (
            one.complexity[np.argmax(one.smoothed_margin >= other.smoothed_margin[-1])]
            for one in (run, neighbour)
        )
        learned = other.wrong[-1] == 0 and np.isfinite(other.complexity[-1] / at)
        rows.append({
            "flat": spread([] if first is None else run.test_error[first:]),
            "learning": abs(run.test_error[0] - run.test_error[first or -1]),
            "settles": settles, "unsettled": unsettled,
            "factor": other.complexity[-1] / at if learned else 0.0, "other": at_next / at,
            "alpha": run.smoothed_margin[-1], "error": run.test_error[-1],
            "complexity": run.complexity[-1], "random": other.complexity[-1],
        })  # fmt: skip
    return pd.DataFrame(rows)


def flows(seeds: Sequence[int], shirts: int, shoes: int, until: float) -> pd.DataFrame:
    """Return flows on clothes, a row each; arrays over K records.

    Deep linear networks on shirts to α = 10^16, convolutional ones on shoes to `until`. Columns:
    model, seed, network, task, flow; error [K], the share of unseen images on the wrong side. Of
    deep linear ones complexity [K]: `margin_complexity`; distance [K]: of min p/(‖A_1‖_2 ‖A_2‖_2)
    from the largest margin of a linear model, relative; disagree [K]: share of unseen images on
    which the two differ.
    """
    far, rows = np.arange(0, np.log10(until) + 0.5, 2), []
    for seed in seeds:
        row = {"model": "deep linear", "seed": seed}
        rows.append(row | _followed(*clothes.deep_linear(seed, shirts), "shirts", np.arange(0, 17)))
    for seed in seeds:
        task = tasks.drawn(clothes.images("shoes")[0], shoes, seed)
        row = {"model": "convolutional", "seed": seed}
        rows.append(row | _followed(clothes.convolutional(seed)[0], task, "shoes", far))
    return pd.DataFrame(rows)


def _followed(network: nn.Module, task: Task, name: str, decades: np.ndarray) -> dict:
    flow, shadow = gradient_flow(network, task, at=10.0**decades, tol=1e-3), deepcopy(network)
    unseen, linear = clothes.images(name)[1], name == "shirts"
    svm, margin = hard_margin(task.x, task.y) if linear else (None, None)
    rows = []
    for k, gamma in enumerate(flow.normalized_margin):
        now = flow.write_to(shadow, k, normalized=True)
        rows.append([error_rate(now, unseen.x, unseen.y), np.nan, np.nan, np.nan])
        if linear:
            weights, votes = dense_weights(now), now(unseen.x)[:, 0].detach().numpy() > 0
            distance = abs(gamma / spectral_product(weights) / margin - 1)
            disagree = np.mean(votes != (unseen.x.numpy() @ svm > 0))
            rows[-1][1:] = margin_complexity(weights, task.x, gamma), distance, disagree
    names = ("error", "complexity", "distance", "disagree")
    found = dict(zip(names, np.array(rows, dtype=float).T, strict=True))
    return {"network": network, "task": task, "flow": flow} | found


def by_alpha(found: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each record of `flows`."""
    return stacked({
        "model": run.model, "seed": run.seed, ALPHA: run.flow.smoothed_margin,
        "test error": run.error, "complexity ‖X‖R/(γn)": run.complexity,
        "relative distance": run.distance + 1e-17,
    } for run in found.itertuples())  # fmt: skip


def of_flows(found: pd.DataFrame) -> pd.DataFrame:
    """Return what is judged of `flows`, a row each.

    moved, late, change: of the test error, its spread, that in the second half of the decades of α,
    and its end less its start; r: the exponent of ln t with which a convolutional network comes to
    its limit, -inf if it does not. settles, early: relative change of the complexity from α = 10^8
    and between 1 and 100; complexity, distance, differ: at the end; stopped: the distance at 1000;
    differed: at the start.
    """
    rows = []
    for run in found.itertuples():
        decades = np.round(np.log10(run.flow.smoothed_margin))
        row = {"model": run.model, "moved": spread(run.error)}
        row["late"] = spread(run.error[decades >= decades[-1] / 2])
        row["change"] = run.error[-1] - run.error[0]
        if run.model == "convolutional":
            way = rates.decay(Problem(run.network, run.task.x, run.task.y), run.flow)
            row["r"] = -way.exponents[0]
        else:
            at = {e: int(np.flatnonzero(decades == e)[0]) for e in (0, 2, 3, 8)}
            c = run.complexity
            row |= {"settles": abs(c[at[8]] / c[-1] - 1), "early": abs(c[at[0]] / c[at[2]] - 1)}
            row |= {"complexity": c[-1], "distance": run.distance[-1]}
            row |= {"stopped": run.distance[at[3]]}
            row |= {"differ": run.disagree[-1], "differed": run.disagree[0]}
        rows.append(row)
    return pd.DataFrame(rows)


def photographs(records: Mapping[str, Mapping]) -> pd.DataFrame:
    """Return a row for each checkpoint of recorded runs on photographs.

    records: as `latebook.records.recorded` gives them, by what readers call the runs. learned:
    whether it is the first from which on no more than one training image in a thousand is wrong;
    ratio: from there on the product of spectral norms over the median margin, where it has a
    meaning.
    """
    rows = []
    for name, record in records.items():
        run = History.of(record["arrays"])
        place, wrong = np.arange(len(run.steps)), np.mean(run.margins <= 0, axis=1)
        learned, ratio = int(np.flatnonzero(wrong > 1e-3)[-1]) + 1, np.full(len(place), np.nan)
        if "spectral" in run.units:
            ratio = 1 / np.median(run.normalized_margins("spectral"), axis=1)
        rows.append({
            "run": name, "steps": run.steps, "test error": run.test_error,
            "learned": place == learned, "late": place >= learned,
            "Π‖A‖₂ / median margin": np.where(place >= learned, ratio, np.nan),
        })  # fmt: skip
    return stacked(rows)


def of_photographs(found: pd.DataFrame) -> pd.DataFrame:
    """Return what is judged of `photographs` with such a ratio, a row for each run.

    moved, early: of the test error, its spread once all is learned, and its change until then;
    ratio, change: at the end, and relative while the steps double for the last time.
    """
    rows = []
    for name, run in found.groupby("run", sort=False):
        ratio, error = run.iloc[:, 5].to_numpy(), run["test error"].to_numpy()
        half = int(np.searchsorted(run.steps, run.steps.iloc[-1] / 2))
        rows.append({
            "run": name,
            "moved": spread(error[run.late]),
            "early": abs(error[0] - error[run.learned][0]),
            "ratio": ratio[-1],
            "change": abs(ratio[half] / ratio[-1] - 1),
        })  # fmt: skip
    return pd.DataFrame(rows).dropna()
