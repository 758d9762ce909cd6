"""Steepest descent in four norms: duality, the programs, and Adam against PyTorch's own."""

import numpy as np
import pytest
import torch

from experiments import steepest
from experiments.steepest import NORMS, SHAPE
from latephase.problem.vectors import angle

Z = steepest.points([1, 2])


@pytest.mark.parametrize("norm", NORMS)
def test_the_steepest_direction_has_norm_one_and_attains_the_dual_norm(norm):
    g = np.random.default_rng(0).standard_normal((5, 9))
    u = steepest.steepest(g, norm, SHAPE)
    assert steepest.length(u, norm, SHAPE) == pytest.approx(np.ones(5))
    assert (g * u).sum(-1) == pytest.approx(steepest.dual_length(g, norm, SHAPE))
    other = np.random.default_rng(1).standard_normal((5, 9))
    other /= steepest.length(other, norm, SHAPE)[:, None]
    assert ((g * other).sum(-1) <= steepest.dual_length(g, norm, SHAPE)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_direction_has_a_larger_margin(norm):
    w, gamma = steepest.largest_margin(Z[0], norm, SHAPE)
    assert steepest.length(w, norm, SHAPE) == pytest.approx(1)
    assert (Z[0] @ w).min() == pytest.approx(gamma)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        near = w + size * rng.standard_normal((300, 9))
        found = (near @ Z[0].T).min(1) / steepest.length(near, norm, SHAPE)
        assert found.max() <= gamma * (1 + 1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_descent_comes_near_the_program_and_loses_no_more_than_its_step_allows(norm):
    path = steepest.descents(Z, 1000)[norm]
    best = np.array([steepest.largest_margin(z, norm, SHAPE)[1] for z in Z])
    share = steepest.shares(Z, path[-1], best, norm)
    assert (share > 0.97).all()
    assert (share <= 1 + 1e-6).all()
    assert (steepest.falls(Z, path, norm, SHAPE) <= 1).all()


def test_a_fall_is_measured_in_half_the_square_of_the_step():
    z = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    w = np.array([[[0, 0]], [[4, 4]], [[5, 3]]], dtype=float)
    alpha = [-np.log(2 * np.exp(-4)), -np.log(np.exp(-5) + np.exp(-3))]
    lower = alpha[0] / np.sqrt(32) - alpha[1] / np.sqrt(34)
    expected = lower * np.sqrt(34) / (0.5 * 2)
    assert steepest.falls(z, w, "ℓ2", (1, 2))[0] == pytest.approx(expected)


def test_adam_is_pytorchs():
    w = torch.zeros(2, 9, dtype=torch.float64)
    rule = torch.optim.Adam([w], betas=(0.9, 0.95), eps=1e-8)
    data = torch.from_numpy(Z)
    for t in range(50):
        rule.param_groups[0]["lr"] = (t + 1) ** -0.5
        w.grad = -(torch.exp(-(data @ w[..., None])) * data).sum(1)
        rule.step()
    assert steepest.adam(Z, 1e-8, 50) == pytest.approx(w.numpy(), rel=1e-9)


def test_slow_adam_goes_along_signs_without_epsilon_and_along_the_gradient_with_a_large_one():
    step = steepest.slow_adam(Z, 0.0, np.array([-2.3]), rate=0.1)[0]
    assert (np.sign(step[0]) == np.sign(Z[0].sum(0))).all()
    assert np.abs(step[0]) == pytest.approx(np.full(9, np.abs(step[0, 0])))
    step = steepest.slow_adam(Z, 1e9, np.array([-2.3]), rate=0.01)[0, 0]
    along = Z[0].sum(0)
    assert step @ along == pytest.approx(np.linalg.norm(step) * np.linalg.norm(along), rel=1e-3)


def test_adagrad_is_pytorchs_while_steps_are_single():
    w = torch.zeros(2, 9, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adagrad([w], lr=0.3, eps=0.0)
    z = torch.from_numpy(Z)
    for _ in range(40):
        optimizer.zero_grad()
        torch.exp(-(z @ w[..., None])).sum().backward()
        optimizer.step()
    alpha = steepest.smoothed(Z, w.detach().numpy())
    for run in (0, 1):
        found, root = steepest.adagrad(
            Z[[run]], np.zeros((1, 9)), np.full(1, 0.3), 1000, alpha[run] - 1e-12
        )
        assert found[0] == pytest.approx(w.detach().numpy()[run])
        assert root[0] ** 2 == pytest.approx(optimizer.state[w]["sum"][run].numpy())


def test_leaps_of_adagrad_go_where_single_steps_go():
    ends = [
        steepest.adagrad(Z, np.zeros((2, 9)), np.full(2, 3.0), steps, 7.0)[0]
        for steps in (300, 100_000)
    ]
    for one, other in zip(*ends, strict=True):
        assert angle(one, other) < 0.02
