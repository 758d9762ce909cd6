"""Losses with other tails, and without an exponential one: against what is known by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import other_losses
from latephase.problem.vectors import angle
from latephase.training import together
from latephase.zoo import tasks
from tests.test_together import MAKERS, networks


@pytest.mark.parametrize("constant", [1.0, 5.0])
def test_the_clock_knows_the_constant_of_a_loss(constant):
    # One example (1, 0) and c e^{-z}: e^α = c t.
    flow = SimpleNamespace(
        smoothed_margin=np.array([np.log(constant * 1e6)]), log_time=np.log([1e6]), degree=1.0
    )
    assert other_losses.clock(flow, 0, 1.0, constant) == pytest.approx(0.0, abs=1e-12)
    off = other_losses.clock(flow, 0, 1.0, 1.0)
    assert off == pytest.approx(np.log(constant), abs=1e-12)


def test_the_predictor_is_the_product_of_the_layers():
    module = networks(MAKERS["deep linear"])[0]
    weights = [weight.detach().numpy().copy() for weight in module.parameters()]
    product = np.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]
    w = np.concatenate([weight.ravel() for weight in weights])
    np.testing.assert_allclose(other_losses.predictor(module, w), product[0], rtol=1e-12)


# Losses without an exponential tail, against closed forms.

POINTS = [tasks.separable_points(12, 3, margin=0.2, seed=seed) for seed in range(3)]
Z = np.stack([task.y.numpy()[:, None] * task.x.numpy() for task in POINTS])
START = Z.mean(axis=1)


def follow(start, force, steps, size, relative=False):
    rule = "relative" if relative else "constant"
    rates = size if relative else size / np.linalg.norm(Z, 2, axis=(1, 2)) ** 2
    return together.descend(
        together.linear_family(Z), start, rates, rule=rule, force=force, steps=steps,
        keep=range(1, steps + 1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("force", "loss"),
    [
        (other_losses.polynomial(2), lambda p: (1 + p) ** -2.0),
        (other_losses.squared, lambda p: 0.5 * (1 - p) ** 2),
        (other_losses.hinge, lambda p: np.maximum(0, 1 - p)),
    ],
)
def test_forces_are_slopes(force, loss):
    p = np.array([0.05, 0.5, 0.9, 1.5, 4.0])
    slopes = (loss(p - 1e-6) - loss(p + 1e-6)) / 2e-6
    np.testing.assert_allclose(force(p), slopes, rtol=1e-7, atol=1e-9)


def test_a_polynomial_goes_on_by_its_tangent():
    assert other_losses.polynomial(3)(np.array([-5.0, 0.0])).tolist() == [3.0, 3.0]


def test_the_squared_loss_ends_at_least_squares():
    run = follow(START, other_losses.squared, 3000, 0.5)
    for rows, w in zip(Z, run.end, strict=True):
        exact = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
        np.testing.assert_allclose(w, exact, rtol=1e-9)
    passed = 3000 * 0.5 / np.linalg.norm(Z, 2, axis=(1, 2)) ** 2
    np.testing.assert_allclose(run.passed[-1], passed, rtol=1e-9)


def test_the_hinge_rests_where_all_margins_are_one():
    run = follow(START, other_losses.hinge, 20_000, 0.01)
    assert (Z @ run.end[..., None]).min() > 0.95
    far = 100.0 * run.end
    assert np.array_equal(follow(far, other_losses.hinge, 5, 0.1).end, far)


@pytest.mark.parametrize("power", [1, 4])
def test_polynomial_tails_end_where_newtons_method_says(power):
    force = other_losses.polynomial(power)
    run = follow(START, force, 3000, 0.005, relative=True)
    assert (np.diff(run.passed, axis=0) > 0).all()
    for rows, w in zip(Z, run.end, strict=True):
        own = other_losses.polynomial_limit(rows, power)
        assert np.linalg.norm(own) == pytest.approx(1.0, rel=1e-12)
        assert angle(w, own) < 1e-5
        # Stationary on the sphere: the force along u is u's multiple.
        push = rows.T @ (rows @ own) ** (-power - 1.0)
        assert angle(push, own) < 1e-9


def test_two_points_have_a_closed_form():
    # By symmetry (1, 1)/√2 for equal lengths; of (a, 0), (0, 1): a^-k u^-k + v^-k on the circle.
    limit = other_losses.polynomial_limit(np.array([[2.0, 0.0], [0.0, 1.0]]), 2.0)
    # Lagrange: 2^-2 u^-3 / u = v^-3 / v, so (u/v)^4 = 1/4.
    assert limit[0] / limit[1] == pytest.approx(0.25**0.25, rel=1e-9)


def test_points_without_a_common_half_space():
    with pytest.raises(ValueError, match="not separable"):
        other_losses.polynomial_limit(np.array([[1.0, 0.0], [-1.0, 0.0]]), 1.0)


def test_the_clock_of_a_polynomial_tail_is_that_of_its_own_smoothed_margin():
    # One example with p = t^(1/6): α = p, which is off by α - ln t - 2 ln γ.
    time = np.geomspace(1.0, 1e19, 2000)
    p = time[:, None] ** (1 / 6)
    first = np.argmax(p[:, 0] >= 1e3)
    wanted = p[first, 0] - np.log(time[first]) - 2 * np.log(0.5)
    assert other_losses.off_clock(p, time, 0.5, 1.0) == pytest.approx(wanted)
    with pytest.raises(RuntimeError, match="1000 is asked"):
        other_losses.off_clock(p[:10], time[:10], 0.5, 1.0)
