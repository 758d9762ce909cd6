"""Physical time against what is known of it."""

import math

import numpy as np
import pytest

from latephase.flow.clock import LogClock
from latephase.problem.losses import EXPONENTIAL, LOGISTIC


@pytest.mark.parametrize("loss", [EXPONENTIAL, LOGISTIC], ids=lambda loss: loss.name)
def test_time_at_a_constant_gradient(loss):
    # dα/dt = |ℓ'(α)| g²: with 1/|ℓ'| = e^α, or 1 + e^α for the logistic loss, t is elementary.
    clock, g, alphas = LogClock(loss), 3.0, np.linspace(-2.0, 9.0, 12)
    for alpha in alphas:
        came = clock.advance([(alpha, math.log(g))])
    rise = math.exp(alphas[-1]) - math.exp(alphas[0])
    if loss is LOGISTIC:
        rise += alphas[-1] - alphas[0]
    assert came == pytest.approx(math.log(rise / g**2), abs=1e-9)


def test_time_far_out_is_that_of_the_last_step():
    # ‖∇α‖² = α^{4/3}, as for L = 3: t → e^α / α^{4/3} (1 + 4/(3α) + ...).
    clock = LogClock(EXPONENTIAL)
    for alphas in np.geomspace(1e6, 1e8, 24).reshape(8, 3):
        # The nodes of a step need not be in order.
        came = clock.advance([(a, 2 / 3 * math.log(a)) for a in alphas[[1, 0, 2]]], radial=True)
        alpha = alphas[-1]
    # ln t, of size 1e8, resolves 1e-8.
    assert came - alpha == pytest.approx(-4 / 3 * math.log(alpha), abs=5e-8)
