"""Alignment along the flow: identities that hold exactly, and cases worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import latephase
from experiments import alignment as apparatus
from experiments import pacing
from latephase.measures import alignment
from latephase.problem import vectors
from latephase.problem.margins import Problem
from latephase.zoo import networks, tasks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def squared_relu():
    task = tasks.planar_points(20, deleted=0.5, seed=0)
    net = networks.two_layer(3, 20, "squared_relu", generator=generator(), scale=0.5)
    flow = latephase.gradient_flow(net, task.x, task.y, until=1e4, records=20)
    return Problem(net, task.x, task.y), flow


def test_alignment_agrees_with_the_trajectory_and_with_euler(squared_relu):
    problem, flow = squared_relu
    along = alignment.along(problem, flow)
    np.testing.assert_allclose(1 - along.misalignment, flow.alignment, atol=1e-12)
    assert along.euler_defect().max() < 1e-10
    assert (along.gap() > 0).all()
    np.testing.assert_allclose(np.linalg.norm(along.gradient, axis=1), 1.0)
    assert len(along.gradient_length) == len(flow)
    assert alignment.along(problem, flow, degree=4.0).euler_defect()[-1] == pytest.approx(
        0.25, abs=1e-3
    )


def test_the_dual_potential_of_a_linear_model_bounds_the_margin_from_above():
    task = tasks.separable_points(30, 4, margin=0.2, seed=1)
    net = networks.linear(4, generator=generator())
    flow = latephase.gradient_flow(net, task.x, task.y, until=1e12)
    problem = Problem(net, task.x, task.y)
    along = alignment.along(problem, flow)
    direction, margin = latephase.hard_margin(task.x, task.y)
    assert (along.margin <= margin * (1 + 1e-12)).all()
    assert (along.potential >= margin * (1 - 1e-12)).all()
    assert vectors.angle(along.gradient[-1], direction) < 1e-6
    # Rounded margins of size 1e12 are off by 1e-4 and more; the carried duals are not.
    assert alignment.with_duals_from_margins(problem, flow) > 1e3 * along.misalignment[-1]


def test_squared_loss_ends_at_a_finite_minimum_unaligned(squared_relu):
    problem, _ = squared_relu
    gradient, misaligned = apparatus.squared_loss(problem, fall=1e-4)
    assert gradient[0] == pytest.approx(1.0)
    assert gradient[-1] == pytest.approx(1e-4, rel=1e-3)
    assert misaligned[-1] > 0.1


def test_the_primal_flow_is_the_flow(squared_relu):
    problem, flow = squared_relu
    alpha, misaligned = apparatus.primal(problem, until=50.0)
    along = alignment.along(problem, flow)
    expected = np.interp(np.log(50.0), np.log(along.smoothed_margin), along.misalignment)
    assert alpha[-1] == pytest.approx(50.0, rel=1e-6)
    assert misaligned[-1] == pytest.approx(expected, rel=0.05)


def test_the_flow_along_kinks_has_the_gradient_of_least_norm_and_pytorch_another():
    model, seed, net, task = next(apparatus.rectified(12, generator()))
    row = SimpleNamespace(model=model, seed=seed, net=net, task=task)
    row.problem = Problem(net, task.x, task.y)
    row.flow = latephase.gradient_flow(net, task, until=1e8, tol=1e-3)
    assert row.flow.active_kinks[-1] > 0
    rows = apparatus.along_kinks(row).groupby("gradient")[apparatus.MISALIGNMENT]
    followed = rows.get_group("that the flow follows").to_numpy()
    np.testing.assert_allclose(followed, 1 - row.flow.alignment, atol=1e-12)
    assert apparatus.least_norm(row) == pytest.approx(followed[-1], rel=0.05, abs=1e-9)
    assert rows.get_group("that PyTorch returns").iloc[-1] > 10 * followed[-1]


def test_starts_that_lose_an_example_are_named():
    # Both neurons are silent on the second example, and nothing wakes them.
    net = networks.two_layer(2, 2, generator=generator())
    net[0].weight.data = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    net[2].weight.data = torch.ones(1, 2, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.2], [-1.0, -0.3]], dtype=torch.float64)
    task = replace(tasks.separable_points(2, 2, seed=0), x=x, y=torch.tensor([1, -1]))
    runs = pd.DataFrame({"model": ["two"], "seed": [7], "net": [net], "task": [task]})
    flows, silent = apparatus.separated(runs, 10.0)
    assert flows == [None]
    assert list(silent) == [7]
    assert "stays zero, for 1 example (1)" in silent[7]
    assert apparatus.told(silent, "All.", "Not:") == f"Not: start 7 ({silent[7]})."
    assert apparatus.told({}, "All.", "Not:") == "All."


def test_bounds_on_rank_hold_along_a_flow_and_not_for_other_weights():
    task = tasks.separable_points(15, 4, margin=0.2, seed=0)
    net = networks.deep_linear([4, 3, 3, 1], generator=generator(), scale=0.8)
    flow = latephase.gradient_flow(net, task.x, task.y, until=100.0, tol=1e-5)
    problem = Problem(net, task.x, task.y)
    start = apparatus.split_weights(problem.w0, problem.shapes)
    w = np.exp(flow.log_norm)[:, None] * flow.direction
    layers = apparatus.low_rank(start, [apparatus.split_weights(v, problem.shapes) for v in w])
    assert layers.rank.shape == (len(flow), 3)
    assert layers.neighbor.shape == (len(flow), 2)
    assert 0.0 < layers.used() <= 1.0
    rng = np.random.default_rng(0)
    other = [np.linalg.norm(a) * vectors.unit(rng.normal(size=a.shape)) for a in start]
    grown = [[10 * a for a in other]]
    assert apparatus.low_rank(start, grown).used() > 1.0


def test_imbalance_by_hand():
    # Layers of rank one that follow each other: W_1 W_1ᵀ = diag(9, 0), W_2ᵀ W_2 = diag(4, 0).
    lower, upper = np.array([[3.0], [0.0]]), np.array([[2.0, 0.0]])
    assert apparatus.imbalance([lower, upper]) == pytest.approx((9 - 4) + 5)


def test_split_weights_restores_the_shapes():
    first, second = apparatus.split_weights(np.arange(8.0), [(2, 3), (1, 2)])
    np.testing.assert_array_equal(first, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(second, [[6, 7]])


def trap():
    """Return Φ = u₁v₁x₁ + u₂v₂x₂ at x = (1, 2), whose margin at the first coordinate is 1/2."""
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    return Problem(networks.diagonal([1, 0.1], [1, 0.1]), x, torch.tensor([1]))


def test_exponents_of_a_saddle_and_of_the_maximum_are_those_by_hand():
    q = np.ones(1)
    saddle, best = (np.array(w) / np.sqrt(2) for w in ([1, 0, 1, 0], [0, 1, 0, 1]))
    np.testing.assert_allclose(
        pacing.exponents(trap(), saddle, q, 2.0), [0.5, -1.0, -1.5], atol=1e-12
    )
    found = pacing.rest(trap(), best + np.array([0.05, 0.0, 0.02, -0.03]), q, 2.0)
    assert found.is_limit
    np.testing.assert_allclose(found.direction, best, atol=1e-9)
    # c = -1, -3 and -4 on the sphere, over m L² = 4.
    np.testing.assert_allclose(found.exponents, [-0.25, -0.75, -1.0], atol=1e-9)
    found = pacing.rest(trap(), saddle + np.array([0.01, 0.0, -0.01, 0.0]), q, 2.0)
    assert found.residual < 1e-9
    assert not found.is_limit


def test_the_pace_is_that_of_the_flow():
    problem = trap()
    flow = latephase.gradient_flow(
        problem.module, problem.x, problem.y, until=1e12, tol=1e-4, records=10_000
    )
    run = SimpleNamespace(model="trap", seed=0, problem=problem, flow=flow)
    rows = pacing.paces(run)
    np.testing.assert_allclose(1 / np.sqrt(1 + rows["tan φ"] ** 2), 1 - flow.misalignment)
    found, foretold = pacing.mean_paces(rows)
    assert found == pytest.approx(foretold, abs=0.01)
    assert pacing.mean_paces(rows.head(1)) == pytest.approx((np.nan, np.nan), nan_ok=True)
    lines = pacing.pace_lines(rows)
    assert set(lines.pace) == {"foretold by κ", "measured"}


def test_eulers_relation_holds_for_the_degree_alone_and_not_with_biases():
    problem = trap()
    assert apparatus.off_euler(problem, 2.0) < 1e-14
    assert apparatus.off_euler(problem, 3.0) == pytest.approx(1 / 3)
    layers = torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 1)
    biased = torch.nn.Sequential(*layers).double()
    torch.nn.init.ones_(biased[2].bias)
    problem = Problem(biased, np.array([[1.0, 2.0], [-3.0, 0.5]]), torch.tensor([1, -1]))
    assert 1e-3 < apparatus.off_euler(problem, 2.0) < np.inf


def test_gaps_of_paces_are_the_worst_of_the_models_for_each_seed():
    alpha = np.array([1e6, 1e9, 1e12])
    rows = [
        pd.DataFrame({"model": model, "seed": 7, pacing.ALPHA: alpha, "tan φ": alpha**power})
        .assign(pace=-0.1, linear=-1 / 3)
        for model, power in (("a", -0.1), ("b", -0.25))
    ]  # fmt: skip
    assert pacing.pace_gaps(pd.concat(rows)) == {7: pytest.approx(0.15)}


def test_weights_and_gradient_of_a_flow_in_another_metric_part_as_by_hand():
    # Φ = uv with u four times as fast: u = 2v in the end, where -∇R has the direction (1, 2).
    task = SimpleNamespace(x=torch.ones(1, 1, dtype=torch.float64), y=torch.ones(1))
    net = networks.deep_linear([1, 1, 1], generator=torch.Generator().manual_seed(0), scale=1.0)
    for weight in net.parameters():
        weight.data.fill_(1.0)
    run = SimpleNamespace(model="", seed=0, net=net, task=task)
    run.problem = Problem(net, task.x, task.y)
    flow = pacing.in_another_metric(run, [1e3, 1e6]).flow
    assert np.abs(flow.direction[-1]) == pytest.approx(np.array([2, 1]) / 5**0.5, rel=1e-4)
    assert flow.misalignment[-1] == pytest.approx(1 - 4 / 5, rel=1e-3)
    assert next(iter(net.parameters())).item() == 1.0
