"""The largest margin of all networks: against a grid of neurons, and against a network's limit."""

import numpy as np
import pytest
import torch

from experiments.margin_maximization import variation_margin
from experiments.variation_norm import largest_margin
from latephase.flow.gradient_flow import gradient_flow
from latephase.zoo.networks import two_layer
from latephase.zoo.tasks import planar_points

TASK = planar_points(12, deleted=0.5, seed=1)
X, Y = TASK.x.numpy(), TASK.y.numpy()


def sphere(count):
    heights = np.linspace(-1, 1, count)
    turns = np.pi * (1 + 5**0.5) * np.arange(count)
    radius = np.sqrt(1 - heights**2)
    return np.stack([radius * np.cos(turns), radius * np.sin(turns), heights], axis=1)


def test_no_grid_of_squared_relus_has_a_larger_margin_and_a_fine_one_nearly_as_large():
    best = 1 / largest_margin(X, Y, power=2).norm
    assert 0.99 * best < variation_margin(X, Y, sphere(3000)).margin <= best * (1 + 1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_every_example_has_margin_one_and_no_direction_anywhere_would_help(power):
    found = largest_margin(X, Y, power)
    assert (Y * found(X)).min() == pytest.approx(1.0, abs=1e-9)
    assert found.gap <= 1e-9
    assert np.count_nonzero(found.masses) <= len(X)


@pytest.mark.parametrize("power", [1, 2])
def test_a_program_with_more_examples_has_no_larger_margin(power):
    fewer = largest_margin(X[:8], Y[:8], power).norm
    assert fewer <= largest_margin(X, Y, power).norm * (1 + 1e-8)


def test_a_wide_network_ends_at_it():
    net = two_layer(
        3, 32, "squared_relu", fixed_signs=True, generator=torch.Generator().manual_seed(1)
    )
    flow = gradient_flow(net, TASK, until=1e8, tol=1e-3)
    # Fixed outer weights are ±1/√m.
    best = 1 / largest_margin(X, Y, power=2).norm / 32**0.5
    assert flow.normalized_margin[-1] == pytest.approx(best, rel=1e-3)
    assert flow.normalized_margin[-1] <= best * (1 + 1e-8)


def test_too_few_rounds_are_said():
    with pytest.raises(ArithmeticError, match="constraint"):
        largest_margin(X, Y, power=1, rounds=1)
