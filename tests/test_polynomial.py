"""Gradient curves of polynomials: the forms, and curves known by hand."""

import numpy as np
import pytest

from latephase.experiments.polynomial import Polynomial, random_polynomial, secants_of
from tests.references import finite_differences


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
