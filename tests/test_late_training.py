"""The criterion of rest, its controls, and the exponents of parameter groups, by known answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.late_training import (
    euler_defect,
    largest_exponent,
    settling,
    single_exponent_defect,
    turning,
)

ALPHA = np.geomspace(1.0, 1000.0, 26)
CLOCK = np.log(ALPHA)
MIDDLE = (CLOCK[1:] + CLOCK[:-1]) / 2


@pytest.mark.parametrize("power", [-3.0, -2.0, 0.0, 1.0])
def test_a_power_is_found_and_settles_where_it_can_be_summed(power):
    fit = settling(CLOCK, MIDDLE**power)
    assert fit.exponent == pytest.approx(power, abs=1e-9)
    assert fit.words == ("settles" if power < -1 else "not resolved")


def test_an_exponential_approach_settles():
    fit = settling(CLOCK, ALPHA[1:] ** -0.5)
    assert fit.high < -1
    assert fit.words == "settles"


@pytest.mark.parametrize("gap", [0.0, 1.0, 2.0])
def test_drift_with_the_logarithm_of_the_clock_does_not_settle(gap):
    """Its distances fall like 1/(k - c), and more steeply than 1/k at first where c is positive."""
    fit = settling(CLOCK, 1 / np.where(gap < MIDDLE, MIDDLE - gap, 9.0))
    assert fit.words == "not resolved"
    assert fit.bound >= 0.0


def test_unevenly_spaced_checkpoints_do_not_matter_and_few_are_refused():
    uneven = np.sort(np.concatenate([CLOCK[::3], CLOCK[-6:] - 0.01]))
    middle = (uneven[1:] + uneven[:-1]) / 2
    fit = settling(uneven, np.diff(uneven) * middle**-2.0)
    assert fit.exponent == pytest.approx(-2.0, abs=1e-9)
    with pytest.raises(ValueError, match="expected five distances"):
        settling(CLOCK[:12], MIDDLE[:11])


def test_correlated_residuals_widen_the_interval():
    noise = np.random.default_rng(0).normal(size=25) * 0.1
    white = settling(CLOCK, MIDDLE**-2.0 * np.exp(noise))
    slow = settling(CLOCK, MIDDLE**-2.0 * np.exp(0.3 * np.sin(MIDDLE)))
    assert slow.high - slow.low > white.high - white.low


def test_the_flow_settles_and_a_skew_term_turns_it_for_ever_while_margins_do_not_feel_it():
    (still, margins), (spun, same) = (turning(omega, ALPHA) for omega in (0.0, 0.3))
    assert np.allclose(np.linalg.norm(spun, axis=1), 1.0)
    assert np.allclose(margins, same, atol=1e-6)
    chords = [np.linalg.norm(np.diff(states, axis=0), axis=1) for states in (still, spun)]
    assert [settling(CLOCK, one).words for one in chords] == ["settles", "not resolved"]


def groups(exponents, rng, states=12):
    """Return states whose Euler terms satisfy the system with these exponents."""
    euler = rng.uniform(0.1, 2.0, size=(states, len(exponents)))
    return SimpleNamespace(euler=euler, weighted_margin=euler @ np.array(exponents))


def test_exponents_that_are_determined_are_found_and_others_are_refused():
    found = groups([0.25, 0.5, 1.0], np.random.default_rng(0))
    assert largest_exponent(found, 1e-9) == (
        pytest.approx(1.0, abs=1e-6),
        pytest.approx(0.0, abs=1e-6),
        0,
    )
    assert euler_defect(found, np.array([0.25, 0.5, 1.0])) < 1e-12
    assert single_exponent_defect(found) > 0.05
    wrong = groups([0.25, 0.5, -1.0], np.random.default_rng(0))
    assert np.isnan(largest_exponent(wrong, 1e-9)[0])


def test_layers_one_behind_the_other_share_one_and_leave_all_but_one_free():
    rows = np.ones((10, 8)) * np.geomspace(1, 100, 10)[:, None]
    found = SimpleNamespace(euler=rows, weighted_margin=rows[:, 0])
    largest, defect, free = largest_exponent(found, 1e-6)
    assert largest == pytest.approx(1 / 8, abs=1e-5)
    assert defect < 2e-6
    assert free == 7
