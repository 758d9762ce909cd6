"""The least-norm generalized gradient, against hand-computed cases and plain optimization."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

import latephase
from latephase.problem.generalized import least_norm
from latephase.problem.kinked import Kinked, kinked
from latephase.problem.margins import Problem
from latephase.problem.vectors import misalignment
from latephase.zoo.networks import two_layer
from tests.references import Call


def linear(inputs, outputs=1, weight=None, frozen=False):
    layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
    if weight is not None:
        layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64).reshape(outputs, -1))
    return layer.requires_grad_(not frozen)


def gates_of(found):
    places = [(example, position) for *_, example, position in found.kinks]
    return dict(zip(places, found.gates, strict=True))


def test_absolute_value_at_zero():
    net = nn.Sequential(linear(1), Call(torch.abs))
    found = latephase.generalized_gradient(net, np.array([[2.0]]), np.array([1]), np.array([0.0]))
    assert (found.norm, found.active, found.exact) == (0.0, 1, True)
    np.testing.assert_array_equal(found.gradient, [0.0])
    np.testing.assert_allclose(found.gates, [0.5], atol=1e-15)
    assert found.kinks == [("abs", "1", 0, 0)]


def test_one_weight_and_two_examples_on_its_kink():
    # p = (relu(w), -relu(-w)) at 0: G = ½ s₁ + ½ (1 - s₁), as z₂ = -z₁ has the opposite gate.
    net = nn.Sequential(linear(1), nn.ReLU())
    x, w = np.array([[1.0], [-1.0]]), np.zeros(1)
    found = latephase.generalized_gradient(net, x, np.array([1, -1]), w)
    np.testing.assert_allclose(found.gradient, [0.5], atol=1e-15)
    assert found.gates.sum() == pytest.approx(1.0)
    # With both margins positive there, ½ s₁ - ½ (1 - s₁) vanishes at one half.
    found = latephase.generalized_gradient(net, x, np.array([1, 1]), w)
    np.testing.assert_allclose(found.gradient, [0.0], atol=1e-15)
    np.testing.assert_allclose(found.gates, [0.5, 0.5], atol=1e-15)
    # PyTorch's own choice is zero in both cases.
    gradient = latephase.problem.margins.Problem(net, x, np.array([1, -1])).weighted_gradient
    np.testing.assert_array_equal(gradient(w, np.ones(2))[1], [0.0])


def test_duplicates_have_one_gate():
    # p = a relu(w x) with a = 1 and w x = 0 for two copies with one label: one unknown.
    net = nn.Sequential(linear(2, 1, [0.0, 1.0]), nn.ReLU(), linear(1, 1, [1.0], frozen=True))
    x = np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.3, 1.0]])
    found = latephase.generalized_gradient(net, x, np.array([-1, -1, -1, -1, 1]))
    s = gates_of(found)
    assert s[0, 0] == s[1, 0] == s[2, 0] == pytest.approx(1.0 - s[3, 0], abs=1e-15)
    # Margins 0, 0, 0, 0, 1: q ∝ (1, 1, 1, 1, e⁻¹), G ∝ (-s(1 + 1 + 2) + (1 - s) + .3/e, 1/e).
    q = np.array([1, 1, 1, 1, np.exp(-1)]) / (4 + np.exp(-1))
    assert s[0, 0] == pytest.approx((1 + 0.3 * np.exp(-1)) / 5, abs=1e-12)
    np.testing.assert_allclose(found.gradient, [0.0, q[4]], atol=1e-14)


def test_the_nearest_point_of_a_segment():
    # One unit w = (1, 0) with fixed output 1 and examples (0, 1), on its kink, and (1, 1).
    net = nn.Sequential(linear(2, 1, [1.0, 0.0]), nn.ReLU(), linear(1, 1, [1.0], frozen=True))
    x = np.array([[0.0, 1.0], [1.0, 1.0]])
    q = np.exp([0.0, -1.0]) / np.exp([0.0, -1.0]).sum()
    # G = q₂ (1, 1) - s q₁ (0, 1): s = q₂/q₁ = 1/e takes the second component away.
    found = latephase.generalized_gradient(net, x, np.array([-1, 1]))
    assert found.gates == pytest.approx([np.exp(-1)], abs=1e-14)
    np.testing.assert_allclose(found.gradient, [q[1], 0.0], atol=1e-15)
    # With the other label both parts agree, and the gate closes.
    found = latephase.generalized_gradient(net, x, np.array([1, 1]))
    assert found.gates == pytest.approx([0.0], abs=1e-15)
    np.testing.assert_allclose(found.gradient, [q[1], q[1]], atol=1e-15)


def test_two_layers_of_kinks_on_one_example():
    # relu(v relu(⟨w, x⟩)) with ⟨w, x⟩ = 0: G = s₂ (s₁ v x, 0), which either gate takes away.
    layers = linear(2, 1, [0.0, 1.0]), linear(1, 1, [1.0])
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())
    found = latephase.generalized_gradient(net, np.array([[1.0, 0.0]]), np.ones(1))
    assert (found.norm, found.active, found.exact) == (0.0, 2, False)
    assert repr(found) == "<GeneralizedGradient: local minimum of the norm 0, 2 active kinks>"


def test_ties_of_a_pooling_that_no_weight_moves_are_not_active():
    # The second unit is closed for both positions: their maximum is 0 on both sides.
    net = nn.Sequential(
        nn.Conv1d(1, 2, 1, bias=False, dtype=torch.float64),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        linear(2, 1, [1.0, 1.0]),
    )
    net[0].weight.data[:] = torch.tensor([1.0, -1.0]).reshape(2, 1, 1)
    x = np.array([[[1.0, 2.0]], [[3.0, 3.0]]])
    found = latephase.generalized_gradient(net, x, np.ones(2))
    assert [(name, example) for name, _, example, _ in found.kinks] == []


def on_kinks(depth, seed, n=10):
    """Return a problem whose first units stand on an example's kink each, in every layer."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    widths = [4, *[6] * depth]
    layers = [linear(*fan) for fan in pairwise(widths)]
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), linear(6))
    x, y = rng.normal(size=(n, 4)), rng.choice([-1, 1], n)
    h = torch.from_numpy(x)
    with torch.no_grad():
        for layer in layers:
            for unit in range(3):
                weight = layer.weight[unit]
                weight -= (weight @ h[unit]) / (h[unit] @ h[unit]) * h[unit]
            h = torch.relu(layer(h))
    return Problem(net, x, y)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_gates_have_a_smaller_norm(depth, seed):
    problem = on_kinks(depth, seed)
    found = least_norm(problem, kink_tol=1e-9)
    assert found.exact == (depth == 1)
    assert found.active >= 3
    network, w = kinked(problem), problem.w0
    p, z, gates = network.evaluate_natural(w)
    dual = problem.loss.dual_variables(torch.from_numpy(p)).numpy()
    active = np.flatnonzero(np.abs(z) < 1e-9)

    def gradient(s):
        gates[active] = s
        return network.at(w, gates, []).pull(dual, np.zeros(0))[0]

    np.testing.assert_allclose(gradient(found.gates), found.gradient, atol=1e-15)
    assert found.norm == np.linalg.norm(found.gradient)
    rng = np.random.default_rng(0)
    best = min(
        minimize(
            lambda s: np.sum(gradient(s) ** 2),
            rng.random(len(active)),
            bounds=[(0, 1)] * len(active),
            options={"ftol": 1e-15, "gtol": 1e-10},
        ).fun
        for _ in range(3)
    )
    # Within finite differences of the least; PyTorch's own choice is farther.
    assert found.norm <= np.sqrt(best) * (1 + 1e-7)
    own = np.linalg.norm(problem.weighted_gradient(w, dual)[1])
    assert found.norm < own * (1 - 1e-7) or found.gates.max() == 0.0


