"""`at`: the flow lands on each level, and what it did between them is not lost."""

import numpy as np
import pytest
import torch

from latephase.flow.gradient_flow import gradient_flow
from latephase.zoo.networks import linear
from latephase.zoo.tasks import separable_points

TASK = separable_points(12, 3, margin=0.2, seed=1)
LEVELS = [10.0, 100.0, 1e6]


def start():
    return linear(3, generator=torch.Generator().manual_seed(1), scale=0.3)


def test_there_is_one_record_at_each_level_and_it_is_the_flow_s():
    kept = gradient_flow(start(), TASK, at=LEVELS)
    assert len(kept) == len(kept.direction) == len(kept.dual) == 3
    assert np.all((kept.smoothed_margin >= LEVELS) & (kept.smoothed_margin <= 1.001 * 1e6))
    np.testing.assert_allclose(kept.smoothed_margin, LEVELS, rtol=1e-3)
    plain = gradient_flow(start(), TASK.x, TASK.y, until=1e6)
    np.testing.assert_allclose(kept.direction[-1], plain.direction[-1], atol=1e-6)
    assert np.all(np.diff(kept.path_length) > 0.0)
    assert 0.0 <= kept.settings["margin_drop"] < 1e-12


@pytest.mark.parametrize("levels", [[], [10.0, 10.0], [100.0, 10.0], [-1.0, 1.0], [1.0, 1e301]])
def test_levels_that_do_not_increase_are_refused(levels):
    with pytest.raises(ValueError, match=r"at: expected smoothed margins .* that increase"):
        gradient_flow(start(), TASK, at=levels)


def test_levels_that_the_start_has_passed_are_refused():
    module = linear(3, generator=torch.Generator().manual_seed(1), scale=0.3)
    gradient_flow(module, TASK, until=50.0).write_to(module)
    with pytest.raises(ValueError, match=r"start, whose smoothed margin is 50\.\d+, got 10"):
        gradient_flow(module, TASK, at=LEVELS)


def test_another_end_beside_levels_is_refused():
    with pytest.raises(ValueError, match="last level 100 is where the flow ends, got 1000"):
        gradient_flow(start(), TASK, at=[10.0, 100.0], until=1000.0)


def test_the_record_nearest_a_smoothed_margin():
    flow = gradient_flow(start(), TASK, until=1e6)
    found = flow.at(2e3)
    distance = np.abs(np.log(flow.smoothed_margin / 2e3))
    assert found.index == np.argmin(distance)
    assert found.smoothed_margin == flow.smoothed_margin[found.index]
    assert found.alignment == flow.alignment[found.index]
    np.testing.assert_array_equal(found.direction, flow.direction[found.index])
    np.testing.assert_array_equal(found.dual, flow.dual[found.index])
    assert flow.at(1e6).index == len(flow) - 1 == flow.record().index
    assert len(repr(found)) < 500


@pytest.mark.parametrize("alpha", [1e-300, 1.1e6, 0.0, float("nan")])
def test_a_smoothed_margin_that_was_not_reached_is_refused(alpha):
    flow = gradient_flow(start(), TASK, at=LEVELS)
    with pytest.raises(ValueError, match=r"3 records reach, from 10 to 1e\+06"):
        flow.at(alpha)


def test_an_extension_beyond_the_last_level_has_records_on_its_way():
    levels = gradient_flow(start(), TASK, at=[10.0, 100.0])
    longer, plain = levels.extend(1e6), gradient_flow(start(), TASK, until=1e6)
    later = [(one.smoothed_margin > 101.0).sum() for one in (longer, plain)]
    assert later[0] >= 0.5 * later[1] > 2
