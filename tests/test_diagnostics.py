"""Pure measures against hand-made cases."""

import numpy as np
import pytest
import torch

from experiments.margin_maximization import circle_masses
from latephase.measures import alignment, layers
from latephase.problem import kkt, vectors


def test_angle_is_accurate_where_one_minus_cosine_cancels():
    a, b = np.array([1.0, 0.0]), np.array([1.0, 1e-10])
    assert vectors.angle(a, b) == pytest.approx(1e-10, rel=1e-6)  # rounding of b/‖b‖, 1e-16
    assert vectors.angle(a, -a) == pytest.approx(np.pi)


@pytest.mark.parametrize("vector", [np.zeros(3), np.array([1.0, np.inf]), np.full(2, np.nan)])
def test_unit_refuses_what_has_no_direction(vector):
    with pytest.raises(ValueError, match="positive finite norm"):
        vectors.unit(vector)


def test_kkt_residual_vanishes_at_the_svm_direction():
    # Two points of the plane; the max-margin direction is their sum's, both on the margin.
    z = np.array([[0.5, 1.5], [1.5, 0.5]])
    w = vectors.unit(np.array([1.0, 1.0]))
    q = np.array([0.5, 0.5])
    epsilon, delta = kkt.kkt_residual(w, z.T @ q, z @ w, q, 1.0)
    assert epsilon < 1e-15
    assert delta < 1e-15


def test_kkt_residual_in_the_units_of_the_definition():
    rng = np.random.default_rng(0)
    degree, norm = 2.0, 3.0
    w = rng.normal(size=5)
    w *= norm / np.linalg.norm(w)
    margins = rng.uniform(1.0, 2.0, size=4)
    jacobian = rng.normal(size=(4, 5))
    q = np.exp(-margins) / np.exp(-margins).sum()
    risk_gradient = -np.exp(-margins) @ jacobian
    smallest = margins.min()
    # Lyu and Li: θ = W/p_min^{1/L}, λ_i = p_min^{1-2/L} ‖W‖ e^{-p_i}/‖∇R‖; the distance between
    # θ and Σ λ_i ∇p_i(θ), ∇p homogeneous of degree L - 1, and max λ_i (p_i(θ) - 1).
    multipliers = (
        smallest ** (1 - 2 / degree) * norm * np.exp(-margins) / np.linalg.norm(risk_gradient)
    )
    theta = w / smallest ** (1 / degree)
    gradients = jacobian / smallest ** ((degree - 1) / degree)
    epsilon = np.linalg.norm(theta - multipliers @ gradients)
    delta = np.max(multipliers * (margins / smallest - 1))
    came = kkt.kkt_residual(
        w / norm, q @ jacobian / norm ** (degree - 1), margins / norm**degree, q, degree
    )
    assert came == pytest.approx((epsilon, delta), rel=1e-12)


@pytest.mark.parametrize("smallest", [-1.0, 0.0])
def test_kkt_residual_is_not_defined_without_separation(smallest):
    came = kkt.kkt_residual(np.ones(2), np.ones(2), np.array([1.0, smallest]), np.ones(2), 1.0)
    assert np.isnan(came).all()


def test_path_length_of_a_quarter_circle():
    angles = np.linspace(0.0, np.pi / 2, 50)
    lengths = vectors.path_length(np.stack([np.cos(angles), np.sin(angles)], 1))
    np.testing.assert_allclose(lengths, angles, atol=1e-14)  # great circle: the arcs are exact


def test_weights_of_rank_one_are_aligned():
    u, v, s = np.array([3.0, 4.0]), np.array([1.0, 2.0, 2.0]), np.array([1.0, 1.0])
    lower, upper = np.outer(u, v), np.outer(s, u)
    assert layers.neighbor_defect(lower, upper) == pytest.approx(0.0, abs=1e-15)
    assert layers.neighbor_defect(lower, -upper) == pytest.approx(0.0, abs=1e-15)
    assert layers.balancedness(lower, upper) == pytest.approx((9 - 2) * 25)
    assert layers.balancedness(upper.T, lower.T) == pytest.approx((9 - 2) * 25)


