"""Networks for images: H-AlexNet, which is homogeneous; DenseNet and ResNet, which are not.

`alexnet` without biases is positively homogeneous in its weights, of degree 8, one for each layer;
its biased twin starts as the same function and has no degree. DenseNet and ResNet are torchvision's
classes with a stem for small images: a 3×3 convolution, of stride 1 unless another is asked for,
and no pooling, where the originals reduce the image to a quarter before their first block. Without
normalization and biases they have no degree either, since their branches differ in depth, but
come near one as the weights grow: that of the deepest branch.

Batch normalization makes the network a function of the whole batch while it trains, and leaves the
output as it is when a convolution in front of it is scaled: of degree 0 in those weights, of degree
1 in the gain behind them, and of no degree in all weights together. The norm of such a convolution
says nothing of the function that the network computes.

Every function returns a float32 `torch.nn.Sequential` with attributes `degree` (None where there is
none) and `image`, whose outputs are [n, classes]; it raises ValueError for images of another size.
Weights are drawn from N(0, scale² · 2/fan_in) with the generator that the caller passes,
which must sit on the CPU; biases and shifts start at 0, gains at 1.
"""

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from latephase.zoo.networks import draw_weights

# Channels of AlexNet's five convolutions and its two hidden dense layers, at width 1.
_CHANNELS = (64, 192, 384, 256, 256)
_HIDDEN = (4096, 4096)


class ImageSize(nn.Module):
    """The identity on batches of images of one size; ValueError for anything else."""

    def __init__(self, image: Sequence[int]) -> None:
        super().__init__()
        self.image = tuple(image)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.image:
            raise ValueError(
                f"expected images [n, {', '.join(map(str, self.image))}], got {list(x.shape)}"
            )
        return x


def alexnet(
    classes: int = 10,
    width: float = 1.0,
    biases: bool = False,
    image: Sequence[int] = (3, 32, 32),
    *,
    generator: Generator,
    scale: float = 1.0,
) -> nn.Sequential:
    """Return H-AlexNet: five convolutions, max-pooling, three dense layers, ReLU, no dropout.

    3×3 convolutions with padding, the first of stride 2, pooling over 2×2 after the first, the
    second and the last. width multiplies the channels (64, 192, 384, 256, 256) and hidden dense
    layers (4096, 4096). biases=True adds biases to all layers, which start at 0. scale multiplies
    the weights at the start: a smaller one lets training leave them behind sooner.
    """
    image = _checked(image, classes)
    if not width > 0:
        raise ValueError(f"width: expected a positive number, got {width!r}")
    channels = [image[0], *(max(1, round(width * count)) for count in _CHANNELS)]
    layers, side = [], (image[1] + 1) // 2
    for place in range(5):
        stride = 2 if place == 0 else 1
        fan = channels[place : place + 2]
        layers += [nn.Conv2d(*fan, 3, stride=stride, padding=1, bias=biases), nn.ReLU()]
        if place in (0, 1, 4):
            layers.append(nn.MaxPool2d(2))
            side //= 2
    dense = [channels[-1] * side**2, *(max(1, round(width * count)) for count in _HIDDEN), classes]
    layers.append(nn.Flatten())
    for place in range(3):
        layers += [nn.Linear(*dense[place : place + 2], bias=biases), nn.ReLU()]
    return _initialized(layers[:-1], image, generator, None if biases else 8, scale)


def densenet(
    classes: int = 10,
    growth_rate: int = 8,
    block_config: Sequence[int] = (4, 4, 4),
    image: Sequence[int] = (3, 32, 32),
    normalized: bool = True,
    stride: int = 1,
    *,
    generator: Generator,
    scale: float = 1.0,
) -> nn.Sequential:
    """Return a DenseNet-BC of torchvision's: bottlenecks, and transitions that halve the channels.

    growth_rate=32, block_config=(6, 12, 24, 16) is DenseNet-121. Twice the growth rate channels
    leave the stem, a convolution of the given stride. normalized=False leaves out batch
    normalization and the last layer's biases; scale multiplies the weights at the start.
    """
    # torchvision takes a second to import, for which the other networks need not wait.
    from torchvision.models import DenseNet

    image = _checked(image, classes)
    if growth_rate < 1 or not block_config or min(block_config) < 1:
        raise ValueError(
            "growth_rate, block_config: expected positive integers, got "
            f"{growth_rate!r} and {block_config!r}"
        )
    if -(-min(image[1:]) // stride) < 2 ** (len(block_config) - 1):
        raise ValueError(f"image: {list(image)} is too small for {len(block_config)} blocks")
    stem = 2 * growth_rate
    network = DenseNet(growth_rate, tuple(block_config), stem, num_classes=classes)
    network.features.conv0 = nn.Conv2d(image[0], stem, 3, stride, padding=1, bias=False)
    network.features.pool0 = nn.Identity()
    return _initialized([_bare(network, normalized)], image, generator, scale=scale)


def resnet(
    classes: int = 10,
    width: int = 64,
    image: Sequence[int] = (3, 32, 32),
    normalized: bool = True,
    stride: int = 1,
    *,
    generator: Generator,
    scale: float = 1.0,
) -> nn.Sequential:
    """Return torchvision's ResNet-18 with `width` channels in its first stage, 64 originally.

    normalized, stride and scale as in `densenet`.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    image = _checked(image, classes)
    if width < 1:
        raise ValueError(f"width: expected a positive integer, got {width!r}")

    class Narrow(ResNet):
        """ResNet whose four stages have width, 2 width, 4 width and 8 width channels."""

        def _make_layer(self, block, planes, *rest, **settings):
            if planes == 64:
                self.inplanes = width
            return super()._make_layer(block, width * planes // 64, *rest, **settings)

    network = Narrow(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    network.conv1 = nn.Conv2d(image[0], width, 3, stride, padding=1, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.maxpool = nn.Identity()
    network.fc = nn.Linear(8 * width, classes)
    return _initialized([_bare(network, normalized)], image, generator, scale=scale)


def _bare(network: nn.Module, normalized: bool) -> nn.Module:
    """Return the network, without batch normalization and biases unless `normalized`."""
    if not normalized:
        for parent in list(network.modules()):
            for name, part in parent.named_children():
                if isinstance(part, nn.BatchNorm2d):
                    setattr(parent, name, nn.Identity())
                elif isinstance(part, nn.Linear):
                    part.register_parameter("bias", None)
    return network


NETWORKS = {"alexnet": alexnet, "densenet": densenet, "resnet": resnet}


def _checked(image: Sequence[int], classes: int) -> tuple[int, int, int]:
    """Return (channels, height, width) of images the networks are made for, or raise ValueError."""
    image = tuple(image)
    if len(image) != 3 or image[0] < 1 or image[1] != image[2] or not 16 <= image[1] <= 64:
        raise ValueError(
            "image: expected (channels, height, width) with height = width between 16 and 64, "
            f"as (3, 32, 32) or (1, 28, 28), got {image}"
        )
    if classes < 1:
        raise ValueError(f"classes: expected a positive integer, got {classes!r}")
    return image


def _initialized(
    layers: Sequence[nn.Module],
    image: tuple,
    generator: Generator,
    degree: int | None = None,
    scale: float = 1.0,
) -> nn.Sequential:
    """Return the network of some layers with its weights drawn, its degree and its images noted."""
    network = nn.Sequential(ImageSize(image), *layers)
    draw_weights(network, generator, scale)
    network.degree, network.image = degree, image
    return network
