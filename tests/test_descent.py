"""Loss-normalized descent: one step by hand, its invariants, and how it ends."""

import math

import numpy as np
import pytest
import torch

from latephase.measures import settling
from latephase.problem.vectors import path_length
from latephase.training.descent import gradient_descent
from latephase.zoo import networks, tasks
from tests.references import soudry_points


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def task():
    return tasks.separable_points(20, 4, margin=0.2, seed=1)


@pytest.fixture(scope="module")
def squared(task):
    """A smooth two-layer network of degree 3 followed to α = 100."""
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    return gradient_descent(network, task.x, task.y, until=100.0)


def test_one_relative_step_is_the_normalized_gradient_of_the_risk():
    # For a linear model and the exponential loss, ∇α = Σ q_i y_i x_i with q = softmax(-p).
    task = soudry_points()
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
    task = soudry_points()
    run = gradient_descent(networks.linear(2, generator=generator()), task.x, task.y, until=500.0)
    error = np.linalg.norm(run.direction[-1] - np.array([1, 1]) / math.sqrt(2))
    assert error < 5.0 / 500.0


def test_contradictory_labels_are_never_separated(task):
    twins = tasks.with_contradictions(task)
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    run = gradient_descent(network, twins.x, twins.y, steps=300)
    assert np.all(run.smoothed_margin < 0)
    assert run.settings["margin_drop"] == float("inf")
    assert len(settling.milestones(run.smoothed_margin, 10.0)) == 0


@pytest.mark.parametrize("rule", ["constant", "logarithmic", "normalized"])
@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_every_rule_is_a_factor_of_the_gradient_of_ln_r(task, rule, loss):
    network = networks.two_layer(4, 6, "squared_relu", generator=generator())
    run = gradient_descent(network, task, loss=loss, steps=1, rule=rule, rate=0.01)
    parameters = list(network.parameters())
    p = task.y * network(task.x)[:, 0]
    losses = torch.exp(-p) if loss == "exponential" else torch.log1p(torch.exp(-p))
    gradient = torch.autograd.grad(losses.sum().log(), parameters)
    w, g = (torch.cat([t.detach().reshape(-1) for t in ts]) for ts in (parameters, gradient))
    factor = {
        "constant": losses.sum().item(),
        "logarithmic": 1.0,
        "normalized": 1.0 / max(1.0, (g @ g).item()),
    }[rule]
    moved = w - 0.01 * factor * g
    reached = np.exp(run.log_norm[-1]) * run.direction[-1]
    np.testing.assert_allclose(reached, moved.numpy(), rtol=1e-11, atol=1e-13)


def test_a_task_is_descended_on_as_its_points_are(task):
    network = networks.linear(4, generator=generator())
    run = gradient_descent(network, task, until=5.0)
    same = gradient_descent(network, task.x, task.y, "exponential", until=5.0)
    np.testing.assert_array_equal(run.direction, same.direction)
    assert run.settings["loss"] == "exponential"


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
        ({"steps": -1}, "steps: expected a positive integer"),
        ({"rate": float("nan")}, "rate: expected a positive number"),
        ({"rule": "armijo"}, "rule: expected one of curvature, constant, .*, got 'armijo'"),
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


def test_a_start_whose_margin_alone_leaves_the_numbers_is_refused():
    network = networks.deep_linear([1, 1, 1, 1], generator=generator()).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(1e13)
    # p = 1e39 is infinite in float32, ‖W‖ = 1.7e13 is not.
    with pytest.raises(FloatingPointError, match=r"step 0: .*‖W‖ = 1\.73205e\+13"):
        gradient_descent(network, torch.ones(1, 1), torch.ones(1), dtype=torch.float32)


