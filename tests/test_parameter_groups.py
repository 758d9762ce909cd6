"""What a recorded run keeps of the weights, against the weights themselves."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from latephase.training.parameter_groups import parameter_groups
from latephase.training.train import Settings, train
from latephase.zoo.image_networks import alexnet, densenet, resnet
from latephase.zoo.images import bundled_fashion_mnist

TASK = bundled_fashion_mnist(per_class=2)
NETWORKS = {
    "alexnet": (alexnet, {"width": 1 / 16}),
    "densenet": (densenet, {"growth_rate": 4, "block_config": (2, 2), "stride": 2}),
    "bare": (resnet, {"width": 4, "stride": 2, "normalized": False}),
}


def followed(name, folder):
    build, sizes = NETWORKS[name]
    network = build(generator=torch.Generator().manual_seed(0), image=(1, 28, 28), **sizes)
    asked = Settings(steps=6, schedule="normalized", rate=0.1, checkpoints=4)
    run = train(network, TASK, asked, folder)
    return run, network, parameter_groups(run, network, TASK)


@pytest.fixture(scope="module", params=NETWORKS)
def one(request, tmp_path_factory):
    return request.param, *followed(request.param, tmp_path_factory.mktemp(request.param))


def weights(run, network, names):
    """W of some groups [K, ·] at the checkpoints, and each one's unit vector."""
    rows = []
    for k in range(len(run)):
        parts = dict(run.load(k, network).named_parameters())
        rows.append(np.concatenate([parts[n].detach().numpy().ravel() for n in names]))
    rows = np.array(rows, dtype=float)
    return rows, rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_distances_of_directions_are_those_of_the_weights(one):
    _, run, network, found = one
    names = found.groups.tolist()
    assert names == [n for n, _ in network.named_parameters()]
    for chosen in (None, names[:1], names[-3:]):
        directions = weights(run, network, chosen or names)[1]
        expected = np.linalg.norm(directions[:, None] - directions, axis=2)
        assert expected[0, 1] > 0
        # Chords are kept in float32.
        np.testing.assert_allclose(found.distances(chosen), expected, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match=r"groups: expected some of .*, got \['no'\]"):
        found.distances(["no"])


def test_norms_and_singular_values_are_those_of_the_weights(one):
    _, run, network, found = one
    for m, name in enumerate(found.matrices):
        place = found.groups.tolist().index(name)
        rows, _ = weights(run, network, [name])
        np.testing.assert_allclose(found.norms[:, place], np.linalg.norm(rows, axis=1), rtol=1e-12)
        shape = dict(network.named_parameters())[name].shape
        values = np.linalg.svd(rows[-1].reshape(shape[0], -1), compute_uv=False)[:8]
        np.testing.assert_allclose(found.singular_values[-1, m, : len(values)], values, rtol=1e-6)
        assert not found.singular_values[-1, m, len(values) :].any()


def test_eulers_identity_holds_in_the_groups_that_have_one(one):
    name, _, _, found = one
    if name == "alexnet":
        # Of degree one in each of its eight groups, so λ_g = 1/8 and each alone with λ_g = 1.
        expected = np.broadcast_to(found.weighted_margin[:, None], found.euler.shape)
        np.testing.assert_allclose(found.euler, expected, rtol=1e-4, atol=1e-5)
    else:
        # The last layer's weights carry degree one of their own, but for its bias.
        last = [k for k, group in enumerate(found.groups) if "classifier" in group or "fc" in group]
        carried = found.euler[:, last].sum(1)
        np.testing.assert_allclose(carried, found.weighted_margin, rtol=1e-4, atol=1e-5)
    if name == "densenet":
        # A convolution before batch normalization carries none, as far as its ε is small.
        first = found.groups.tolist().index("1.features.conv0.weight")
        forces = found.norms[:, first] * found.gradient_norms[:, first]
        assert np.all(np.abs(found.euler[:, first]) < 1e-3 * forces)
    assert np.all(np.abs(found.euler) <= found.norms * found.gradient_norms * (1 + 1e-6))


def test_what_a_scale_of_all_weights_does(one):
    name, _, _, found = one
    rate = np.diff(found.scaled_size) / np.diff(np.log(found.scales))
    if name == "alexnet":
        np.testing.assert_allclose(rate, 8, rtol=1e-9)
        np.testing.assert_allclose(found.scaled_margins[1:], found.scaled_margins[:-1], rtol=1e-5)
    elif name == "bare":
        # Stem, two convolutions in each of eight blocks, and the dense layer: 18 in the limit.
        assert rate[0] < 17
        assert rate[-1] == pytest.approx(18, abs=0.01)
        moved = np.abs(np.diff(found.scaled_margins, axis=0)).max(1)
        assert moved[-1] < 0.1 * moved[0]
    else:
        assert len(rate) == 0


def test_training_mode_takes_the_whole_set_as_one_batch_and_leaves_no_trace(one):
    name, run, network, found = one
    if name != "densenet":
        assert found.batch_margins.shape == (len(run), 0)
        return
    before = {key: value.clone() for key, value in run.load(-1, network).state_dict().items()}
    again = parameter_groups(run, network, TASK)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    with torch.no_grad():
        outputs = network.train()(TASK.x)
    true = outputs.gather(1, TASK.y[:, None])[:, 0]
    others = outputs.scatter(1, TASK.y[:, None], -torch.inf).amax(1)
    np.testing.assert_allclose(again.batch_margins[-1], (true - others).numpy(), atol=1e-5)


def test_dense_layers_are_aligned_as_their_singular_vectors_say(tmp_path):
    _, network, found = followed("alexnet", tmp_path)
    dense = [m.weight.detach().numpy() for m in network if isinstance(m, torch.nn.Linear)]
    expected = []
    for lower, upper in pairwise(dense):
        left, right = np.linalg.svd(lower)[0][:, 0], np.linalg.svd(upper)[2][0]
        expected.append(abs(left @ right))
    np.testing.assert_allclose(found.dense_alignment[-1], expected, atol=1e-4)
