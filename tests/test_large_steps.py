"""Logistic descent by large steps, its potential, and momentum in the dual."""

import numpy as np
import pytest

from experiments import large_steps
from latephase.zoo import tasks
from tests.references import finite_differences

Z = large_steps.three_held_points(1)


def test_the_three_points_hold_the_margin_and_all_fit_into_the_unit_ball():
    direction, _ = large_steps.potential_minimizer(Z)
    assert np.sort(Z @ direction)[:3] == pytest.approx(np.full(3, 0.05))
    assert np.sort(Z @ direction)[3] > 0.14
    assert np.linalg.norm(Z, axis=1).max() < 1


def test_the_potential_is_stationary_across_the_direction():
    direction, v = large_steps.potential_minimizer(Z)
    held = Z[np.argsort(Z @ direction)[:3]]
    force = np.exp(-held @ v) @ held
    assert np.linalg.norm(force - (force @ direction) * direction) < 1e-10
    assert v @ direction == pytest.approx(0, abs=1e-12)


def test_steps_are_those_of_the_mean_loss():
    for exponential in (False, True):
        path, risks = large_steps.constant_steps(Z[None], np.array([2.0]), 3, exponential)

        def risk(w, exponential=exponential):
            p = Z @ w
            return np.mean(np.exp(-p) if exponential else np.log1p(np.exp(-p)))

        step = path[2, 0] - path[1, 0]
        slope = finite_differences(lambda w, risk=risk: np.array([risk(w)]), path[1, 0])[0]
        assert step == pytest.approx(-2.0 * slope, abs=1e-8)
        assert risks[1, 0] == pytest.approx(risk(path[1, 0]))


def test_a_phase_ends_with_the_last_step_that_raises_the_risk():
    found = large_steps.phases([1, 2], np.array([4.0, 64.0]), 200)
    assert found["step η"].tolist() == [4.0, 64.0, 4.0, 64.0]
    assert found["last step that rose"].iloc[[0, 2]].tolist() == [0, 0]
    risks = large_steps.constant_steps(Z[None], np.array([64.0]), 200)[1][:, 0]
    last = found["last step that rose"][1]
    assert 0 < last < 200
    assert risks[last] > risks[last - 1]
    assert (np.diff(risks[last:]) < 0).all()


def test_a_run_that_leaves_the_range_stays_finite():
    path, _ = large_steps.constant_steps(Z[None], np.array([1e4]), 20, exponential=True)
    assert np.isfinite(path).all()
    assert np.abs(path).max() > 1e3


@pytest.mark.parametrize(
    "model",
    [large_steps.Linear(Z), large_steps.SquaredReLUs(tasks.separable_points(6, 3, seed=1), 4, 1)],
    ids=["linear", "squared ReLU"],
)
def test_models_pull_back_by_their_jacobian(model):
    w = np.random.default_rng(0).standard_normal(len(model.start))
    jacobian = finite_differences(lambda w: model(w)[0], w)
    p, pull_back, size = model(w)
    q = np.random.default_rng(1).uniform(size=len(p))
    assert pull_back(q) == pytest.approx(q @ jacobian, abs=1e-7)
    assert size == pytest.approx(np.linalg.norm(jacobian, axis=1).max(), rel=1e-6)
    assert jacobian @ w == pytest.approx(model.degree * p, abs=1e-7)


def test_momentum_is_nesterovs_on_the_dual():
    """The weights stay Zᵀ of the sum of ν/λ, and the mean is that of former dual variables."""
    line = large_steps.Linear(Z / np.linalg.norm(Z, axis=1).max())
    path = large_steps.momentum_descent(line, line.start, "momentum", 3)
    z, n = line.z, len(Z)
    mean, w = np.full(n, 1 / n), np.zeros(3)
    for t in range(3):
        share = 2 / (t + 2)
        q = large_steps.dual_variables(z @ w)
        w = w + ((1 - share) * mean + share * q) @ z / share
        mean = (1 - share) * mean + share * large_steps.dual_variables(z @ w)
        assert path[t] == pytest.approx(w)


def test_momentum_gains_a_decade_of_margin_on_normalized_steps():
    found, numbers = large_steps.momentum_runs(1, 300)
    last = found[(found.steps == 300) & (found.model == "linear")].set_index("rule").gap
    assert last["momentum"] < 0.1 * last["normalized"] < last["constant"]
    assert numbers["momentum"] < -1.7


def test_the_certified_gap_is_that_of_gradient_and_margin():
    line, w = large_steps.Linear(Z), np.array([0.3, -2.0, 1.0])
    p = Z @ w
    push = np.linalg.norm(np.exp(-p) @ Z) / np.exp(-p).sum()
    expected = push / (p.min() / np.linalg.norm(w)) - 1
    assert large_steps.certified_gaps(line, w[None])[0] == pytest.approx(expected)
    assert large_steps.margins_along(line, w[None])[0] == pytest.approx(p.min() / np.linalg.norm(w))
