"""The flow against known limits, independent solvers, and its own invariants."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import latephase
from experiments.alignment import split_weights
from latephase.flow.runge_kutta import ESDIRK4, SDIRK2, Stepper
from latephase.measures.alignment import along
from latephase.measures.max_margin import hard_margin_dual
from latephase.problem.kinked import kinked
from latephase.problem.losses import LOGISTIC, Loss
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle
from latephase.zoo import networks
from latephase.zoo.tasks import sector_points, separable_points
from tests.references import physical_flow


def separable(n=40, dims=5, seed=0, gap=0.3):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=dims)
    w /= np.linalg.norm(w)
    x = rng.normal(size=(n, dims))
    y = np.sign(x @ w)
    return x + gap * y[:, None] * w, y


def linear(dims=5, start=None):
    module = nn.Linear(dims, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.zeros(1, dims) if start is None else torch.tensor([start]))
    return module


def deep_linear(depth, dims=5, width=4, seed=0):
    torch.manual_seed(seed)
    widths = [dims, *[width] * (depth - 1), 1]
    return nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)])


class TwoLayer(nn.Module):
    """v · σ(A x), with v trained or fixed."""

    def __init__(self, a, v, activation, trained=True):
        super().__init__()
        self.a = nn.Parameter(torch.as_tensor(a, dtype=torch.float64))
        self.v = nn.Parameter(torch.as_tensor(v, dtype=torch.float64), requires_grad=trained)
        self.activation = activation

    def forward(self, x):
        return self.activation(x @ self.a.T) @ self.v


def squared_relu(width=12, seed=0):
    rng = np.random.default_rng(seed)
    return TwoLayer(
        0.4 * rng.normal(size=(width, 3)),
        0.4 * rng.normal(size=width),
        lambda z: torch.relu(z).square(),
    )


def planar(n=20, seed=0):
    """Points of the plane and a constant, with labels on the sides of a wave."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = np.where(np.sin(1.5 * x[:, 0]) + 0.6 * x[:, 1] > 0, 1.0, -1.0)
    return np.c_[x, np.ones(n)], y


def assert_monotone(flow):
    margin = flow.normalized_smoothed_margin
    # The theorem's invariant, to the accuracy the flow promises.
    assert (np.diff(margin) >= -1e-12 * margin[:-1]).all()
    norm = np.exp(flow.degree * flow.log_norm[flow.log_norm * flow.degree < 700])
    bound = flow.normalized_margin[: len(norm)] + flow.dual_gap[: len(norm)] / norm
    assert (margin[: len(norm)] <= bound * (1 + 1e-12) + 1e-15).all()


SOUDRY_X = np.array([[0.5, 1.5], [1.5, 0.5], [-0.5, -1.5], [-1.5, -0.5]])
SOUDRY_Y = np.array([1.0, 1.0, -1.0, -1.0])


@pytest.mark.parametrize("start", [None, [1.0, -0.5]])
def test_case_1_direction_and_residual(start):
    flow = latephase.gradient_flow(linear(2, start), SOUDRY_X, SOUDRY_Y, until=1e6, tol=1e-5)
    limit = np.ones(2) / np.sqrt(2)
    assert angle(flow.direction[-1], limit) < 1e-5
    # w - ŵ ln t → ½ ln 8 (1, 1) with ŵ = (½, ½); at α ≈ 1e2 the corrections are of order 1/t.
    flow = latephase.gradient_flow(linear(2, start), SOUDRY_X, SOUDRY_Y, until=1e2, tol=1e-5)
    w = np.exp(flow.log_norm[-1]) * flow.direction[-1]
    residual = w - 0.5 * flow.log_time[-1]
    # ln t accumulates the quadrature error of all steps, a few times tol.
    np.testing.assert_allclose(residual, 0.5 * np.log(8.0) * np.ones(2), atol=5e-4)


def test_case_2_far_from_the_projection():
    n = 40
    z = np.vstack([[[0.1, 0.0]], np.tile([0.2, 0.2], (n - 1, 1))])
    # n-1 copies of one example: the dual system is singular to rounding.
    flow = latephase.gradient_flow(linear(2), -z, np.ones(n), until=1e6)
    assert angle(flow.direction[-1], np.array([-1.0, 0.0])) < 1e-3
    assert flow.normalized_margin[-1] == pytest.approx(0.1, rel=1e-4)
    assert_monotone(flow)
    # The distance to the limit's ray is a length, seen where ‖w‖·tol is far below it.
    near = latephase.gradient_flow(linear(2), -z, np.ones(n), until=20.0, tol=1e-6)
    w = np.exp(near.log_norm[-1]) * near.direction[-1]
    assert abs(w[1]) >= np.log(n) - np.log(2.0)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_case_4_deep_linear(depth):
    x, y = separable(n=25)
    module = deep_linear(depth)
    flow = latephase.gradient_flow(module, x, y, until=1e12)
    svm, margin = latephase.hard_margin(x, y)
    weights = [
        p.detach().double().numpy()
        for p in flow.write_to(module, normalized=True).double().parameters()
    ]
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    # The direction of the product approaches the limit like α^{-1/L}..: 1e-2 is ample at 1e12.
    assert angle(product[0], svm) < 1e-2
    # At ‖W‖ → ∞ layers have rank one and equal norms: γ̃ → γ L^{-L/2}.
    expected = margin * depth ** (-depth / 2)
    assert flow.normalized_smoothed_margin[-1] == pytest.approx(expected, rel=1e-3)
    assert_monotone(flow)
    assert flow.alignment[-1] > 1 - 1e-5


def layers_of(module, w):
    """Split a flat w into the weights of a deep linear network."""
    return split_weights(w, [p.shape for p in module.parameters()])