def test_the_general_form_finds_the_same():
    problem = on_kinks(1, 1)
    torch.manual_seed(1)
    general = Problem(
        nn.Sequential(*list(problem.module)[:-1], Call(lambda h: h + 0.0 * F.relu(-h)), linear(6)),
        problem.x,
        problem.y,
    )
    general.module[3].weight.data[:] = problem.module[2].weight.data
    found, other = least_norm(problem), least_norm(general, problem.w0)
    assert isinstance(kinked(general), Kinked)
    np.testing.assert_allclose(other.gradient, found.gradient, atol=1e-12)


def test_how_near_a_kink_counts():
    net = nn.Sequential(linear(2, 1, [1e-4, 1.0]), nn.ReLU(), linear(1, 1, [1.0], frozen=True))
    x, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([-1, 1])
    # z = (1e-4, 1), of root mean square 1/√2.
    for kink_tol, active in ((1.40e-4, 0), (1.42e-4, 1)):
        found = latephase.generalized_gradient(net, x, y, kink_tol=kink_tol)
        assert (found.active, found.kink_tol) == (active, kink_tol)
    larger = latephase.generalized_gradient(net, 1e3 * x, y, kink_tol=1.42e-4)
    assert larger.active == 1


def test_multipliers_from_elsewhere_and_several_classes():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), np.arange(8) % 3
    net = nn.Sequential(linear(3, 5), nn.ReLU(), linear(5, 3))
    q = rng.random((8, 2))
    problem = Problem(net, x, y)
    found = latephase.generalized_gradient(net, x, y, dual=q)
    np.testing.assert_allclose(found.gradient, problem.weighted_gradient(problem.w0, q)[1])
    assert (found.active, found.gates.shape, found.exact) == (0, (0,), True)
    alpha = problem.smoothed_margin(problem.w0)[3]
    task = latephase.Task(torch.from_numpy(x), torch.from_numpy(y), "three classes", "0" * 64)
    np.testing.assert_allclose(
        latephase.generalized_gradient(net, task).gradient, alpha, atol=1e-14
    )


