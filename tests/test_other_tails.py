"""Losses without an exponential tail, against closed forms."""

import numpy as np
import pytest

from latephase.experiments import other_tails
from latephase.problem.vectors import angle
from latephase.zoo import tasks

TASKS = [tasks.separable_points(12, 3, margin=0.2, seed=seed) for seed in range(3)]
Z = np.stack([task.y.numpy()[:, None] * task.x.numpy() for task in TASKS])
START = Z.mean(axis=1)


@pytest.mark.parametrize(
    ("force", "loss"),
    [
        (other_tails.polynomial(2), lambda p: (1 + p) ** -2.0),
        (other_tails.squared, lambda p: 0.5 * (1 - p) ** 2),
        (other_tails.hinge, lambda p: np.maximum(0, 1 - p)),
    ],
)
def test_forces_are_slopes(force, loss):
    p = np.array([0.05, 0.5, 0.9, 1.5, 4.0])
    slopes = (loss(p - 1e-6) - loss(p + 1e-6)) / 2e-6
    np.testing.assert_allclose(force(p), slopes, rtol=1e-7, atol=1e-9)


def test_a_polynomial_goes_on_by_its_tangent():
    assert other_tails.polynomial(3)(np.array([-5.0, 0.0])).tolist() == [3.0, 3.0]


def test_the_squared_loss_ends_at_least_squares():
    states, log_time = other_tails.follow(Z, START, other_tails.squared, 3000, 0.5)
    for rows, w in zip(Z, states[-1], strict=True):
        exact = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
        np.testing.assert_allclose(w, exact, rtol=1e-9)
    passed = 3000 * 0.5 / np.linalg.norm(Z, 2, axis=(1, 2)) ** 2
    np.testing.assert_allclose(log_time[-1], np.log(passed), rtol=1e-9)


def test_the_hinge_rests_where_all_margins_are_one():
    states, _ = other_tails.follow(Z, START, other_tails.hinge, 20_000, 0.01)
    assert (Z @ states[-1][..., None]).min() > 0.95
    far = 100.0 * states[-1]
    assert np.array_equal(other_tails.follow(Z, far, other_tails.hinge, 5, 0.1)[0][-1], far)


@pytest.mark.parametrize("power", [1, 4])
def test_polynomial_tails_end_where_newtons_method_says(power):
    force = other_tails.polynomial(power)
    states, log_time = other_tails.follow(Z, START, force, 3000, 0.005, relative=True)
    assert (np.diff(log_time, axis=0) > 0).all()
    for rows, w in zip(Z, states[-1], strict=True):
        own = other_tails.polynomial_limit(rows, power)
        assert np.linalg.norm(own) == pytest.approx(1.0, rel=1e-12)
        assert angle(w, own) < 1e-5
        # Stationary on the sphere: the force along u is u's multiple.
        push = rows.T @ (rows @ own) ** (-power - 1.0)
        assert angle(push, own) < 1e-9


def test_two_points_have_a_closed_form():
    # By symmetry (1, 1)/√2 for equal lengths; of (a, 0), (0, 1): a^-k u^-k + v^-k on the circle.
    limit = other_tails.polynomial_limit(np.array([[2.0, 0.0], [0.0, 1.0]]), 2.0)
    # Lagrange: 2^-2 u^-3 / u = v^-3 / v, so (u/v)^4 = 1/4.
    assert limit[0] / limit[1] == pytest.approx(0.25**0.25, rel=1e-9)


def test_points_without_a_common_half_space():
    with pytest.raises(ValueError, match="half-space"):
        other_tails.polynomial_limit(np.array([[1.0, 0.0], [-1.0, 0.0]]), 1.0)