def test_tangent_curvature_of_a_product_of_weights():
    # p = u₁v₁ + 2 u₂v₂ at u = v = (1, 0)/√2: along (0, 1, 0, 1)/√2 the margin cos²/2 + sin² grows.
    hessian = np.array([[0, 0, 1, 0], [0, 0, 0, 2], [1, 0, 0, 0], [0, 2, 0, 0]], dtype=float)
    theta = np.array([1.0, 0.0, 1.0, 0.0]) / np.sqrt(2)
    curvatures, tangents = kkt.tangent_curvature(hessian, theta, 0.5, 2.0)
    np.testing.assert_allclose(curvatures, [-3.0, -2.0, 1.0], atol=1e-14)
    np.testing.assert_allclose(tangents.T @ tangents, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(tangents.T @ theta, 0.0, atol=1e-14)
    s = 1e-3
    moved = np.cos(s) * theta + np.sin(s) * tangents[:, -1]
    assert 0.5 * moved @ hessian @ moved == pytest.approx(0.5 + 0.5 * s**2, abs=1e-12)  # s⁴


def test_circle_masses_sum_to_the_squared_norm():
    vectors = np.array([[2.0, 0.0], [0.0, 1.0], [-3.0, -1e-9], [0.0, -1.0]])
    edges = np.linspace(-np.pi / 4, 7 * np.pi / 4, 5)
    np.testing.assert_array_equal(circle_masses(vectors, edges), [4.0, 1.0, 9.0, 1.0])
    # The first bin reaches over the angle zero, from either side.
    tilted = np.array([[2.0, -1.0]])
    np.testing.assert_array_equal(circle_masses(tilted, edges), [5.0, 0.0, 0.0, 0.0])


def test_misalignment_does_not_cancel():
    a, b = np.array([1.0, 0.0]), np.array([1.0, 1e-10])
    assert vectors.misalignment(a, b) == pytest.approx(0.5e-20, rel=1e-6)
    assert vectors.misalignment(a, -a) == pytest.approx(2.0)


def test_defects_of_rank_and_of_neighbours_do_not_cancel():
    lower = np.array([[3.0, 0.0], [0.0, 3e-9]])
    assert layers.rank_defect(lower) == pytest.approx(1e-18, rel=1e-6)
    assert layers.rank_defect(np.eye(4)) == pytest.approx(0.75)
    assert layers.neighbor_defect(lower, np.array([[1.0, 1e-9]])) == pytest.approx(1e-18, rel=1e-6)
    assert layers.neighbor_defect(lower, np.array([[0.0, 2.0]])) == pytest.approx(1.0)


def test_saliency_of_a_product_by_hand():
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 1, bias=False)).double()
    torch.nn.init.constant_(module[1].weight, 3.0)
    came = alignment.saliency(module, np.array([[1.0, 2.0], [0.0, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(came, [[3.0, 3.0], [3.0, 3.0]])
    assert module.training
    assert module[1].weight.grad is None


def test_saliency_needs_one_output():
    with pytest.raises(ValueError, match="expected one output for each of 3 inputs"):
        alignment.saliency(torch.nn.Linear(2, 4), np.zeros((3, 2)))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4), (4, 1)])
def test_the_top_singular_triple_is_that_of_the_decomposition(shape):
    matrix = 1e150 * np.random.default_rng(0).normal(size=shape)
    value, left, right = layers.top_singular(matrix)
    u, s, v = np.linalg.svd(matrix)
    assert value == pytest.approx(s[0], rel=1e-14)
    assert abs(left @ u[:, 0]) == pytest.approx(1.0, abs=1e-13)
    np.testing.assert_allclose(matrix @ right, value * left, rtol=1e-12, atol=1e138)
    assert abs(right @ v[0]) == pytest.approx(1.0, abs=1e-13)
    value, left, right = layers.top_singular(0 * matrix)
    assert value == 0.0
    assert np.isnan([*left, *right]).all()
    with pytest.raises(ValueError, match="expected a matrix of finite norm, got norm inf"):
        layers.top_singular(np.inf * matrix)
