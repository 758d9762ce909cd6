"""The margin complexity by hand, along a flow and a training."""

import numpy as np
import pytest
import torch

import latephase as lp
from experiments import margin_bound
from latephase.training.settings import Settings
from latephase.zoo import networks, tasks

INF = float("inf")


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_complexity_of_one_layer_by_hand():
    layer = np.array([[3.0, 0.0], [0.0, 4.0]])
    # ‖A‖_2 = 4, the norms of the rows add up to 7, and one term's powers cancel.
    assert margin_bound.spectral_complexity([layer]) == pytest.approx(7.0)
    x = np.full((4, 2), 0.5)
    assert margin_bound.margin_complexity([layer], x, 2.0) == pytest.approx(2**0.5 * 7 / 8)


def test_complexity_of_two_layers_by_hand():
    layers = [np.diag([1.0, 2.0]), np.array([[3.0, 4.0]])]
    assert margin_bound.spectral_product(layers) == pytest.approx(10.0)
    expected = 10 * (1.5 ** (2 / 3) + 1.0) ** 1.5
    assert margin_bound.spectral_complexity(layers) == pytest.approx(expected)


def test_complexity_does_not_change_when_a_layer_and_the_margin_are_scaled():
    layers = margin_bound.dense_weights(networks.mlp([5, 4, 3], generator=_draw()))
    x = np.random.default_rng(0).normal(size=(6, 5))
    scaled = [7 * layers[0], layers[1] / 3]
    first = margin_bound.margin_complexity(layers, x, 0.2)
    assert margin_bound.margin_complexity(scaled, x, 0.2 * 7 / 3) == pytest.approx(first, rel=1e-12)
    assert margin_bound.margin_complexity(layers, x, 0.0) == float("inf")


@pytest.mark.parametrize(
    "module", [torch.nn.Linear(3, 2), torch.nn.Conv2d(1, 1, 3, bias=False), torch.nn.ReLU()]
)
def test_layers_the_bound_does_not_know_are_refused(module):
    with pytest.raises(ValueError, match="dense layers without biases"):
        margin_bound.dense_weights(module)


def test_the_weights_are_those_of_the_moment():
    module = networks.mlp([3, 2, 1], generator=_draw())
    before = margin_bound.dense_weights(module)
    kept = [weight.copy() for weight in before]
    with torch.no_grad():
        module[0].weight.mul_(2.0)
    np.testing.assert_array_equal(before[0], kept[0])


def test_along_the_flow_of_a_deep_linear_network():
    task = tasks.separable_points(10, 3, margin=0.2, seed=0)
    module = networks.deep_linear([3, 2, 1], generator=_draw(), scale=0.5)
    flow = lp.gradient_flow(module, task.x, task.y, until=1e6, tol=1e-3, records=8)
    ends = [margin_bound.dense_weights(flow.write_to(module, k, normalized=True)) for k in (-2, -1)]
    values = [
        margin_bound.margin_complexity(weights, task.x, margin)
        for weights, margin in zip(ends, flow.normalized_margin[-2:], strict=True)
    ]
    assert values[1] == pytest.approx(values[0], rel=0.05)
    last = ends[1]
    svm = lp.hard_margin(task.x, task.y)[1]
    assert flow.normalized_margin[-1] / margin_bound.spectral_product(last) == pytest.approx(
        svm, rel=1e-4
    )


def test_spread():
    assert margin_bound.spread([0.2, 0.5, 0.3]) == pytest.approx(0.3)
    assert margin_bound.spread([]) == float("inf")


def test_training_beside_the_bound():
    task = tasks.separable_points(12, 3, margin=0.3, seed=1)
    settings = Settings(64, schedule="normalized", rate=0.5, loss="logistic", checkpoints=6)
    run = margin_bound.fitted(networks.two_layer(3, 8, generator=_draw()), task, task, settings)
    last = run.first_perfect
    assert last is not None
    assert run.wrong[-1] == 0
    np.testing.assert_allclose(run.test_error, run.wrong / 12)
    np.testing.assert_allclose(run.complexity[last:] * run.margins[last:].min(1), 1.0)
    assert np.isinf(run.complexity[run.wrong > 0]).all()
    np.testing.assert_array_equal(run.margins, run.test_margins)


def test_a_training_that_ends_with_an_example_on_the_wrong_side_is_never_perfect():
    task = tasks.with_contradictions(tasks.separable_points(12, 3, margin=0.3, seed=1))
    settings = Settings(16, schedule="normalized", rate=0.1, loss="logistic", checkpoints=4)
    run = margin_bound.fitted(networks.two_layer(3, 8, generator=_draw()), task, task, settings)
    assert run.first_perfect is None
