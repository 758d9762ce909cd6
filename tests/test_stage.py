"""A stage against the equations it solves, its linear systems against dense algebra."""

import numpy as np
import pytest
import torch
from torch import nn

from latephase.flow.newton import solve_stage
from latephase.flow.newton_matrix import DualSystem, Linearization, ThinSystem
from latephase.problem.margins import Problem

DEGREE = 2.0


def separated(loss, n=8, **settings):
    """A network of degree 2 with labels of its own, and of its margins the n next to their mean."""
    classes = 3 if loss == "cross_entropy" else 1
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4, bias=False), nn.Linear(4, classes, bias=False)]
    module = nn.Sequential(*layers).double()
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = module(x).detach()
    y = outputs.argmax(1) if classes > 1 else outputs[:, 0].sign()
    margins = Problem(module, x, y, loss).margins(Problem(module, x, y, loss).w0)
    smallest = margins.reshape(200, -1).min(1)
    rows = np.argsort(np.abs(smallest - smallest.mean()))[:n]
    return Problem(module, x[rows], y[rows], loss, **settings)


def weights_of(loss, margins):
    """-∂R/∂p of the risk, from its definition, in the shape of the margins; its sum is one."""
    if loss == "exponential":
        weights = np.exp(-margins)
    elif loss == "logistic":
        weights = 1.0 / (1.0 + np.exp(margins))
    else:
        weights = np.exp(-margins) / (1.0 + np.exp(-margins).sum(1, keepdims=True))
    return weights / weights.sum()


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("loss", ["exponential", "logistic", "cross_entropy"])
def test_a_solved_stage_satisfies_its_three_equations(loss, curved):
    problem = separated(loss)
    center, kappa = problem.w0 / np.linalg.norm(problem.w0), 0.1
    # Soft margins of 2 to 4, where the logistic loss differs from the exponential one.
    scale = 3.0 / problem.margins(center).min()
    p = problem.margins(center)
    multiplier = weights_of(loss, scale * p)
    u = np.log(multiplier * kappa / (DEGREE * (multiplier * p).sum())).reshape(-1)

    def linearize(theta, log_multiplier):
        return Linearization(problem, theta, log_multiplier, curved)

    start = linearize(center, u)
    stage = solve_stage(
        problem, linearize, start, (center, u), center, kappa, np.log(scale), DEGREE, 1e-9, 1e-7
    )
    assert stage.converged
    p, multiplier = problem.margins(stage.theta), np.exp(stage.log_multiplier)
    pulled = problem.jacobian(stage.theta).T @ multiplier
    # θ was asked for to 1e-9, the multipliers to 1e-7.
    np.testing.assert_allclose((1 + kappa) * stage.theta, center + pulled, atol=1e-8)
    assert multiplier @ p.reshape(-1) == pytest.approx(kappa / DEGREE, rel=1e-6)
    shares = weights_of(loss, scale * p).reshape(-1)
    np.testing.assert_allclose(multiplier / multiplier.sum(), shares, rtol=1e-6)


def test_multipliers_far_from_the_margin_follow_it():
    problem = separated("exponential", n=40)
    center, kappa = problem.w0 / np.linalg.norm(problem.w0), 0.1
    p = problem.margins(center)
    scale = 500.0 / p.min()
    u = -scale * (p - p.min()) + np.log(kappa / (DEGREE * p.min()))

    def linearize(theta, log_multiplier):
        return Linearization(problem, theta, log_multiplier)

    stage = solve_stage(
        problem, linearize, linearize(center, u), (center, u), center, kappa, np.log(scale), DEGREE,
        1e-9,
    )  # fmt: skip
    assert stage.converged
    exponents = stage.log_multiplier + scale * problem.margins(stage.theta)
    # Some are below rounding of the largest. θ's 1e-9 counts 500-fold.
    assert np.ptp(stage.log_multiplier) > 60.0
    np.testing.assert_allclose(exponents, exponents[0], rtol=0, atol=1e-4)