def test_it_aligns_at_the_end_of_a_flow_where_pytorchs_own_does_not():
    # Smoothed by 1e-2: the kinks of the limit stand within that of z = 0.
    rng = np.random.default_rng(3)
    angle = rng.uniform(0, 2 * np.pi, 12)
    x = np.stack([np.cos(angle), np.sin(angle)], 1)
    y = np.sign(x @ [1.0, 0.3])
    net = two_layer(2, 8, generator=torch.Generator().manual_seed(1))
    flow = latephase.gradient_flow(net, x, y, until=30, tol=1e-3, kink_smoothing=1e-2)
    w, dual = flow.direction[-1], flow.dual[-1]
    own, least = (
        latephase.generalized_gradient(net, x, y, w, kink_tol, dual=dual)
        for kink_tol in (0.0, 1e-2)
    )
    assert least.active >= 2
    # As far from alignment as the smoothed flow itself, which has not arrived at α = 30.
    apart = 1.0 - flow.alignment[-1]
    assert misalignment(w, own.gradient) > 5 * apart
    assert misalignment(w, least.gradient) < 1.2 * apart


def test_bad_input():
    net = nn.Sequential(linear(2), nn.ReLU())
    x, y = np.ones((2, 2)), np.ones(2)
    for wrong, message in (
        ({"w": np.zeros(3)}, r"w: expected 2 finite weights \[P\], got shape \[3\]"),
        ({"w": np.array([0.0, np.nan])}, "w: expected 2 finite weights"),
        ({"kink_tol": -1.0}, "kink_tol: expected a number of at least 0, got -1.0"),
        ({"kink_tol": float("nan")}, "kink_tol: expected a number of at least 0, got nan"),
        ({"dual": np.ones(3)}, "dual: expected 2 finite weights of margins, got 3"),
        ({"w": np.zeros(2), "jacobian_bytes": 8}, "jacobian_bytes: 2 kinks of 2 examples"),
    ):
        with pytest.raises(ValueError, match=message):
            latephase.generalized_gradient(net, x, y, **wrong)
    with pytest.raises(ValueError, match="round in '1'"):
        latephase.generalized_gradient(nn.Sequential(linear(2), Call(torch.round)), x, y)
