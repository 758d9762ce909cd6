"""Norms of layers as linear operators, against the dense matrix."""

import pytest
import torch
from torch import nn

from latephase.measures import layers
from latephase.zoo.image_networks import alexnet


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
    spectral, frobenius, found = layers.convolution_norms(kernel, size, stride, padding)
    assert found == tuple(matrix.shape)
    assert spectral == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-7)
    assert frobenius == pytest.approx(float(torch.linalg.vector_norm(matrix)), rel=1e-12)


def test_a_kernel_of_zeros_has_norms_of_zero():
    assert layers.convolution_norms(torch.zeros(2, 2, 3, 3), (4, 4))[:2] == (0.0, 0.0)


def test_the_layers_of_a_network_are_listed_as_an_image_passes_them():
    network = alexnet(width=1 / 16, image=(1, 28, 28), generator=torch.Generator().manual_seed(0))
    table = layers.layers(network, network.image)
    assert [layer.kind for layer in table] == ["convolution"] * 5 + ["dense"] * 3
    # The second convolution sees 14 / 2 rows.
    spectral, frobenius, shape = layers.convolution_norms(network[4].weight, (7, 7), 1, 1)
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
        layers.layers(grouped, (2, 8, 8))
