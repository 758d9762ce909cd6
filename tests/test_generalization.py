"""The margin complexity by hand, along a flow and a training; exponents in ln t of known series."""

import numpy as np
import pytest
import torch

import latephase as lp
from experiments import generalization
from latephase.problem.margins import Problem
from latephase.training.settings import Settings
from latephase.zoo import networks, tasks

INF = float("inf")


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_complexity_of_one_layer_by_hand():
    layer = np.array([[3.0, 0.0], [0.0, 4.0]])
    # ‖A‖_2 = 4, the norms of the rows add up to 7, and one term's powers cancel.
    assert generalization.spectral_complexity([layer]) == pytest.approx(7.0)
    x = np.full((4, 2), 0.5)
    assert generalization.margin_complexity([layer], x, 2.0) == pytest.approx(2**0.5 * 7 / 8)


def test_complexity_of_two_layers_by_hand():
    layers = [np.diag([1.0, 2.0]), np.array([[3.0, 4.0]])]
    assert generalization.spectral_product(layers) == pytest.approx(10.0)
    expected = 10 * (1.5 ** (2 / 3) + 1.0) ** 1.5
    assert generalization.spectral_complexity(layers) == pytest.approx(expected)


def test_complexity_does_not_change_when_a_layer_and_the_margin_are_scaled():
    layers = generalization.dense_weights(networks.mlp([5, 4, 3], generator=_draw()))
    x = np.random.default_rng(0).normal(size=(6, 5))
    scaled = [7 * layers[0], layers[1] / 3]
    first = generalization.margin_complexity(layers, x, 0.2)
    assert generalization.margin_complexity(scaled, x, 0.2 * 7 / 3) == pytest.approx(
        first, rel=1e-12
    )
    assert generalization.margin_complexity(layers, x, 0.0) == float("inf")


@pytest.mark.parametrize(
    "module", [torch.nn.Linear(3, 2), torch.nn.Conv2d(1, 1, 3, bias=False), torch.nn.ReLU()]
)
def test_layers_the_bound_does_not_know_are_refused(module):
    with pytest.raises(ValueError, match="dense layers without biases"):
        generalization.dense_weights(module)


def test_the_weights_are_those_of_the_moment():
    module = networks.mlp([3, 2, 1], generator=_draw())
    before = generalization.dense_weights(module)
    kept = [weight.copy() for weight in before]
    with torch.no_grad():
        module[0].weight.mul_(2.0)
    np.testing.assert_array_equal(before[0], kept[0])


def test_along_the_flow_of_a_deep_linear_network():
    task = tasks.separable_points(10, 3, margin=0.2, seed=0)
    module = networks.deep_linear([3, 2, 1], generator=_draw(), scale=0.5)
    flow = lp.gradient_flow(module, task.x, task.y, until=1e6, tol=1e-3, records=8)
    ends = [
        generalization.dense_weights(flow.write_to(module, k, normalized=True)) for k in (-2, -1)
    ]
    values = [
        generalization.margin_complexity(weights, task.x, margin)
        for weights, margin in zip(ends, flow.normalized_margin[-2:], strict=True)
    ]
    assert values[1] == pytest.approx(values[0], rel=0.05)
    last = ends[1]
    svm = lp.hard_margin(task.x, task.y)[1]
    assert flow.normalized_margin[-1] / generalization.spectral_product(last) == pytest.approx(
        svm, rel=1e-4
    )


def test_spread():
    assert generalization.spread([0.2, 0.5, 0.3]) == pytest.approx(0.3)
    assert generalization.spread([]) == float("inf")


def test_training_beside_the_bound():
    task = tasks.separable_points(12, 3, margin=0.3, seed=1)
    settings = Settings(64, schedule="normalized", rate=0.5, loss="logistic", checkpoints=6)
    run = generalization.fitted(networks.two_layer(3, 8, generator=_draw()), task, task, settings)
    last = run.first_perfect
    assert last is not None
    assert run.wrong[-1] == 0
    np.testing.assert_allclose(run.test_error, run.wrong / 12)
    np.testing.assert_allclose(run.complexity[last:] * run.margins[last:].min(1), 1.0)
    assert np.isinf(run.complexity[run.wrong > 0]).all()
    np.testing.assert_array_equal(run.margins, run.test_margins)


def test_a_training_that_ends_with_an_example_on_the_wrong_side_is_never_perfect():
    task = tasks.with_contradictions(tasks.separable_points(12, 3, margin=0.3, seed=1))
    settings = Settings(16, schedule="normalized", rate=0.1, loss="logistic", checkpoints=4)
    run = generalization.fitted(networks.two_layer(3, 8, generator=_draw()), task, task, settings)
    assert run.first_perfect is None


# ---------------------------------------------------------------- exponents in ln t


