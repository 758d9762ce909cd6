"""Smoothing of ReLU kinks: homogeneous, close to the raw module, and silent on squared ReLU."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latephase
from latephase.problem.kinks import SmoothedKinks
from latephase.problem.margins import Problem
from tests.references import Call

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([1, -1, 1, -1, 1, 1])
EPSILON = 1e-3


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8, bias=False), *middle, nn.Linear(8, 1, bias=False)).double()


RELU = [F.relu, torch.relu, torch.Tensor.relu, lambda z: F.relu(z, inplace=True)]
RELU += [lambda z: z.clone().relu_(), lambda z: F.leaky_relu(z, 0.0), nn.ReLU(), nn.ReLU(True)]


@pytest.mark.parametrize("relu", RELU)
def test_every_spelling_of_relu_is_smoothed_alike(relu):
    reference = network(nn.ReLU())
    with SmoothedKinks(EPSILON):
        expected = reference(X)
        came = network(Call(relu))(X)
    raw = reference(X)
    # Per neuron the smoothing adds at most εs/2.
    assert 0 < (expected - raw).abs().max() < EPSILON * 8
    torch.testing.assert_close(came, expected, rtol=1e-14, atol=1e-15)


def test_leaky_relu_is_smoothed_with_its_slope():
    z = torch.linspace(-1, 1, 41, dtype=torch.float64).reshape(1, -1)
    with SmoothedKinks(1e-6):
        leaky = F.leaky_relu(z, 0.25)
    # ε s/2 at the kink.
    torch.testing.assert_close(leaky, torch.where(z > 0, z, 0.25 * z), atol=5e-7, rtol=0)
    assert (leaky - torch.where(z > 0, z, 0.25 * z)).abs().max() > 1e-9


@pytest.mark.parametrize(
    "square",
    [
        lambda z: F.relu(z) ** 2,
        lambda z: torch.relu(z).square(),
        lambda z: torch.pow(torch.relu(z), 2.0),
        lambda z: (lambda a: a * a)(F.relu(z)),
        lambda z: z * F.relu(z),
        lambda z: F.relu(z) * z,
    ],
)
def test_squared_relu_is_left_alone(square):
    module = network(Call(square))
    with SmoothedKinks(0.1):
        came = module(X)
    torch.testing.assert_close(came, module(X), rtol=1e-14, atol=0)


def test_smoothed_module_keeps_its_degree_under_transforms():
    module = nn.Sequential(
        nn.Linear(3, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.LeakyReLU(0.1),
        nn.Linear(8, 1, bias=False),
    )
    problem = Problem(module, X, Y, kink_smoothing=0.01)
    margins = problem.margins(problem.w0)
    # Euler's identity for degree 3 through vmap and grad, to rounding.
    np.testing.assert_allclose(problem.jacobian(problem.w0) @ problem.w0, 3 * margins, atol=1e-13)
    weights = np.ones(6)
    product = problem.curvature(problem.w0, weights, problem.w0[:, None])[:, 0]
    gradient = problem.weighted_gradient(problem.w0, weights)[1]
    # And for the gradient, of degree 2.
    np.testing.assert_allclose(product, 2 * gradient, atol=1e-12)


def test_effect_of_smoothing_vanishes_with_epsilon():
    problem = Problem(network(nn.ReLU()), X, Y)
    raw = problem.margins(problem.w0)
    effects = [np.abs(problem.smoothed(e).margins(problem.w0) - raw).max() for e in (1e-2, 1e-3)]
    # Away from kinks √(z² + ε²s²) - |z| is proportional to ε².
    assert effects[1] < 0.02 * effects[0]


def test_smoothing_that_would_smooth_nothing_is_refused():
    module = network(Call(torch.abs))
    with pytest.raises(
        ValueError, match="it smooths ReLU and leaky ReLU, and the module has none but abs in"
    ):
        latephase.gradient_flow(module, X, Y, until=1.0, kink_smoothing=0.1)
