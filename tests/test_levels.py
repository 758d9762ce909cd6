"""Stations: the flow lands on each level, and what it did between them is not lost."""

import numpy as np
import pytest
import torch

from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.stations import stations
from latephase.zoo.networks import linear
from latephase.zoo.tasks import separable_points

TASK = separable_points(12, 3, margin=0.2, seed=1)
LEVELS = [10.0, 100.0, 1e6]


def start():
    return linear(3, generator=torch.Generator().manual_seed(1), scale=0.3)


def test_there_is_one_record_at_each_level_and_it_is_the_flow_s():
    kept = stations(start(), TASK.x, TASK.y, LEVELS)
    assert len(kept) == len(kept.direction) == len(kept.dual) == 3
    assert np.all((kept.smoothed_margin >= LEVELS) & (kept.smoothed_margin <= 1.001 * 1e6))
    np.testing.assert_allclose(kept.smoothed_margin, LEVELS, rtol=1e-3)
    plain = gradient_flow(start(), TASK.x, TASK.y, until=1e6)
    np.testing.assert_allclose(kept.direction[-1], plain.direction[-1], atol=1e-6)
    assert np.all(np.diff(kept.path_length) > 0.0)
    assert 0.0 <= kept.settings["margin_drop"] < 1e-12


@pytest.mark.parametrize("levels", [[], [10.0, 10.0], [100.0, 10.0]])
def test_levels_that_do_not_increase_are_refused(levels):
    with pytest.raises(ValueError, match="expected smoothed margins that increase"):
        stations(start(), TASK.x, TASK.y, levels)