def test_exponent_of_a_power_of_ln_t_is_that_power():
    log_time = np.geomspace(2.0, 1e9, 30)
    kept = np.ones(30, dtype=bool)
    assert generalization.exponent(log_time, 3 * log_time**-0.3, kept) == pytest.approx(
        -0.3, abs=1e-12
    )


def test_exponent_weighs_records_by_what_they_stand_for():
    # Twice as many records in one half must not count twice: a kinked series, two grids.
    grid = np.concatenate([np.linspace(1, 5, 400), np.linspace(5, 9, 5)[1:]])
    series = np.where(grid < 5, -grid, -5 - 3 * (grid - 5))
    even = generalization.exponent(np.exp(np.linspace(1, 9, 800)), np.ones(800), np.ones(800, bool))
    crowded = generalization.exponent(np.exp(grid), np.exp(series), np.ones(len(grid), bool))
    assert even == pytest.approx(0, abs=1e-12)
    assert crowded == pytest.approx(-2, abs=0.2)


def test_too_few_records_have_no_exponent():
    log_time, kept = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    assert generalization.exponent(log_time, log_time, kept) == INF
    assert generalization.exponent(log_time, np.zeros(3), np.ones(3, bool)) == INF


def test_the_approach_begins_after_the_last_far_record_and_ends_where_rounding_does():
    angles = np.array([1.0, 1e-3, 0.5, 1e-3, 1e-5, 1e-8, 1e-5])
    assert np.flatnonzero(generalization.last_approach(angles)).tolist() == [3, 4]
    assert not generalization.last_approach(np.ones(3)).any()
    assert generalization.last_approach(np.full(3, 1e-4)).all()


@pytest.fixture(scope="module")
def linear():
    task = tasks.separable_points(12, 4, margin=0.1, seed=7)
    module = networks.linear(4, generator=torch.Generator().manual_seed(7), scale=0.1)
    flow = lp.gradient_flow(module, task, at=10 ** np.arange(0, 5.1, 0.2), tol=1e-3)
    return task, Problem(module, task.x, task.y), flow


def test_a_linear_model_has_the_exponents_of_theory(linear):
    task, problem, flow = linear
    found = generalization.decay(problem, flow, *lp.hard_margin(task.x, task.y))
    assert found.exponents == pytest.approx((-1, -2, -1), abs=0.15)
    assert found.predicted == -1.0
    assert found.surprise < 0.1
    assert found.order_defect < 0.2
    assert found.resolved


def test_without_a_known_limit_the_last_records_are_left_out(linear):
    _, problem, flow = linear
    found = generalization.decay(problem, flow)
    assert found.angle[-1] == 0
    assert not found.kept[flow.log_time > flow.log_time[-1] ** 0.75].any()


def test_a_flow_that_is_far_from_its_limit_has_no_exponent(linear):
    task, problem, flow = linear
    mean = (task.y[:, None] * task.x).mean(0).numpy()
    found = generalization.decay(problem, flow, mean)
    assert found.exponents == (INF, INF, INF)
    assert found.surprise == found.order_defect == INF
    assert not found.resolved


def test_the_order_of_the_gap_is_twice_that_of_the_angle_until_one():
    log_time = np.geomspace(10.0, 1e9, 40)
    kept = np.ones(40, dtype=bool)
    for r in (0.3, 0.5, 0.8):
        series = [log_time**-power for power in (r, 2 * r, min(2 * r, 1.0))]
        assert generalization.Decay(log_time, *series, kept, -r, -r).order_defect < 1e-9
        slower = generalization.Decay(log_time, *series[:2], log_time**-r, kept, -r, -r)
        assert slower.order_defect > 0.2


def test_curvature_of_a_diagonal_network():
    # Φ = Σ u_j v_j x_j with x = (1, 2) at u = v = (0, 1)/√2, the global maximum: margin 1. Free
    # are the moves of u_1, v_1, where H has the eigenvalues ±1, and u_2 - v_2, where it is -2.
    module = networks.diagonal([0.0, 0.5**0.5], [0.0, 0.5**0.5])
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    problem = Problem(module, x, torch.tensor([1, -1]))
    direction, dual = problem.w0, np.array([0.5, 0.5])
    # κ = 1 - h/(La) = 1 - 1/2.
    assert generalization.curvature_exponent(problem, direction, dual, 2.0) == pytest.approx(-0.25)


def test_intervals_say_how_many_flows_had_an_exponent():
    assert generalization.interval([-0.5, -0.4, -0.6]) == "-0.50 (-0.60 to -0.40)"
    assert generalization.interval([-0.5, INF]) == "-0.50 (-0.50 to -0.50), 1 of 2"
    assert generalization.interval([INF]) == "not seen"
