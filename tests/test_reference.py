"""The oracles themselves, against answers known by hand."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from benchmarks.fused import SquaredPoint
from benchmarks.stiff_flow import DirectionFlow, solved_by_cvode, solved_by_scipy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import latephase
from experiments.margin_maximization import planar_variation_bound, variation_margin
from latephase.measures.max_margin import hard_margin_dual
from latephase.problem.margins import Problem
from latephase.zoo import networks
from tests.references import (
    explicit_relu_flow,
    finite_differences,
    leaky_relu_on_orthonormal_inputs,
    leaky_relu_on_symmetric_points,
    physical_flow,
    relu_on_orthogonally_separable_points,
)


def pushed_apart(n, dimension, seed):
    """Gaussian points, moved away from the hyperplane that labels them."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=dimension)
    x = rng.normal(size=(n, dimension))
    y = np.sign(x @ w)
    return x + 0.2 * y[:, None] * w, y


def test_hard_margin_of_two_points():
    direction, margin = latephase.hard_margin(torch.tensor([[0.5, 1.5], [-1.5, -0.5]]), [1, -1])
    np.testing.assert_allclose(direction, np.ones(2) / np.sqrt(2), atol=1e-15)  # rounding
    assert margin == pytest.approx(np.sqrt(2), rel=1e-15)


def test_hard_margin_satisfies_the_kkt_conditions():
    x, y = pushed_apart(200, 6, seed=0)
    direction, margin = latephase.hard_margin(7.0 * x, y)
    gaps = y * (7.0 * x @ direction) - margin
    # Every support vector at the margin, and the direction in their cone.
    support = gaps < 1e-9
    assert gaps.min() > -1e-12
    from scipy.optimize import nnls

    assert nnls((y[:, None] * x)[support].T, direction)[1] < 1e-12


@pytest.mark.parametrize("unit", [1.0, 1e-250, 1e250])
@pytest.mark.parametrize("m", [1e-3, 1.5e-8, 1e-9, 1e-13])
def test_hard_margin_of_points_whose_margin_is_small(m, unit):
    direction, margin = latephase.hard_margin(unit * np.array([[1.0, m], [-1.0, m]]), [1, 1])
    np.testing.assert_allclose(direction, [0.0, 1.0], atol=1e-15)
    assert margin == pytest.approx(unit * m, rel=1e-9)


@pytest.mark.parametrize("m", [1e-2, 1e-6, 1e-10])
def test_hard_margin_is_resolved_where_the_margin_is_small_in_a_turned_space(m):
    rng = np.random.default_rng(0)
    across = rng.normal(size=(30, 5))
    heights = m * (1.0 + np.abs(rng.normal(size=(30, 1))))
    turned, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    # Each point and its mirror image: by symmetry the direction is the axis of the mirror.
    x = np.vstack([np.hstack([heights, side * across]) for side in (1.0, -1.0)]) @ turned
    direction, margin = latephase.hard_margin(x, np.ones(60))
    # The points themselves are rounded, by 1e-16/m of their height.
    np.testing.assert_allclose(direction, turned[0], atol=1e-15 / m)
    assert margin == pytest.approx(heights.min(), rel=1e-9 + 1e-14 / m)


def exact_bounds(x, y, dual, direction):
    """The margin of a direction and the bound of a dual, squared, in rational numbers."""
    rational = np.vectorize(Fraction, otypes=[object])
    z, w, q = rational(y[:, None] * x), rational(direction), rational(dual)
    mean = (q @ z) / q.sum()
    return (z @ w).min() ** 2 / (w @ w), mean @ mean


