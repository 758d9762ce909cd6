"""Tangent predictors against closed forms, and against the flow of the linearized network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import directional_convergence as tangent
from latephase.flow.gradient_flow import gradient_flow
from latephase.measures.max_margin import hard_margin
from latephase.zoo.networks import linear, two_layer
from latephase.zoo.tasks import planar_points

TASK = planar_points(12, deleted=0.5, seed=1)


def network(width):
    generator = torch.Generator().manual_seed(1)
    return two_layer(3, width, "squared_relu", fixed_signs=True, generator=generator)


def test_tangent_features_of_a_squared_relu_are_its_derivatives():
    net = network(4)
    w, a = net[0].weight.detach().numpy(), net[-1].weight.detach().numpy()[0]
    x = TASK.x.numpy()
    expected = (2 * a * np.maximum(x @ w.T, 0.0))[:, :, None] * x[:, None, :]
    np.testing.assert_allclose(
        tangent.tangent_features(net, TASK.x), expected.reshape(12, 12), rtol=1e-12
    )


def test_the_tangent_predictor_is_the_limit_of_the_linearized_network():
    net = network(20)
    features = tangent.tangent_features(net, TASK.x)
    flat = linear(features.shape[1], generator=torch.Generator().manual_seed(0), scale=0.1)
    flow = gradient_flow(flat, features, TASK.y, until=1e8)
    values = features @ flow.direction[-1]
    predicted = tangent.tangent_predictor(net, TASK.x, TASK.y, TASK.x)
    assert tangent.function_distance(values, predicted) < 1e-6


def test_the_kernel_machine_of_a_linear_kernel_is_the_linear_one():
    net = network(20)
    features = tangent.tangent_features(net, TASK.x)
    points = tangent.tangent_features(net, TASK.x[:5] * 0.3)
    weights, _ = hard_margin(features, TASK.y)
    values = tangent.kernel_predictor(features @ features.T, TASK.y, points @ features.T)
    np.testing.assert_allclose(values, points @ weights, atol=1e-7)


def test_wide_networks_have_the_kernel_of_infinite_width():
    net = two_layer(3, 40_000, "relu", generator=torch.Generator().manual_seed(1))
    features = tangent.tangent_features(net, TASK.x)
    x = TASK.x.numpy()
    # Inner weights are N(0, 2/3); their own features are one of many thousands of the outer ones'.
    kernel = tangent.relu_tangent_kernel(x, x) * 40_000 * 2 / 3
    np.testing.assert_allclose(features @ features.T, kernel, atol=0.05 * kernel.max())


def test_distance_of_functions_forgets_their_size():
    f = np.array([[1.0, 2.0], [2.0, 0.0]])
    assert tangent.function_distance(f, 3.0 * f) == pytest.approx(0.0, abs=1e-12)
    assert tangent.function_distance(f, -f) == pytest.approx(2.0)
    assert tangent.function_distance([1.0, 0.0], [0.0, 5.0]) == pytest.approx(np.sqrt(2.0))


def test_max_pooling_passes_on_the_larger_of_each_two_neurons():
    net = tangent.max_pooling(3, 4, generator=torch.Generator().manual_seed(0))
    w, a = (p.detach().numpy() for p in net.parameters())
    z = np.maximum(TASK.x.numpy() @ w.T, 0.0)
    expected = np.maximum(z[:, ::2], z[:, 1::2]) @ a.T
    np.testing.assert_allclose(net(TASK.x).detach().numpy(), expected, rtol=1e-12)


def test_a_fall_is_said_in_words_and_so_is_none():
    assert tangent.fall(0.0) == "did not fall in any step"
    assert tangent.fall(3.04e-14) == "fell by at most 3.0 × 10⁻¹⁴ of itself in any step"
    assert tangent.left_out({}) == "No start had to be left out."
    assert tangent.left_out({12: "silent", 13: "silent"}).endswith(": 12, 13.")


def test_angles_are_to_the_last_direction_and_leave_it_out():
    direction = np.array([[1.0, 0.0], [1.0, 1.0] / np.sqrt(2), [0.0, 1.0]])
    flow = SimpleNamespace(smoothed_margin=np.array([1.0, 10.0, 100.0]), direction=direction)
    frame = tangent.angles(SimpleNamespace(flow=flow, model="a", seed=7))
    np.testing.assert_allclose(frame.iloc[:, 1], [90, 45])
    assert frame[tangent.ALPHA].tolist() == [1, 10]
