"""The explicit peer of the instrument's page, against another one and against plain numbers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import instrument
from latephase.zoo import networks, tasks
from tests.references import explicit_relu_flow

TASK = tasks.planar_points(12, deleted=0.5, seed=1)


@pytest.mark.parametrize("widths", [[3, 8, 1], [3, 8, 6, 1]])
def test_explicit_steps_are_those_of_the_benchmarks(widths):
    net = networks.mlp(widths, generator=torch.Generator().manual_seed(1))
    found = instrument.explicit_steps(net, TASK, 1e-3, [1.0, 10.0])
    weights = [w.detach().numpy() for w in net.parameters()]
    peer = explicit_relu_flow(weights, TASK.x.numpy(), TASK.y.numpy(), 1e-3, [1.0, 10.0])
    unit = peer.weights / np.linalg.norm(peer.weights, axis=1, keepdims=True)
    # One takes the first state beyond the level, the other interpolates.
    np.testing.assert_allclose(found, unit, atol=1e-3)


def test_explicit_steps_that_separate_nothing_say_so():
    net = networks.mlp([3, 2, 1], generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="expected α = 1 within an arc length of 40"):
        instrument.explicit_steps(net, tasks.with_contradictions(TASK), 0.1, [1.0])


def test_ways_from_one_start_run_beside_each_other():
    net = networks.two_layer(3, 8, generator=torch.Generator().manual_seed(1))
    found = instrument.ways(net, TASK, [1e-2, 1e-3], [0.03, 0.01], [2.0, 4.0, 20.0])
    assert [len(flow) for flow in found.flows] == [2, 3]
    assert found.flows[-1].smoothed_margin[-1] == pytest.approx(20.0, rel=1e-3)
    assert max(found.errors()) < 0.1
    assert found.errors()[-1] < 0.01
    assert found.errors_from(found.flows[0].direction[0])[0] < 1e-7
    bends = found.bends(found.flows[-1].direction[0])
    assert bends[1] < bends[0] < 0.2
    np.testing.assert_allclose(found.bends(found.smoothed[0].direction[-1])[0], 0.0, atol=1e-7)


def test_the_distance_of_smoothed_kinks_is_that_of_the_same_inputs():
    net = networks.two_layer(3, 2, generator=torch.Generator().manual_seed(0))
    exact, other = np.zeros(8), np.zeros(8)
    exact[:3], exact[3:6] = (1.0, 1.0, 0.0), 1.0
    other[:3], other[3:6] = (1.5, 1.0, 0.0), 1.0
    x = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]).double()
    task = replace(TASK, x=x, y=TASK.y[:2])
    flows = [SimpleNamespace(direction=w[None]) for w in (exact, other)]
    found = instrument.Ways(net, task, flows[:1], exact[None], flows[1:])
    # z of the first neuron and example is 0, then 0.5; the four are 0.5, 0, 2.5, 3.
    assert found.smoothed_distance(1e-9) == pytest.approx(0.5 / np.sqrt((0.25 + 6.25 + 9) / 4))
    exact[0] = 5.0
    exact[5] = -5.0
    exact[3] = 2.0
    assert found.smoothed_distance(1e-9) is None


def test_errors_are_the_larger_angle_of_the_two_levels():
    east, north = np.eye(2)
    flow = SimpleNamespace(direction=np.array([east, north, east]))
    found = instrument.Ways(None, TASK, [flow], np.array([east, east]), [])
    assert found.errors() == pytest.approx([np.pi / 2])
    assert found.errors_from(north) == pytest.approx([np.pi / 2])


def test_the_largest_error_of_each_field_is_taken_over_cases_and_levels():
    fields = [field for part in instrument.FIELDS.values() for field in part]
    rows = [
        {"tol": tol, "errors": {field: tol * k * share for k, field in enumerate(fields, 1)}}
        for tol in (1e-3, 1e-5)
        for share in (0.2, 1.0, 0.5)
    ]
    found = instrument.field_errors(rows)
    assert list(found.columns) == ["part", "field", "tol", "largest error"]
    assert len(found) == 2 * len(fields)
    one = found[(found.field == fields[4]) & (found.tol == 1e-5)]
    assert one["largest error"].tolist() == [5e-5]
    assert one.part.tolist() == ["margins"]
