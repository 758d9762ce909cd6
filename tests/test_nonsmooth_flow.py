"""The flow along kinks: known limits, small explicit steps, what it keeps, how it ends."""

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

import latephase
from latephase.flow.course import Course, past
from latephase.flow.ending import _only_dead, ended
from latephase.flow.errors import KinkCrossed, StepFailed
from latephase.flow.linear import boxed
from latephase.flow.newton import Sliding
from latephase.flow.runge_kutta import ESDIRK4, SDIRK2, Stepper
from latephase.flow.sliding import Change, Slider
from latephase.flow.trajectory import largest_drop
from latephase.flow.tuning import TUNING
from latephase.problem.kinked import kinked
from latephase.problem.margins import Problem
from latephase.problem.vectors import angle
from tests.references import (
    explicit_relu_flow,
    leaky_relu_on_orthonormal_inputs,
    leaky_relu_on_symmetric_points,
    relu_on_orthogonally_separable_points,
)


def relu_network(*widths, seed, slope=0.0):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=False).double(), nn.LeakyReLU(slope)]
    return nn.Sequential(*layers[:-1])


def circle(n, seed):
    angles = np.random.default_rng(seed).uniform(0.1, 1.4, n) + np.arange(n) * np.pi / 2
    x = np.stack([np.cos(angles), np.sin(angles)], 1)
    return x, np.sign(x[:, 0] * x[:, 1])


def test_leaky_relu_with_fixed_outer_weights_on_orthonormal_inputs():
    known = leaky_relu_on_orthonormal_inputs()
    flow = latephase.gradient_flow(known.module, known.task, until=1e12, tol=1e-3)
    assert flow.normalized_margin[-1] == pytest.approx(known.margin, rel=1e-6)
    assert angle(flow.direction[-1], known.directions) < 1e-5
    # The multipliers of the KKT conditions at margin one are all 2/(1 + s²), s = 0.3.
    multipliers = flow.dual[-1] / flow.normalized_margin[-1] ** 2
    np.testing.assert_allclose(multipliers, 2 / (1 + 0.3**2), rtol=1e-4)


def test_relu_on_orthogonally_separable_points_finds_the_margin_of_each_class():
    known = relu_on_orthogonally_separable_points()
    flow = latephase.gradient_flow(known.module, known.task, until=1e12, tol=1e-3)
    assert flow.normalized_margin[-1] == pytest.approx(known.margin, rel=1e-4)
    rows, outer = flow.direction[-1][:32].reshape(8, 4), flow.direction[-1][32:]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.abs(outer), atol=1e-3)
    for row, weight in zip(rows, outer, strict=True):
        if abs(weight) > 0.05:
            assert angle(row, known.directions[0 if weight > 0 else 1]) < 1e-2


def test_leaky_relu_from_a_small_start_on_symmetric_points_tends_to_the_support_vector_machine():
    known = leaky_relu_on_symmetric_points()
    flow = latephase.gradient_flow(known.module, known.task, until=1e9, tol=1e-3)
    assert flow.normalized_margin[-1] == pytest.approx(known.margin, rel=1e-3)


@pytest.mark.parametrize(
    ("widths", "seed"), [((2, 20, 1), 0), ((2, 12, 12, 1), 3)], ids=["two layers", "three layers"]
)
def test_error_against_small_explicit_steps_follows_tol(widths, seed):
    module, (x, y) = relu_network(*widths, seed=seed), circle(12, seed)
    weights = [w.detach().numpy() for w in module.parameters()]
    reference = explicit_relu_flow(weights, x, y, 2e-4, [10.0]).weights[0]
    tols = [1e-2, 1e-3, 1e-4]
    errors = []
    for tol in tols:
        flow = latephase.gradient_flow(module, x, y, at=[10.0], tol=tol)
        errors.append(angle(flow.direction[-1], reference))
        assert errors[-1] < 10 * tol + 1e-3
    assert errors[2] < 0.5 * errors[0]


def test_the_step_is_of_second_order_where_gates_stay():
    module, (x, y) = relu_network(2, 20, 1, seed=0), circle(12, 0)
    problem = Problem(module, x, y)
    stepper = Stepper(kinked(problem), problem, 2.0, 1e-6)
    start = stepper.start(problem.w0)
    ends, estimates = [], []
    for parts in (1, 2, 4, 32):
        state = start
        for _ in range(parts):
            # Equal arc lengths: a step's is given in units of its own ‖W‖.
            grown = np.exp(state.log_norm - start.log_norm)
            step = stepper.step(state, 4e-3 / parts / grown, SDIRK2)
            state = step.state
            estimates.append(step.error)
        ends.append(state.w())
    errors = [np.linalg.norm(end - ends[-1]) for end in ends[:-1]]
    assert 3.0 < errors[0] / errors[1] < 5.5
    # The estimate of a half step is an eighth.
    assert 5.0 < estimates[0] / estimates[1] < 12.0