def test_a_single_example_follows_its_recurrence():
    # Φ(x) = u v w x with one example: M = ∇p ∇pᵀ, so that the rule says η = 1/‖∇p‖².
    network = networks.deep_linear([1, 1, 1, 1], generator=generator())
    with torch.no_grad():
        for layer, value in zip(network[::2], (3.0, 3.5, 4.0), strict=True):
            layer.weight.fill_(value)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.ones(1)
    one, three = (gradient_descent(network, x, y, steps=steps) for steps in (1, 3))
    w, after = np.array([3.0, 3.5, 4.0]), []
    for _ in range(3):
        gradient = w.prod() / w
        w = w + gradient / (gradient @ gradient)
        after.append(w)
    np.testing.assert_allclose(np.exp(one.log_norm[-1]) * one.direction[-1], after[0], rtol=1e-14)
    assert three.evaluations == {"gradient": 4, "jacobian": 1}
    # The Gram matrix is the first step's, scaled by homogeneity; the direction has turned by
    # 0.004 since, to which the change of a step of 0.01 ‖w‖ is proportional.
    np.testing.assert_allclose(np.exp(three.log_norm[-1]) * three.direction[-1], w, rtol=1e-4)


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_log_time_counts_steps_of_gradient_descent_on_the_risk(task, loss):
    network = networks.two_layer(4, 6, generator=generator())
    run = gradient_descent(network, task.x, task.y, loss, steps=1, rule="relative", rate=0.1)
    parameters = list(network.parameters())
    margins = task.y * network(task.x)[:, 0]
    losses = torch.exp(-margins) if loss == "exponential" else torch.log1p(torch.exp(-margins))
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(losses.sum(), parameters)])
    norm = torch.cat([w.reshape(-1) for w in parameters]).norm()
    # W moved by 0.1 ‖W‖, which is time · ‖∇R‖. Formed twice in float64.
    assert run.log_time[0] == -math.inf
    expected = math.log(0.1 * norm.item() / gradient.norm().item())
    assert run.log_time[-1] == pytest.approx(expected, rel=1e-12)


def test_margins_duals_and_alpha_tell_the_same(squared):
    margins = squared.margins * np.exp(squared.degree * squared.log_norm)[:, None]
    weights = np.exp(-margins)
    np.testing.assert_allclose(squared.smoothed_margin, -np.log(weights.sum(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(squared.dual, weights / weights.sum(1, keepdims=True), rtol=1e-10)
    # ln q = α - p loses the digits that α has before the point: 2 of 16.
    np.testing.assert_allclose(np.exp(squared.log_dual), squared.dual[-1], rtol=1e-12)


def test_the_kkt_residuals_are_those_of_the_risk(task, squared):
    # Lyu and Li's ε and δ from W and ∇R themselves; e^{-p} is 1e-44 at least.
    network = networks.two_layer(4, 6, "squared_relu", generator=generator()).double()
    parameters = list(squared.write_to(network).parameters())
    p = task.y * network(task.x)[:, 0]
    gradient = torch.autograd.grad(-torch.exp(-p).sum(), parameters)
    w, g = (torch.cat([t.detach().reshape(-1) for t in v]) for v in (parameters, gradient))
    p, smallest = p.detach(), p.min().item()
    multipliers = smallest ** (1 / 3) * w.norm() * torch.exp(-p) / g.norm()
    epsilon = w.norm() * smallest ** (-1 / 3) * (w / w.norm() - g / g.norm()).norm()
    assert squared.kkt_stationarity[-1] == pytest.approx(epsilon.item(), rel=1e-9)
    delta = (multipliers * (p / smallest - 1)).max().item()
    assert squared.kkt_complementarity[-1] == pytest.approx(delta, rel=1e-9)


def test_log_duals_of_several_classes_are_those_of_pairs():
    x = torch.eye(3, dtype=torch.float64) + 0.01
    network = networks.mlp([3, 8, 3], generator=generator())
    run = gradient_descent(network, x, torch.arange(3), until=20.0)
    assert run.settings["loss"] == "cross_entropy"
    assert run.dual.shape == (len(run), 3, 2)
    np.testing.assert_allclose(np.exp(run.log_dual), run.dual[-1], rtol=1e-12)
    run.write_to(network, normalized=True)
    logits = network(x).detach().numpy()
    others = np.where(np.eye(3) > 0, -np.inf, logits).max(1)
    np.testing.assert_allclose(run.margins[-1], np.diag(logits) - others, rtol=1e-9)


def test_the_path_through_every_step_is_no_shorter_than_through_the_records(squared):
    pieces, chords = np.diff(squared.path_length), np.diff(path_length(squared.direction))
    assert np.all(pieces >= chords * (1 - 1e-9))
    # A smooth path followed by small steps: the two differ by 6e-4 at most, a tenth of this.
    assert np.all((pieces <= 1.006 * chords)[squared.smoothed_margin[1:] > 20])


def test_a_start_without_a_gradient_is_an_error(task):
    network = networks.two_layer(4, 6, scale=0.0, generator=generator())
    with pytest.raises(FloatingPointError, match=r"step 0: .*another start"):
        gradient_descent(network, task.x, task.y)


def test_a_progress_bar_is_shown_on_request_only(task, capsys):
    network = networks.linear(4, generator=generator())
    gradient_descent(network, task.x, task.y, until=5.0)
    assert capsys.readouterr().err == ""
    gradient_descent(network, task.x, task.y, until=5.0, progress=True)
    assert "step/s" in capsys.readouterr().err
