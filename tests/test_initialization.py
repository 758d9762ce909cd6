"""The way to α = 0, the approach to a limit, and secants: against what is known by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import latephase
from experiments.initialization import (
    Approach,
    Polynomial,
    coin_tosses,
    onset,
    random_polynomial,
    relu_movement,
    secants_of,
)
from latephase.problem.vectors import angle
from latephase.zoo import networks, tasks
from tests.references import finite_differences

# ---------------------------------------------------------------- the way to α = 0


def linear(weights):
    net = networks.linear(len(weights), generator=torch.Generator())
    net[0].weight.data = torch.tensor([weights], dtype=torch.float64)
    return net


def test_one_example_on_a_line_is_solved_by_hand():
    # w' = e^{-w} from w = -1: e^w = e^{-1} + t, which is at w = α = 0 for t = 1 - 1/e.
    way = onset(linear([-1.0]), np.ones((1, 1)), [1.0], until=0.1)
    assert way.at_zero("log_time") == pytest.approx(np.log(1 - np.exp(-1)), abs=2e-2)
    assert way.at_zero("movement") == pytest.approx(1.0, abs=1e-12)
    assert way.smoothed_margin[-1] == pytest.approx(0.1, rel=1.1e-3)
    assert (way.smoothed_margin[way.before] <= 0).all()


def test_all_examples_are_right_before_the_late_phase_begins():
    x, y = np.array([[1.0], [2.0]]), [1.0, 1.0]
    way = onset(linear([-1.0]), x, y, until=0.1, tol=1e-5)
    # At w = 0 both margins vanish and R = 2.
    assert -np.log(2) < way.at_separation < 0
    assert (way.smallest_margin[way.smoothed_margin > 0] > 0).all()


def test_coin_tosses_are_the_same_for_a_seed_and_not_separated_by_a_plane():
    x, y = coin_tosses(60, 10, 3)
    assert torch.equal(x, coin_tosses(60, 10, 3)[0])
    assert sorted(set(y.tolist())) == [-1, 1]
    with pytest.raises(latephase.NotSeparated):
        onset(networks.linear(10, generator=torch.Generator().manual_seed(0)), x, y)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_plain_relu_moves_as_far_by_the_explicit_method(power):
    task = tasks.separable_points(6, 4, margin=0.2, seed=0)
    net = networks.two_layer(4, 64, fixed_signs=True, generator=torch.Generator().manual_seed(0))
    net[-1].weight.data /= 64**power
    way = onset(net, task.x, task.y, until=0.01, tol=1e-3)
    found = relu_movement(task, 64, power, torch.Generator().manual_seed(0))
    assert found == pytest.approx(way.at_zero("movement"), rel=0.02)


def test_it_is_the_early_phase_of_the_flow():
    task = tasks.separable_points(12, 5, margin=0.1, seed=0)
    net = networks.two_layer(5, 8, "squared_relu", generator=torch.Generator().manual_seed(0))
    way = onset(net, task.x, task.y, until=1.0, tol=1e-5)
    flow = latephase.gradient_flow(net, task.x, task.y, until=1.0, tol=1e-4)
    assert np.log(np.linalg.norm(way.last)) == pytest.approx(flow.log_norm[-1], abs=1e-3)
    assert angle(way.last, flow.direction[-1]) < 1e-3
    assert way.log_time[-1] == pytest.approx(flow.log_time[-1], abs=1e-2)


def test_a_start_in_the_late_phase_has_nothing_before_it():
    way = onset(linear([1.0]), np.ones((1, 1)), [1.0], until=2.0)
    assert way.at_zero("movement") == 0.0
    assert way.before == slice(0, 0)


def test_examples_that_no_weights_separate_are_an_error():
    task = tasks.with_contradictions(tasks.separable_points(12, 3, seed=0))
    net = networks.linear(3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(latephase.NotSeparated, match="stationary"):
        onset(net, task.x, task.y)


def test_the_number_of_steps_is_bounded():
    with pytest.raises(latephase.BudgetSpent, match="3 steps are spent at α = -"):
        onset(linear([-5.0]), np.ones((1, 1)), [1.0], steps=3)


# ---------------------------------------------------------------- the approach to a limit


def power(kappa, constant=1.0):
    clock = np.geomspace(1.0, 1e40, 400)
    gap = 1 / clock
    return Approach(clock, gap, 5.0 - constant * gap**kappa)


@pytest.mark.parametrize("kappa", [0.25, 0.5, 1.0])
def test_the_exponent_of_a_power_is_found(kappa):
    assert power(kappa, 3.0).exponent(10.0, 1e20) == pytest.approx(kappa, abs=1e-6)


def test_a_length_like_the_root_uses_the_whole_bound_and_a_shorter_one_less():
    assert power(0.5, 2.0).root_constant(1e2, 1e4) == pytest.approx(2.0, rel=1e-2)
    assert power(0.5, 2.0).used(1e2, 1e4) == pytest.approx(1.0, rel=1e-2)
    assert power(1.0).used(1e2, 1e4) < 0.2
    assert power(0.25).used(1e2, 1e4) > 1.5


def test_the_constant_knows_nothing_of_what_comes_after_the_window():
    curve = power(0.5)
    later = curve.clock > 1e4
    longer = Approach(curve.clock, curve.gap, curve.path_length + 7.0 * np.cumsum(later))
    assert longer.root_constant(1.0, 1e3) == curve.root_constant(1.0, 1e3)
    assert longer.used(1.0, 1e3) > 100


def test_a_logarithm_has_no_power():
    clock = np.linspace(0.0, 50.0, 500)
    curve = Approach(clock, np.exp(-clock), clock)
    assert curve.exponent(1.0, 15.0) < 0.1
    assert curve.used(5.0, 10.0) > 10


def test_a_window_that_the_run_does_not_reach_is_an_error():
    with pytest.raises(ValueError, match="expected records"):
        power(0.5).exponent(10.0, 1e50)


def test_the_last_margin_stands_in_for_an_unknown_limit():
    flow = SimpleNamespace(
        smoothed_margin=np.array([1.0, 2.0]),
        normalized_smoothed_margin=np.array([0.5, 1.0]),
        path_length=np.array([0.0, 0.3]),
    )
    np.testing.assert_allclose(Approach.of(flow).gap, [0.5, 0.0])
    np.testing.assert_allclose(Approach.of(flow, limit=2.0).gap, [0.75, 0.5])


# ---------------------------------------------------------------- secants of gradient curves


def test_the_gradient_of_a_form_is_that_of_its_value_and_satisfies_euler():
    h = random_polynomial(3, np.random.default_rng(0))
    x = np.array([0.3, -0.8, 0.5])
    for degree in h.forms:
        value, gradient = h.form(degree, x)
        numeric = finite_differences(lambda w, k=degree: h.form(k, w)[0], x)[0]
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)
        assert gradient @ x == pytest.approx(degree * value)


def test_the_leading_form_is_positive_and_of_the_size_promised():
    for seed in range(5):
        h = random_polynomial(3, np.random.default_rng(seed))
        sphere = np.random.default_rng(9).standard_normal((500, 3))
        values = [h.form(4, u / np.linalg.norm(u))[0] for u in sphere]
        assert 0.5 < min(values) < max(values) < 1.5


def test_secants_of_two_fourth_powers_turn_as_by_hand():
    # h = x⁴ + y⁴/2: dx/dy = 2x³/y³, so that 1/x² - 2/y² is constant and x/y tends to 1/√2.
    powers, coefficients = np.array([[4, 0], [0, 4]]), np.array([1.0, 0.5])
    s = np.linspace(0.0, 40.0, 81)
    curve = secants_of(Polynomial({4: (powers, coefficients)}), np.array([1.0, 0.3]), s)
    assert curve[-1, 0] / curve[-1, 1] == pytest.approx(np.sqrt(0.5), abs=1e-8)
    r = 0.5 * np.exp(-s)
    first = curve[:9] * r[:9, None]
    kept = 1 / first[:, 0] ** 2 - 2 / first[:, 1] ** 2
    np.testing.assert_allclose(kept, kept[0], rtol=1e-5)
