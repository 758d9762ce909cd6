"""The image networks: their degree, their starts, and what they refuse."""

import pytest
import torch

from latephase import homogeneity_degree
from latephase.zoo import image_networks
from latephase.zoo.image_networks import alexnet, densenet, resnet

IMAGES = [(3, 32, 32), (1, 28, 28)]


def drawn(build, seed=0, **settings):
    return build(generator=torch.Generator().manual_seed(seed), **settings)


SMALL = {
    "alexnet": lambda **s: drawn(alexnet, width=1 / 16, **s),
    "biased": lambda **s: drawn(alexnet, width=1 / 16, biases=True, **s),
    "densenet": lambda **s: drawn(densenet, growth_rate=4, block_config=(2, 2), **s),
    "resnet": lambda **s: drawn(resnet, width=4, **s),
    "bare resnet": lambda **s: drawn(resnet, width=4, normalized=False, stride=2, **s),
    "bare densenet": lambda **s: drawn(
        densenet, growth_rate=4, block_config=(2, 2), normalized=False, stride=2, **s
    ),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", SMALL)
def test_a_network_takes_images_of_its_size_and_no_other(name, image):
    network = SMALL[name](image=image, classes=7)
    assert network.image == image
    assert network(torch.randn(2, *image)).shape == (2, 7)
    channels, side, _ = image
    for wrong in ((channels, side, side - 1), (channels + 1, side, side), (side, side)):
        with pytest.raises(ValueError, match=rf"expected images \[n, {channels}, {side}, {side}\]"):
            network(torch.randn(2, *wrong))


@pytest.mark.parametrize("name", SMALL)
def test_a_start_is_its_generators_alone(name):
    torch.manual_seed(0)
    one = SMALL[name](seed=1)
    torch.manual_seed(9)
    for p, q in zip(one.parameters(), SMALL[name](seed=1).parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.dtype == torch.float32
    first, other = (next(SMALL[name](seed=s).parameters()) for s in (1, 2))
    assert not torch.equal(first, other)


def test_alexnet_is_homogeneous_of_degree_eight_and_its_twin_is_not():
    x = torch.randn(6, 1, 28, 28, dtype=torch.float64)
    plain, biased = (SMALL[name](image=(1, 28, 28)) for name in ("alexnet", "biased"))
    assert torch.equal(plain(x.float()), biased(x.float()))  # biases start at 0
    assert (plain.degree, biased.degree) == (8, None)
    assert homogeneity_degree(plain.double(), x)[0] == 8
    with torch.no_grad():
        for p in biased.parameters():
            if p.ndim == 1:
                p.normal_(generator=torch.Generator().manual_seed(3))
    assert homogeneity_degree(biased.double(), x)[0] is None


@pytest.mark.parametrize("name", ["densenet", "resnet"])
def test_a_convolution_before_batch_normalization_has_degree_zero(name):
    network, x = SMALL[name]().double(), torch.randn(16, 3, 32, 32, dtype=torch.float64)
    assert network.degree is None
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eps = 1e-12  # or the invariance holds only as far as ε is small
    first = network[1].features.conv0 if name == "densenet" else network[1].conv1
    output = network(x)
    with torch.no_grad():
        first.weight *= 7.0
    assert torch.allclose(network(x), output, rtol=1e-6)


@pytest.mark.parametrize("name", ["densenet", "resnet"])
def test_a_bare_network_is_one_of_convolutions_and_a_dense_layer_alone(name):
    x = torch.randn(4, 3, 32, 32)
    bare = SMALL[f"bare {name}"]().eval()
    assert all(p.ndim > 1 for p in bare.parameters())
    assert list(bare.buffers()) == []
    assert bare.degree is None
    # Fresh statistics normalize nothing but by √(1 + ε), and a last bias of 0 adds nothing.
    sizes = {"densenet": (densenet, {"growth_rate": 4, "block_config": (2, 2)})}
    build, given = sizes.get(name, (resnet, {"width": 4}))
    whole = drawn(build, stride=2, **given).eval()
    assert torch.allclose(bare(x), whole(x), rtol=1e-3, atol=1e-4)
    full = drawn(build, **given)
    stems = [next(m for m in n.modules() if isinstance(m, torch.nn.Conv2d)) for n in (whole, full)]
    assert [stem(x).shape[-1] for stem in stems] == [16, 32]


def test_the_full_sizes_are_those_of_the_papers():
    sizes = {
        "alexnet": sum(p.numel() for p in drawn(alexnet).parameters()),
        "densenet": sum(
            p.numel()
            for p in drawn(densenet, growth_rate=32, block_config=(6, 12, 24, 16)).parameters()
        ),
        "resnet": sum(p.numel() for p in drawn(resnet).parameters()),
    }
    # torchvision's DenseNet-121 and ResNet-18 with ten classes, less what the larger stem has more.
    assert sizes["densenet"] == 7_978_856 - 990 * 1025 - 64 * 3 * (49 - 9)
    assert sizes["resnet"] == 11_689_512 - 990 * 513 - 64 * 3 * (49 - 9)
    assert sizes["alexnet"] == sum(
        a * b for a, b in [(27, 64), (576, 192), (1728, 384), (3456, 256), (2304, 256)]
    ) + sum(a * b for a, b in [(1024, 4096), (4096, 4096), (4096, 10)])


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (alexnet, {"image": (3, 32)}, "image: expected"),
        (resnet, {"image": (3, 8, 8)}, "between 16 and 64"),
        (densenet, {"image": (3, 32, 28)}, "height = width"),
        (alexnet, {"width": 0.0}, "width: expected a positive number"),
        (resnet, {"width": 0}, "width: expected a positive integer"),
        (densenet, {"growth_rate": 0}, "growth_rate, block_config"),
        (densenet, {"block_config": (1,) * 6, "image": (1, 28, 28)}, "too small for 6 blocks"),
        (densenet, {"block_config": (1,) * 5, "image": (1, 28, 28), "stride": 2}, "for 5 blocks"),
        (alexnet, {"classes": 0}, "classes: expected"),
    ],
)
def test_settings_without_a_network_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message):
        drawn(build, **settings)


def test_every_network_has_a_name():
    assert set(image_networks.NETWORKS) == {"alexnet", "densenet", "resnet"}
