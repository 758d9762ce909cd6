"""The measures of settling: known series, and what must not pass for convergence."""

from types import SimpleNamespace

import numpy as np
import pytest

from latephase.flow import trajectory
from latephase.measures import settling

INF = float("inf")


@pytest.mark.parametrize(
    ("series", "drop"),
    [
        ([0.1, 0.2, 0.3], 0.0),
        ([0.1, 0.4, 0.3, 0.35], 0.25),
        ([-1.0, -2.0, 0.1, 0.2], 0.0),  # what precedes the first positive value does not count
        ([0.2, -0.1], 1.5),  # a fall below zero is a drop of more than one
        ([-1.0, -0.5, -0.1], INF),  # never separated: nothing to measure
        ([-1.0, 0.5], INF),
    ],
)
def test_largest_drop(series, drop):
    assert trajectory.largest_drop(np.array(series)) == pytest.approx(drop, rel=1e-15)


def test_milestones_are_the_first_records_at_even_steps_of_ln_alpha():
    alpha = np.array([-1.0, 5.0, 9.0, 11.0, 19.0, 21.0, 39.0, 45.0])
    np.testing.assert_array_equal(settling.milestones(alpha, 10.0, ratio=2.0), [3, 5, 7])
    assert len(settling.milestones(-alpha, 10.0)) == 0


@pytest.mark.parametrize(("start", "ratio"), [(0.0, 2.0), (1.0, 1.0), (-1.0, 2.0)])
def test_milestones_refuse_a_grid_that_does_not_advance(start, ratio):
    with pytest.raises(ValueError, match="expected start > 0 and ratio > 1"):
        settling.milestones(np.array([1.0]), start, ratio)


def test_stretches_of_a_pace_like_one_over_alpha_shrink_by_the_ratio():
    alpha = 10.0 * 2.0 ** np.arange(5)
    stretches = settling.stretches(1.0 - 10.0 / alpha, alpha, 10.0, ratio=2.0)
    np.testing.assert_allclose(stretches, [0.5, 0.25, 0.125, 0.0625], rtol=1e-12)
    assert settling.last_to_first(stretches) == pytest.approx(0.125)


def test_distance_of_margin_distributions_is_wassersteins():
    # Sorted: (1, 3) and (2, 4), each value one apart; the later mean is 3.
    margins = np.array([[3.0, 1.0], [2.0, 4.0]])
    np.testing.assert_allclose(settling.successive_distances(margins), [1 / 3], rtol=1e-15)


def test_distance_does_not_see_which_example_has_which_margin():
    margins = np.array([[3.0, 1.0], [1.0, 3.0]])
    assert settling.successive_distances(margins) == [0.0]


@pytest.mark.parametrize("series", [[], [1.0]])
def test_nothing_to_compare_is_infinite(series):
    assert settling.last_to_first(np.array(series)) == INF


def test_the_leading_plane_of_a_plane_curve_holds_it():
    angle = np.linspace(0.0, 1.0, 9)
    curve = np.stack([np.cos(angle), np.zeros(9), np.sin(angle)], axis=1)
    plane, share = settling.leading_plane(curve)
    assert share == pytest.approx(1.0)
    np.testing.assert_allclose(plane[-1], [0.0, 0.0], atol=1e-15)
    # A projection on the plane of the curve keeps its distances.
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(plane, axis=0), axis=1),
        np.linalg.norm(np.diff(curve, axis=0), axis=1),
        rtol=1e-12,
    )


def test_a_spiral_in_ln_ln_alpha_keeps_its_length_per_squaring_and_not_per_decade():
    alpha = 10.0 ** np.arange(1, 17)
    spiral = np.log(np.log(alpha))
    per_squaring = settling.lengths_per_squaring(spiral, np.log(alpha))
    np.testing.assert_allclose(per_squaring, np.log(2.0), rtol=1e-12)
    assert settling.last_to_first(settling.stretches(spiral, alpha, 10.0, 10.0)) < 0.1
    settled = settling.lengths_per_squaring(-1.0 / alpha, np.log(alpha))
    assert settling.last_to_first(settled) == pytest.approx(1e-8 / 0.09, rel=1e-6)


def test_tails_are_unresolved_from_the_first_disagreement_on():
    first = settling.tails(np.array([0.0, 0.9, 0.99, 0.999, 1.0]))
    np.testing.assert_allclose(first, [1.0, 0.1, 0.01, 0.001, 0.0], rtol=1e-9)
    second = first * [1.0, 1.05, 1.2, 1.0, 1.0]
    assert settling.largest_unresolved(first, second) == pytest.approx(0.012)
    assert settling.largest_unresolved(second, first) == pytest.approx(0.012)
    assert settling.largest_unresolved(first[:2], second[:2]) == 0.0
    # Nothing is claimed below the floor.
    assert settling.largest_unresolved(first, first, floor=0.05) == pytest.approx(0.01)
    assert np.isnan(settling.largest_unresolved(first, first * np.nan))
    assert settling.largest_unresolved([], []) == INF


def test_secants_point_to_the_last_record():
    units, lengths = settling.secants(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(units, [[0.6, 0.8], [0.0, 1.0]])
    np.testing.assert_allclose(lengths, [5.0, 4.0])


def test_measures_of_a_run_and_of_none():
    alpha = 10.0 ** (2.0 ** np.arange(5))
    angles = 0.1 * np.arange(5.0)
    run = SimpleNamespace(
        smoothed_margin=alpha,
        normalized_smoothed_margin=np.array([0.5, 0.6, 0.57, 0.7, 0.8]),
        path_length=angles,
        direction=np.stack([np.cos(angles), np.sin(angles)], axis=1),
        margins=np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.5, 2.5]]),
        settings={},
    )
    found = settling.measures(run, 1e16)
    assert found == pytest.approx(
        {"margin_drop": 0.05, "squaring": 1.0, "turn": 0.1, "distribution": 0.25}
    )
    assert set(settling.measures(None, 1e16).values()) == {INF}
    assert set(settling.measures(run, 1e32).values()) == {INF}


@pytest.mark.parametrize(
    ("series", "fall"),
    [
        ([-2.0, -1.0, 0.5], 0.0),
        ([-2.0, -3.0, -1.0, -1.2], 0.5),
        ([2.0, 1.5, 1.8, 1.0], 0.5),  # from the highest value before, not the last
        ([1.0], INF),
    ],
)
def test_deepest_fall(series, fall):
    assert settling.deepest_fall(np.array(series)) == pytest.approx(fall, abs=1e-15)


def test_widest_angle_is_that_of_the_two_farthest_apart():
    vectors = np.array([[1.0, 0.0], [3.0, 3.0], [0.0, 0.1]])
    assert settling.widest_angle(vectors) == pytest.approx(np.pi / 2)
    assert settling.widest_angle(vectors[:1]) == 0.0
