"""Every network is homogeneous of the degree it states, bias-free, and a function of its seed."""

import pytest
import torch

from latephase.problem.degree import homogeneity_degree
from latephase.zoo import networks


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(*shape):
    return torch.randn(*shape, generator=generator(5), dtype=torch.float64)


IMAGE = (1, 14, 14)
CASES = {
    "linear": (lambda g: networks.linear(4, generator=g), points(6, 4), 1),
    "deep linear": (lambda g: networks.deep_linear([4, 5, 3, 1], generator=g), points(6, 4), 3),
    "diagonal": (
        lambda g: networks.diagonal(*torch.randn(2, 3, generator=g).tolist()),
        points(6, 3),
        2,
    ),
    "relu": (lambda g: networks.two_layer(4, 6, generator=g), points(6, 4), 2),
    "leaky relu": (lambda g: networks.two_layer(4, 6, "leaky_relu", generator=g), points(6, 4), 2),
    "squared relu": (
        lambda g: networks.two_layer(4, 6, "squared_relu", generator=g),
        points(6, 4),
        3,
    ),
    "fixed signs": (
        lambda g: networks.two_layer(4, 6, "squared_relu", fixed_signs=True, generator=g),
        points(6, 4),
        2,
    ),
    "three layers": (
        lambda g: networks.mlp([4, 6, 5, 3], "squared_relu", generator=g),
        points(6, 4),
        7,
    ),
    "strided": (lambda g: networks.convolutional(IMAGE, (3, 4), generator=g), points(5, *IMAGE), 3),
    "max-pooled": (
        lambda g: networks.convolutional(IMAGE, (3,), downsampling="max", generator=g),
        points(5, *IMAGE),
        2,
    ),
    "average-pooled": (
        lambda g: networks.convolutional(IMAGE, (3,), "squared_relu", "average", generator=g),
        points(5, *IMAGE),
        3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_stated_degree_is_the_measured_one(name):
    make, x, degree = CASES[name]
    network = make(generator())
    assert network.degree == degree
    measured, defect = homogeneity_degree(network, x)
    assert measured == degree
    assert defect < 1e-9  # rounding of a degree-7 polynomial in float64


@pytest.mark.parametrize("name", CASES)
def test_no_network_has_a_bias_and_the_seed_decides(name):
    make, x, _ = CASES[name]
    one, same, other = make(generator()), make(generator()), make(generator(1))
    assert not any("bias" in parameter for parameter, _ in one.named_parameters())
    assert torch.equal(one(x), same(x))
    assert not torch.equal(one(x), other(x))
    assert one(x).dtype == torch.float64


def test_fixed_signs_are_half_of_each_and_not_trained():
    network = networks.two_layer(3, 4, fixed_signs=True, generator=generator())
    assert network[-1].weight.tolist() == [[0.5, 0.5, -0.5, -0.5]]
    assert not network[-1].weight.requires_grad


def test_squared_relu_and_its_slope_vanish_at_zero():
    z = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    squared = networks.SquaredReLU()(z)
    assert squared.tolist() == [0.0, 0.0, 4.0]
    assert torch.autograd.grad(squared.sum(), z)[0].tolist() == [0.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: networks.mlp([3], generator=generator()), "two or more positive integers"),
        (lambda: networks.mlp([3, 0, 1], generator=generator()), "two or more positive integers"),
        (lambda: networks.two_layer(3, 4, "tanh", generator=generator()), "activation: expected"),
        (
            lambda: networks.two_layer(3, 5, fixed_signs=True, generator=generator()),
            "expected an even width and one output, got width 5",
        ),
        (
            lambda: networks.convolutional((1, 4, 4), (3, 3), generator=generator()),
            "is too small for 2 convolutions",
        ),
        (
            lambda: networks.convolutional(IMAGE, downsampling="sum", generator=generator()),
            "downsampling: expected",
        ),
    ],
)
def test_bad_input_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("downsampling", ["stride", "max", "average"])
@pytest.mark.parametrize("side", [7, 12, 13, 14])
def test_convolutions_count_the_pixels_that_are_left(side, downsampling):
    network = networks.convolutional((2, side, side), (3,), "relu", downsampling,
                                     generator=generator())  # fmt: skip
    assert network(points(5, 2, side, side)).shape == (5, 1)


def test_weights_have_the_stated_deviation():
    network = networks.linear(200, 500, scale=0.3, generator=generator())
    # 10⁵ draws: the sample deviation lies within 1/√(2·10⁵) = 0.22 % of the true one, times five.
    assert network[0].weight.std().item() == pytest.approx(0.3 * (2 / 200) ** 0.5, rel=0.011)


def test_a_diagonal_network_multiplies_its_two_weights():
    x = points(3, 2)
    outputs = networks.diagonal([1.0, 2.0], [0.5, 3.0])(x)[:, 0]
    assert torch.allclose(outputs, x @ torch.tensor([0.5, 6.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"u \[d\] and v \[d\]"):
        networks.diagonal([1.0, 2.0], [1.0])