@pytest.mark.parametrize("seed", range(4))
def test_hard_margin_of_examples_of_very_different_norms_against_rational_numbers(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 4)) * 10.0 ** rng.uniform(-6, 6, size=(12, 1))
    y = np.sign(x @ rng.normal(size=4))
    direction, margin = latephase.hard_margin(x, y)
    lower, upper = exact_bounds(x, y, hard_margin_dual(x, y), direction)
    assert margin**2 == pytest.approx(float(upper), rel=2e-9)
    # The direction is rounded, which moves the margins by that share of the largest example.
    rounding = 4e-16 * np.linalg.norm(x, axis=1).max() / margin
    assert 0.0 < lower <= upper
    assert float(lower / upper) == pytest.approx(1.0, abs=2e-9 + 2 * rounding)


def test_hard_margin_names_the_examples_that_nothing_separates():
    x = np.array([[3.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, -2.0]])
    with pytest.raises(ValueError, match=r"not separable .* examples [01], 2, 3,"):
        latephase.hard_margin(x, np.ones(4))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [1, 1], "not separable"),
        ([[1.0, 0.0], [0.0, 0.0]], [1, 1], "not separable .* examples 1,"),
        ([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]], [1, -1, 1], "not separable"),
        ([[1.0, 1e-17], [-1.0, 1e-17]], [1, 1], "not separable|lies between"),
        ([[1.0, 0.0]], [2], "labels"),
        ([[1.0, 0.0]], [1, 1], r"expected x \[n, d\] and y \[n\]"),
        ([[np.nan, 0.0]], [1], "finite"),
    ],
)
def test_hard_margin_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        latephase.hard_margin(x, y)


def test_the_dual_of_the_hard_margin_is_its_certificate():
    x, y = pushed_apart(60, 5, seed=1)
    direction, margin = latephase.hard_margin(3.0 * x, y)
    dual = hard_margin_dual(3.0 * x, y)
    assert dual.min() >= 0.0
    assert dual.sum() == pytest.approx(1.0, rel=1e-14)  # rounding
    np.testing.assert_allclose((y * dual) @ (3.0 * x), margin * direction, atol=1e-12)


def ring(count):
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def two_points(beta):
    return np.array([[np.cos(beta), np.sin(beta)], [np.cos(beta), -np.sin(beta)]])


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.7])
def test_variation_margin_of_two_points_of_one_class(beta):
    # One neuron halfway serves both: cos²β. By duality no more: with q = (1/2, 1/2) a neuron at φ
    # brings (1 + cos 2φ cos 2β)/2 at most.
    solved = variation_margin(two_points(beta), [1, 1], ring(360))
    assert solved.margin == pytest.approx(np.cos(beta) ** 2, rel=1e-12)  # 0 is on the grid
    assert planar_variation_bound(two_points(beta), [1, 1], solved.dual) == pytest.approx(
        np.cos(beta) ** 2,
        rel=2e-4,  # half a step of the ring, squared
    )
    np.testing.assert_allclose(solved.mass[1], 0.0, atol=1e-9)


def test_variation_margin_of_two_classes_splits_the_mass():
    # (1, 0) and (0, 1) with labels +, -: a neuron of each sign on its own axis, half the mass each.
    solved = variation_margin(np.eye(2), [1, -1], ring(8))
    assert solved.margin == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_allclose(solved.mass.sum(axis=1), 0.5, atol=1e-9)
    np.testing.assert_allclose(solved.dual, 0.5, atol=1e-9)


def test_variation_margin_is_bracketed_and_the_bracket_closes():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 2)), np.where(np.arange(8) % 2 == 0, 1, -1)
    y = np.where(np.maximum(x @ [[1.0], [0.3]], 0)[:, 0] > 0.5, 1, -1)
    gaps = []
    for count in (50, 500, 5000):
        solved = variation_margin(x, y, ring(count))
        bound = planar_variation_bound(x, y, solved.dual)
        assert solved.margin <= bound
        gaps.append(bound - solved.margin)
    assert gaps[2] < 0.1 * gaps[0]


