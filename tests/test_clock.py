"""Physical time and the explicit method's tableau against what is known of them."""

import math

import numpy as np
import pytest
from scipy.integrate import RK45

from latephase.flow import explicit
from latephase.flow.clock import LogClock
from latephase.problem.losses import EXPONENTIAL, LOGISTIC


@pytest.mark.parametrize("loss", [EXPONENTIAL, LOGISTIC], ids=lambda loss: loss.name)
def test_time_at_a_constant_gradient(loss):
    # dα/dt = |ℓ'(α)| g²: with 1/|ℓ'| = e^α, or 1 + e^α for the logistic loss, t is elementary.
    clock, g, alphas = LogClock(loss), 3.0, np.linspace(-2.0, 9.0, 12)
    for alpha in alphas:
        came = clock.advance(alpha, math.log(g))
    rise = math.exp(alphas[-1]) - math.exp(alphas[0])
    if loss is LOGISTIC:
        rise += alphas[-1] - alphas[0]
    assert came == pytest.approx(math.log(rise / g**2), abs=1e-9)


def test_time_far_out_is_that_of_the_last_step():
    # ‖∇α‖² = α^{4/3}, as for L = 3: t → e^α / α^{4/3} (1 + 4/(3α) + ...).
    clock = LogClock(EXPONENTIAL)
    for alpha in np.geomspace(1e6, 1e8, 8):
        came = clock.advance(alpha, 2 / 3 * math.log(alpha))
    # ln t, of size 1e8, resolves 1e-8.
    assert came - alpha == pytest.approx(-4 / 3 * math.log(alpha), abs=5e-8)


def test_the_explicit_pair_is_dormand_and_princes():
    for row, expected in zip(explicit._STAGES, [*RK45.A[1:], RK45.B], strict=True):
        np.testing.assert_allclose(row, expected[: len(row)], rtol=1e-15)
    np.testing.assert_allclose(explicit._ERROR, -RK45.E, rtol=1e-15)
