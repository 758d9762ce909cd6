"""The way to α = 0: against the exact flow of one example, and against the solver."""

import numpy as np
import pytest
import torch

import latephase
from latephase.experiments.onset import onset
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


def test_it_is_the_early_phase_of_the_flow():
    task = tasks.separable_points(12, 5, margin=0.1, seed=0)
    net = networks.two_layer(5, 8, "squared_relu", generator=torch.Generator().manual_seed(0))
    way = onset(net, task.x, task.y, until=1.0, tol=1e-5)
    flow = latephase.gradient_flow(net, task.x, task.y, until=1.0, tol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(way.last), way.norm[-1])
    assert np.log(way.norm[-1]) == pytest.approx(flow.log_norm[-1], abs=1e-3)
    assert way.path_length[-1] == pytest.approx(flow.path_length[-1], abs=1e-3)
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
    with pytest.raises(latephase.NotSeparated, match="3 steps are spent at α = -"):
        onset(linear([-5.0]), np.ones((1, 1)), [1.0], steps=3)
