"""Descent beside the flow, and edges of stability."""

import numpy as np
import pandas as pd
import pytest

import latephase as lp
from experiments import discrete_time
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle
from latephase.training import together
from tests.test_together import MAKERS, TASKS, networks


def test_the_curvature_is_the_hessians():
    modules = networks(MAKERS["deep linear"])
    family, w = together.family(modules, TASKS)
    problem = Problem(modules[1], TASKS[1].x, TASKS[1].y)
    p, jacobian = problem.margins(problem.w0), problem.jacobian(problem.w0)
    losses = np.exp(-p)
    hessian = jacobian.T @ (losses[:, None] * jacobian) - problem.hessian(problem.w0, losses)
    exact = np.linalg.eigvalsh(hessian)[-1]
    assert discrete_time.curvatures(family, w)[1] == pytest.approx(exact, rel=1e-6)
    # ∇² ln R = ∇²R/R - ∇ln R ∇ln Rᵀ.
    push = jacobian.T @ losses / losses.sum()
    exact = np.linalg.eigvalsh(hessian / losses.sum() - np.outer(push, push))[-1]
    assert discrete_time.curvatures(family, w, "logarithmic")[1] == pytest.approx(exact, rel=1e-6)
    length = np.linalg.norm(push)
    step = 0.1 * np.linalg.norm(w[1]) / length
    edge = discrete_time.edges(family.rows([1]), w[[1]], 0.1)[0]
    assert edge == pytest.approx(0.5 * step * exact, rel=1e-6)


def test_the_flow_is_that_of_the_solver():
    modules = networks(MAKERS["squared ReLU"])
    family, w = together.family(modules, TASKS)
    module, task = modules[1], TASKS[1]
    solved = lp.gradient_flow(module, task.x, task.y, until=1.0, tol=1e-6)
    level = solved.smoothed_margin[-1]
    end = discrete_time.flow_to(family.rows([1]), w[1:2], level)[-1]
    assert family.rows([1]).smoothed_margins(end)[0] == pytest.approx(level, abs=1e-6)
    assert angle(end[0], solved.direction[-1]) < 1e-5


def test_departures_fall_with_the_step():
    family, w = together.family(networks(MAKERS["linear"]), TASKS)
    flow = discrete_time.flow_to(family, w, 1.0)
    ends = discrete_time.departures(family, flow, np.array([0.1, 0.05]))
    angles = discrete_time.apart(ends, flow[-1])
    assert ends.shape == (1, 3, 2, 3)
    assert angles.shape == (3, 2)
    # First order, up to the next one.
    assert (np.abs(angles[:, 0] / angles[:, 1] - 2.0) < 0.4).all()


def test_small_steps_never_lower_the_normalized_margin_and_large_ones_do():
    family, w = together.family(networks(MAKERS["squared ReLU"]), TASKS)
    degree = networks(MAKERS["squared ReLU"])[0].degree
    ready = discrete_time.flow_to(family, w, 1.0)[-1]
    ends, drops = discrete_time.late_descent(family, ready, 0.25, 20.0, degree)
    np.testing.assert_allclose(family.smoothed_margins(ends), 20.0)
    assert (drops <= 1e-12).all()
    goal = discrete_time.flow_to(family, ready, 20.0, steps=400)[-1]
    strayed = discrete_time.strayed(ends, goal, ready)
    assert (strayed < 0.05).all()
    assert (discrete_time.late_descent(family, ready, 16.0, 20.0, degree)[1] > 1e-6).any()
    np.testing.assert_allclose(discrete_time.strayed(ready, goal, ready), 1.0)
    assert (
        discrete_time.strayed(discrete_time.by_signs(family, ready, 0.25, 20.0), goal, ready) > 0.1
    ).all()


def test_a_step_along_the_signs_lowers_ln_r_by_the_rate():
    family, w = together.family(networks(MAKERS["linear"]), TASKS)
    ready = discrete_time.flow_to(family, w, 1.0)[-1]
    before = family.smoothed_margins(ready)
    after = family.smoothed_margins(discrete_time.by_signs(family, ready, 1e-4, 0.5))
    np.testing.assert_allclose(after - before, 1e-4, rtol=1e-2)


def test_ways_of_neurons_begin_together_and_larger_steps_leave_the_flow():
    found = discrete_time.ways(0, [0.01, 0.5])
    assert set(found["size"]) == {0.0, 0.01, 0.5}
    coordinates = [*discrete_time.RAYS]
    first = found.drop_duplicates(["size", "neuron"])[coordinates].to_numpy().reshape(3, 24)
    last = found.drop_duplicates(["size", "neuron"], keep="last")[coordinates].to_numpy()
    flow, near, far = last.reshape(3, 24)
    np.testing.assert_array_equal(first[1:], first[[0, 0]])
    assert np.linalg.norm(near - flow) < 0.1 < np.linalg.norm(far - flow)
    edge = found.groupby("size")["ηλ/2"].max()
    assert np.isnan(edge[0.0])
    assert edge[0.01] < 1.0 < edge[0.5]


def test_slopes_of_powers_are_their_exponents():
    steps = 0.5 ** np.arange(1, 6)
    frame = pd.DataFrame({"model": "linear", "kind": "constant", "seed": 3, "step": steps})
    found = discrete_time.slopes(frame.assign(angle=steps**2, wrong=1.0))
    assert found.slope[0] == pytest.approx(2.0)
    assert found.stuck[0] == pytest.approx(0.0, abs=1e-12)
