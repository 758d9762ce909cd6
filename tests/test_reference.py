"""The oracles themselves, against answers known by hand."""

import numpy as np
import pytest
import torch

import latephase
from latephase.reference import finite_differences, physical_flow, stiff_direction_flow


def test_hard_margin_of_two_points():
    direction, margin = latephase.hard_margin(torch.tensor([[0.5, 1.5], [-1.5, -0.5]]), [1, -1])
    np.testing.assert_allclose(direction, np.ones(2) / np.sqrt(2), atol=1e-15)  # rounding
    assert margin == pytest.approx(np.sqrt(2), rel=1e-15)


def test_hard_margin_satisfies_the_kkt_conditions():
    rng = np.random.default_rng(0)
    w = rng.normal(size=6)
    x = rng.normal(size=(200, 6))
    y = np.sign(x @ w)
    x += 0.2 * y[:, None] * w
    direction, margin = latephase.hard_margin(7.0 * x, y)
    gaps = y * (7.0 * x @ direction) - margin
    # Every support vector at the margin, and the direction in their cone.
    support = gaps < 1e-9
    assert gaps.min() > -1e-12
    from scipy.optimize import nnls

    assert nnls((y[:, None] * x)[support].T, direction)[1] < 1e-12


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [1, 1], "not separable"),
        ([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]], [1, -1, 1], "not separable"),
        ([[1.0, 0.0]], [2], "labels"),
        ([[1.0, 0.0]], [1, 1], r"expected x \[n, d\] and y \[n\]"),
        ([[np.nan, 0.0]], [1], "finite"),
    ],
)
def test_hard_margin_refuses(x, y, message):
    with pytest.raises(ValueError, match=message):
        latephase.hard_margin(x, y)


def test_finite_differences_of_a_quadratic_are_exact():
    a = np.arange(6.0).reshape(2, 3)
    jacobian = finite_differences(lambda w: a @ w**2, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(jacobian, 2 * a * [1.0, 2.0, 3.0], atol=1e-8)  # rounding/step


def test_physical_flow_of_a_single_margin():
    # dw/dt = e^{-w}: w = ln(e^{w0} + t).
    times = np.array([0.0, 1.0, 10.0])
    w = physical_flow(lambda v: np.exp(-v), np.array([0.5]), times)
    np.testing.assert_allclose(w[:, 0], np.log(np.exp(0.5) + times), rtol=1e-9)  # rtol 1e-10


def test_stiff_direction_flow_finds_the_svm_direction():
    z = np.array([[0.5, 1.5], [1.5, 0.5], [2.0, 2.0]])

    def gradient(w, scale):
        q = np.exp(-scale * (z @ w - (z @ w).min()))
        q /= q.sum()
        return z @ w, q, z.T @ q

    start = np.array([1.0, 0.2])
    direction, alpha = stiff_direction_flow(gradient, lambda w: (z @ w, z), start, 1, 1e3)
    assert alpha >= 1e3 * (1 - 1e-6)
    # The direction's own distance at α = 1e3 is below 1e-3.
    np.testing.assert_allclose(direction, np.ones(2) / np.sqrt(2), atol=1e-3)
