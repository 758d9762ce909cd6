"""Unequal exponents and small starts, against what is known of them."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import latephase as lp
from experiments import since_2020
from latephase.problem.vectors import angle
from latephase.zoo import tasks
from tests.references import finite_differences

TASK = since_2020.unbalanced(tasks.separable_points(10, 3, margin=0.3, seed=3), 2.0)
Y = TASK.y.numpy().astype(float)
Z = Y[:, None] * TASK.x.numpy()


@pytest.mark.parametrize("name", since_2020.AFFINE)
def test_margins_and_jacobian_are_those_of_the_affine_function(name):
    w = np.random.default_rng(0).standard_normal(4 if name == "⟨w, x⟩ + b" else 5)
    margins = since_2020.affine(name, Z, Y)
    v, beta = since_2020.AFFINE[name](w)
    assert margins(w)[0] == pytest.approx(Y * (TASK.x.numpy() @ v + beta))
    assert margins(w)[1] == pytest.approx(finite_differences(lambda w: margins(w)[0], w), abs=1e-8)


def test_the_free_bias_is_that_of_the_program():
    rows = np.column_stack([Z, Y])
    found = minimize(
        lambda u: 0.5 * u[:-1] @ u[:-1], np.array([*lp.hard_margin(Z, np.ones(10))[0] * 9, 0.0]),
        jac=lambda u: np.append(u[:-1], 0.0), method="SLSQP", options={"ftol": 1e-14},
        constraints={"type": "ineq", "fun": lambda u: rows @ u - 1.0, "jac": lambda u: rows},
    ).x  # fmt: skip
    limit = since_2020.affine_limit("⟨w, x⟩ + ab", Z, Y)
    assert angle(limit, found) < 1e-6
    assert angle(since_2020.affine_limit("⟨w, x⟩ + b", Z, Y), found) > 0.01


def test_the_flow_without_a_degree_is_the_solvers_where_there_is_one():
    levels = [1.0, 10.0, 100.0]
    path = since_2020.followed(since_2020.affine("⟨w, x⟩ + b", Z, Y), np.full(4, 0.1), levels)
    line = torch.nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        line.weight.fill_(0.1)
    rows = np.column_stack([TASK.x.numpy(), np.ones(10)])
    flow = lp.gradient_flow(line, rows, TASK.y, at=levels, tol=1e-6)
    for mine, other in zip(path, flow.direction, strict=True):
        assert angle(mine, other) < 1e-3


def test_a_mirrored_task_is_symmetric():
    whole = since_2020.mirrored(TASK)
    assert torch.equal(whole.x[10:], -whole.x[:10])
    assert torch.equal(whole.y[10:], -whole.y[:10])