def imbalances(weights):
    return [b.T @ b - a @ a.T for a, b in itertools.pairwise(weights)]


def test_case_4_conserved_quantity():
    x, y = separable(n=25)
    module = deep_linear(3)
    before = imbalances(layers_of(module, Problem(module, x, y).w0))
    off = []
    for tol in (1e-4, 1e-6):
        flow = latephase.gradient_flow(module, x, y, until=30.0, tol=tol)
        w = np.exp(flow.log_norm[-1]) * flow.direction[-1]
        change = [
            after - b for after, b in zip(imbalances(layers_of(module, w)), before, strict=True)
        ]
        off.append(max(np.abs(c).max() for c in change) / np.exp(2 * flow.log_norm[-1]))
    # W_{k+1}ᵀW_{k+1} - W_kW_kᵀ drifts by the errors of the steps, relative to ‖W‖²: a few tol.
    assert off[0] < 10 * 1e-4
    assert off[1] < 10 * 1e-6
    assert off[1] < 0.1 * off[0]


def test_case_4_bounds_at_finite_time():
    x, y = separable(n=25)
    for depth in (2, 3):
        module = deep_linear(depth)
        start = layers_of(module, Problem(module, x, y).w0)
        squares = [np.linalg.norm(w) ** 2 for w in start]
        d = max(squares) - squares[-1] + sum(np.linalg.norm(m, 2) for m in imbalances(start))
        flow = latephase.gradient_flow(module, x, y, until=1e8, tol=1e-5)
        for log_norm, direction in zip(flow.log_norm, flow.direction, strict=True):
            weights = layers_of(module, np.exp(log_norm) * direction)
            pieces = [np.linalg.svd(w) for w in weights]
            tops = [s[0] ** 2 for _, s, _ in pieces]
            for weight, top in zip(weights, tops, strict=True):
                # The bounds are inequalities of the exact flow; 1e-4 of ‖W‖² is the solver's.
                slack = 1e-4 * np.exp(2 * log_norm)
                assert np.linalg.norm(weight) ** 2 - top <= d + slack
            for k in range(depth - 1):
                u, v = pieces[k][0][:, 0], pieces[k + 1][2][0]
                owed = d + sum(np.linalg.norm(start[j], 2) ** 2 for j in (k, k + 1))
                assert (v @ u) ** 2 >= 1 - owed / tops[k + 1] - 1e-4


def test_case_7_small_start_on_orthogonally_separable_data():
    # ⟨x_i, x_j⟩ > 0 within a class, ≤ 0 across: here the classes are orthogonal cones.
    x = np.array(
        [[1.0, 0.2, 0.0, 0.0], [0.8, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.3], [0.0, 0.0, 0.4, 0.9]]
    )
    y = np.array([1.0, 1.0, -1.0, -1.0])
    rng = np.random.default_rng(0)
    # One neuron per class, each active on its own class, and balanced: |v| = ‖a‖.
    a = 0.05 * np.abs(rng.normal(size=(2, 4))) * [[1, 1, 0, 0], [0, 0, 1, 1]]
    v = np.linalg.norm(a, axis=1) * [1, -1]
    flow = latephase.gradient_flow(TwoLayer(a, v, torch.relu), x, y, until=1e12)
    inner, outer = flow.direction[-1][:8].reshape(2, 4), flow.direction[-1][8:]
    for neuron, label in ((inner[0], 1.0), (inner[1], -1.0)):
        svm, _ = latephase.hard_margin(x[y == label], np.ones(2))
        # At 1e6 still 8e-4, because the second point of class +1 is a support vector only just not.
        assert angle(neuron, svm) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(inner, axis=1), np.abs(outer), rtol=1e-4)


def test_case_8_leaky_relu_with_fixed_outputs():
    slope, width, n = 0.25, 4, 6
    x = np.eye(n)
    y = np.array([1.0, 1, 1, -1, -1, -1])
    v = np.array([1.0, 1, -1, -1]) / np.sqrt(width)
    rng = np.random.default_rng(0)
    module = TwoLayer(
        0.05 * rng.normal(size=(width, n)),
        v,
        lambda z: nn.functional.leaky_relu(z, slope),
        trained=False,
    )
    flow = latephase.gradient_flow(module, x, y, until=1e6)
    rows = flow.direction[-1].reshape(width, n)
    positive, negative = x[y > 0].sum(0), x[y < 0].sum(0)
    for row, sign in zip(rows, np.sign(v), strict=True):
        expected = (positive - slope * negative) if sign > 0 else (negative - slope * positive)
        assert angle(row, expected) < 1e-4
    # Equal multipliers: each example takes the same share of the dual.
    np.testing.assert_allclose(flow.dual[-1], np.full(n, 1 / n), atol=1e-4)


class Coordinatewise(nn.Module):
    """Φ = Σ_j u_j v_j x_j."""

    def __init__(self, u, v):
        super().__init__()
        self.u, self.v = nn.Parameter(torch.tensor(u)), nn.Parameter(torch.tensor(v))

    def forward(self, x):
        return (x * self.u * self.v).sum(1)


def test_case_9_a_kkt_point_that_is_no_local_maximum():
    flow = latephase.gradient_flow(
        Coordinatewise([1.0, 0.0], [1.0, 0.0]), np.array([[1.0, 2.0]]), [1.0], until=1e9
    )
    np.testing.assert_allclose(flow.direction[-1], np.array([1, 0, 1, 0]) / np.sqrt(2), atol=1e-12)
    assert flow.normalized_margin[-1] == pytest.approx(0.5, abs=1e-12)
    assert flow.kkt_stationarity[-1] < 1e-12
    assert flow.kkt_complementarity[-1] == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("n", "dims"), [(30, 3), (100, 20), (15, 40)])
