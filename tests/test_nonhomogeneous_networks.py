"""What the chapter on non-homogeneous networks measures on any run, whatever it has learned."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.nonhomogeneous_networks import (
    Live,
    apart,
    claimed,
    depths,
    live,
    moved,
    rounded,
    scaling,
    shifted,
    states,
    while_learning,
)
from latephase.zoo.image_networks import alexnet
from latephase.zoo.images import bundled_fashion_mnist

UNITS = ("mean",)


def run(margins, alpha=None):
    """Return a run of records at 1, 2, 4, ... steps with the given margins [K, n]."""
    margins = np.array(margins, dtype=float)
    found = SimpleNamespace(margins=margins, steps=2 ** np.arange(len(margins)))
    found.smoothed_margin = np.array(alpha if alpha is not None else margins.min(axis=1))
    found.normalized_margins = lambda unit: margins / np.abs(margins).mean(1, keepdims=True)
    return found


def test_a_network_without_biases_has_a_degree_and_one_with_them_has_none():
    layers = [torch.nn.Linear(3, 5, bias=False), torch.nn.ReLU(), torch.nn.Linear(5, 2, bias=False)]
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    degree, defect = scaling(torch.nn.Sequential(*layers), x)
    assert degree == pytest.approx(2.0, abs=1e-12)
    assert defect < 1e-12
    layers[2] = torch.nn.Linear(5, 2)
    before = [w.clone() for w in layers[2].parameters()]
    assert 1e-3 < scaling(torch.nn.Sequential(*layers), x)[1] < np.inf
    for w, was in zip(layers[2].parameters(), before, strict=True):
        assert torch.equal(w, was)


def test_margins_that_only_grow_have_not_moved_and_need_not_be_positive():
    assert moved(run([[9, 9], [1, -2], [2, -4]]), UNITS) == 0.0
    # Sorted: -1 and 1 become 1/2 and 3/2, in units of their mean.
    assert moved(run([[1, -1], [1, 3]]), UNITS) == pytest.approx(1.0)


def test_learning_ends_where_the_most_are_right_for_the_first_time():
    learning = run([[1, -1], [1, 3], [1, 1], [1, 1]])
    assert while_learning(learning, UNITS) == pytest.approx(1.0)
    assert moved(learning, UNITS) == 0.0


def test_the_last_squaring_begins_at_the_root_of_the_last_margin():
    margins = [[9, 9], [1, 3], [1, 1], [1, 1]]
    assert shifted(run(margins, [1, 9, 50, 100]), UNITS) == pytest.approx(0.5)
    assert shifted(run(margins, [1, 2, 9, 100]), UNITS) == 0.0
    assert shifted(run(margins, [-9, -8, -7, -6]), UNITS) == 0.0


def test_a_start_is_judged_by_its_worst_network():
    early, late = run([[1, -1], [1, 3], [1, 1]]), run([[1, 1], [1, 3]], [1, 3])
    early.alignment = np.array([0.1, 0.2])
    shallow, deep = (SimpleNamespace(**vars(late)) for _ in range(2))
    shallow.alignment, deep.alignment = np.array([0.0, 0.75]), np.array([0.0, 0.5])
    deep.smoothed_margin = np.array([1, 9])
    names = ["H-AlexNet", "with biases", "DenseNet", "ResNet"]
    runs = {name: [Live(early, shallow), Live(early, deep)] for name in names}
    runs["ResNet"] = runs["ResNet"][::-1]
    assert depths(runs) == [3, 3]
    nets = {name: [torch.nn.Linear(3, 2, bias=False)] * 2 for name in names}
    found = claimed(runs, nets, torch.ones(2, 3), {0: 1.0})
    assert found["alignment"] == ([0.5, 0.5], {"at the start": [0.9, 0.9]})
    assert found["degree"][0] == pytest.approx([7.0, 7.0])
    assert [*found["degree"][1]] == ["biased twin", "DenseNet", "ResNet"]
    assert found["densenet-settles"][1]["edge"] == {0: 1.0}


def test_a_live_run_stops_at_its_levels_and_rounding_sends_it_elsewhere():
    sets = [bundled_fashion_mnist(per_class=1, split=split) for split in ("train", "test")]
    image = tuple(sets[0].x.shape[1:])
    draw = torch.Generator().manual_seed(0)
    network = alexnet(10, 0.03125, False, image, generator=draw, scale=0.7)
    ends = [states(one, sets[0]) for one in (network, rounded(network))]
    angles = apart(*ends)
    assert set(angles) == {"start", "one step", "separated"}
    assert 0 < angles["start"] < 3e-7
    run = live(network, sets, 100, [0.1, 0.2], rate=0.01, momentum=0.97)
    assert run.early.steps[0] == run.late.steps[0] == 0
    assert run.late.smoothed_margin[0] == run.early.smoothed_margin[-1]
    assert run.early.smoothed_margin[-1] > 0
    assert run.late.smoothed_margin[-1] > 0.2
    assert run.late.steps[-1] < 100
