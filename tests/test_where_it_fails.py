"""The spherical Mexican hat: its formulas, its rates, and its flow against an independent one."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from experiments import where_it_fails
from experiments.where_it_fails import (
    Hat,
    HatNetwork,
    follow,
    on_sphere,
    revolution_factors,
    revolutions,
)
from latephase.problem.degree import homogeneity_degree

RIDGE = -np.pi / 2  # the offset of ψ = 0
HATS = [Hat(), Hat(degree=3.0), Hat(power=4), Hat(cap=16.0), Hat(cap=0.0)]


def heights(hat, points):
    """f = 1 - h/ρ^L as the definition reads, at points [..., 3] of R³."""
    square = np.sum(points**2, axis=-1)
    r2 = np.sum(points[..., :2] ** 2, axis=-1) / square
    x = 1 / (1 - r2)
    phase = x if np.isinf(hat.cap) else hat.cap * np.tanh(x / hat.cap) if hat.cap else 0.0
    contrast = 4 * r2**2 / (4 * r2**2 + (1 - r2) ** hat.power)
    longitude = np.arctan2(points[..., 1], points[..., 0])
    return np.exp(-x) * (1 - contrast * np.sin(longitude - phase))


def directions(seed=0, count=5):
    generator = np.random.default_rng(seed)
    return generator.uniform(1.2, 5.0, count), generator.uniform(-np.pi, np.pi, count)


@pytest.mark.parametrize("hat", HATS)
def test_the_network_is_the_function_and_homogeneous(hat):
    one = torch.ones(1, 1)
    for x, longitude in zip(*directions(), strict=True):
        weight = 1.7 * on_sphere(x, longitude)
        network = HatNetwork(hat, weight)
        expected = 1.7**hat.degree * (1 - heights(hat, weight))
        assert network(one).item() == pytest.approx(expected, rel=1e-14)
        degree, defect = homogeneity_degree(network, one)
        assert degree == pytest.approx(hat.degree, rel=1e-12)
        assert defect < 1e-12


@pytest.mark.parametrize("hat", HATS)
def test_the_gradient_of_the_network_is_that_of_finite_differences(hat):
    for x, longitude in zip(*directions(1), strict=True):
        network = HatNetwork(hat, on_sphere(x, longitude))
        (slope,) = torch.autograd.grad(network(torch.ones(1, 1)).sum(), network.weight)
        point, step = network.weight.detach().numpy(), 1e-6
        for i, shift in enumerate(step * np.eye(3)):
            values = [
                np.linalg.norm(p) ** hat.degree * (1 - heights(hat, p))
                for p in (point + shift, point - shift)
            ]
            # Second order: third derivatives of some hundred times 1e-12, and rounding.
            assert slope[i].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def test_a_weight_on_the_axis_or_the_equator_has_a_value_and_a_gradient():
    for weight in ([0.0, 0.0, 2.0], [2.0, 0.0, 0.0]):
        network = HatNetwork(Hat(), np.array(weight))
        output = network(torch.ones(1, 1))
        assert output.item() == pytest.approx(4 * (1 - np.exp(-1) if weight[2] else 1), rel=1e-14)
        (slope,) = torch.autograd.grad(output.sum(), network.weight)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize("hat", HATS)
def test_the_velocity_is_the_gradient_on_the_sphere(hat):
    # dθ/dτ = e^X ∇(1 - f): the tangential part of the network's gradient at unit norm.
    for x, longitude in zip(*directions(2), strict=True):
        network = HatNetwork(hat, on_sphere(x, longitude))
        (slope,) = torch.autograd.grad(network(torch.ones(1, 1)).sum(), network.weight)
        point, slope = on_sphere(x, longitude), slope.numpy() * np.exp(x)
        motion = slope - (slope @ point) * point
        radial, around = hat.velocity(x, longitude - hat.phase(x)[0] - np.pi / 2)
        # z = X^(-1/2), and the longitude turns the horizontal part by itself.
        assert -0.5 * x**-1.5 * radial == pytest.approx(motion[2], rel=1e-10, abs=1e-12)
        east = np.array([-np.sin(longitude), np.cos(longitude), 0.0])
        assert np.sqrt(1 - 1 / x) * around == pytest.approx(motion @ east, rel=1e-10, abs=1e-12)


def test_the_sphere_s_contrast_keeps_the_ridge_and_the_plane_s_does_not():
    x = np.linspace(1.01, 100, 1000)
    radial, around = Hat().velocity(x, RIDGE)
    # Ten roundings or so.
    np.testing.assert_allclose(radial, around, rtol=1e-14)
    np.testing.assert_allclose(radial, Hat().ridge_velocity(x), rtol=1e-14)
    radial, around = Hat(power=4).velocity(x, RIDGE)
    # dφ/dX = X there, in the plane's metric it would be 1.
    np.testing.assert_allclose(around / radial, x, rtol=1e-12)


@pytest.mark.parametrize("side", [-1e-3, 1e-3])
def test_the_ridge_is_unstable_on_both_sides(side):
    radial, around = Hat().velocity(6.0, RIDGE + side)
    assert np.sign(around - radial) == np.sign(side)


def slope_over_height(hat, x, offset):
    """|∇f|/f on the sphere, whose metric is dX²/(4X²(X - 1)) + r² dφ²."""
    radial, around = hat.velocity(x, offset)
    squared = radial**2 / (4 * x**2 * (x - 1)) + (1 - 1 / x) * around**2
    return np.sqrt(squared) * np.exp(-x - hat.log_gap(x, offset))


def test_the_smallest_slope_is_monotone_and_its_inverse_cannot_be_integrated():
    # What the primer says: φ(z) = inf of |∇f| where f = z falls with z, φ(z)/z tends to 1 from
    # above, and the points of smallest slope lie along the ridge.
    hat, logs = Hat(), -np.linspace(5, 60, 56)
    offsets = np.linspace(-np.pi, np.pi, 2000, endpoint=False)
    low, high = np.ones((len(logs), 1)) + 1e-9, np.full((len(logs), 1), 70.0)
    low, high = (edge + np.zeros(len(offsets)) for edge in (low, high))
    for _ in range(60):  # bisection: f falls along ψ
        middle = (low + high) / 2
        above = hat.log_gap(middle, offsets) > logs[:, None]
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    slopes = slope_over_height(hat, low, offsets)
    smallest = slopes.min(axis=1)
    assert smallest[-1] == pytest.approx(1.008, abs=5e-4)
    assert np.all(np.diff(smallest) < 0)
    assert np.all(smallest > 1)
    assert np.all(np.diff(np.log(smallest) + logs) < 0)
    assert np.all(np.abs(offsets[slopes.argmin(axis=1)] - RIDGE) < 5e-3)


def test_the_rates_on_the_ridge_and_in_the_valley():
    hat = Hat()
    # The next terms are -1/X and 6/X.
    assert hat.ridge_velocity(1e4) == pytest.approx(1.0, rel=2e-4)
    assert 4 * 1e12 * hat.valley_velocity(1e4) == pytest.approx(1.0, rel=7e-4)
    # Along the flow in the valley, dX/dσ = e^{σ - X} dX/dτ / L, by differences of the path.
    clock = np.linspace(0.0, 36.0, 3601)
    path = follow(hat, 4.0, 0.5, clock)
    late = path.x > 10
    speed = np.gradient(path.x, clock)[late] * np.exp(path.x - clock)[late] * hat.degree
    # What the law neglects is of order 1/(8X³); the differences are as accurate.
    np.testing.assert_allclose(speed[1:-1], hat.valley_velocity(path.x)[late][1:-1], rtol=1e-3)
    assert abs(path.offset[-1]) < 1 / path.x[-1] ** 3


def cartesian(hat, start, clock):
    """The flow on the sphere in x, y, z, from the definition of f alone; [len(clock), 3]."""

    def height(point):
        x, y, z = point
        square, planar = x**2 + y**2 + z**2, x**2 + y**2
        big, r2 = square / z**2, planar / square
        sine = (y * np.cos(big) - x * np.sin(big)) / np.sqrt(planar)
        return np.exp(-big) * (1 - 4 * r2**2 / (4 * r2**2 + big**-3.0) * sine)

    def rates(sigma, direction):
        point = direction / np.linalg.norm(direction)
        # The complex step: exact to rounding.
        slope = np.array([height(point + 1e-30j * axis).imag / 1e-30 for axis in np.eye(3)])
        tangential = slope - (slope @ point) * point
        # dθ/ds = -∇f/(L (1 - f)), ds = e^σ dσ.
        return -np.exp(sigma) * tangential / (hat.degree * (1 - height(point)))

    span = (clock[0], clock[-1] + 1e-9)
    settings = {"method": "LSODA", "t_eval": clock, "rtol": 1e-7, "atol": 1e-11}
    path = solve_ivp(rates, span, start, **settings).y.T
    return path / np.linalg.norm(path, axis=1, keepdims=True)


@pytest.mark.parametrize(("x", "psi"), [(4.5, 0.3), (3.0, -0.4)])
def test_the_path_and_its_turns_are_those_of_the_flow_in_cartesian_coordinates(x, psi):
    hat = Hat()
    clock = np.arange(0.0, 36.0, 0.02)
    path = follow(hat, x, psi, clock)
    other = cartesian(hat, path.direction[0], clock)
    # Tolerances of 1e-7 a step, some hundred steps.
    np.testing.assert_allclose(path.direction, other, atol=1e-5)
    longitude = np.unwrap(np.arctan2(other[:, 1], other[:, 0]))
    longitude += path.longitude[0] - longitude[0]
    for first in (12.0, 16.0):
        ends = [first, first + 2 * np.pi]
        turns = [np.diff(np.interp(ends, phi, clock)) for phi in (path.longitude, longitude)]
        np.testing.assert_allclose(*turns, atol=1e-4)


def test_a_turn_multiplies_the_logarithm_of_the_norm_as_the_valley_s_law_says():
    hat = Hat()
    clock = np.arange(0.0, 50.0, 0.02)
    path = follow(hat, 4.0, 0.5, clock)
    sigma, x, length = revolutions(path, 17.0)
    predicted = revolution_factors(hat, hat.valley_velocity, sigma, x)
    factors = np.exp(np.diff(sigma))
    # The law's neglected terms at X = 12; linear interpolation between records is as good.
    np.testing.assert_allclose(factors, predicted, rtol=2e-4)
    assert np.all(revolution_factors(hat, hat.ridge_velocity, sigma, x) < 0.9 * factors)
    assert len(factors) == 4
    assert np.all(np.diff(factors) < 0)
    assert factors[-1] > np.exp(2 * np.pi)
    assert np.all(np.diff(length) < 2 * np.pi)
    assert np.all(np.diff(np.diff(length)) > 0)


def test_the_length_is_that_of_the_polygon():
    path = follow(Hat(), 3.0, -0.4, np.arange(0.0, 30.0, 0.005))
    chords = np.linalg.norm(np.diff(path.direction, axis=0), axis=1)
    # Chords are short by a cube of their length.
    assert path.path_length[-1] == pytest.approx(chords.sum(), rel=1e-4)


def test_a_radial_path_has_the_length_of_its_arc():
    # ψ = -π/2 of the frozen phase is a meridian; what is left of it is arccos r.
    path = follow(Hat(cap=0.0), 3.0, -np.pi / 2, np.arange(0.0, 40.0, 0.1))
    travelled = np.arcsin(3.0**-0.5) - np.arcsin(path.x**-0.5)
    np.testing.assert_allclose(path.path_length, travelled, atol=1e-7)
    np.testing.assert_allclose(path.longitude, path.longitude[0], atol=1e-12)


def test_the_capped_phase_stops_turning():
    path = follow(Hat(cap=16.0), 4.0, 0.5, np.arange(0.0, 80.0, 0.1))
    assert path.longitude[-1] == pytest.approx(16 + np.pi / 2, abs=1e-2)


def test_the_smoothed_margin_is_that_of_the_network():
    hat = Hat(degree=3.0)
    path = follow(hat, 2.0, 0.4, np.linspace(0.0, 1.0, 3))
    for i in range(3):
        norm = np.exp(np.exp(path.log_log_norm[i]))
        output = HatNetwork(hat, norm * path.direction[i])(torch.ones(1, 1)).item()
        assert path.log_smoothed_margin[i] == pytest.approx(np.log(output), rel=1e-13)
        assert np.exp(path.log_gap[i]) == pytest.approx(1 - output / norm**3, rel=1e-12)


def test_a_start_outside_the_disc_is_refused():
    with pytest.raises(ValueError, match="expected 1/"):
        follow(Hat(), 1.0, 0.3, np.array([0.0, 1.0]))


def test_a_failure_of_the_solver_is_an_error(monkeypatch):
    class Failed:
        success, message, t = False, "stopped", np.array([0.5])

    monkeypatch.setattr(where_it_fails, "solve_ivp", lambda *_, **__: Failed)
    with pytest.raises(ArithmeticError, match=r"σ = 0\.5: stopped"):
        follow(Hat(), 2.0, 0.3, np.array([0.0, 1.0]))
