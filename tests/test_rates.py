"""Exponents of ln t: against those of theory."""

import numpy as np
import pytest
import torch

import latephase as lp
from experiments import rates
from latephase.problem.margins import Problem
from latephase.zoo import networks, tasks

INF = float("inf")


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_exponent_of_a_power_of_ln_t_is_that_power():
    log_time = np.geomspace(2.0, 1e9, 30)
    kept = np.ones(30, dtype=bool)
    assert rates.exponent(log_time, 3 * log_time**-0.3, kept) == pytest.approx(-0.3, abs=1e-12)


def test_exponent_weighs_records_by_what_they_stand_for():
    # Twice as many records in one half must not count twice: a kinked series, two grids.
    grid = np.concatenate([np.linspace(1, 5, 400), np.linspace(5, 9, 5)[1:]])
    series = np.where(grid < 5, -grid, -5 - 3 * (grid - 5))
    even = rates.exponent(np.exp(np.linspace(1, 9, 800)), np.ones(800), np.ones(800, bool))
    crowded = rates.exponent(np.exp(grid), np.exp(series), np.ones(len(grid), bool))
    assert even == pytest.approx(0, abs=1e-12)
    assert crowded == pytest.approx(-2, abs=0.2)


def test_too_few_records_have_no_exponent():
    log_time, kept = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    assert rates.exponent(log_time, log_time, kept) == INF
    assert rates.exponent(log_time, np.zeros(3), np.ones(3, bool)) == INF


def test_the_approach_begins_after_the_last_far_record_and_ends_where_rounding_does():
    angles = np.array([1.0, 1e-3, 0.5, 1e-3, 1e-5, 1e-8, 1e-5])
    assert np.flatnonzero(rates.last_approach(angles)).tolist() == [3, 4]
    assert not rates.last_approach(np.ones(3)).any()
    assert rates.last_approach(np.full(3, 1e-4)).all()


@pytest.fixture(scope="module")
def linear():
    task = tasks.separable_points(12, 4, margin=0.1, seed=7)
    module = networks.linear(4, generator=torch.Generator().manual_seed(7), scale=0.1)
    flow = lp.gradient_flow(module, task, at=10 ** np.arange(0, 5.1, 0.2), tol=1e-3)
    return task, Problem(module, task.x, task.y), flow


def test_a_linear_model_has_the_exponents_of_theory(linear):
    task, problem, flow = linear
    found = rates.decay(problem, flow, *lp.hard_margin(task.x, task.y))
    assert found.exponents == pytest.approx((-1, -2, -1), abs=0.15)
    assert found.predicted == -1.0
    assert found.surprise < 0.1
    assert found.order_defect < 0.2
    assert found.resolved


def test_without_a_known_limit_the_last_records_are_left_out(linear):
    _, problem, flow = linear
    found = rates.decay(problem, flow)
    assert found.angle[-1] == 0
    assert not found.kept[flow.log_time > flow.log_time[-1] ** 0.75].any()


def test_a_flow_that_is_far_from_its_limit_has_no_exponent(linear):
    task, problem, flow = linear
    mean = (task.y[:, None] * task.x).mean(0).numpy()
    found = rates.decay(problem, flow, mean)
    assert found.exponents == (INF, INF, INF)
    assert found.surprise == found.order_defect == INF
    assert not found.resolved


def test_the_order_of_the_gap_is_twice_that_of_the_angle_until_one():
    log_time = np.geomspace(10.0, 1e9, 40)
    kept = np.ones(40, dtype=bool)
    for r in (0.3, 0.5, 0.8):
        series = [log_time**-power for power in (r, 2 * r, min(2 * r, 1.0))]
        assert rates.Decay(log_time, *series, kept, -r, -r).order_defect < 1e-9
        slower = rates.Decay(log_time, *series[:2], log_time**-r, kept, -r, -r)
        assert slower.order_defect > 0.2


def test_curvature_of_a_diagonal_network():
    # Φ = Σ u_j v_j x_j with x = (1, 2) at u = v = (0, 1)/√2, the global maximum: margin 1. Free
    # are the moves of u_1, v_1, where H has the eigenvalues ±1, and u_2 - v_2, where it is -2.
    module = networks.diagonal([0.0, 0.5**0.5], [0.0, 0.5**0.5])
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    problem = Problem(module, x, torch.tensor([1, -1]))
    direction, dual = problem.w0, np.array([0.5, 0.5])
    # κ = 1 - h/(La) = 1 - 1/2.
    assert rates.curvature_exponent(problem, direction, dual, 2.0) == pytest.approx(-0.25)


def test_intervals_say_how_many_flows_had_an_exponent():
    assert rates.interval([-0.5, -0.4, -0.6]) == "−0.50 (−0.60 to −0.40)"
    assert rates.interval([-0.5, INF]) == "−0.50 (−0.50 to −0.50), 1 of 2"
    assert rates.interval([INF]) == "not seen"
