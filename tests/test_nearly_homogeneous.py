"""Descent of networks that are nearly homogeneous, against automatic differentiation."""

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

import latephase as lp
from experiments import nearly_homogeneous
from experiments.since_2020 import unbalanced
from latephase.problem.vectors import angle
from latephase.zoo import tasks

TASK = unbalanced(tasks.separable_points(10, 3, margin=0.3, seed=3), 2.0)
MODELS = [nearly_homogeneous.Residual, nearly_homogeneous.Biased]


def drawn(model):
    return model(3, 4, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("signs", [False, True])
def test_descent_climbs_along_the_modules_gradient(model, signs):
    module = drawn(model)
    alpha = -torch.logsumexp(-TASK.y * module(TASK.x), 0)
    gradients = torch.autograd.grad(alpha, [*module.parameters()])
    flat = torch.cat([g.reshape(-1) for g in gradients]).numpy()
    step = np.sign(flat) if signs else flat
    before = parameters_to_vector(module.parameters()).detach().numpy()
    levels = [alpha.item() + 1e-6]
    seen, states = nearly_homogeneous.descent([module], [TASK], levels, 1e-3, signs=signs)
    assert seen[0, 0] == pytest.approx([alpha.item(), np.linalg.norm(before)])
    assert states[0, 0] == pytest.approx(before + 1e-3 * step / (flat @ step))


def test_the_leading_predictor_is_what_is_left_at_large_weights():
    module = drawn(nearly_homogeneous.Residual)
    predictor = module.leading_predictor()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1e8)
    outputs = module(TASK.x).detach().numpy()
    assert angle(outputs, np.column_stack([TASK.x, np.ones(10)]) @ predictor) < 1e-6


def test_the_kkt_residual_is_the_librarys_where_nothing_is_left_behind():
    module = drawn(nearly_homogeneous.Biased)
    with torch.no_grad():
        module.last.bias.zero_()
    module.last.bias.requires_grad_(False)
    flow = lp.gradient_flow(module, TASK, at=[1.0, 30.0], tol=1e-3)
    for record in (0, 1):
        flow.write_to(module, record)
        shaped = [w.detach().numpy() for w in module.parameters()]
        found = module.residual(TASK.x.numpy(), TASK.y.numpy(), *shaped)
        assert found == pytest.approx(flow.kkt_stationarity[record], rel=1e-4)


def test_descent_comes_nearer_to_the_flow_of_what_is_left():
    levels = [3.0, 30.0, 100.0]
    rows, ends, silent = nearly_homogeneous.biased_runs([100], levels, 30.0)
    assert silent == {}
    assert ends["drop"][0] == 0.0
    assert ends.angles[0] == sorted(ends.angles[0], reverse=True)
    assert ends.residuals[0] == sorted(ends.residuals[0], reverse=True)
    assert rows[nearly_homogeneous.MARGIN].is_monotonic_increasing
