"""Two weights: the points, where the weights come to rest, and how far a flow is from there."""

import numpy as np
import pytest

import latephase as lp
from experiments import warm_up

X = np.array([[0.3, 0.4], [0.3, -0.1], [-0.9, 0.2]])
Y = np.array([1, 1, -1])


def test_the_part_across_rests_where_the_two_points_pull_alike():
    best, across, rest = warm_up.resting_place(X, Y)
    np.testing.assert_allclose(best, [1, 0], atol=1e-12)
    np.testing.assert_allclose(across, [0, 1], atol=1e-12)
    assert rest == pytest.approx(np.log(4) / 0.5)


def test_a_flow_comes_to_the_law_and_another_direction_does_not():
    x, y = warm_up.clouds(3)
    (flow,) = warm_up.follow([3], [10.0, 1e8])
    early, late = (
        warm_up.off_the_law(flow.direction[k], flow.smoothed_margin[k], x, y) for k in (0, 1)
    )
    assert late < 1e-5 < early
    assert warm_up.off_the_law(warm_up.least_squares(x, y), 1e8, x, y) > 1
    measured = warm_up.measures(flow, x, y)
    assert (measured.iloc[1, 1:] < measured.iloc[0, 1:]).all()


def test_clouds_are_separated_by_two_points():
    x, y = warm_up.clouds(5)
    best, margin = lp.hard_margin(x, y)
    assert np.count_nonzero(y * (x @ best) < margin * (1 + 1e-9)) == 2
    np.testing.assert_array_equal(x, warm_up.clouds(5)[0])


def test_a_path_begins_at_its_start_and_climbs():
    way = warm_up.path((0.0, 5.0), X, Y, until=3.0)
    np.testing.assert_allclose(way[0], [0, 5])
    first, second, alpha = warm_up.level_lines(X, Y, 10.0)
    assert alpha[50, 100] == pytest.approx(-np.log(2 * np.exp(-3) + np.exp(-9)))
    assert (first[50, 100], second[50, 100]) == (10, 0)
    assert -np.log(np.exp(-Y * (X @ way[-1])).sum()) == pytest.approx(3.0, rel=2e-3)


def test_a_boundary_is_at_a_right_angle_to_its_weights():
    ends = warm_up.boundary(np.array([3.0, 4.0]), 2.0)
    np.testing.assert_allclose(ends @ [3.0, 4.0], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(ends, axis=1), 2)
