"""Points at which the inequality is asked: against finite differences, and known functions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import desingularizing, inequality
from experiments.desingularizing import Logarithm, Points, Power
from experiments.where_it_fails import Hat
from latephase.flow.gradient_flow import gradient_flow
from latephase.zoo.networks import linear, two_layer
from latephase.zoo.tasks import planar_points


@pytest.fixture(scope="module")
def run():
    task, rng = planar_points(12, deleted=0.5, seed=1), torch.Generator().manual_seed(1)
    net = two_layer(3, 32, "squared_relu", fixed_signs=True, generator=rng)
    flow = gradient_flow(net, task, at=[10.0, 1e4, 1e16, 1e64], tol=1e-3)
    return SimpleNamespace(model="squared", seed=1, net=net, task=task, flow=flow)


def points_of(margins, gradients, *rest):
    return desingularizing.points_of(margins, lambda q: (q[:, None] @ gradients)[:, 0], *rest)


def test_gradients_are_those_of_the_normalized_smoothed_margin(run):
    margins_of = desingularizing.margins_of(run.net, run.task.x, run.task.y)
    rng = np.random.default_rng(0)
    u = run.flow.direction[-1] + 0.02 * rng.standard_normal(run.flow.direction.shape[1])
    u /= np.linalg.norm(u)
    limit, s = float(run.flow.normalized_smoothed_margin[-1]), 300.0

    def f(w):
        norm = np.linalg.norm(w)
        margins = margins_of((w / norm)[None])[0][0] * norm**2
        low = margins.min()
        return limit - (low - np.log(np.exp(low - margins).sum())) / norm**2

    points = points_of(*margins_of(u[None]), u[None], np.array([s]), limit, 2)
    w, h = np.sqrt(s) * u, 1e-6 * np.sqrt(s)
    slopes = np.array([(f(w + h * e) - f(w - h * e)) / (2 * h) for e in np.eye(len(u))])
    radial = slopes @ u
    assert points.f[0] * limit == pytest.approx(f(w), rel=1e-9)
    assert points.radial[0] * limit == pytest.approx(abs(radial) * np.sqrt(s), rel=1e-5)
    across = np.linalg.norm(slopes - radial * u) * np.sqrt(s)
    assert points.spherical[0] * limit == pytest.approx(across, rel=1e-5)


def test_on_the_central_path_of_two_points_the_slope_is_that_of_f():
    # (±1, 1) at W = (0, ρ): f = ln 2/ρ, and all of the gradient is radial.
    net = linear(2, generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).double(), torch.ones(2).double()
    u, s = np.array([[0.0, 1.0]] * 3), np.array([1e2, 1e6, 1e12])
    both = desingularizing.margins_of(net, x, y)(u)
    points = points_of(*both, u, s, 1.0, 1)
    np.testing.assert_allclose(points.f, np.log(2) / s)
    np.testing.assert_allclose(points.radial / points.f, 1.0)
    np.testing.assert_allclose(points.spherical, 0.0)


def test_points_near_the_central_path_have_a_small_spherical_part(run):
    points = desingularizing.around(run, 400, np.random.default_rng(0))
    assert (points.f > -1e-9).mean() > 0.9
    assert 0.1 < (points.spherical < points.norm * points.radial).mean() < 0.9


def test_the_hats_slope_is_that_of_its_f():
    hat, x, offset = Hat(), np.array([3.0, 8.0]), np.array([0.3, -1.0])
    h = 1e-6

    def f(x, phi):
        return np.exp(hat.log_gap(x, phi - np.pi / 2 - x))

    phi = offset + np.pi / 2 + x
    along = (f(x + h, phi) - f(x - h, phi)) / (2 * h) * 2 * x * np.sqrt(x - 1)
    around = (f(x, phi + h) - f(x, phi - h)) / (2 * h) / np.sqrt(1 - 1 / x)
    np.testing.assert_allclose(
        desingularizing.hat_slope(hat, x, offset), np.hypot(along, around), rtol=1e-6
    )


@pytest.mark.parametrize(("power", "passes"), [(0.5, True), (0.75, False)])
def test_a_quadratic_maximum_asks_for_the_power_one_half(power, passes):
    # f = d²/2 has the slope d = √(2f) at distance d.
    f = np.geomspace(1e-12, 0.3, 500)
    points = Points(f, np.ones(500), np.sqrt(2 * f), np.zeros(500))
    found = desingularizing.least(points, Power(power))
    assert (found["first"] >= 1.0) == passes


def test_a_function_as_flat_as_the_hat_passes_with_a_logarithm_and_with_no_power():
    f = np.geomspace(1e-12, 0.3, 500)
    points = Points(f, np.ones(500), 2 * f * np.log(1 / f) ** 1.5, np.zeros(500))
    assert desingularizing.least(points, Logarithm(0.5))["first"] == pytest.approx(2.0)
    assert desingularizing.least(points, Power(0.5))["first"] < 0.1
    bare = Points(f, np.ones(500), f, np.zeros(500))
    assert desingularizing.least(bare, Logarithm(0.5))["first"] < 0.2


def test_sides_are_rows_with_the_part_that_is_large(run):
    run.points = desingularizing.around(run, 400, np.random.default_rng(0))
    run.psi = desingularizing.power_of(2)
    run.z0 = desingularizing.Z0
    rows = inequality.left_sides(run)
    assert set(rows["spherical part"]) == {"large", "small"}
    judged = rows[(rows["f/a"] < 0.01) & (rows["spherical part"] == "large")]
    least = desingularizing.least(run.points, run.psi)
    assert judged["Ψ'(f) ‖W‖ ‖∂f‖"].min() == pytest.approx(least["first"])