def test_smoothed_flows_approach_the_flow_along_kinks():
    module, (x, y) = relu_network(2, 20, 1, seed=0), circle(12, 0)
    exact = latephase.gradient_flow(module, x, y, at=[30.0], tol=1e-4)
    apart = []
    for epsilon in (1e-1, 1e-2):
        smooth = latephase.gradient_flow(module, x, y, at=[30.0], tol=1e-3, kink_smoothing=epsilon)
        apart.append(angle(smooth.direction[-1], exact.direction[-1]))
        # A second ε says how large the error from the first one is.
        assert 0.1 * apart[-1] < smooth.settings["smoothing_error"] < 10 * apart[-1]
    assert apart[1] < 0.3 * apart[0]


def test_what_the_flow_keeps():
    module, (x, y) = relu_network(2, 12, 12, 1, seed=1), circle(12, 1)
    flow = latephase.gradient_flow(module, x, y, until=1e12, tol=1e-3, records=600)
    assert largest_drop(flow.normalized_smoothed_margin) < 1e-9
    # ‖W_{l+1}‖² - ‖W_l‖² never changes, and vanishes beside ‖W‖².
    sizes = [w.numel() for w in module.parameters()]
    layers = np.split(flow.direction, np.cumsum(sizes)[:-1], axis=1)
    squares = np.array([(part**2).sum(1) for part in layers])
    start = [float((w.detach() ** 2).sum()) for w in module.parameters()]
    kept = np.diff(squares, axis=0) * np.exp(2 * flow.log_norm)
    early = flow.smoothed_margin < 10
    np.testing.assert_allclose(
        kept[:, early], np.diff(start)[:, None] + 0 * kept[:, early], atol=5e-2
    )
    np.testing.assert_allclose(squares[:, -1], 1 / 3, atol=1e-3)
    assert flow.active_kinks[-1] > 0
    assert 0 < flow.kink_distance.max() < 1e-4


