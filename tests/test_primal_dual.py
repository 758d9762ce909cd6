"""Descent on linear models against its own definition and against a case that is solved by hand."""

import numpy as np
import pytest

from latephase.experiments.primal_dual import linear_descent
from latephase.measures.max_margin import hard_margin
from latephase.zoo.tasks import separable_points
from tests.references import outvoted_support_point


def rows(task):
    return task.y.numpy()[:, None] * task.x.numpy()


def test_constant_steps_are_gradient_descent_on_the_mean_risk():
    z, w = rows(separable_points(12, 3, margin=0.3, seed=0)), np.zeros(3)
    run = linear_descent(z, 50, "constant")
    for step in range(1, 51):
        w = w + z.T @ np.exp(-z @ w) / len(z)
        if step in run.steps:
            np.testing.assert_allclose(run.w[run.steps == step][0], w, rtol=1e-12)  # rounding


def test_normalized_steps_are_gradient_descent_on_the_logarithm_of_the_risk():
    z, w = rows(separable_points(12, 3, margin=0.3, seed=0)), np.zeros(3)
    run = linear_descent(z, 30)
    for _ in range(30):
        weights = np.exp(-z @ w)
        w = w + z.T @ weights / weights.sum()
    np.testing.assert_allclose(run.w[-1], w, rtol=1e-12)  # rounding
    np.testing.assert_array_equal(run.passed, run.steps)
    np.testing.assert_allclose(run.dual.sum(axis=-1), 1.0, rtol=1e-14)


def test_runs_of_a_stack_do_not_see_each_other():
    stack = np.stack([rows(separable_points(10, 4, margin=0.2, seed=seed)) for seed in (0, 1)])
    both = linear_descent(stack, 200, "constant", per_decade=5)
    for i in (0, 1):
        alone = linear_descent(stack[i], 200, "constant", per_decade=5)
        np.testing.assert_allclose(both.w[:, i], alone.w, rtol=1e-12)
        np.testing.assert_allclose(both.passed[:, i], alone.passed, rtol=1e-12)
    assert both.steps[0] == 1
    assert both.steps[-1] == 200


@pytest.mark.parametrize("rule", ["normalized", "constant"])
def test_the_outvoted_support_point_is_learned_late(rule):
    # Ji and Telgarsky 2021: what lies off the limit direction comes to ln n - ln 2 at least.
    task = outvoted_support_point(100)
    svm, margin = hard_margin(task.x, task.y)
    assert margin == pytest.approx(0.1)
    w = linear_descent(rows(task), 3000, rule).w[-1]
    assert np.linalg.norm(w - (w @ svm) * svm) >= np.log(100) - np.log(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_descent(2.0 * np.eye(2), 10), "length at most 1"),
        (lambda: linear_descent(np.ones(2), 10), r"rows \[..., n, d\]"),
        (lambda: linear_descent(np.eye(2), 10, "fast"), "rule: expected"),
        (lambda: linear_descent(np.eye(2), 0), "steps, per_decade"),
    ],
)
def test_descent_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
