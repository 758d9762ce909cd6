"""The inequality on kinks: against the library's least-norm gradient, and at a known limit."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import inequality
from experiments import kinks_of_inequality as on_kinks
from latephase.flow.gradient_flow import gradient_flow
from latephase.problem.generalized import generalized_gradient
from latephase.zoo.networks import mlp
from latephase.zoo.tasks import planar_points


@pytest.fixture(scope="module")
def run():
    task, rng = planar_points(12, deleted=0.5, seed=3), torch.Generator().manual_seed(3)
    net = mlp([3, 6, 1], generator=rng)
    flow = gradient_flow(net, task, at=[10.0, 1e4, 1e16, 1e64], tol=1e-3)
    return SimpleNamespace(model="two-layer ReLU", seed=3, net=net, task=task, flow=flow)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_gradient_is_the_librarys_of_least_norm(run, number):
    x, y = run.task.x.numpy(), run.task.y.numpy().astype(float)
    rng = np.random.default_rng(number)
    u = rng.standard_normal(run.flow.direction.shape[1])
    held = on_kinks._some(on_kinks._cosines(x, u), number, rng)
    assert held.sum() == number
    assert held.sum(axis=0).max() <= 2
    w, q = on_kinks.moved(x, u, held), rng.dirichlet(np.ones(len(y)))
    margins, least = on_kinks.margins_on_kinks(x, y, w[None], held[None])
    found = generalized_gradient(run.net, x, y, w, 1e-13, dual=q)
    assert found.exact
    assert found.active == number
    np.testing.assert_allclose(least(q[None])[0], found.gradient, atol=1e-14)
    assert margins[0] @ q == pytest.approx(w @ found.gradient / 2, abs=1e-14)


def test_the_shortest_of_a_parallelogram():
    rng = np.random.default_rng(0)
    rest, first, second = rng.standard_normal((3, 200, 3))
    second[:50] = 0.0
    s, t = (grid.ravel()[:, None, None] for grid in np.meshgrid(*[np.linspace(0, 1, 41)] * 2))
    best = np.linalg.norm(rest + s * first + t * second, axis=2).min(axis=0)
    found = np.linalg.norm(on_kinks.shortest(rest, first, second), axis=1)
    assert (found <= best + 1e-12).all()
    assert (best - found).max() < 0.1


def test_the_limit_is_stationary_on_its_kinks(run):
    limit, rests = on_kinks.limit_of(run)
    assert rests.any()
    assert np.linalg.norm(limit.direction - run.flow.direction[-1]) < 1e-4
    np.testing.assert_allclose(limit.normals @ limit.direction, 0.0, atol=1e-15)
    found = generalized_gradient(
        run.net, run.task, w=limit.direction, kink_tol=1e-12, dual=limit.dual
    )
    across = found.gradient - found.gradient @ limit.direction * limit.direction
    assert np.linalg.norm(across) < 1e-12


def test_the_condition_is_needed_between_kinks_or_on_them(run):
    runs = pd.DataFrame([vars(run)])
    asked = inequality.asked(runs[:0], runs, 300)
    assert [*asked.model] == ["two-layer ReLU, between kinks", "two-layer ReLU, on kinks"]
    sides = inequality.least_sides(asked)
    assert sides["first"].min() >= 1.0
    assert sides["second"].min() >= 1.0
    assert sides["no condition"].min() < 0.1