def dense(root, d, inverse_scale, blocks, unit, excess):
    e = unit * (blocks == np.arange(blocks.max() + 1)[:, None])
    b = np.eye(len(d)) + e.T @ (excess[np.searchsorted(blocks, range(len(e)))][:, None] * e)
    return d[:, None] * (root @ root.T) * d + inverse_scale * b


@pytest.mark.parametrize("kind", ["dual", "thin"])
@pytest.mark.parametrize("blocked", [False, True])
def test_a_system_solves_its_matrix(kind, blocked):
    rng = np.random.default_rng(0)
    root, d, right = rng.normal(size=(6, 3)), rng.uniform(0.5, 2.0, 6), rng.normal(size=(6, 2))
    blocks, excess = (
        np.repeat([0, 1, 2], 2),
        np.repeat([0.1, 0.2, 0.3] if blocked else [0.0] * 3, 2),
    )
    unit = np.tile([0.6, 0.8], 3)
    system = ThinSystem(root, d, 0.1) if kind == "thin" else DualSystem(root @ root.T, d, 0.1)
    if blocked:
        system.add_blocks(blocks, unit, excess)
    expected = np.linalg.solve(dense(root, d, 0.1, blocks, unit, excess), right)
    # Condition 300.
    np.testing.assert_allclose(system.solve(right), expected, rtol=1e-11)
    np.testing.assert_allclose(
        system.dual_matrix_times(d), d * (root @ (root.T @ d**2)), rtol=1e-13
    )
    np.testing.assert_allclose(system.diagonal, (root**2).sum(1), rtol=1e-14)


def test_a_gram_matrix_by_blocks_of_the_jacobian_is_the_stored_one():
    whole, narrow = separated("cross_entropy"), separated("cross_entropy", jacobian_bytes=2000)
    # Two of the eight examples lie too far from the margin to count.
    u = np.where(np.arange(8)[:, None] % 4 == 1, -100.0, [0.0, -70.0]).reshape(-1)
    stored, blocks = (Linearization(p, p.w0, u) for p in (whole, narrow))
    assert stored.jacobian is not None
    assert blocks.jacobian is None
    assert len(list(narrow.jacobian_blocks(narrow.w0, blocks.examples))) > 1
    rows = np.array([0, 2, 3, 4, 6, 7])
    jacobian = whole.jacobian(whole.w0).reshape(8, 2, -1)[rows].reshape(12, -1)
    np.testing.assert_array_equal(stored.rows, blocks.rows)
    np.testing.assert_array_equal(stored.examples, rows)
    np.testing.assert_array_equal(stored.example_of, np.repeat(np.arange(6), 2))
    np.testing.assert_allclose(stored.gram, jacobian @ jacobian.T, rtol=1e-13)
    np.testing.assert_allclose(blocks.gram, jacobian @ jacobian.T, rtol=1e-12)
    v, live = np.random.default_rng(0).normal(size=whole.w0.size), np.arange(12) % 5 > 0
    for one in (stored, blocks):
        np.testing.assert_allclose(one.times(v), jacobian @ v, rtol=1e-11)
        w = np.arange(live.sum()) + 1.0
        np.testing.assert_allclose(one.transpose_times(w, live), jacobian[live].T @ w, rtol=1e-11)


def test_the_primal_block_carries_the_curvature():
    problem = separated("exponential")
    u = -np.arange(8.0)
    curved = Linearization(problem, problem.w0, u, curved=True)
    weights = np.exp(u) / (np.exp(u) @ problem.margins(problem.w0))
    hessian = problem.curvature(problem.w0, weights, np.eye(problem.w0.size))
    v, kappa = np.arange(1.0, problem.w0.size + 1), 0.05
    matrix = (1 + kappa) * np.eye(v.size) - kappa / DEGREE * hessian
    # Here no eigenvalue lies at the floor that keeps the block positive.
    assert np.linalg.eigvalsh(matrix)[0] > 0.2 * (1 + kappa)
    np.testing.assert_allclose(curved.primal_inverse(kappa, DEGREE, matrix @ v), v, rtol=1e-12)
