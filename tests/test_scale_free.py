"""Units of margins that need no degree, and the series of a training run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from latephase import diagnose
from latephase.training import scale_free
from latephase.training.train import Settings
from latephase.zoo import networks
from latephase.zoo.image_networks import alexnet, resnet
from latephase.zoo.images import bundled_fashion_mnist


def drawn(build, seed=0, **settings):
    return build(generator=torch.Generator().manual_seed(seed), **settings)


def test_a_state_is_what_diagnose_says():
    task = bundled_fashion_mnist(per_class=3)
    network = drawn(alexnet, width=1 / 16, image=(1, 28, 28))
    now = scale_free.snapshot(network, task.x, task.y, batch_size=7)
    seen = diagnose(network, task.x, task.y, loss="cross_entropy", degree=8)
    assert np.allclose(now.margins, seen.margins, rtol=1e-4, atol=1e-5)
    assert now.smoothed_margin == pytest.approx(seen.smoothed_margin, rel=1e-4)
    assert now.alignment == pytest.approx(seen.alignment, abs=1e-4)
    outputs = network(task.x).detach().numpy()
    centred = outputs - outputs.mean(1, keepdims=True)
    assert now.logit_size == pytest.approx(np.sqrt((centred**2).sum(1).mean()), rel=1e-5)
    wrong = scale_free.error_rate(network, task.x, task.y, batch_size=4)
    assert wrong == seen.training_error


class Growing:
    """A run in which every weight of a network is scaled by 1, 2, 4."""

    steps = (0, 10, 100)

    def __init__(self, module):
        self.begin = [p.detach().clone() for p in module.parameters()]

    def __len__(self):
        return len(self.steps)

    def load(self, k, module):
        with torch.no_grad():
            for p, q in zip(module.parameters(), self.begin, strict=True):
                p.copy_(2**k * q)


def test_a_network_that_only_grows_does_not_move_in_any_unit():
    task = bundled_fashion_mnist(per_class=2)
    network = drawn(alexnet, width=1 / 16, image=(1, 28, 28))
    series = scale_free.history(Growing(network), network, task, task)
    assert series.units == ("mean", "logits", "frobenius", "spectral", "norm")
    for unit in series.units:
        assert np.all(series.distances(unit) < 1e-5)
    assert np.allclose(series.turn, 0, atol=1e-6)
    assert np.allclose(series.turns, 0, atol=1e-6)
    assert np.allclose(np.diff(series.log_norm), np.log(2))
    assert series.margins.shape == (3, 20)
    assert series.first_perfect == np.inf
    right = replace(series, margins=np.abs(series.margins) + 1)
    assert right.first_perfect == 0
    with pytest.raises(ValueError, match="unit: expected one of"):
        series.normalized_margins("pounds")


def test_products_of_norms_are_not_offered_with_batch_normalization():
    task = bundled_fashion_mnist(per_class=2)
    network = drawn(resnet, width=2, image=(1, 28, 28))
    series = scale_free.history(Growing(network), network, task, task)
    assert series.units == ("mean", "logits")


def test_a_series_comes_back_from_its_arrays():
    task = bundled_fashion_mnist(per_class=1)
    network = drawn(networks.convolutional, image=(1, 28, 28), outputs=10, dtype=torch.float32)
    series = scale_free.history(Growing(network), network, task, task)
    again = scale_free.History.of(vars(series))
    assert np.array_equal(again.normalized_margins("norm"), series.normalized_margins("norm"))
    arrays = dict(vars(series))
    del arrays["turns"]
    with pytest.raises(ValueError, match="missing turns"):
        scale_free.History.of(arrays)


def test_following_a_run_needs_no_folder():
    task = bundled_fashion_mnist(per_class=1)
    network = drawn(networks.convolutional, image=(1, 28, 28), outputs=10, dtype=torch.float32)
    settings = Settings(steps=30, schedule="normalized", rate=0.5, momentum=0.9, checkpoints=5)
    series = scale_free.followed(network, task, task, settings)
    assert series.steps[-1] == 30
    assert np.array_equal(series.margins[-1] > 0, np.ones(10))
    assert series.ratio.shape == (len(series.steps), 1)
    assert series.test_error[-1] == 0