def test_the_planar_bound_is_the_maximum_over_a_fine_ring():
    rng = np.random.default_rng(3)
    x, y, q = rng.normal(size=(9, 2)), np.sign(rng.normal(size=9)), rng.dirichlet(np.ones(9))
    gains = np.abs(np.maximum(ring(20_000) @ x.T, 0) ** 2 @ (q * y))
    assert planar_variation_bound(x, y, q) >= gains.max()
    # The fine ring misses the best direction by π/20000 at most.
    assert planar_variation_bound(x, y, q) == pytest.approx(gains.max(), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: variation_margin(np.eye(2), [1, -1], np.eye(3)), r"directions \[k, d\]"),
        (lambda: variation_margin(np.eye(2), [1, 0], np.eye(2)), "labels -1 and"),
        (lambda: variation_margin(np.eye(2), [1, -1], np.zeros((1, 2))), "other than 0"),
        (lambda: planar_variation_bound(np.eye(3), [1, 1, 1], np.ones(3) / 3), r"x \[n, 2\]"),
        (lambda: planar_variation_bound(np.eye(2), [1, 1], [0.5, 0.6]), "sum 1"),
    ],
)
def test_the_program_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_finite_differences_of_a_quadratic_are_exact():
    a = np.arange(6.0).reshape(2, 3)
    jacobian = finite_differences(lambda w: a @ w**2, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(jacobian, 2 * a * [1.0, 2.0, 3.0], atol=1e-8)  # rounding/step


def test_physical_flow_of_a_single_margin():
    # dw/dt = e^{-w}: w = ln(e^{w0} + t).
    times = np.array([0.0, 1.0, 10.0])
    w = physical_flow(lambda v: np.exp(-v), np.array([0.5]), times)
    np.testing.assert_allclose(w[:, 0], np.log(np.exp(0.5) + times), rtol=1e-9)  # rtol 1e-10


class LinearPoint:
    """Margins Z θ."""

    def __init__(self, z, theta):
        self.z, self.p = z, z @ theta

    def pull(self, weights):
        return self.z.T @ weights

    def push(self, v):
        return self.z @ v

    def rows(self):
        return self.z

    def curvature(self, weights, v):
        return np.zeros_like(v)

    def hessian(self, weights):
        return np.zeros((self.z.shape[1],) * 2)


def by_cvode(flow, start, until):
    pytest.importorskip("sksundae")
    return solved_by_cvode(flow, start, until)


@pytest.mark.parametrize("solve", [solved_by_scipy, by_cvode])
def test_stiff_solvers_find_the_svm_direction(solve):
    z = np.array([[0.5, 1.5], [1.5, 0.5], [2.0, 2.0]])
    flow = DirectionFlow(partial(LinearPoint, z), 1.0)
    end = solve(flow, np.array([1.0, 0.2]), 1e3)
    assert end.stopped == "arrived"
    assert end.alpha == pytest.approx(1e3, rel=1e-6)
    # The direction's own distance at α = 1e3 is below 1e-3.
    np.testing.assert_allclose(end.direction, np.ones(2) / np.sqrt(2), atol=1e-3)


def squared_points(seed=0, n=7, width=4):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.choice([-1.0, 1.0], size=n)
    return x, y, rng.normal(size=4 * width), rng


def test_a_stiff_solver_says_that_its_time_is_up():
    x, y, theta, _ = squared_points()
    flow = DirectionFlow(partial(SquaredPoint, x, y), 3.0)
    end = solved_by_scipy(flow, theta, 1e3, deadline=lambda: True)
    assert end.stopped == "out of time"


def test_the_derivative_of_the_direction_flow_has_the_curvature_of_the_model():
    x, y, theta, rng = squared_points()
    flow, rho = DirectionFlow(partial(SquaredPoint, x, y), 3.0), 0.2
    theta /= np.linalg.norm(theta)
    derivative = flow.derivative(rho, theta)
    expected = finite_differences(lambda u: flow.velocity(rho, u), theta)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(derivative, expected, atol=1e-7 * scale)  # rounding/step
    q, _ = flow.duals(rho, flow.at(theta).p)
    mean = 3.0 * (q @ flow.at(theta).p)
    # The control: what a reference without the curvature would miss.
    assert np.abs(flow.at(theta).hessian(q / mean)).max() > 1e-2 * scale
    v = rng.normal(size=theta.size)
    product = flow.product(rho, theta)(v)
    np.testing.assert_allclose(product, derivative @ v, rtol=1e-12, atol=1e-12 * scale)


def test_the_network_by_hand_is_that_of_torch():
    x, y, theta, rng = squared_points()
    module = networks.two_layer(3, 4, "squared_relu", generator=torch.Generator().manual_seed(0))
    problem, point = Problem(module, x, y), SquaredPoint(x, y, theta)
    weights, v = rng.normal(size=len(y)), rng.normal(size=theta.size)
    same = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12)
    same(point.p, problem.margins(theta))
    same(point.rows(), problem.jacobian(theta))
    same(point.pull(weights), weights @ point.rows())
    same(point.push(v), point.rows() @ v)
    same(point.hessian(weights), problem.hessian(theta, weights))
    same(point.curvature(weights, v), point.hessian(weights) @ v)


