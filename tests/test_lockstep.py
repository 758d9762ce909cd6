"""Flows of several starts together: what one alone gives, in fewer passes, and no start is lost."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import latephase
from latephase.flow import lockstep
from latephase.flow.linear import gmres, gmres_of_many
from latephase.flow.runge_kutta import Stepper
from latephase.problem.kinked import kinked
from latephase.problem.losses import LOGISTIC, Loss
from latephase.problem.margins import Problem
from latephase.problem.stacked import Stack, kind
from latephase.problem.vectors import angle
from latephase.zoo import networks
from latephase.zoo.tasks import separable_points

SEEDS = (0, 1, 2)
TASKS = [separable_points(12, 3, margin=0.3, seed=seed) for seed in SEEDS]
POINTS = TASKS[0].x
# Without an inverse of its own, which is then found in a bracket.
OWN = Loss("own", LOGISTIC.log_value)


def generated(make):
    return [make(torch.Generator().manual_seed(seed)) for seed in SEEDS]


class Transposed(nn.Module):
    """Squared ReLUs with both matrices as inputs times outputs."""

    def __init__(self, generator):
        super().__init__()
        draw = {"generator": generator, "dtype": torch.float64}
        self.inner = nn.Parameter(torch.randn(3, 6, **draw))
        self.outer = nn.Parameter(torch.randn(6, 1, **draw))

    def forward(self, x):
        return torch.relu(x @ self.inner) ** 2 @ self.outer


MAKERS = {
    "linear": lambda g: networks.linear(3, generator=g),
    "deep linear": lambda g: networks.deep_linear([3, 4, 2, 1], generator=g),
    "squared ReLU": lambda g: networks.two_layer(3, 6, "squared_relu", generator=g),
    "fixed signs": lambda g: networks.two_layer(
        3, 20, "squared_relu", fixed_signs=True, generator=g
    ),
    "transposed": Transposed,
}


def relu(generator):
    return networks.two_layer(3, 6, "relu", generator=generator)


def in_turn(modules, x, y=None, **settings):
    x = x if isinstance(x, list) else [x] * len(modules)
    y = y if isinstance(y, list) else [y] * len(modules)
    each = zip(modules, x, y, strict=True)
    return [latephase.gradient_flow(*one, **settings) for one in each]


def compared(together, alone, tol):
    assert len(together) == len(alone)
    for one, other in zip(together, alone, strict=True):
        assert angle(one.direction[-1], other.direction[-1]) < 10 * tol
        assert one.smoothed_margin[-1] == pytest.approx(other.smoothed_margin[-1], rel=2e-3)
        assert one.log_norm[-1] == pytest.approx(other.log_norm[-1], abs=1e-2)
        assert one.log_time[-1] == pytest.approx(other.log_time[-1], rel=2e-2)
        assert one.path_length[-1] == pytest.approx(other.path_length[-1], rel=1e-2, abs=10 * tol)
        assert one.alignment[-1] == pytest.approx(other.alignment[-1], abs=1e-3)
        assert one.settings.keys() == other.settings.keys()


@pytest.fixture
def single_steps(monkeypatch):
    """The lengths of steps that are taken alone, and the sizes of groups."""
    seen, step, answers = {"alone": [], "groups": []}, Stepper.step, lockstep.answers

    def counted(self, state, length, tableau):
        seen["alone"].append(length)
        return step(self, state, length, tableau)

    def grouped(requests):
        seen["groups"].append(len(requests))
        return answers(requests)

    monkeypatch.setattr(Stepper, "step", counted)
    monkeypatch.setattr(lockstep, "answers", grouped)
    return seen


@pytest.mark.parametrize(
    ("name", "loss"),
    [*((name, "exponential") for name in MAKERS), ("squared ReLU", "logistic"), ("linear", OWN)],
    ids=lambda one: getattr(one, "name", one),
)
def test_flows_together_are_those_alone(name, loss, single_steps):
    modules = generated(MAKERS[name])
    settings = {"loss": loss, "until": 1e4, "tol": 1e-3}
    together = latephase.gradient_flows(modules, TASKS, **settings)
    assert max(single_steps["groups"]) == 3
    taken = len(single_steps["alone"])
    compared(together, in_turn(modules, TASKS, **settings), 1e-3)
    # Alone only what has no other to go with, in the end or the beginning.
    assert taken < 0.4 * (len(single_steps["alone"]) - taken)


def test_classes_together():
    modules = generated(lambda g: networks.mlp([3, 8, 3], "squared_relu", generator=g))
    y = np.arange(12) % 3
    x = torch.from_numpy(np.eye(3)[y] + 0.1 * np.random.default_rng(0).normal(size=(12, 3)))
    settings = {"until": 1e6, "tol": 1e-3}
    together = latephase.gradient_flows(modules, x, y, **settings)
    compared(together, in_turn(modules, x, y, **settings), 1e-3)
    assert together[0].dual.shape[1:] == (12, 2)


def test_smoothed_kinks_and_companions_together(single_steps):
    modules = generated(relu)
    settings = {"until": 100.0, "tol": 1e-2, "kink_smoothing": 0.1, "companion": True}
    together = latephase.gradient_flows(modules, TASKS, **settings)
    assert max(single_steps["groups"]) == 3
    alone = in_turn(modules, TASKS, **settings)
    compared(together, alone, 1e-2)
    for one, other in zip(together, alone, strict=True):
        error, expected = (each.settings["smoothing_error"] for each in (one, other))
        assert error == pytest.approx(expected, rel=0.1)
        assert one.settings["companion_angles"][0] < 0.1


def test_levels_together():
    modules = generated(MAKERS["squared ReLU"])
    settings = {"at": [10.0, 1e4, 1e9], "tol": 1e-4}
    together = latephase.gradient_flows(modules, TASKS, **settings)
    compared(together, in_turn(modules, TASKS, **settings), 1e-4)
    for flow in together:
        np.testing.assert_allclose(flow.smoothed_margin, settings["at"], rtol=1e-3)
        # No step may lower it by more than rounding.
        assert flow.settings["margin_drop"] <= 2e-13


def test_late_directions_are_at_rest_as_those_alone_are():
    modules = generated(MAKERS["linear"])
    settings = {"until": 1e30, "tol": 1e-3, "records": 10_000}
    for flow in latephase.gradient_flows(modules, TASKS, **settings):
        half = len(flow) // 2
        assert flow.smoothed_margin[half] > 1e8
        # 1e-10 alone; 4e-9 and more where first stages keep a guess with a residual of 1e-9.
        assert flow.path_length[-1] - flow.path_length[half] < 1e-9


def test_a_start_at_zero_and_starts_of_any_size():
    modules = generated(MAKERS["linear"])
    with torch.no_grad():
        modules[0][0].weight.zero_()
        modules[2][0].weight.mul_(50.0)
    together = latephase.gradient_flows(modules, TASKS, until=1e10)
    compared(together, in_turn(modules, TASKS, until=1e10), 1e-4)


def test_a_flow_does_not_depend_on_those_beside_it():
    modules = generated(MAKERS["squared ReLU"])
    three = latephase.gradient_flows(modules, TASKS, until=1e4)
    two = latephase.gradient_flows(modules[1:], TASKS[1:], until=1e4)
    for one, other in zip(three[1:], two, strict=True):
        assert one.steps == other.steps
        # Before α > 0 stages are solved to 1e-3 of tol.
        assert angle(one.direction[-1], other.direction[-1]) < 1e-6


def test_one_data_set_serves_all():
    modules = generated(MAKERS["squared ReLU"])
    shared = latephase.gradient_flows(modules, POINTS, TASKS[0].y, until=1e3)
    listed = latephase.gradient_flows(modules, [POINTS] * 3, [TASKS[0].y] * 3, until=1e3)
    as_task = latephase.gradient_flows(tuple(modules), TASKS[0], until=1e3)
    for one, *others in zip(shared, listed, as_task, strict=True):
        for other in others:
            np.testing.assert_array_equal(one.direction, other.direction)


def test_kinks_are_followed_in_turn():
    modules = [*generated(relu), networks.linear(3, generator=torch.Generator().manual_seed(5))]
    tasks = [*TASKS, TASKS[0]]
    together = latephase.gradient_flows(modules, tasks, until=5.0, tol=1e-2)
    for one, other in zip(together, in_turn(modules, tasks, until=5.0, tol=1e-2), strict=True):
        np.testing.assert_array_equal(one.direction, other.direction)


def test_a_small_bound_on_bytes_takes_smaller_groups(monkeypatch):
    modules, sizes, taken = generated(MAKERS["squared ReLU"]), [], lockstep._Steps.taken

    def counted(self):
        sizes.append(len(self.requests))
        return taken(self)

    monkeypatch.setattr(lockstep._Steps, "taken", counted)
    plenty = latephase.gradient_flows(modules, TASKS, until=1e3)
    assert max(sizes) == 3
    sizes.clear()
    little = latephase.gradient_flows(modules, TASKS, until=1e3, jacobian_bytes=40_000)
    assert max(sizes) == 2
    for one, other in zip(plenty, little, strict=True):
        assert angle(one.direction[-1], other.direction[-1]) < 1e-6


def test_extended_flows_go_on_alone():
    flows = latephase.gradient_flows(generated(MAKERS["squared ReLU"]), TASKS, until=1e3)
    further = flows[1].extend(1e6)
    direct = latephase.gradient_flow(
        MAKERS["squared ReLU"](torch.Generator().manual_seed(1)), TASKS[1]
    )
    assert angle(further.direction[-1], direct.direction[-1]) < 1e-3


def contradicted():
    x = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    return torch.from_numpy(x), torch.ones(3)


def test_a_start_that_fails_stops_no_other():
    modules = generated(MAKERS["linear"])
    three = [(TASKS[0].x[:3], TASKS[0].y[:3]), contradicted(), (TASKS[2].x[:3], TASKS[2].y[:3])]
    x, y = (list(each) for each in zip(*three, strict=True))
    with pytest.raises(latephase.NotSeparated) as raised:
        latephase.gradient_flows(modules, x, y, until=1e5)
    flows = raised.value.flows
    assert flows[1] is raised.value
    for k in (0, 2):
        assert flows[k].smoothed_margin[-1] >= 1e5
        alone = latephase.gradient_flow(modules[k], x[k], y[k], until=1e5)
        assert angle(flows[k].direction[-1], alone.direction[-1]) < 1e-3
    kept = pickle.loads(pickle.dumps(raised.value))
    assert kept.flows[0].smoothed_margin[-1] == flows[0].smoothed_margin[-1]
    np.testing.assert_array_equal(kept.certificate, raised.value.certificate)


def test_an_interrupt_keeps_what_is_recorded(monkeypatch):
    modules, count, answers = generated(MAKERS["squared ReLU"]), [], lockstep.answers

    def interrupted(requests):
        count.append(1)
        if len(count) > 40:
            raise KeyboardInterrupt
        return answers(requests)

    monkeypatch.setattr(lockstep, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        latephase.gradient_flows(modules, TASKS, until=1e12)
    assert [flow.smoothed_margin[-1] > 0.0 for flow in raised.value.flows] == [True] * 3


def test_a_step_whose_smoothed_margin_is_no_number_has_failed(monkeypatch):
    count, step = [], Stepper.step

    def broken(self, *request):
        count.append(1)
        came = step(self, *request)
        state = replace(came.state, smoothed_margin=math.nan)
        return replace(came, state=state) if len(count) == 9 else came

    module = MAKERS["linear"](torch.Generator().manual_seed(0))
    expected = latephase.gradient_flow(module, TASKS[0], until=1e4)
    monkeypatch.setattr(Stepper, "step", broken)
    flow = latephase.gradient_flow(module, TASKS[0], until=1e4)
    assert len(count) > 9
    assert flow.smoothed_margin[-1] >= 1e4
    assert angle(flow.direction[-1], expected.direction[-1]) < 1e-3


def test_modules_stay_as_they_are():
    modules = generated(MAKERS["squared ReLU"])
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    latephase.gradient_flows(modules, TASKS, until=10.0)
    for module, state in zip(modules, before, strict=True):
        assert module.training
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name])


BAD = {
    "modules: expected a list of one or more modules, got none": ([], TASKS, {}),
    "modules: expected .* got a Sequential": (MAKERS["linear"](torch.Generator()), TASKS, {}),
    "modules: expected .* got a int": (3, TASKS, {}),
    "x: expected one for each of the 3 modules": (None, TASKS[:2], {}),
    r"modules\[1\]: ": (None, [TASKS[0], POINTS, TASKS[2]], {}),
    "until: expected a smoothed margin": (None, TASKS, {"until": -1.0}),
    "tol: expected": (None, TASKS, {"tol": 2.0}),
    "at: expected": (None, TASKS, {"at": [3.0, 1.0]}),
}


@pytest.mark.parametrize("said", BAD)
def test_what_it_cannot_use(said):
    modules, x, settings = BAD[said]
    modules = generated(MAKERS["linear"]) if modules is None else modules
    with pytest.raises(ValueError, match=said):
        latephase.gradient_flows(modules, x, **settings)


@pytest.mark.parametrize("name", ["untill", "module", "levels"])
def test_a_setting_it_does_not_know(name):
    with pytest.raises(TypeError, match=f"no setting '{name}'; expected some of loss, until"):
        latephase.gradient_flows(generated(MAKERS["linear"]), TASKS, **{name: 1.0})


def chains(name):
    settings = {"kink_smoothing": 0.1} if name == "smoothed ReLU" else {}
    modules = generated(relu if name == "smoothed ReLU" else MAKERS[name])
    if name == "fixed signs":
        # What is frozen may differ.
        modules[1][-1].weight.neg_()
    each = zip(modules, TASKS, strict=True)
    return [Problem(module, task.x, task.y, **settings) for module, task in each]


@pytest.mark.parametrize("name", [*MAKERS, "smoothed ReLU"])
def test_a_stack_is_its_chains(name):
    problems, none = chains(name), np.zeros(0, dtype=int)
    own = [kinked(problem) for problem in problems]
    assert kind(own[0]) == kind(own[1]) is not None
    w, rng = np.stack([problem.w0 for problem in problems]), np.random.default_rng(0)
    v, lam = rng.normal(size=w.shape), rng.random((3, 12))
    point = Stack(own).at(w)
    rows, curvature = point.rows(), point.curvature(lam, none, v)
    some = Stack(own).some(np.array([2, 0])).at(w[[2, 0]])
    np.testing.assert_allclose(some.rows(), rows[[2, 0]], rtol=1e-13)
    for k, chain in enumerate(own):
        one = chain.at(w[k], np.zeros(0), none)
        np.testing.assert_allclose(point.p[k], one.p, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(rows[k], one.rows(), rtol=1e-12, atol=1e-14)
        expected = one.curvature(lam[k], none, v[k])
        np.testing.assert_allclose(curvature[k], expected, rtol=1e-12, atol=1e-13)


def test_what_cannot_be_stacked():
    plain = kinked(Problem(relu(torch.Generator().manual_seed(0)), TASKS[0].x, TASKS[0].y))
    assert kind(plain) is None
    other = networks.two_layer(3, 7, "squared_relu", generator=torch.Generator().manual_seed(0))
    wider = kinked(Problem(other, TASKS[0].x, TASKS[0].y))
    assert kind(wider) != kind(kinked(chains("squared ReLU")[0]))


def test_krylov_problems_together_are_solved_as_alone():
    rng = np.random.default_rng(0)
    maps, b = 0.4 * rng.normal(size=(4, 6, 6)), rng.normal(size=(4, 6))
    b[1], maps[2] = 0.0, 0.0
    x, _ = gmres_of_many(lambda v: np.einsum("mij,mj->mi", maps, v), b, 1e-10)
    for k in range(4):
        alone = gmres(lambda v, k=k: maps[k] @ v, b[k], 1e-10)[0]
        np.testing.assert_allclose(x[k], alone, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(x[k] - maps[k] @ x[k], b[k], atol=1e-8)
    assert not x[1].any()
