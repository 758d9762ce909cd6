"""The five claims of the inequality, from a table of least sides."""

import pandas as pd
import pytest

from experiments import inequality, kinks_of_inequality
from experiments.desingularizing import FLAT, Z0, Power


def test_verdicts_are_the_worst_of_the_networks_and_the_best_of_the_hats():
    near, half = kinks_of_inequality.Z0, Power(0.5)
    rows = [
        ("linear", 1, half, Z0, 5.0, 6.0, 0.1, 0.2),
        ("deep linear", 1, half, Z0, 4.0, 7.0, 0.3, 0.4),
        ("two-layer ReLU, between kinks", 1, half, near, 3.0, 9.0, 2.0, 4.0),
        ("two-layer ReLU, on kinks", 1, half, near, 2.0, 8.0, 0.01, 0.02),
        ("Mexican hat", 1, half, Z0, 0.5, 0.6, 0.5, 0.6),
        ("Mexican hat", 1, FLAT, Z0, 0.7, 0.8, 0.7, 0.8),
        ("Mexican hat", 1, FLAT, near, 0.1, 0.2, 0.1, 0.2),
        ("frozen phase", 1, half, Z0, 0.4, 0.4, 0.4, 0.4),
        ("frozen phase", 1, FLAT, Z0, 1.7, 1.8, 1.7, 1.8),
    ]
    columns = ["model", "seed", "psi", "z0", "first", "second", "no condition", "without norm"]
    found = inequality.verdicts(pd.DataFrame(rows, columns=columns))
    values = {name: [*one["value"]] for name, one in found.items()}
    assert values == {
        "inequality-steep": [4.0], "inequality-everywhere": [6.0], "inequality-flat": [1.7],
        "inequality-steep-on-kinks": [2.0], "inequality-everywhere-on-kinks": [8.0],
    }  # fmt: skip
    control = found["inequality-steep"]["control"]
    assert control == {"Mexican hat": {1: 0.7}, "no condition": {1: [0.1, 0.3]}}
    control = found["inequality-everywhere-on-kinks"]["control"]
    assert control["Mexican hat"] == {1: 0.2}
    assert control["without ‖W‖"][1] == pytest.approx(0.02)