def weights_of(module):
    return [w.detach().numpy() for w in module.parameters() if w.requires_grad]


@pytest.mark.parametrize(("slope", "widths"), [(0.0, [3, 7, 5, 1]), (0.2, [3, 6, 1])])
def test_explicit_steps_are_those_of_pytorchs_gradients(slope, widths):
    step, level, rng = 0.02, 3.0, np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((12, 3)))
    y = torch.sign(x[:, 0] + 0.3 * x[:, 1])
    module = networks.mlp(widths, "relu", generator=torch.Generator().manual_seed(1))
    for k in range(1, len(module), 2):
        module[k] = torch.nn.LeakyReLU(slope)
    flow = explicit_relu_flow(weights_of(module), x.numpy(), y.numpy(), step, [level], slope=slope)
    weights, states, alphas = list(module.parameters()), [], []
    for _ in range(flow.steps + 1):
        alpha = -torch.logsumexp(-y * module(x)[:, 0], 0)
        alphas.append(alpha.item())
        states.append(parameters_to_vector(weights).detach().numpy().copy())
        gradients = torch.autograd.grad(alpha, weights)
        length = parameters_to_vector(gradients).norm()
        with torch.no_grad():
            factor = step * parameters_to_vector(weights).norm() / length
            for w, g in zip(weights, gradients, strict=True):
                w += factor * g
    assert alphas[-2] < level <= alphas[-1] == pytest.approx(flow.last, rel=1e-12)
    part = (level - alphas[-2]) / (alphas[-1] - alphas[-2])
    expected = states[-2] + part * (states[-1] - states[-2])
    np.testing.assert_allclose(flow.weights[0], expected, atol=1e-12)  # rounding
    assert 0 < flow.separated < flow.steps


def test_explicit_steps_name_the_examples_whose_output_stays_0():
    ones, y = [np.ones((1, 1)), np.ones((1, 1))], np.ones(2)
    flow = explicit_relu_flow(ones, np.array([[1.0], [-1.0]]), y, 0.01, [1.0], arc=2.0)
    assert (flow.dead.tolist(), flow.separated, flow.moving) == ([1], None, True)
    assert -1e-3 < flow.last <= 0  # -ln(1 + e^{-p})
    still = explicit_relu_flow(ones, -np.ones((2, 1)), y, 0.01, [1.0])
    assert (still.dead.tolist(), still.moving, still.steps) == ([0, 1], False, 0)
    assert still.weights.shape == (0, 2)
    with pytest.raises(ValueError, match=r"a start below α = 0\.1, got α = 1$"):
        explicit_relu_flow(ones, np.ones((1, 1)), np.ones(1), 0.01, [0.1])


def kkt_residual(module, task, weights, multipliers):
    """‖W - Σ λ_i ∇p_i(W)‖ and p(W) at the given weights, gates as PyTorch's."""
    trained = [w for w in module.parameters() if w.requires_grad]
    vector_to_parameters(torch.from_numpy(weights), trained)
    p = task.y * module(task.x)[:, 0]
    pulled = torch.autograd.grad(p @ torch.from_numpy(multipliers), trained)
    return np.linalg.norm(weights - parameters_to_vector(pulled).numpy()), p.detach().numpy()


