"""Loss-normalized descent: one step by hand, its invariants, and how it ends."""

import math

import numpy as np
import pytest
import torch

from latephase import convergence, data, networks
from latephase.descent import gradient_descent


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def task():
    return data.separable_points(20, 4, margin=0.2, seed=1)


@pytest.fixture(scope="module")
def squared(task):
    """A smooth two-layer network of degree 3 followed to α = 100."""
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    return gradient_descent(network, task.x, task.y, until=100.0)


def test_one_relative_step_is_the_normalized_gradient_of_the_risk():
    # For a linear model and the exponential loss, ∇α = Σ q_i y_i x_i with q = softmax(-p).
    task = data.soudry_points()
    network = networks.linear(2, generator=generator())
    w = network[0].weight.detach().numpy()[0]
    z = task.y.numpy()[:, None] * task.x.numpy()
    q = np.exp(-z @ w) / np.exp(-z @ w).sum()
    g = q @ z
    moved = w + 0.1 * np.linalg.norm(w) / np.linalg.norm(g) * g
    run = gradient_descent(network, task.x, task.y, steps=1, rule="relative", rate=0.1)
    np.testing.assert_allclose(run.direction[-1], moved / np.linalg.norm(moved), rtol=1e-13)
    assert run.smoothed_margin[-1] == pytest.approx(-math.log(np.exp(-z @ moved).sum()), rel=1e-13)
    assert run.steps == 1


def test_the_callers_module_stays_untouched(task):
    network = networks.two_layer(4, 6, generator=generator())
    before = [parameter.clone() for parameter in network.parameters()]
    gradient_descent(network, task.x, task.y, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_normalized_margin_never_falls_for_a_smooth_network(squared):
    assert squared.settings["margin_drop"] == 0.0
    assert squared.smoothed_margin[-1] >= 100.0


def test_recorded_quantities_belong_together(squared):
    # exp: γ̄ - ln n/‖W‖^L ≤ γ̃ ≤ γ̄ (Lyu and Li 2019), at every record with α > 0.
    slack = np.log(20) * np.exp(-squared.degree * squared.log_norm)
    upper = squared.normalized_margin - squared.normalized_smoothed_margin
    assert np.all(upper >= -1e-12)
    assert np.all(upper <= slack + 1e-12)
    np.testing.assert_allclose(np.linalg.norm(squared.direction, axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(squared.dual.sum(axis=1), 1.0, rtol=1e-12)
    assert np.all(np.diff(squared.path_length) > 0)
    assert np.all(np.diff(squared.log_time[1:]) > 0)


def test_records_are_spaced_evenly_in_ln_alpha(squared):
    late = squared.smoothed_margin[squared.smoothed_margin >= 5.0]
    gaps = np.diff(np.log(late[:-1]))
    # Eight an e-fold; below α = 20 single steps are longer than that grid.
    assert np.all(gaps[late[:-2] > 20] < 0.2)


def test_a_linear_model_approaches_the_maximum_margin_direction():
    # Case 1 of Soudry et al.'s data: the limit is (1, 1)/√2; the error is of order 1/α.
    task = data.soudry_points()
    run = gradient_descent(networks.linear(2, generator=generator()), task.x, task.y, until=500.0)
    error = np.linalg.norm(run.direction[-1] - np.array([1, 1]) / math.sqrt(2))
    assert error < 5.0 / 500.0


def test_contradictory_labels_are_never_separated(task):
    twins = data.with_contradictions(task)
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    run = gradient_descent(network, twins.x, twins.y, steps=300)
    assert np.all(run.smoothed_margin < 0)
    assert run.settings["margin_drop"] == float("inf")
    assert len(convergence.checkpoints(run.smoothed_margin, 10.0)) == 0


def test_large_steps_make_the_normalized_margin_fall(task):
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    run = gradient_descent(
        network, task.x, task.y, until=200.0, rule="relative", rate=0.2, steps=2000
    )
    assert run.settings["margin_drop"] > 0.01


def test_several_classes_are_separated_by_their_pairwise_margins():
    x = torch.eye(3, dtype=torch.float64).repeat(2, 1) + 0.01
    network = networks.linear(3, 3, generator=generator())
    run = gradient_descent(network, x, torch.arange(3).repeat(2), "cross_entropy", until=20.0)
    assert run.smoothed_margin[-1] >= 20.0
    assert run.margins.shape[1] == 6
    assert run.normalized_margin[-1] > 0


def test_float32_follows_float64(task):
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    runs = [
        gradient_descent(network, task.x, task.y, until=20.0, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    ]
    # float32 resolves 6e-8; over a few hundred steps the difference stays below 1e-3.
    assert np.linalg.norm(runs[0].direction[-1] - runs[1].direction[-1]) < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"until": 0.0}, "until: expected a positive number, got 0.0"),
        ({"steps": -1}, "steps: expected a positive number"),
        ({"rate": float("nan")}, "rate: expected a positive number"),
        ({"rule": "armijo"}, "rule: expected 'curvature' or 'relative', got 'armijo'"),
        ({"loss": "hinge"}, "loss"),
    ],
)
def test_bad_settings_say_what_was_expected(task, settings, message):
    with pytest.raises(ValueError, match=message):
        gradient_descent(networks.linear(4, generator=generator()), task.x, task.y, **settings)


def test_an_iteration_that_leaves_the_numbers_names_its_step(task):
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    with pytest.raises(FloatingPointError, match=r"step \d+: .*Take a smaller rate than 1e\+200"):
        gradient_descent(network, task.x, task.y, rule="relative", rate=1e200, steps=10)
