"""Descent of many runs at once: gradients, rules, where it stops, and the flow beside it."""

import numpy as np
import pytest
import torch

import latephase as lp
from latephase.experiments import discrete
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle
from latephase.zoo import tasks
from latephase.zoo.networks import deep_linear, linear, mlp, two_layer

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
    family, w = discrete.together(modules, TASKS)
    weights = np.random.default_rng(0).uniform(size=(3, 10))
    p, push = family.push(w, lambda p: weights)
    for k, (module, task) in enumerate(zip(modules, TASKS, strict=True)):
        problem = Problem(module, task.x, task.y)
        exact = problem.weighted_gradient(problem.w0, weights[k])
        np.testing.assert_allclose(p[k], exact[0], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(push[k], exact[1], rtol=1e-12, atol=1e-12)
        alpha = problem.smoothed_margin(problem.w0)[0]
        assert family.smoothed_margins(w)[k] == pytest.approx(alpha, rel=1e-12, abs=1e-13)


def test_the_curvature_is_the_hessians():
    modules = networks(MAKERS["deep linear"])
    family, w = discrete.together(modules, TASKS)
    problem = Problem(modules[1], TASKS[1].x, TASKS[1].y)
    p, jacobian = problem.margins(problem.w0), problem.jacobian(problem.w0)
    losses = np.exp(-p)
    hessian = jacobian.T @ (losses[:, None] * jacobian) - problem.hessian(problem.w0, losses)
    exact = np.linalg.eigvalsh(hessian)[-1]
    assert family.curvatures(w)[1] == pytest.approx(exact, rel=1e-6)
    # ∇² ln R = ∇²R/R - ∇ln R ∇ln Rᵀ.
    push = jacobian.T @ losses / losses.sum()
    exact = np.linalg.eigvalsh(hessian / losses.sum() - np.outer(push, push))[-1]
    assert family.curvatures(w, "normalized")[1] == pytest.approx(exact, rel=1e-6)
    length = np.linalg.norm(push)
    step = 0.1 * np.linalg.norm(w[1]) / length
    edge = family.rows([1]).edges(w[[1]], 0.1)[0]
    assert edge == pytest.approx(0.5 * step * exact, rel=1e-6)


def test_steps_of_each_rule():
    family, w = discrete.together(networks(MAKERS["linear"]), TASKS)
    p = family.margins(w)
    gradient = np.einsum("rn,rnd->rd", np.exp(-p) * family.y, family.x)
    risk = np.exp(-p).sum(1, keepdims=True)
    lengths = [np.linalg.norm(a, axis=1, keepdims=True) for a in (w, gradient)]
    expected = {
        "constant": 0.01 * gradient,
        "normalized": 0.01 * gradient / risk,
        "relative": 0.01 * gradient * lengths[0] / lengths[1],
    }
    for rule, step in expected.items():
        runs = discrete.descend(
            family, w, np.full(3, 0.01), np.full(3, 3.0), rule=rule, steps=2, keep=True
        )
        moved = np.array([path[1] - path[0] for path in runs.paths])
        np.testing.assert_allclose(moved, step, rtol=1e-10, atol=1e-14)


def test_runs_stop_on_their_levels_and_the_lost_are_nan():
    family, w = discrete.together(networks(MAKERS["squared ReLU"]), TASKS)
    levels = np.array([0.5, 1.0, 2.0])
    runs = discrete.descend(family, w, np.full(3, 0.01), levels, rule="relative", steps=5000)
    np.testing.assert_allclose(family.smoothed_margins(runs.w), levels, rtol=1e-9)
    assert (runs.steps < 5000).all()
    lost = discrete.descend(family, w, np.full(3, 1e6), levels, steps=50)
    assert np.isnan(lost.w).all()


def test_momentum_is_a_memory_of_steps():
    family, w = discrete.together(networks(MAKERS["linear"]), TASKS)
    settings = {"rule": "normalized", "steps": 3, "keep": True}
    runs = discrete.descend(family, w, np.full(3, 0.01), np.full(3, 9.0), momentum=0.5, **settings)
    for k, path in enumerate(runs.paths):
        one = family.rows([k])
        free = discrete.descend(one, path[[1]], [0.01], [9.0], **settings).paths[0]
        np.testing.assert_allclose(path[2], free[1] + 0.5 * (path[1] - path[0]), rtol=1e-12)


def test_an_epoch_of_reshuffled_batches_sees_every_example_once():
    family, w = discrete.together(networks(MAKERS["linear"]), TASKS)
    # Steps so small that the gradient does not change within the epoch.
    settings = {"batch": 5, "steps": 3, "keep": True}
    batches = discrete.descend(family, w, np.full(3, 1e-9), np.full(3, 9.0), **settings)
    whole = discrete.descend(family, w, np.full(3, 1e-9), np.full(3, 9.0), steps=3, keep=True)
    for one, other in zip(batches.paths, whole.paths, strict=True):
        np.testing.assert_allclose(one[2] - one[0], other[2] - other[0], rtol=1e-6)
        assert not np.allclose(one[1] - one[0], other[1] - other[0], rtol=1e-3, atol=0.0)


def test_the_flow_is_that_of_the_solver():
    modules = networks(MAKERS["squared ReLU"])
    family, w = discrete.together(modules, TASKS)
    module, task = modules[1], TASKS[1]
    solved = lp.gradient_flow(module, task.x, task.y, until=1.0, tol=1e-6)
    level = solved.smoothed_margin[-1]
    end = discrete.flow_to(family.rows([1]), w[1:2], level)[-1]
    assert family.rows([1]).smoothed_margins(end)[0] == pytest.approx(level, abs=1e-6)
    assert angle(end[0], solved.direction[-1]) < 1e-5


def test_departures_fall_with_the_step():
    family, w = discrete.together(networks(MAKERS["linear"]), TASKS)
    flow = discrete.flow_to(family, w, 1.0)
    ends = discrete.departures(family, flow, np.array([0.1, 0.05]))
    angles = discrete.apart(ends, flow[-1])
    assert ends.shape == (1, 3, 2, 3)
    assert angles.shape == (3, 2)
    # First order, up to the next one.
    assert (np.abs(angles[:, 0] / angles[:, 1] - 2.0) < 0.4).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rule": "other"}, "rule"), ({"order": "other"}, "order"), ({"batch": 3}, "divisor of 10")],
)
def test_what_descend_refuses(settings, message):
    family, w = discrete.together(networks(MAKERS["linear"]), TASKS)
    with pytest.raises(ValueError, match=message):
        discrete.descend(family, w, np.full(3, 0.1), np.full(3, 1.0), **settings)


def test_an_activation_it_does_not_know_is_named():
    modules = networks(lambda g: mlp([3, 4, 1], "relu", generator=g))
    with pytest.raises(ValueError, match="ReLU"):
        discrete.together(modules, TASKS)
