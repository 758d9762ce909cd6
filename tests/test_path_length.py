"""The approach to a limit, and secants: against what is known by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.path_length import Approach, Polynomial, random_polynomial, secants_of
from tests.references import finite_differences

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
