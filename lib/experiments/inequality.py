"""The inequality of the chapter on directional convergence: who is asked, and what comes out.

Rows of the points of `desingularizing`, of smooth networks and of hats, and of those of
`kinks_of_inequality`, each with its Ψ and with the z0 down to which that is fixed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments import kinks_of_inequality
from experiments.desingularizing import (
    FLAT,
    HATS,
    NEAR,
    REACH,
    Z0,
    Power,
    around,
    around_hat,
    constant,
    is_steep,
    least,
    left,
    power_of,
)

# Claims of the two forms; their columns of `least`, and the control's; the control's name.
FORMS = (
    ("inequality-steep", "first", "no condition", "no condition"),
    ("inequality-everywhere", "second", "without norm", "without ‖W‖"),
)
COLUMNS = ["model", "seed", "points", "psi", "z0"]
# How many points of a model are drawn.
DRAWN = 4000


def asked(smooth: pd.DataFrame, relu: pd.DataFrame, count: int = 1000) -> pd.DataFrame:
    """Return a row for each run, Ψ and kind of points: smooth networks, two layers of ReLUs, hats.

    Networks are asked with the power for their degree, hats with z^(1/2), z^(1/3) and
    (ln 1/z)^(-1/2), all at as many points, the Mexican hat also as ReLUs are.
    """
    rows = [
        (run.model, run.seed, around(run, count, np.random.default_rng(run.seed)), power, Z0)
        for run in smooth.itertuples()
        for power in [power_of(run.flow.degree)]
    ]
    for run in relu.itertuples():
        kinds = kinks_of_inequality.around(run, count, np.random.default_rng(run.seed))
        for name, points in kinds.items():
            about = f"{run.model}, {name}", run.seed
            rows.append((*about, points, power_of(run.flow.degree), kinks_of_inequality.Z0))
    for name, hat in HATS.items():
        for seed in smooth.seed.unique():
            points = around_hat(hat, count, np.random.default_rng(seed))
            for z0 in (Z0, kinks_of_inequality.Z0)[: 2 if name == "Mexican hat" else 1]:
                rows += [
                    (name, seed, points, psi, z0) for psi in (Power(1 / 2), Power(1 / 3), FLAT)
                ]
    return pd.DataFrame(rows, columns=COLUMNS)


def least_sides(frame: pd.DataFrame) -> pd.DataFrame:
    """Return model, seed, psi, z0 and what `least` says of every row of `asked`."""
    found = [least(run.points, run.psi, run.z0) for run in frame.itertuples()]
    return frame.drop(columns="points").join(pd.DataFrame(found))


def verdicts(sides: pd.DataFrame) -> dict[str, dict]:
    """Return value and control of the five claims, of the rows of `least_sides`."""
    found = {}
    for claim, side, bare, name in FORMS:
        for z0, suffix in ((Z0, ""), (kinks_of_inequality.Z0, "-on-kinks")):
            here = sides[sides.z0 == z0]
            nets = here[~here.model.isin(HATS)].groupby("seed", sort=False)
            hats = here[here.model == "Mexican hat"].groupby("seed", sort=False)
            found[claim + suffix] = {
                "value": nets[side].min(),
                "control": {
                    "Mexican hat": hats[side].max().to_dict(),
                    name: nets[bare].apply(list).to_dict() if not suffix else nets[bare].min(),
                },
            }
    flat = sides[(sides.z0 == Z0) & np.array([psi == FLAT for psi in sides.psi])]
    hat, tame = (flat[flat.model == name]["first"] for name in HATS)
    found["inequality-flat"] = {"value": tame, "control": {"Mexican hat": [*hat]}}
    return found


def left_sides(run) -> pd.DataFrame:
    """Return a row for each of a row's points: f/a, the first form, and which part dominates.

    Of more than DRAWN points, evenly chosen ones.
    """
    points, c = run.points, constant(run.points, run.psi, run.z0)
    sides = {
        "f/a": points.f,
        "Ψ'(f) ‖W‖ ‖∂f‖": c * left(points, run.psi),
        "spherical part": np.where(is_steep(points), "large", "small"),
    }
    frame = pd.DataFrame(sides).assign(model=run.model, seed=run.seed)
    frame = frame[(points.f >= Z0 * REACH) & (points.f <= NEAR)]
    return frame[:: 1 + len(frame) // DRAWN]
