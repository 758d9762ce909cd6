"""Networks without biases: positively homogeneous in their weights, Φ(x; cW) = c^L Φ(x; W), c > 0.

Every function returns an ordinary `torch.nn.Sequential` whose attribute `degree` is that L: a
trainable linear or convolutional layer adds one to it, a squared ReLU doubles what it has so far.
Outputs are [n, outputs]. Weights are drawn from N(0, scale² · 2/fan_in) with the generator that
the caller passes, which must sit on the CPU; they are float64 unless `dtype` says otherwise.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn


class SquaredReLU(nn.Module):
    """relu(z)², 2-homogeneous and continuously differentiable: no kink is left at z = 0.

    Alignment is proved for networks with it, and not for those with plain ReLU.
    """

    def forward(self, z: Tensor) -> Tensor:
        rectified = torch.relu(z)
        return rectified * rectified


class Scaling(nn.Module):
    """x ↦ w ∘ x with one trainable weight for each input."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


# Constructor of each activation, and the power with which it scales.
ACTIVATIONS = {
    "identity": (nn.Identity, 1),
    "relu": (nn.ReLU, 1),
    "leaky_relu": (nn.LeakyReLU, 1),
    "squared_relu": (SquaredReLU, 2),
}


def linear(
    inputs: int, outputs: int = 1, *, generator: Generator, scale: float = 1.0
) -> nn.Sequential:
    """Return x ↦ x Wᵀ, of degree 1."""
    return mlp([inputs, outputs], generator=generator, scale=scale)


def deep_linear(
    widths: Sequence[int], *, generator: Generator, scale: float = 1.0
) -> nn.Sequential:
    """Return x ↦ x W_1ᵀ ⋯ W_Lᵀ, of degree L = len(widths) - 1; widths from inputs to outputs."""
    return mlp(widths, "identity", generator=generator, scale=scale)


def diagonal(first: Sequence[float], second: Sequence[float]) -> nn.Sequential:
    """Return x ↦ Σ_j u_j v_j x_j from the weights u = `first`, v = `second`; of degree 2.

    A deep linear network whose first layer is diagonal: small enough for its KKT points to be
    listed by hand, and already with some that are no local maxima of the margin.
    """
    u, v = (torch.tensor(weights, dtype=torch.float64) for weights in (first, second))
    if u.ndim != 1 or u.shape != v.shape or len(u) == 0:
        raise ValueError(f"expected u [d] and v [d], got {list(u.shape)} and {list(v.shape)}")
    output = nn.Linear(len(v), 1, bias=False, dtype=torch.float64)
    output.weight = nn.Parameter(v[None])
    network = nn.Sequential(Scaling(u), output)
    network.degree = 2
    return network


def two_layer(
    inputs: int,
    width: int,
    activation: str = "relu",
    *,
    outputs: int = 1,
    fixed_signs: bool = False,
    generator: Generator,
    scale: float = 1.0,
) -> nn.Sequential:
    """Return x ↦ Σ_j a_j σ(⟨w_j, x⟩), of degree 2 for (leaky) ReLU and 3 for squared ReLU.

    fixed_signs=True freezes the output weights at ±1/√width, the first half positive, and lowers
    the degree by one. Raises ValueError if the width is then odd or there are several outputs.
    """
    network = mlp([inputs, width, outputs], activation, generator=generator, scale=scale)
    if fixed_signs:
        if width % 2 or outputs != 1:
            raise ValueError(
                f"fixed_signs: expected an even width and one output, got width {width} and "
                f"{outputs} outputs"
            )
        signs = torch.ones(1, width, dtype=torch.float64)
        signs[:, width // 2 :] = -1
        network[-1].weight = nn.Parameter(signs / width**0.5, requires_grad=False)
        network.degree -= 1
    return network


def mlp(
    widths: Sequence[int],
    activation: str = "relu",
    *,
    generator: Generator,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Return a fully connected network, an activation between each two of its linear layers.

    widths: inputs, hidden layers, outputs. Of degree m with m linear layers and (leaky) ReLU,
    2^m - 1 with squared ReLU.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths: expected two or more positive integers, got {list(widths)}")
    layers = []
    for fan in pairwise(widths):
        layers += [_activation(activation), nn.Linear(*fan, bias=False, dtype=dtype)]
    return _initialized(layers[1:], generator, scale)


def convolutional(
    image: Sequence[int],
    channels: Sequence[int] = (8, 16),
    activation: str = "relu",
    downsampling: str = "stride",
    *,
    outputs: int = 1,
    generator: Generator,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Return 3×3 convolutions without padding, each halving the image, then one linear layer.

    image: (channels, height, width) of an input. downsampling: "stride" of two, the cheapest,
    or "max" or "average" pooling after each activation. With m convolutions of degree m + 1 for
    (leaky) ReLU, 2^(m+1) - 1 for squared ReLU, whatever the downsampling. Max-pooling has kinks
    of its own; squared ReLU with strides or average pooling has none. Raises ValueError if the
    image is too small.
    """
    if downsampling not in ("stride", "max", "average"):
        raise ValueError(
            f"downsampling: expected 'stride', 'max' or 'average', got {downsampling!r}"
        )
    pooling = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}.get(downsampling)
    layers, (height, width) = [], image[1:]
    look = {"stride": 1 if pooling else 2, "bias": False, "dtype": dtype}
    for fan in pairwise([image[0], *channels]):
        layers += [nn.Conv2d(*fan, 3, **look), _activation(activation)]
        layers += [pooling(2)] if pooling else []
        # A 3×3 window leaves s - 2 of s rows; pooling then halves rounding down, a stride up.
        height, width = ((side - 2 + (not pooling)) // 2 for side in (height, width))
    if min(height, width) < 1:
        raise ValueError(f"image: {list(image)} is too small for {len(channels)} convolutions")
    dense = nn.Linear(channels[-1] * height * width, outputs, bias=False, dtype=dtype)
    return _initialized([*layers, nn.Flatten(), dense], generator, scale)


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name][0]()


def _initialized(layers: Sequence[nn.Module], generator: Generator, scale: float) -> nn.Sequential:
    """Return the network of some layers with its weights drawn and its degree noted."""
    powers = dict(ACTIVATIONS.values())
    degree = 0
    for layer in layers:
        degree = degree * powers.get(type(layer), 1) + hasattr(layer, "weight")
    network = nn.Sequential(*layers)
    draw_weights(network, generator, scale)
    network.degree = degree
    return network


def draw_weights(network: nn.Module, generator: Generator, scale: float = 1.0) -> None:
    """Draw the weights of all dense and convolutional layers from N(0, scale² · 2/fan_in).

    In place, in the order of `network.modules()`; biases become 0.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            deviation = scale * (2.0 / layer.weight[0].numel()) ** 0.5
            nn.init.normal_(layer.weight, 0.0, deviation, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
