"""Descent of many runs at once: gradients, rules, where it stops; linear models in their dual."""

import numpy as np
import pytest
import torch

from latephase.measures.max_margin import hard_margin
from latephase.problem.margins import Problem
from latephase.training import together
from latephase.zoo import tasks
from latephase.zoo.networks import deep_linear, linear, mlp, two_layer
from tests.references import outvoted_support_point

SEEDS = (0, 1, 2)
TASKS = [tasks.separable_points(10, 3, margin=0.4, seed=seed) for seed in SEEDS]


def networks(make):
    return [make(torch.Generator().manual_seed(seed)) for seed in SEEDS]


MAKERS = {
    "linear": lambda g: linear(3, generator=g),
    "deep linear": lambda g: deep_linear([3, 4, 2, 1], generator=g),
    "squared ReLU": lambda g: two_layer(3, 6, "squared_relu", generator=g),
    "fixed signs": lambda g: two_layer(3, 6, "squared_relu", fixed_signs=True, generator=g),
}


@pytest.mark.parametrize("name", MAKERS)
def test_margins_and_gradients_are_those_of_the_modules(name):
    modules = networks(MAKERS[name])
    family, w = together.family(modules, TASKS)
    weights = np.random.default_rng(0).uniform(size=(3, 10))
    p, pull_back = family.margins_and_pull_back(w)
    push = pull_back(weights)
    for k, (module, task) in enumerate(zip(modules, TASKS, strict=True)):
        problem = Problem(module, task.x, task.y)
        exact = problem.weighted_gradient(problem.w0, weights[k])
        np.testing.assert_allclose(p[k], exact[0], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(push[k], exact[1], rtol=1e-12, atol=1e-12)
        alpha = problem.smoothed_margin(problem.w0)[0]
        assert family.smoothed_margins(w)[k] == pytest.approx(alpha, rel=1e-12, abs=1e-13)


def test_steps_of_each_rule():
    family, w = together.family(networks(MAKERS["linear"]), TASKS)
    p = family.margins(w)
    gradient = np.einsum("rn,rnd->rd", np.exp(-p) * family.y, family.x)
    risk = np.exp(-p).sum(1, keepdims=True)
    lengths = [np.linalg.norm(a, axis=1, keepdims=True) for a in (w, gradient)]
    expected = {
        "constant": 0.01 * gradient,
        "logarithmic": 0.01 * gradient / risk,
        "relative": 0.01 * gradient * lengths[0] / lengths[1],
    }
    for rule, step in expected.items():
        runs = together.descend(
            family, w, np.full(3, 0.01), np.full(3, 3.0), rule=rule, steps=2, keep=range(3)
        )
        moved = runs.w[1] - runs.w[0]
        np.testing.assert_allclose(moved, step, rtol=1e-10, atol=1e-14)


def test_runs_stop_on_their_levels_and_the_lost_are_nan():
    family, w = together.family(networks(MAKERS["squared ReLU"]), TASKS)
    levels = np.array([0.5, 1.0, 2.0])
    runs = together.descend(family, w, np.full(3, 0.01), levels, rule="relative", steps=5000)
    np.testing.assert_allclose(family.smoothed_margins(runs.end), levels, rtol=1e-9)
    assert (runs.taken < 5000).all()
    lost = together.descend(family, w, np.full(3, 1e6), levels, steps=50)
    assert np.isnan(lost.end).all()


def test_momentum_is_a_memory_of_steps():
    family, w = together.family(networks(MAKERS["linear"]), TASKS)
    settings = {"rule": "logarithmic", "steps": 3, "keep": range(4)}
    runs = together.descend(family, w, np.full(3, 0.01), np.full(3, 9.0), momentum=0.5, **settings)
    for k, path in enumerate(runs.w.swapaxes(0, 1)):
        one = family.rows([k])
        free = together.descend(one, path[[1]], [0.01], [9.0], **settings).path(0)
        np.testing.assert_allclose(path[2], free[1] + 0.5 * (path[1] - path[0]), rtol=1e-12)


def test_an_epoch_of_reshuffled_batches_sees_every_example_once():
    family, w = together.family(networks(MAKERS["linear"]), TASKS)
    # Steps so small that the gradient does not change within the epoch.
    settings = {"batch": 5, "steps": 3, "keep": range(4)}
    batches = together.descend(family, w, np.full(3, 1e-9), np.full(3, 9.0), **settings)
    whole = together.descend(family, w, np.full(3, 1e-9), np.full(3, 9.0), steps=3, keep=range(3))
    for one, other in zip(batches.w.swapaxes(0, 1), whole.w.swapaxes(0, 1), strict=True):
        np.testing.assert_allclose(one[2] - one[0], other[2] - other[0], rtol=1e-6)
        assert not np.allclose(one[1] - one[0], other[1] - other[0], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "other"}, "rule: expected one of constant, logarithmic"),
        ({"order": "other"}, "order"),
        ({"batch": 3}, "a batch that divides 10"),
        ({"force": np.exp, "rule": "normalized"}, "rule: expected one of constant, relative"),
        ({"force": np.exp}, "neither levels nor batches"),
    ],
)
def test_what_descend_refuses(settings, message):
    family, w = together.family(networks(MAKERS["linear"]), TASKS)
    with pytest.raises(ValueError, match=message):
        together.descend(family, w, np.full(3, 0.1), np.full(3, 1.0), **settings)