class Parting(torch.nn.Module):
    """v - |u| + 0.3 u + 2 relu(|u| + v - y): u slides along zero until v has come to y."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.1, 0.05, 0.5], dtype=torch.float64))

    def forward(self, x):
        v, u, y = (x[:, :1] * one for one in self.w)
        return v - u.abs() + 0.3 * u + 2.0 * torch.relu(u.abs() + v - y)


def test_where_a_sliding_kink_comes_to_repel_is_counted_and_the_nearer_side_taken():
    flow = latephase.gradient_flow(Parting(), np.ones((1, 1)), np.ones(1), until=1e9, tol=1e-3)
    # Its gate was 0.65 while 0.3 = 2 s - 1 held it; beyond, ∇p is constant.
    np.testing.assert_array_equal(np.unique(flow.branchings), [0.0, 1.0])
    assert np.abs(flow.direction[(flow.branchings == 0) & (flow.active_kinks > 0), 1]).max() < 1e-5
    limit = np.array([3.0, 1.3, -2.0])
    np.testing.assert_allclose(flow.direction[-1], limit / np.linalg.norm(limit), atol=1e-8)


def test_far_beyond_what_a_float_squares():
    module, (x, y) = relu_network(2, 20, 1, seed=0), circle(12, 0)
    flow = latephase.gradient_flow(module, x, y, until=1e300, tol=1e-3)
    assert 1e300 <= flow.smoothed_margin[-1] <= 1.001e300
    assert flow.alignment[-1] > 1 - 1e-9
    assert flow.steps < 500


def test_levels_extension_and_records_are_those_of_any_flow(tmp_path):
    module, (x, y) = relu_network(2, 20, 1, seed=0), circle(12, 0)
    flow = latephase.gradient_flow(module, x, y, at=[1.0, 10.0, 1e4], tol=1e-3)
    np.testing.assert_array_less([0.999, 9.99, 9.99e3], flow.smoothed_margin)
    np.testing.assert_array_less(flow.smoothed_margin, [1.0011, 10.011, 1.0011e4])
    longer = flow.extend(1e6)
    assert 1e6 <= longer.smoothed_margin[-1] <= 1.001e6
    longer.save(tmp_path / "flow.npz")
    loaded = latephase.Trajectory.load(tmp_path / "flow.npz")
    np.testing.assert_array_equal(loaded.active_kinks, longer.active_kinks)
    again = latephase.gradient_flow(module, x, y, at=[1.0, 10.0, 1e4], tol=1e-3)
    np.testing.assert_array_equal(flow.direction, again.direction)


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_other_losses_and_classes_end_in_the_same_limit(loss):
    x, y = circle(12, 0)
    module = relu_network(2, 20, 1 if loss == "logistic" else 3, seed=0)
    if loss == "cross_entropy":
        y = np.arange(12) % 4 % 3
    flow = latephase.gradient_flow(module, x, y, loss, until=1e6, tol=1e-3)
    exponential = latephase.gradient_flow(module, x, y, "exponential", until=1e6, tol=1e-3)
    assert flow.alignment[-1] > 1 - 1e-3
    assert flow.normalized_margin[-1] == pytest.approx(exponential.normalized_margin[-1], rel=0.2)
    np.testing.assert_allclose(flow.dual[-1].sum(), 1.0, rtol=1e-6)


def test_kinks_that_a_step_crosses_count_in_its_error_and_are_made_good():
    module, (x, y) = relu_network(2, 12, 12, 1, seed=3), circle(12, 3)
    problem = Problem(module, x, y)
    ends = {}
    # Of a loose tol what the weights miss is left; of a finer one it is made good.
    for tol in (1.0, 1e-6):
        stepper = Stepper(kinked(problem), problem, 3.0, tol)
        start = end = stepper.start(problem.w0)
        ends[tol] = stepper.step(start, 0.02, SDIRK2)
    for _ in range(64):
        length = 0.02 / 64 / np.exp(end.log_norm - start.log_norm)
        end = stepper.step(end, length, SDIRK2).state
    assert (start.sliding.gates != end.sliding.gates).any()
    left, made_good = (angle(ends[tol].state.direction, end.direction) for tol in ends)
    assert 0.3 * left < ends[1.0].jump < 3.0 * left
    assert made_good < 0.6 * left
    assert ends[1e-6].jump < 0.6 * ends[1.0].jump
    assert stepper.step(start, 0.02 * past(ends[1.0]), SDIRK2).jump < 0.1 * ends[1.0].jump


def test_the_method_of_order_four_says_where_it_met_a_kink():
    module, (x, y) = relu_network(2, 12, 12, 1, seed=3), circle(12, 3)
    problem = Problem(module, x, y)
    stepper = Stepper(kinked(problem), problem, 3.0, 1e-4)
    start = stepper.start(problem.w0)
    with pytest.raises(KinkCrossed) as met:
        stepper.step(start, 0.02, ESDIRK4)
    assert 0.0 < met.value.part < 1.0
    before = stepper.step(start, 0.5 * 0.02 * met.value.part, ESDIRK4).state
    assert before.sliding.same(start.sliding)


def test_kinks_whose_inputs_were_shut_wake_with_the_gates_of_their_signs():
    module = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False), nn.ReLU(),
        nn.Linear(2, 1, bias=False),
    ).double()  # fmt: skip
    problem = Problem(module, np.ones((1, 1)), np.ones(1))
    slider = Slider(kinked(problem), problem.loss, 1, 1e-3, problem.evaluations)
    theta, shut = np.array([0.1, 1.0, -1.0, 1.0, 1.0]), np.array([0.1, 0.0, 0.0])
    for opened, expected, still in ((1.0, [1.0, 1.0, 0.0], False), (0.0, [0.0, 0.0, 1.0], True)):
        gates, slides = np.array([opened, 0.0, 1.0]), np.array([False, True, False])
        slider._wake(theta, gates, slides, shut, [0])
        assert gates.tolist() == expected
        assert slides.tolist() == [False, still, False]


def test_gates_flip_once_all_that_slides_is_settled():
    flow = sliding_flow(30.0)
    slider, count = flow.stepper.slider, flow.stepper.kinked.K
    first, other = 0, int(np.flatnonzero(slider.units != slider.units[0])[0])
    z, c = np.zeros(count), np.full(count, -1.0)
    z[[first, other]], c[other] = 1.0, 1.0
    one, none = np.full(count, 1e-3), np.zeros(0, dtype=int)

    def changes(active, share, restless=none):
        found = SimpleNamespace(sliding=Sliding(np.zeros(count), active, share), z=z, c=c)
        waits = np.isin(np.arange(count), restless)
        return slider._changes(None, found, np.zeros(count), one, one, waits)

    assert changes(none, np.zeros(0)) == [Change(first, True, 0.0)]
    assert changes(np.array([first]), np.array([0.5])) == [Change(other, False, 1.0)]
    # What has changed too often waits for all others, and then the farthest changes alone.
    assert changes(none, np.zeros(0), [first]) == [Change(other, False, 1.0)]
    z[other] = 2.0
    assert changes(none, np.zeros(0), [first, other]) == [Change(other, False, 1.0)]


def test_few_that_are_inconsistent_change_by_themselves(monkeypatch):
    flow, together = sliding_flow(30.0), [Change(7, True, 0.25)]
    slider, count = flow.stepper.slider, flow.stepper.kinked.K
    apart = np.unique(slider.units, return_index=True)[1]
    one, none = np.full(count, 1e-3), np.zeros(0)
    monkeypatch.setattr(slider, "_pivoted", lambda *_: together)

    def changes(crossed):
        z = np.zeros(count)
        z[crossed] = 1.0
        sliding = Sliding(np.zeros(count), none.astype(int), none)
        found = SimpleNamespace(sliding=sliding, z=z, c=np.full(count, -1.0))
        return slider._changes(None, found, np.zeros(count), one, one, np.zeros(count, dtype=bool))

    assert changes(apart[:3]) == [Change(k, True, 0.0) for k in apart[:3]]
    assert changes(apart[:4]) == together


def test_a_layer_whose_kinks_are_all_at_zero_keeps_a_size():
    flow = sliding_flow(30.0)
    site, z, p = flow.stepper.kinked.site, flow.state.z.copy(), flow.state.p
    before = flow.stepper._scale(z, p)
    z[site == 0] = 0.0
    after = flow.stepper._scale(z, p)
    np.testing.assert_array_equal(after[site > 0], before[site > 0])
    # Rounding of z is then below any tolerance, as it would not be beside a z of rounding.
    assert after[site == 0].min() >= 1e-4 * after[site > 0].max()


def test_kinks_of_examples_without_weight_follow_their_signs():
    flow = sliding_flow(30.0)
    slider, count = flow.stepper.slider, flow.stepper.kinked.K
    z, c = np.full(count, -1.0), np.full(count, -1.0)
    light, slid = 0, 1
    z[[light, slid]], c[[light, slid]] = 1.0, -1e-300
    sliding = Sliding(np.zeros(count), np.array([slid]), np.array([0.5]))
    found = SimpleNamespace(sliding=sliding, z=z, c=c)
    one = np.full(count, 1e-3)
    expected = [Change(light, False, 1.0), Change(slid, False, 1.0)]
    calm = np.zeros(count, dtype=bool)
    assert slider._changes(None, found, np.zeros(count), one, one, calm) == expected


@pytest.mark.parametrize("seed", range(5))
def test_gates_solved_for_together_are_those_of_bounded_least_squares(seed):
    rng = np.random.default_rng(seed)
    root, upper = rng.normal(size=(12, 9)), rng.uniform(0.1, 1.0, 9) * 10.0 ** rng.uniform(-4, 1, 9)
    matrix = root.T @ root + 1e-3 * np.eye(9)
    right = matrix @ (upper * rng.uniform(-1.0, 2.0, 9))
    square = np.linalg.cholesky(matrix).T
    goal = np.linalg.solve(square.T, right)
    expected = optimize.lsq_linear(square, goal, (0.0, upper), method="bvls", tol=1e-14).x
    np.testing.assert_allclose(boxed(matrix, right, upper), expected, atol=1e-8 * upper.max())
    assert (np.isclose(expected, 0.0) | np.isclose(expected, upper)).any()


def test_a_companion_tells_where_the_direction_depends_on_tol():
    module, (x, y) = relu_network(2, 20, 1, seed=0), circle(12, 0)
    flow = latephase.gradient_flow(module, x, y, at=[3.0, 30.0], tol=1e-3, companion=True)
    finer = latephase.gradient_flow(module, x, y, at=[3.0, 30.0], tol=2.5e-4)
    expected = [angle(*pair) for pair in zip(flow.direction, finer.direction, strict=True)]
    np.testing.assert_allclose(flow.settings["companion_angles"], expected, rtol=1e-12)
    assert 0 < max(expected) < 1e-2
    alone = latephase.gradient_flow(module, x, y, at=[3.0, 30.0], tol=1e-3)
    np.testing.assert_array_equal(alone.direction, flow.direction)
    assert alone.evaluations == flow.evaluations
    assert "companion_angles" not in alone.settings


def sliding_flow(until):
    """A flow of three layers, stopped where it slides along several kinks."""
    module, (x, y) = relu_network(2, 12, 12, 1, seed=1), circle(12, 1)
    problem = Problem(module, x, y)
    settings = {"tol": 1e-3, "records": 8, "until": until}
    flow = Course(problem, 3.0, settings)
    flow.run(until)
    assert len(flow.state.sliding.active) > 2
    return flow


def test_records_tell_what_their_w_says():
    flow = sliding_flow(30.0)
    state, kinks = flow.state, flow.stepper.kinked
    # At W itself, with the gates that the flow has, sliding ones between 0 and 1.
    gates = state.sliding.gates.copy()
    gates[state.sliding.active] = state.sliding.share
    point = kinks.at(state.direction, gates, np.zeros(0, dtype=int))
    p = point.p * np.exp(3.0 * state.log_norm)
    alpha = -np.log(np.exp(-p).sum())
    assert state.smoothed_margin == pytest.approx(alpha, rel=1e-3)
    gradient = point.pull(np.exp(-p + alpha), np.zeros(0))[0]
    np.testing.assert_allclose(
        np.linalg.norm(state.gradient - gradient), 0.0, atol=1e-3 * np.linalg.norm(gradient)
    )


def test_the_gate_of_a_sliding_kink_is_its_place_within_the_width():
    flow = sliding_flow(30.0)
    found, solve = [], flow.stepper.slider.solve
    flow.stepper.slider.solve = lambda *a: found.append((a, solve(*a))) or found[-1][1]
    flow.stepper.step(flow.state, 1e-3, SDIRK2)
    (_, _, scale, *_), solved = found[-1]
    active, share = solved.sliding.active, solved.sliding.share
    width = 0.01 * 1e-3 * scale[active]
    np.testing.assert_allclose(solved.z[active] / width, share - 0.5, atol=1e-2)
    assert ((share > -1e-6) & (share < 1 + 1e-6)).all()


@pytest.mark.parametrize("copies", [1, 2], ids=["once", "twice"])
def test_copies_of_examples_do_not_stop_it(copies):
    module, (x, y) = relu_network(2, 20, 1, seed=0), circle(12, 0)
    flow = latephase.gradient_flow(
        module, np.tile(x, (copies, 1)), np.tile(y, copies), until=1e9, tol=1e-3
    )
    once = latephase.gradient_flow(module, x, y, until=1e9, tol=1e-3)
    assert flow.normalized_margin[-1] == pytest.approx(once.normalized_margin[-1], rel=1e-2)


def test_dead_examples_are_named():
    module, (x, y) = relu_network(2, 4, 1, seed=0), circle(8, 0)
    x[[2, 6]] = [[-1.0, -1.0], [-2.0, -2.0]]
    with torch.no_grad():
        # Every unit is shut for the examples 2 and 6.
        module[0].weight.copy_(torch.tensor([[3.0, 1.0], [1.0, 3.0], [3.0, 0.5], [0.5, 3.0]]))
        module[2].weight.copy_(torch.tensor([[1.0, 1.0, -1.0, -1.0]]))
    with pytest.raises(latephase.NotSeparated, match=r"stays zero, for 2 examples") as raised:
        latephase.gradient_flow(module, x, y, until=10.0, tol=1e-3)
    assert "examples (2, 6)" in str(raised.value)
    np.testing.assert_array_equal(raised.value.certificate, [0, 0, 0.5, 0, 0, 0, 0.5, 0])


def pooled_sequences(data, weights):
    """Return a convolution of eight numbers, ReLU, pooling of pairs and a layer, and data."""
    x = np.random.default_rng(data).normal(size=(8, 1, 8))
    y = np.where(x[:, 0, :4].sum(1) > 0, 1, -1)
    torch.manual_seed(weights)
    layers = [nn.Conv1d(1, 2, 3, bias=False), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6, 1, bias=False)), x, y


def test_maxima_of_units_that_are_shut_do_not_slide():
    # The larger of two outputs that are zero, whatever the weights: example 6 is dead.
    with pytest.raises(latephase.NotSeparated, match=r"stays zero, for 1 example \(6\)"):
        latephase.gradient_flow(*pooled_sequences(113, 13), at=[8.0], tol=1e-2)


def test_an_example_that_may_wake_is_dead_at_rest_alone():
    net, x, y = pooled_sequences(113, 13)
    course = Course(Problem(net, x, y), 2.0, {"tol": 1e-2, "records": 9, "until": 8.0})
    with pytest.raises(latephase.NotSeparated):
        course.run(8.0)
    kinks, sliding = course.stepper.kinked, course.state.sliding
    (maximum,) = np.flatnonzero((kinks.owner == 6) & (kinks.site == 1))[:1]
    for gate, dead in ((0.0, True), (0.5, False), (1.0, True)):
        gates = np.round(sliding.gates)
        gates[maximum] = gate
        state = dataclasses.replace(course.state, smoothed_margin=-1e-5)
        course.state = dataclasses.replace(state, sliding=dataclasses.replace(sliding, gates=gates))
        assert _only_dead(course) is dead


def test_a_flow_that_comes_to_rest_at_zero_is_not_separated():
    net, x, y = pooled_sequences(130, 30)
    settings = {"tol": 1e-2, "records": 9, "until": 8.0}
    course = Course(Problem(net, x, y), 2.0, settings)
    # An example slides to zero output, and α to zero, above which rounding may lift it.
    with pytest.raises(latephase.NotSeparated, match=r"the gradients of 1 example \(1\) cancel"):
        course.run(8.0)
    course.state = dataclasses.replace(course.state, smoothed_margin=1e-27)
    assert isinstance(ended(course), latephase.NotSeparated)


def test_a_step_that_begins_where_all_was_shut_is_not_cut_short():
    x = np.random.default_rng(4).normal(size=(10, 1, 6, 6))
    y = np.where(x[:, 0, :3].sum((1, 2)) > 0, 1, -1)
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(12, 1, bias=False))
    assert latephase.gradient_flow(net, x, y, at=[0.1], tol=1e-3).smoothed_margin[0] >= 0.1


def test_a_module_that_changes_on_the_way_is_told():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.calls = relu_network(3, 12, 1, seed=0), 0

        def forward(self, x):
            self.calls += 1
            slope = 0.0 if self.calls < 12 else 0.5
            return self.layers[2](nn.functional.leaky_relu(self.layers[0](x), slope))

    x = np.random.default_rng(11).normal(size=(14, 3))
    with pytest.raises(ValueError, match="differ from call to call"):
        latephase.gradient_flow(Turning(), x, np.sign(x[:, 0]), until=1.0, tol=1e-2)


def test_a_last_layer_of_zeros_shuts_nothing():
    module, (x, y) = relu_network(2, 12, 1, seed=1), circle(12, 1)
    with torch.no_grad():
        module[2].weight.zero_()
    assert latephase.gradient_flow(module, x, y, until=1.0, tol=1e-2).smoothed_margin[-1] >= 1.0


def test_a_step_that_cannot_be_solved_says_so(monkeypatch):
    module, (x, y) = relu_network(2, 20, 1, seed=0), circle(12, 0)

    def fails(self, *arguments):
        raise StepFailed("never")

    monkeypatch.setattr(Stepper, "step", fails)
    with pytest.raises(latephase.StepCollapse, match="the implicit step fell to"):
        latephase.gradient_flow(module, x, y, until=10.0)


def test_the_filtered_error_leaves_out_what_active_kinks_forbid():
    flow = sliding_flow(30.0)
    found = []
    solve = flow.stepper.slider.solve
    flow.stepper.slider.solve = lambda *a: found.append(solve(*a)) or found[-1]
    flow.stepper.step(flow.state, 1e-3, SDIRK2)
    solver, sliding = found[-1].linearized, found[-1].sliding
    error = np.random.default_rng(0).normal(size=flow.problem.w0.size)
    before, after = (solver.point.push(e)[1] for e in (error, solver.filtered(error)))
    assert len(after) == len(sliding.active) == len(before)
    assert np.abs(after).max() < 0.15 * np.abs(before).max()


def test_what_jumps_leave_decides_the_next_length(monkeypatch):
    module, (x, y) = relu_network(2, 12, 1, seed=1), circle(12, 1)
    lengths, real = [], Stepper.step

    def step(self, state, length, tableau):
        lengths.append(length)
        step = real(self, state, length, tableau)
        return dataclasses.replace(step, error=0.0, jump=TUNING.jump * self.tol)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(latephase.BudgetSpent):
        latephase.gradient_flow(module, x, y, until=1e3, attempts=4)
    assert lengths[3] < lengths[2] < lengths[1] <= lengths[0]