def test_random_separable_sets_against_the_hard_margin(n, dims, seed):
    x, y = separable(n, dims, seed)
    flow = latephase.gradient_flow(linear(dims), x, y, until=1e6)
    svm, margin = latephase.hard_margin(x, y)
    assert angle(flow.direction[-1], svm) <= 1e-5
    assert flow.normalized_margin[-1] == pytest.approx(margin, rel=1e-5)
    assert 1e6 <= flow.smoothed_margin[-1] <= 1e6 * (1 + 1e-3)
    np.testing.assert_allclose(flow.dual.sum(1), 1.0, rtol=1e-12)
    assert_monotone(flow)


def test_cost_grows_with_the_logarithm_of_the_margin():
    rng = np.random.default_rng(0)
    x, y = separable(100, 20)
    cases = [(linear(20, (0.01 * rng.normal(size=20)).tolist()), x, y)]
    cases += [(deep_linear(depth, 10, 8), *separable(60, 10)) for depth in (3, 4)]
    for module, inputs, labels in cases:
        near = latephase.gradient_flow(module, inputs, labels, until=1e2)
        far = near.extend(1e30)
        # Bounds of the requirement: 5 per e-fold of α from 1e2 to 1e30, and 500 in all.
        between = far.evaluations["jacobian"] - near.evaluations["jacobian"]
        assert between <= 5 * np.log(1e28)
        assert far.evaluations["jacobian"] <= 500
        assert_monotone(far)
        assert far.alignment[-1] > 1 - 1e-9