def test_an_activation_it_does_not_know_is_named():
    modules = networks(lambda g: mlp([3, 4, 1], "relu", generator=g))
    with pytest.raises(ValueError, match="ReLU"):
        together.family(modules, TASKS)


# Linear models, from w = 0: their dual variables, and the steps that were taken together.


def rows(task):
    return task.y.numpy()[:, None] * task.x.numpy()


def from_zero(z, steps, rule, keep):
    z = z.reshape(-1, *z.shape[-2:])
    # The mean risk's constant steps.
    rate = 1.0 / z.shape[1] if rule == "constant" else 1.0
    family = together.linear_family(z)
    return together.descend(
        family, np.zeros((len(z), z.shape[2])), rate, rule=rule, steps=steps, keep=keep
    )


def test_constant_steps_are_gradient_descent_on_the_mean_risk():
    z, w = rows(tasks.separable_points(12, 3, margin=0.3, seed=0)), np.zeros(3)
    run = from_zero(z, 50, "constant", range(1, 51))
    passed = 0.0
    for step in range(50):
        losses = np.exp(-z @ w)
        passed += losses.mean()
        w = w + z.T @ losses / len(z)
        np.testing.assert_allclose(run.w[step, 0], w, rtol=1e-12)  # rounding
        np.testing.assert_allclose(run.passed[step, 0], passed, rtol=1e-12)
    np.testing.assert_array_equal(run.end, run.w[-1])


def test_logarithmic_steps_are_gradient_descent_on_the_logarithm_of_the_risk():
    z, w = rows(tasks.separable_points(12, 3, margin=0.3, seed=0)), np.zeros(3)
    run = from_zero(z, 30, "logarithmic", (10, 30))
    for _ in range(30):
        weights = np.exp(-z @ w)
        w = w + z.T @ weights / weights.sum()
    np.testing.assert_allclose(run.w[-1, 0], w, rtol=1e-12)  # rounding
    np.testing.assert_array_equal(run.passed[:, 0], run.steps)


def test_runs_of_a_stack_do_not_see_each_other():
    stack = np.stack(
        [rows(tasks.separable_points(10, 4, margin=0.2, seed=seed)) for seed in (0, 1)]
    )
    both = from_zero(stack, 200, "constant", (1, 20, 200))
    for i in (0, 1):
        alone = from_zero(stack[i], 200, "constant", (1, 20, 200))
        np.testing.assert_allclose(both.w[:, i], alone.w[:, 0], rtol=1e-12)
        np.testing.assert_allclose(both.passed[:, i], alone.passed[:, 0], rtol=1e-12)
    assert both.steps.tolist() == [1, 20, 200]


@pytest.mark.parametrize("rule", ["logarithmic", "constant"])
def test_the_outvoted_support_point_is_learned_late(rule):
    # Ji and Telgarsky 2021: what lies off the limit direction comes to ln n - ln 2 at least.
    task = outvoted_support_point(100)
    svm, margin = hard_margin(task.x, task.y)
    assert margin == pytest.approx(0.1)
    w = from_zero(rows(task), 3000, rule, ()).end[0]
    assert np.linalg.norm(w - (w @ svm) * svm) >= np.log(100) - np.log(2)
