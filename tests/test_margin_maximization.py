"""The constant of 1/ln t that support vectors give, and a saddle left in another metric."""

import numpy as np
import pandas as pd
import pytest

from experiments import margin_maximization as apparatus
from latephase.training import together


def test_logarithmic_law_is_that_of_two_points_solved_by_hand():
    # ŵ = (1/g, 0) and μ = (b, a)/((a + b) g²): w̃ is ln(a/b)/(a + b) across, as in the warm-up.
    g, a, b = 0.5, 0.8, 0.4
    z = np.array([[g, a], [g, -b]])
    law = apparatus.logarithmic_law(z)
    mu = np.array([b, a]) / (a + b) / g**2
    across = np.log(a / b) / (a + b)
    along = -np.log(2 * mu[0]) - across * a
    assert law.constant == pytest.approx(g * across)
    assert law.shift == pytest.approx(along)
    assert law.slowest == pytest.approx(min(1.0, a * b / g**2))
    assert law.held.all()


def test_descent_with_constant_steps_comes_to_the_law_and_the_rest_of_squared_loss_does_not():
    rows = apparatus.constant_steps([100, 103], 3000)
    last = rows[rows["steps t"] == 3000]
    assert last[apparatus.LAW].to_numpy() == pytest.approx(1.0, abs=0.1)
    assert min(apparatus.off_law(rows, "constant steps", "at rest").values()) > 0.2


def test_off_law_is_the_worst_of_the_last_decade():
    t = [1, 10, 100, 1000]
    rows = pd.DataFrame({"rule": "one", "seed": 7, "steps t": t, "ratio": [9.0, 9.0, 0.9, 1.2]})
    rows = pd.concat([rows, rows.assign(rule="other", ratio=9.0)])
    assert apparatus.off_law(rows, "one", "ratio") == {7: pytest.approx(0.2)}


def test_sets_on_which_the_law_is_seen_early_hold_by_four_points():
    (z,) = apparatus.held_sets([3])
    law = apparatus.logarithmic_law(z)
    assert law.held.sum() == z.shape[1] == 4
    assert law.slowest == pytest.approx(1.0)
    others = (z @ law.direction)[~law.held]
    assert others.min() > 3 * (z @ law.direction).min()
    run = together.descend(together.linear_family(z[None]), np.zeros((1, 4)), 1 / 20, steps=10)
    assert np.isfinite(run.end).all()


def test_a_start_leaves_the_trap_with_the_foretold_power_in_its_own_metric_alone():
    moved = {row.start: row.flow for row in apparatus.trap_runs([0], 1e12).itertuples()}
    tangent = np.array([0, 1, 0, 1]) / np.sqrt(2)
    assert apparatus.misses([moved["moved"]], tangent, 0.5) == pytest.approx([0.0], abs=0.05)
    slow = [moved["another metric"]], tangent
    found = apparatus.misses(*slow, exponent=0.25, metric=apparatus.METRIC)
    assert found == pytest.approx([0.0], abs=0.05)