def test_squared_relu_costs_at_most_three_times_as_much_at_1e30():
    near = latephase.gradient_flow(squared_relu(width=50), *planar(60), until=1e4)
    far = near.extend(1e30)
    assert far.evaluations["jacobian"] <= 3 * near.evaluations["jacobian"]
    assert far.evaluations["gradient"] <= 3 * near.evaluations["gradient"]
    assert_monotone(far)
    assert far.settings["kink_smoothing"] is None


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_physical_time_by_an_independent_solver(loss):
    x, y = planar(20)
    module = squared_relu()
    flow = latephase.gradient_flow(module, x, y, loss, until=6.0, tol=1e-6)
    problem = Problem(module, x, y, loss)
    inputs, labels = torch.tensor(x), torch.tensor(y)

    def negative_gradient(v):
        w = torch.tensor(v, requires_grad=True)
        out = torch.relu(inputs @ w[:36].reshape(12, 3).T).square() @ w[36:]
        p = labels * out
        risk = torch.exp(-p).sum() if loss == "exponential" else torch.log1p(torch.exp(-p)).sum()
        return -torch.autograd.grad(risk, w)[0].numpy()

    times = np.exp(flow.log_time[[len(flow) // 2, -1]])
    replayed = physical_flow(negative_gradient, problem.w0, times)
    for record, w in zip((len(flow) // 2, -1), replayed, strict=True):
        expected = np.exp(flow.log_norm[record]) * flow.direction[record]
        # Some 100 steps of relative error up to 1e-6.
        np.testing.assert_allclose(w, expected, atol=1e-4 * np.linalg.norm(expected))


class Product(nn.Module):
    """Φ = abc x, of degree 3."""

    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return x[:, 0] * self.w.prod()


@pytest.mark.parametrize("until", [5.0, 300.0, 1e5])
def test_growth_law_of_the_single_constraint_with_its_constant(until):
    import mpmath

    # a = b = c = s: p = s³, dp/dt = 3 p^{4/3} e^{-p}, so that t = ∫ e^p / (3 p^{4/3}) dp.
    flow = latephase.gradient_flow(
        Product([0.5] * 3), np.ones((1, 1)), [1.0], until=until, tol=1e-5
    )
    end = mpmath.mpf(flow.smoothed_margin[-1])
    pieces = [mpmath.mpf("0.125"), *(end - k for k in (500, 60, 20, 5) if end - k > 1), end]
    time = mpmath.quad(lambda p: mpmath.exp(p) / (3 * p ** (mpmath.mpf(4) / 3)), pieces)
    # The quadrature's interpolation error over a step that multiplies α by e.
    assert flow.log_time[-1] == pytest.approx(float(mpmath.log(time)), abs=2e-4)
    # R = e^{-p} ~ 1/(3 t (ln t)^{4/3}): the law with its constant, its correction of order 1/ln t.
    if until > 1e4:
        law = flow.log_time[-1] + np.log(3.0) + 4 / 3 * np.log(flow.log_time[-1])
        assert flow.smoothed_margin[-1] == pytest.approx(law, abs=1e-3)


def test_logistic_and_exponential_agree_far_out_and_differ_near():
    x, y = separable(20, 4)
    exponential = latephase.gradient_flow(linear(4), x, y, "exponential", until=1e6)
    logistic = latephase.gradient_flow(linear(4), x, y, "logistic", until=1e6)
    assert angle(exponential.direction[-1], logistic.direction[-1]) < 1e-5
    near = [
        latephase.gradient_flow(linear(4), x, y, loss, until=3.0).direction[-1]
        for loss in ("exponential", "logistic")
    ]
    assert angle(*near) > 1e-3
    assert_monotone(logistic)


@pytest.mark.parametrize("loss", ["exponential", "cross_entropy"])
def test_three_classes_against_the_pairwise_svm(loss):
    rng = np.random.default_rng(0)
    centers = 3.0 * rng.normal(size=(3, 4))
    labels = np.arange(24) % 3
    x = centers[labels] + 0.5 * rng.normal(size=(24, 4))
    module = nn.Linear(4, 3, bias=False)
    flow = latephase.gradient_flow(module, x, labels, loss, until=1e6)
    # Each pair (example, other class) is one linear constraint on the 3 × 4 weights.
    rows = []
    for example, label in zip(x, labels, strict=True):
        for other in set(range(3)) - {label}:
            row = np.zeros((3, 4))
            row[label], row[other] = example, -example
            rows.append(row.ravel())
    svm, margin = latephase.hard_margin(np.array(rows), np.ones(len(rows)))
    assert angle(flow.direction[-1], svm) < 1e-5
    assert flow.margins.shape == (len(flow), 24)
    assert flow.dual.shape == (len(flow), 24, 2)
    assert flow.normalized_margin[-1] == pytest.approx(margin, rel=1e-5)
    assert_monotone(flow)


def test_cross_entropy_of_two_classes_follows_the_logistic_flow():
    x, y = separable(15, 3)
    torch.manual_seed(0)
    two = nn.Linear(3, 2, bias=False).double()
    # f = (-v, v)/√2 · √2: the difference of logits moves twice as fast along √2 less norm.
    with torch.no_grad():
        two.weight[0] = -two.weight[1]
    one = linear(3, (2 * two.weight[1].detach()).tolist())
    a = latephase.gradient_flow(two, x, (y > 0).astype(int), "cross_entropy", until=1e4)
    b = latephase.gradient_flow(one.double(), x, y, "logistic", until=1e4)
    # The same curve up to time, compared at the same α within the landing tolerance.
    assert angle(a.direction[-1][3:], b.direction[-1]) < 1e-4


def test_a_users_loss():
    def log_value(z):
        # ln(s + s²) with s = ln(1 + e^{-z}).
        return LOGISTIC.log_value(z) + torch.log1p(torch.exp(LOGISTIC.log_value(z)))

    x, y = separable(20, 4)
    flow = latephase.gradient_flow(linear(4), x, y, Loss("mine", log_value), until=1e4)
    # The direction's own distance falls like 1/α.
    assert angle(flow.direction[-1], latephase.hard_margin(x, y)[0]) < 1e-3
    assert flow.settings["loss"] == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deep linear", "squared ReLU"])
def test_error_is_proportional_to_tol(model):
    if model == "deep linear":
        (x, y), module = separable(25), deep_linear(3)
    else:
        (x, y), module = planar(30), squared_relu(seed=1)
    # How far beyond `until` a flow lands follows tol, too.
    end = latephase.gradient_flow(module, x, y, until=1e3, tol=1e-8).direction[-1]
    tols = 10.0 ** -np.arange(2, 7)
    flows = [latephase.gradient_flow(module, x, y, until=1e3, tol=tol) for tol in tols]
    errors = [np.linalg.norm(flow.direction[-1] - end) for flow in flows]
    # What is left is of the size of tol, and falls with it about as N tol does, N ~ tol^{-1/4}.
    assert all(error < 5 * tol for error, tol in zip(errors, tols, strict=True))
    assert np.polyfit(np.log(tols), np.log(errors), 1)[0] > 0.65


@pytest.mark.parametrize(("tableau", "order"), [(SDIRK2, 2), (ESDIRK4, 4)], ids=["2", "4"])
def test_a_tableau_meets_the_conditions_of_its_order(tableau, order):
    count = len(tableau.nodes)
    a = np.zeros((count, count))
    for i, row in enumerate(tableau.rows, 1):
        a[i, :i], a[i, i] = row, tableau.gamma
    b, c = np.array(tableau.weights), np.array(tableau.nodes)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-15)
    # By order: the values of b · (a product of A, c) and what they must be (Butcher).
    conditions = {
        1: [(b.sum(), 1)],
        2: [(b @ c, 1 / 2)],
        3: [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)],
        4: [(b @ c**3, 1 / 4), ((b * c) @ a @ c, 1 / 8), (b @ a @ c**2, 1 / 12),
            (b @ a @ a @ c, 1 / 24)],
    }  # fmt: skip
    for least, values in conditions.items():
        for value, expected in values:
            assert (abs(value - expected) < 1e-14) == (least <= order)
    embedded = b - np.array(tableau.error)
    for power in range(tableau.rate - 1):
        assert embedded @ c**power == pytest.approx(1 / (power + 1), abs=1e-14)
    # L-stable: the last stage is the end, and R(∞) = 1 - bᵀA⁻¹1 = 0 of the implicit part.
    assert tableau.nodes[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(("tableau", "order"), [(SDIRK2, 2), (ESDIRK4, 4)], ids=["2", "4"])
def test_order_of_the_tableau_with_fixed_steps(tableau, order):
    x, y = separable(25)
    module = deep_linear(3)
    start = latephase.gradient_flow(module, x, y, until=3.0, tol=1e-6)
    problem = Problem(start.write_to(deep_linear(3).double()), x, y)
    stepper = Stepper(kinked(problem), problem, 3.0, 1e-9)

    def end(steps):
        state = first = stepper.start(problem.w0)
        for _ in range(steps):
            # Equal arc lengths: a step's is given in units of its own ‖W‖.
            grown = np.exp(state.log_norm - first.log_norm)
            state = stepper.step(state, 0.2 / steps / grown, tableau).state
        return state.w()

    reference = end(64)
    errors = [np.linalg.norm(end(steps) - reference) for steps in (2, 4, 8)]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert (np.abs(orders - order) < 0.5).all()


def test_same_seed_same_arrays():
    x, y = planar(20)
    first = latephase.gradient_flow(squared_relu(), x, y, until=1e4)
    second = latephase.gradient_flow(squared_relu(), x, y, until=1e4)
    np.testing.assert_array_equal(first.direction, second.direction)
    np.testing.assert_array_equal(first.log_time, second.log_time)
    assert first.evaluations == second.evaluations


def test_records_are_accepted_steps_near_an_even_grid():
    x, y = separable(20, 4)
    flow = latephase.gradient_flow(linear(4), x, y, until=1e4, records=12)
    full = latephase.gradient_flow(linear(4), x, y, until=1e4, records=10**6)
    assert len(flow) <= 12 < len(full) <= full.steps + 1
    rows = [int(np.argmin(np.abs(full.smoothed_margin - alpha))) for alpha in flow.smoothed_margin]
    np.testing.assert_array_equal(full.direction[rows], flow.direction)
    assert rows[0] == 0
    assert flow.smoothed_margin[0] > 0
    assert np.diff(full.path_length).min() >= 0


def test_extend_continues_where_a_longer_flow_goes():
    x, y = planar(20)
    short = latephase.gradient_flow(squared_relu(), x, y, until=1e3)
    longer = short.extend(1e6)
    direct = latephase.gradient_flow(squared_relu(), x, y, until=1e6)
    assert longer.smoothed_margin[-1] >= 1e6
    assert longer.path_length[-1] > short.path_length[-1]
    assert angle(longer.direction[-1], direct.direction[-1]) < 1e-3  # another sequence of steps
    assert longer.log_time[-1] == pytest.approx(direct.log_time[-1], rel=1e-3)
    again = short.extend(1e6)
    np.testing.assert_array_equal(again.direction, longer.direction)
    np.testing.assert_array_equal(again.log_time, longer.log_time)
    np.testing.assert_array_equal(again.path_length, longer.path_length)
    with pytest.raises(ValueError, match="beyond the smoothed margin"):
        short.extend(10.0)


def test_records_tell_what_their_w_says():
    x, y = separable(25)
    module = deep_linear(3).double()
    flow = latephase.gradient_flow(module, x, y, until=30.0)
    assert 30.0 <= flow.smoothed_margin[-1] <= 30.0 * (1 + 1e-3)
    for record in range(len(flow)):
        parameters = list(flow.write_to(module, record).parameters())
        p = torch.tensor(y) * module(torch.tensor(x))[:, 0]
        gradient = torch.autograd.grad(-torch.exp(-p).sum(), parameters)
        w, g = (
            torch.cat([t.detach().reshape(-1) for t in vectors]).numpy()
            for vectors in (parameters, gradient)
        )
        p, norm = p.detach().numpy(), np.linalg.norm(w)
        alpha, smallest = -np.log(np.exp(-p).sum()), p.min()
        # The multipliers are carried apart from W, each to the tolerance of its stage.
        assert flow.smoothed_margin[record] == pytest.approx(alpha, rel=1e-8)
        assert flow.normalized_smoothed_margin[record] == pytest.approx(alpha / norm**3, rel=1e-8)
        assert flow.normalized_margin[record] == pytest.approx(smallest / norm**3, rel=1e-12)
        np.testing.assert_allclose(flow.dual[record], np.exp(alpha - p), rtol=1e-3)
        assert flow.alignment[record] == pytest.approx(w @ g / norm / np.linalg.norm(g), rel=1e-6)
        multipliers = smallest ** (1 / 3) * norm * np.exp(-p) / np.linalg.norm(g)
        delta = np.max(multipliers * (p / smallest - 1))
        assert flow.kkt_complementarity[record] == pytest.approx(delta, rel=1e-3)
    turns = [angle(a, b) for a, b in itertools.pairwise(flow.direction)]
    assert flow.path_length[-1] - flow.path_length[0] == pytest.approx(sum(turns), rel=0.01)


def test_the_gradients_of_margin_gap_and_margin_split_in_opposite_proportions():
    # What the primer says: with f = a - α/‖W‖^L the part of ∇f along W is -L H(q)/‖W‖^{L+1}, and
    # late in the flow the part across is thousands of times as large, while for ∇α it is small.
    x, y = separable(25)
    module = deep_linear(3).double()
    flow = latephase.gradient_flow(module, x, y, at=[100.0, 5e5])
    across_over_along = []
    for level in (100.0, 5e5):
        record = flow.at(level).index
        parameters = list(flow.write_to(module, record, normalized=True).parameters())
        q, degree = flow.dual[record], flow.degree
        margins = torch.tensor(y) * module(torch.tensor(x))[:, 0]
        gradient = torch.autograd.grad(torch.tensor(q) @ margins, parameters)
        w, g = (
            torch.cat([t.detach().reshape(-1) for t in vectors]).numpy()
            for vectors in (parameters, gradient)
        )
        across = np.linalg.norm(g - (g @ w) * w)
        along = degree * flow.normalized_smoothed_margin[record] - g @ w
        entropy = -np.sum(q * np.log(np.maximum(q, 1e-300)))
        expected = -degree * entropy * np.exp(-degree * flow.log_norm[record])
        assert along == pytest.approx(expected, rel=1e-4)
        across_over_along.append((across / -along, across / (g @ w)))
    assert across_over_along[0] == pytest.approx((11.6, 0.139), rel=0.02)
    assert across_over_along[1] == pytest.approx((3110, 0.0079), rel=0.02)


def test_the_raw_margin_is_that_of_the_module_as_it_is():
    x, y = planar(10)
    rng = np.random.default_rng(0)
    module = TwoLayer(0.5 * rng.normal(size=(6, 3)), 0.5 * rng.normal(size=6), torch.relu)
    flow = latephase.gradient_flow(module, x, y, until=0.2, kink_smoothing=0.1)
    flow.write_to(module, normalized=True)
    raw = (y * module(torch.tensor(x)).detach().numpy()).min()
    assert flow.raw_normalized_margin[-1] == pytest.approx(raw, rel=1e-12)
    # ε = 0.1 is seen.
    assert abs(flow.normalized_margin[-1] - raw) > 1e-4 * raw


def test_a_flow_can_be_saved(tmp_path):
    flow = latephase.gradient_flow(linear(2), SOUDRY_X, SOUDRY_Y, until=10.0)
    flow.save(tmp_path / "flow.npz")
    loaded = latephase.Trajectory.load(tmp_path / "flow.npz")
    assert (loaded.steps, loaded.evaluations) == (flow.steps, flow.evaluations)
    np.testing.assert_array_equal(loaded.direction, flow.direction)
    assert loaded.settings == flow.settings


def test_a_start_beyond_until_gives_one_record():
    flow = latephase.gradient_flow(linear(2, [9.0, 9.0]), SOUDRY_X, SOUDRY_Y, until=3.0)
    assert len(flow) == 1
    assert flow.steps == 0
    assert flow.log_time[0] == -np.inf


def test_until_is_met_within_a_thousandth():
    x, y = separable(20, 4)
    for until in (0.05, 2.5, 1e300):
        flow = latephase.gradient_flow(linear(4), x, y, until=until)
        assert until <= flow.smoothed_margin[-1] <= until * (1 + 1e-3)


def test_a_jacobian_in_blocks_gives_the_same_flow():
    x, y = separable(30, 4)
    module = deep_linear(2, 4)
    stored = latephase.gradient_flow(module, x, y, until=1e4)
    # Too small for J of all examples, large enough for the curvature.
    blocks = latephase.gradient_flow(module, x, y, until=1e4, jacobian_bytes=8 * 20 * 30 - 1)
    assert angle(stored.direction[-1], blocks.direction[-1]) < 1e-9


@pytest.mark.slow
def test_several_layers_of_relu_and_what_the_smoothing_does():
    x, y = planar(16)
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Linear(3, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 6, bias=False),
        nn.LeakyReLU(0.1),
        nn.Linear(6, 1, bias=False),
    )
    margins = []
    for epsilon in (1e-1, 3e-2, 1e-2):
        flow = latephase.gradient_flow(module, x, y, until=10.0, kink_smoothing=epsilon)
        assert_monotone(flow)
        assert flow.degree == 3.0
        margins.append((flow.normalized_margin[-1], flow.raw_normalized_margin[-1]))
    smooth, raw = np.array(margins).T
    # The smoothed margin differs from the module's own by O(ε), and so do limits of two ε.
    assert (np.abs(smooth - raw) / raw < np.array([1.0, 0.3, 0.1])).all()
    assert abs(smooth[2] - smooth[1]) < abs(smooth[1] - smooth[0])


@pytest.mark.parametrize("activation", ["squared", "linear"])
def test_contradictory_near_twins_are_not_separated(activation):
    x, y = planar(12)
    x, y = np.r_[x, 0.999 * x[:1]], np.r_[y, -y[:1]]
    module = squared_relu(6) if activation == "squared" else linear(3)
    with pytest.raises(latephase.NotSeparated, match="on the wrong side") as raised:
        latephase.gradient_flow(module, x, y, until=10.0)
    # One margin of the two is at most 0, so that R ≥ 1, or 2 at best for exact twins.
    assert raised.value.best_smoothed_margin <= 0.0


def test_the_misalignment_does_not_cancel():
    x, y = separable(20, 4)
    module = linear(4)
    flow = latephase.gradient_flow(module, x, y, loss="exponential", at=[0.1, 1e2, 1e10])
    expected = along(Problem(module, x, y, "exponential"), flow).misalignment
    # Where it is 4e-21, the unit vectors are 9e-11 apart, which their rounding blurs by 2e-16.
    np.testing.assert_allclose(flow.misalignment, expected, rtol=1e-5)
    np.testing.assert_allclose(flow.misalignment[:2], 1.0 - flow.alignment[:2], rtol=1e-9)
    assert abs(1.0 - flow.alignment[2] - expected[2]) > 0.1 * expected[2]


@pytest.mark.parametrize(("tol", "within"), [(1e-3, 0.05), (1e-4, 0.02), (1e-6, 0.01)])
def test_the_residual_falls_like_one_over_alpha(tol, within):
    signed = np.random.default_rng(0).normal([2.0, 1.0], size=(5, 2))
    y = np.array([1.0, 1.0, -1.0, -1.0, -1.0])
    x = signed * y[:, None]
    dual = hard_margin_dual(x, y)
    # W tends to ρŵ + w̃ with e^{-⟨x_i, w̃⟩} as the multipliers (Soudry et al. 2018), and αε to the
    # part of w̃ across ŵ, which the two support vectors fix.
    first, second = np.flatnonzero(dual)
    apart = np.linalg.norm(signed[first] - signed[second])
    expected = abs(np.log(dual[first] / dual[second])) / apart
    flow = latephase.gradient_flow(linear(2), x, y, "exponential", until=1e9, tol=tol)
    late = flow.smoothed_margin > 1e3
    assert late.sum() > 4
    products = flow.kkt_stationarity * flow.smoothed_margin
    np.testing.assert_allclose(products[late], expected, rtol=within)


def test_an_interrupt_leaves_the_module_as_it_was():
    x, y = separable(20, 4)

    class Interrupted(nn.Linear):
        calls, most = 0, math.inf

        def forward(self, inputs):
            Interrupted.calls += 1
            if Interrupted.calls > Interrupted.most:
                raise KeyboardInterrupt
            return super().forward(inputs).square() * super().forward(inputs)

    module = Interrupted(4, 1, bias=False)
    before = module.weight.detach().clone()
    latephase.gradient_flow(module, x, y)
    Interrupted.calls, Interrupted.most = 0, 0.95 * Interrupted.calls
    with pytest.raises(KeyboardInterrupt) as stopped:
        latephase.gradient_flow(module, x, y)
    assert torch.equal(module.weight, before)
    assert module.training
    # What was recorded until then is not lost.
    assert 0 < stopped.value.trajectory.smoothed_margin[-1] < 1e6


def test_not_separable_carries_the_best_margin():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = np.sign(rng.normal(size=60))
    with pytest.raises(latephase.NotSeparated, match="on the wrong side") as raised:
        latephase.gradient_flow(linear(3), x, y, until=10.0)
    # The minimum of the risk, by Newton's method on the convex problem.
    z, w = y[:, None] * x, np.zeros(3)
    for _ in range(50):
        q = np.exp(-z @ w)
        w += np.linalg.solve(z.T @ (q[:, None] * z), z.T @ q)
    assert raised.value.best_smoothed_margin == pytest.approx(
        -np.log(np.exp(-z @ w).sum()), abs=1e-6
    )
    assert raised.value.trajectory is None


@pytest.mark.parametrize("margin", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("depth", [1, 2])
def test_small_relative_margins_are_reached(depth, margin):
    x, y = np.array([[1.0, margin], [1.0, -margin]]), np.array([1, -1])
    module = linear(2, [0.3, 0.1]) if depth == 1 else deep_linear(2, dims=2)
    flow = latephase.gradient_flow(module, x, y, until=1e6)
    weights = layers_of(module, flow.direction[-1])
    w = weights[0] if depth == 1 else weights[1] @ weights[0]
    # Of two layers the direction of the product comes like α^{-1/2}.
    assert angle(w[0], np.array([0.0, 1.0])) < (1e-5 if depth == 1 else 1e-2)


@pytest.mark.parametrize("units", [1e5, 1e-5])
def test_units_of_the_inputs_do_not_decide_what_is_separated(units):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    y = np.sign(x[:, 0] + 0.3 * x[:, 1])
    flow = latephase.gradient_flow(linear(4, [0.1, 0.2, 0.0, -0.1]), units * x, y, until=1e6)
    assert angle(flow.direction[-1], latephase.hard_margin(x, y)[0]) < 1e-5


@pytest.mark.parametrize("apart", [1e-2, 1e-6])
@pytest.mark.parametrize("until", [1.0, 1e6])
def test_what_cannot_be_separated_comes_with_a_certificate(apart, until):
    x = np.array([[1.0, 0.0], [1.0 + apart, 0.0], [0.5, 1.0]])
    y = np.array([1.0, -1.0, 1.0])
    with pytest.raises(latephase.NotSeparated) as raised:
        latephase.gradient_flow(linear(2, [0.3, 0.1]), x, y, until=until)
    weights = pickle.loads(pickle.dumps(raised.value)).certificate
    assert weights.min() >= 0.0
    assert weights.sum() == pytest.approx(1.0)
    assert np.linalg.norm((weights * y) @ x) < 1e-11


def test_examples_that_keep_the_flow_at_rest_are_named():
    x, y = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), np.array([1, -1, 1])
    with pytest.raises(latephase.NotSeparated, match=r"gradients of 2 examples \(0, 1\) cancel"):
        latephase.gradient_flow(nn.Linear(2, 1, bias=False), x, y, until=10.0)


def test_attempts_that_are_spent_say_nothing_of_separation():
    x, y = separable()
    with pytest.raises(latephase.BudgetSpent, match="3 attempted steps are spent") as raised:
        latephase.gradient_flow(linear(), x, y, attempts=3)
    assert "larger `attempts`" in str(raised.value)
    assert not isinstance(raised.value, latephase.NotSeparated)
    flow = latephase.gradient_flow(linear(), x, y, until=1e9)
    with pytest.raises(latephase.BudgetSpent) as raised:
        latephase.gradient_flow(linear(), x, y, until=1e9, attempts=flow.steps // 2)
    assert 0.0 < raised.value.trajectory.smoothed_margin[-1] < 1e9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"until": 0.0}, r"smoothed margin in \(0, 1e300\], got 0.0"),
        ({"until": float("nan")}, "until"),
        ({"until": 1e301}, "until"),
        ({"tol": -1e-4}, r"tol: expected an error in \(0, 1\), got -0.0001"),
        ({"records": 0}, "records: expected a positive integer, got 0"),
        ({"kink_smoothing": 0.0}, "kink_smoothing"),
        ({"loss": "hinge"}, "loss: expected one of"),
        ({"degree": 3.0}, "measured degree is 1"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        latephase.gradient_flow(linear(2), SOUDRY_X, SOUDRY_Y, **settings)


def test_modules_that_are_refused():
    with pytest.raises(ValueError, match=r"without 2\.bias it would be homogeneous"):
        latephase.gradient_flow(
            nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1)),
            SOUDRY_X,
            SOUDRY_Y,
        )
    module = deep_linear(2, 2)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    with pytest.raises(ValueError, match="never leaves such a start"):
        latephase.gradient_flow(module, SOUDRY_X, SOUDRY_Y)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_that_depend_on_each_other_are_followed_far(seed):
    # Four support vectors in the plane, two pairs of them with the same gradient.
    start = np.random.default_rng(seed).normal(size=2).tolist()
    flow = latephase.gradient_flow(linear(2, start), SOUDRY_X, SOUDRY_Y, until=1e30)
    assert angle(flow.direction[-1], np.ones(2)) < 1e-12
    assert flow.steps < 150


@pytest.mark.parametrize("copies", [2, 60])
def test_copies_of_the_examples_change_nothing_but_the_risk(copies):
    x, y = separable(6, 3)
    direction, margin = latephase.hard_margin(x, y)
    twice = latephase.gradient_flow(
        linear(3), np.repeat(x, copies, 0), np.repeat(y, copies), until=1e30
    )
    assert angle(twice.direction[-1], direction) < 1e-12
    assert twice.normalized_margin[-1] == pytest.approx(margin, rel=1e-12)


@pytest.mark.parametrize("kind", ["deep linear", "squared ReLU"])
def test_a_coarse_step_leaves_no_height_that_the_next_one_would_lose(kind):
    # Near alignment the square of a coarse stage's error exceeded what the next step can gain.
    generator = torch.Generator().manual_seed(1300)
    task = separable_points(12, 8, margin=0.1, seed=13)
    squares = networks.two_layer(8, 8, "squared_relu", generator=generator)
    networks.linear(8, generator=generator)
    deep = networks.deep_linear([8, 4, 4, 1], generator=generator, scale=0.8)
    module = deep if kind == "deep linear" else squares
    flow = latephase.gradient_flow(module, task.x, task.y, until=1e60, tol=1e-3, records=10_000)
    assert np.diff(flow.normalized_smoothed_margin).min() > -1e-12
    assert flow.alignment[-1] > 1 - 1e-9


class ScaleInvariant(nn.Module):
    """A first layer whose outputs, but for signs, do not depend on the scale of its weights."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first = nn.Linear(4, 6, bias=False).double()
        self.last = nn.Linear(6, 1, bias=False).double()

    def forward(self, x):
        weight = self.first.weight
        if self.kind == "layer norm":
            hidden = self.first(x)
            centered = hidden - hidden.mean(-1, keepdim=True)
            return self.last(centered / centered.norm(dim=-1, keepdim=True))
        return self.last(x @ (weight / weight.norm()).T)


@pytest.mark.parametrize("kind", ["matrix", "layer norm"])
def test_scale_invariant_layers_are_followed_to_their_limits(kind):
    # Their weights stay as they are, so that they shrink beside the others and curve ever more.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    y = np.sign(x[:, 0] + 0.3 * x[:, 1])
    flow = latephase.gradient_flow(ScaleInvariant(kind), x, y, until=1e6)
    # Unit vectors are separated the best where all of a label are one and the labels opposite.
    margin = 1.0 if kind == "layer norm" else latephase.hard_margin(x, y)[1]
    assert flow.normalized_margin[-1] == pytest.approx(margin, rel=1e-6)
    assert flow.steps < 200


def test_an_iterate_that_overflows_ends_its_stage_and_not_the_flow():
    generator = torch.Generator().manual_seed(1002)
    module = networks.two_layer(2, 6, "squared_relu", fixed_signs=True, generator=generator)
    task = sector_points(18, 3, 0.2, seed=100)
    with pytest.raises(latephase.NotSeparated):
        latephase.gradient_flow(module, task.x, task.y, until=1e50, tol=1e-3)


def test_copies_in_small_units_are_followed_far():
    # The right side's two parts cancel in what the copies cannot tell; each alone is no noise.
    x, y = separable(18, 10)
    direction, _ = latephase.hard_margin(x, y)
    flow = latephase.gradient_flow(
        linear(10), 1e-6 * np.repeat(x, 2, 0), np.repeat(y, 2), until=1e30
    )
    assert angle(flow.direction[-1], direction) < 1e-9


def test_margins_may_pass_the_largest_float():
    x = torch.tensor([[1.0, 0.2], [-1.0, 0.3], [1e12, 1e12]], dtype=torch.float64)
    module = networks.linear(2, generator=torch.Generator().manual_seed(0))
    with np.errstate(over="ignore"):  # of the third example, whose dual variable is zero
        run = latephase.gradient_flow(module, x, torch.tensor([1, -1, 1]), until=1e300)
    assert run.smoothed_margin[-1] >= 1e300
    assert run.alignment[-1] == pytest.approx(1.0, abs=1e-12)


def test_inputs_in_large_units_are_followed_through_their_first_steps():
    # From α = -26224 on, with one example after the other taking all of the risk.
    x = np.random.default_rng(0).normal(size=(12, 4))
    y = np.sign(x[:, 0] + 0.3 * x[:, 1])
    torch.manual_seed(0)
    flow = latephase.gradient_flow(nn.Linear(4, 1, bias=False), 1e5 * x, y, until=1e6)
    direction, _ = latephase.hard_margin(x, y)
    # In these units α = 1e6 is early: ‖W‖ grows to a hundred.
    assert flow.smoothed_margin[-1] >= 1e6
    assert angle(flow.direction[-1], direction) < 0.1
    assert_monotone(flow)


@pytest.mark.parametrize(("units", "seed"), [(1e5, 16), (1e5, 30), (1e4, 33), (1e4, 53)])
def test_an_example_that_comes_to_hold_the_margin_within_a_step(units, seed):
    # Its multiplier was e^-56 of the largest when the step began, and the flow ended there.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    y = np.sign(x[:, 0] + 0.3 * x[:, 1])
    torch.manual_seed(seed)
    module = nn.Linear(4, 1, bias=False).double()
    flow = latephase.gradient_flow(module, units * x, y, until=1e6)
    assert angle(flow.direction[-1], latephase.hard_margin(x, y)[0]) < 1e-5