@pytest.mark.parametrize("slope", [0.1, 0.5, 0.9])
def test_the_limit_on_orthonormal_inputs_is_a_kkt_point_with_equal_multipliers(slope):
    known = leaky_relu_on_orthonormal_inputs(slope=slope)
    at_one = known.directions / known.margin  # p = 1; the degree is 1
    multipliers = np.full(6, 2 / (1 + slope**2))
    residual, p = kkt_residual(known.module, known.task, at_one, multipliers)
    assert residual < 1e-13
    np.testing.assert_allclose(p, 1.0, rtol=1e-13)
    assert multipliers == pytest.approx(1 / (6 * known.margin**2), rel=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_the_limit_on_orthogonally_separable_points_is_a_kkt_point(seed):
    known = relu_on_orthogonally_separable_points(width=2, seed=seed)
    x, y = known.task.x.numpy(), known.task.y.numpy()
    products, same = x @ x.T, np.equal.outer(y, y)
    assert products[same].min() > 0 > products[~same].max()
    multipliers, norms = np.empty(12), []
    for label in (1, -1):
        of_class = x[y == label]
        gamma = latephase.hard_margin(of_class, np.ones(6))[1]
        multipliers[y == label] = hard_margin_dual(of_class, np.ones(6)) / gamma
        norms.append(gamma**-0.5)
    rows = np.array(norms)[:, None] * known.directions
    weights = np.concatenate([rows.ravel(), [norms[0], -norms[1]]])
    residual, p = kkt_residual(known.module, known.task, weights, multipliers)
    assert residual < 1e-12
    assert p.min() == pytest.approx(1.0, rel=1e-12)
    assert 1 / (weights @ weights) == pytest.approx(known.margin, rel=1e-12)
    # The classes' directions are not those of the whole set's support vector machine.
    whole = latephase.hard_margin(x, y)[0]
    assert np.abs(known.directions @ whole).max() < 0.99


@pytest.mark.parametrize("slope", [0.1, 0.5])
def test_the_limit_on_symmetric_points_is_a_kkt_point(slope):
    known = leaky_relu_on_symmetric_points(width=2, slope=slope)
    x, y = known.task.x.numpy(), known.task.y.numpy()
    gamma = 4 * known.margin / (1 + slope)
    # The dual is not unique: a point and its mirror image give one row y x.
    shares = hard_margin_dual(x, y).reshape(2, -1).mean(axis=0)
    multipliers = np.tile(shares, 2) * 2 / (gamma * (1 + slope))
    norm = ((1 + slope) * gamma) ** -0.5
    rows = norm * np.array([known.directions, -known.directions])
    weights = np.concatenate([rows.ravel(), [norm, -norm]])
    residual, p = kkt_residual(known.module, known.task, weights, multipliers)
    assert residual < 1e-12
    assert p.min() == pytest.approx(1.0, rel=1e-12)
    assert 1 / (weights @ weights) == pytest.approx(known.margin, rel=1e-12)


@pytest.mark.parametrize(
    ("limit", "slope", "share"),
    [
        # Seen at α = 300: 0.982 to 0.992, and 0.9992 to 0.99998, over five seeds.
        (relu_on_orthogonally_separable_points, 0.0, 0.97),
        (leaky_relu_on_symmetric_points, 0.3, 0.999),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_explicit_steps_approach_the_known_limits(limit, slope, share, seed):
    known = limit(seed=seed)
    x, y = known.task.x.numpy(), known.task.y.numpy()
    flow = explicit_relu_flow(weights_of(known.module), x, y, 1e-3, [300.0], slope=slope)
    weights = flow.weights[0]
    margin = flow.margins[0].min() / (weights @ weights)
    # Both limits are the largest margin there is.
    assert share < margin / known.margin < 1
