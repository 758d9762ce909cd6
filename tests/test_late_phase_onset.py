"""The way to α = 0: against what is known by hand."""

import numpy as np
import pytest
import torch

import latephase
from experiments.late_phase_onset import coin_tosses, onset, relu_movement
from latephase.problem.vectors import angle
from latephase.zoo import networks, tasks


def linear(weights):
    net = networks.linear(len(weights), generator=torch.Generator())
    net[0].weight.data = torch.tensor([weights], dtype=torch.float64)
    return net


def test_one_example_on_a_line_is_solved_by_hand():
    # w' = e^{-w} from w = -1: e^w = e^{-1} + t, which is at w = α = 0 for t = 1 - 1/e.
    way = onset(linear([-1.0]), np.ones((1, 1)), [1.0], until=0.1)
    assert way.at_zero("log_time") == pytest.approx(np.log(1 - np.exp(-1)), abs=2e-2)
    assert way.at_zero("movement") == pytest.approx(1.0, abs=1e-12)
    assert way.smoothed_margin[-1] == pytest.approx(0.1, rel=1.1e-3)
    assert (way.smoothed_margin[way.before] <= 0).all()


def test_all_examples_are_right_before_the_late_phase_begins():
    x, y = np.array([[1.0], [2.0]]), [1.0, 1.0]
    way = onset(linear([-1.0]), x, y, until=0.1, tol=1e-5)
    # At w = 0 both margins vanish and R = 2.
    assert -np.log(2) < way.at_separation < 0
    assert (way.smallest_margin[way.smoothed_margin > 0] > 0).all()


def test_coin_tosses_are_the_same_for_a_seed_and_not_separated_by_a_plane():
    x, y = coin_tosses(60, 10, 3)
    assert torch.equal(x, coin_tosses(60, 10, 3)[0])
    assert sorted(set(y.tolist())) == [-1, 1]
    with pytest.raises(latephase.NotSeparated):
        onset(networks.linear(10, generator=torch.Generator().manual_seed(0)), x, y)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_plain_relu_moves_as_far_by_the_explicit_method(power):
    task = tasks.separable_points(6, 4, margin=0.2, seed=0)
    net = networks.two_layer(4, 64, fixed_signs=True, generator=torch.Generator().manual_seed(0))
    net[-1].weight.data /= 64**power
    way = onset(net, task.x, task.y, until=0.01, tol=1e-3)
    found = relu_movement(task, 64, power, torch.Generator().manual_seed(0))
    assert found == pytest.approx(way.at_zero("movement"), rel=0.02)


def test_it_is_the_early_phase_of_the_flow():
    task = tasks.separable_points(12, 5, margin=0.1, seed=0)
    net = networks.two_layer(5, 8, "squared_relu", generator=torch.Generator().manual_seed(0))
    way = onset(net, task.x, task.y, until=1.0, tol=1e-5)
    flow = latephase.gradient_flow(net, task.x, task.y, until=1.0, tol=1e-4)
    assert np.log(np.linalg.norm(way.last)) == pytest.approx(flow.log_norm[-1], abs=1e-3)
    assert angle(way.last, flow.direction[-1]) < 1e-3
    assert way.log_time[-1] == pytest.approx(flow.log_time[-1], abs=1e-2)


def test_a_start_in_the_late_phase_has_nothing_before_it():
    way = onset(linear([1.0]), np.ones((1, 1)), [1.0], until=2.0)
    assert way.at_zero("movement") == 0.0
    assert way.before == slice(0, 0)


def test_examples_that_no_weights_separate_are_an_error():
    task = tasks.with_contradictions(tasks.separable_points(12, 3, seed=0))
    net = networks.linear(3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(latephase.NotSeparated, match="stationary"):
        onset(net, task.x, task.y)


def test_the_number_of_steps_is_bounded():
    with pytest.raises(latephase.BudgetSpent, match="3 steps are spent at α = -"):
        onset(linear([-5.0]), np.ones((1, 1)), [1.0], steps=3)
