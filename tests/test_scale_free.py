"""Units of margins that need no degree, and norms of layers as linear operators."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from latephase import diagnose, networks, scale_free
from latephase.image_networks import alexnet, resnet
from latephase.images import bundled_fashion_mnist
from latephase.training import Settings


def drawn(build, seed=0, **settings):
    return build(generator=torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (1, 1, 1, 1), (2, 4, 2, 3)])
def test_the_norms_of_a_convolution_are_those_of_its_matrix(shape, stride, padding):
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    size = (6, 5)
    pixels = shape[1] * 30
    basis = torch.eye(pixels, dtype=torch.float64).reshape(pixels, shape[1], *size)
    images = nn.functional.conv2d(basis, kernel, None, stride, padding)
    matrix = images.reshape(pixels, -1).T
    spectral, frobenius, found = scale_free.convolution_norms(kernel, size, stride, padding)
    assert found == tuple(matrix.shape)
    assert spectral == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-7)
    assert frobenius == pytest.approx(float(torch.linalg.vector_norm(matrix)), rel=1e-12)


def test_a_kernel_of_zeros_has_norms_of_zero():
    assert scale_free.convolution_norms(torch.zeros(2, 2, 3, 3), (4, 4))[:2] == (0.0, 0.0)


def test_the_layers_of_a_network_are_listed_as_an_image_passes_them():
    network = drawn(alexnet, width=1 / 16, image=(1, 28, 28))
    table = scale_free.layers(network, network.image)
    assert [layer.kind for layer in table] == ["convolution"] * 5 + ["dense"] * 3
    # The second convolution sees 14 / 2 rows.
    spectral, frobenius, shape = scale_free.convolution_norms(network[4].weight, (7, 7), 1, 1)
    assert (table[1].spectral, table[1].frobenius) == (spectral, frobenius)
    assert table[1].smallest_ratio == min(shape) ** -0.5
    dense = [part.weight.detach().double() for part in network if isinstance(part, nn.Linear)]
    for layer, weight in zip(table[5:], dense, strict=True):
        exact = float(torch.linalg.matrix_norm(weight, 2))
        assert layer.spectral == pytest.approx(exact, rel=1e-6)
        assert layer.smallest_ratio <= layer.ratio <= 1
    assert network.training
    grouped = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2))
    with pytest.raises(ValueError, match="0: expected a convolution without groups"):
        scale_free.layers(grouped, (2, 8, 8))


def test_a_state_is_what_diagnose_says():
    task = bundled_fashion_mnist(per_class=3)
    network = drawn(alexnet, width=1 / 16, image=(1, 28, 28))
    now = scale_free.state(network, task.x, task.y, batch_size=7)
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
    series = scale_free.series(Growing(network), network, task, task)
    assert series.units == ("mean", "logits", "frobenius", "spectral", "norm")
    for unit in series.units:
        assert np.all(series.distances(unit) < 1e-5)
    assert np.allclose(series.turn, 0, atol=1e-6)
    assert np.allclose(series.turns, 0, atol=1e-6)
    assert np.allclose(np.diff(series.log_norm), np.log(2))
    assert series.margins.shape == (3, 20)
    assert series.first_perfect == np.inf
    assert series.change(10, "mean") == np.inf  # it never has every example right
    right = replace(series, margins=np.abs(series.margins) + 1)
    assert right.first_perfect == 0
    assert right.change(10, "mean") == right.distances("mean")[-1]
    with pytest.raises(ValueError, match="unit: expected one of"):
        series.normalized_margins("pounds")


def test_products_of_norms_are_not_offered_with_batch_normalization():
    task = bundled_fashion_mnist(per_class=2)
    network = drawn(resnet, width=2, image=(1, 28, 28))
    series = scale_free.series(Growing(network), network, task, task)
    assert series.units == ("mean", "logits")


def test_a_series_comes_back_from_its_arrays():
    task = bundled_fashion_mnist(per_class=1)
    network = drawn(networks.convolutional, image=(1, 28, 28), outputs=10, dtype=torch.float32)
    series = scale_free.series(Growing(network), network, task, task)
    again = scale_free.Series.of(vars(series))
    assert np.array_equal(again.normalized_margins("norm"), series.normalized_margins("norm"))
    arrays = dict(vars(series))
    del arrays["turns"]
    with pytest.raises(ValueError, match="missing turns"):
        scale_free.Series.of(arrays)


def test_following_a_run_needs_no_folder():
    task = bundled_fashion_mnist(per_class=1)
    network = drawn(networks.convolutional, image=(1, 28, 28), outputs=10, dtype=torch.float32)
    settings = Settings(steps=30, schedule="normalized", rate=0.5, momentum=0.9, checkpoints=5)
    series = scale_free.followed(network, task, task, settings)
    assert series.steps[-1] == 30
    assert np.array_equal(series.margins[-1] > 0, np.ones(10))
    since = np.flatnonzero(series.steps <= 10)[-1]
    assert series.length(10) == pytest.approx(series.turn[since:].sum())
    assert series.ratio.shape == (len(series.steps), 1)
    assert series.test_error[-1] == 0


def test_the_defect_of_homogeneity_is_rounding_or_plain():
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    plain = drawn(alexnet, width=1 / 16, image=(1, 28, 28))
    before = [p.clone() for p in plain.parameters()]
    assert scale_free.homogeneity_defect(plain, x, 8) < 1e-12
    assert scale_free.homogeneity_defect(plain, x, 7) == pytest.approx(0.5)
    assert all(torch.equal(p, q) for p, q in zip(before, plain.parameters(), strict=True))
    assert scale_free.homogeneity_defect(drawn(resnet, width=2, image=(1, 28, 28)), x, 8) > 0.1
