"""The linear system of an implicit step: its parts eliminated first change nothing but its cost."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from latephase.flow import bordered, linear
from latephase.flow.bordered import Bordered, Compliance, OfRows, OfSome, OfWeights, kink_stiffness
from latephase.flow.newton import Newton
from latephase.problem.kinked import Kinked, kinked
from latephase.problem.margins import Problem
from tests.test_nonsmooth_flow import relu_network

N = 12


def solver(point, lam, rho, give, excess, pairs, rows=None):
    rows = np.arange(len(lam)) if rows is None else rows
    multipliers = lam, np.zeros(len(give))
    return Bordered(point, rows, 1.0, multipliers, rho, 0.1, give, excess, pairs)


@pytest.mark.parametrize("widths", [(3, 7, 1), (3, 4, 4, 4, 1)], ids=["two layers", "four"])
@pytest.mark.parametrize("pairs", [1, 2], ids=["one block each", "blocks of two"])
def test_kinks_of_the_first_layer_may_be_eliminated_first(monkeypatch, widths, pairs):
    rng = np.random.default_rng(0)
    module = relu_network(*widths[:-1], 1 if pairs == 1 else 3, seed=0)
    y = np.where(rng.random(N) < 0.5, -1, 1) if pairs == 1 else np.arange(N) % 3
    of = kinked(Problem(module, rng.normal(size=(N, 3)), y))
    w, active = rng.normal(size=of.P), np.arange(0, of.K, 3)
    gates = rng.integers(2, size=of.K).astype(float)
    lam, rho, give = rng.random(of.n), rng.normal(size=of.P), 0.1 * rng.random(len(active))
    excess = np.repeat(rng.random(N), pairs)
    right = rng.normal(size=of.P), rng.normal(size=of.n + len(active)), 0.3
    found = []
    for least in (len(active) + 1, len(active)):
        monkeypatch.setattr(bordered, "TUNING", replace(bordered.TUNING, eliminated=least))
        point = of.at(w, gates, active)
        found.append(solver(point, lam, rho, give, excess, pairs))
    dense, split = found
    assert dense.inverse.blocks is None
    # Units with different numbers of kinks, and none left among the margins.
    assert len(split.inverse.factors) == of.n + np.count_nonzero(active >= N * widths[1])
    for a, b in zip(dense.solve(*right), split.solve(*right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dense.squares, split.squares, rtol=1e-13)


@pytest.mark.parametrize("pairs", [1, 2], ids=["one output", "three classes"])
def test_more_rows_than_weights_are_inverted_through_the_weights(monkeypatch, pairs):
    rng = np.random.default_rng(1)
    module = relu_network(3, 2, 1 if pairs == 1 else 3, seed=0)
    y = np.where(rng.random(N) < 0.5, -1, 1) if pairs == 1 else np.arange(N) % 3
    of = kinked(Problem(module, rng.normal(size=(N, 3)), y))
    w, active = rng.normal(size=of.P), np.arange(0, of.K, 5)
    gates = rng.integers(2, size=of.K).astype(float)
    lam, rho, give = rng.random(of.n), rng.normal(size=of.P), 0.1 + rng.random(len(active))
    excess = np.repeat(rng.random(N), pairs)
    # Not all margins have their rows.
    rows = np.arange(of.n)[2 * pairs :]
    right = rng.normal(size=of.P), rng.normal(size=len(rows) + len(active)), 0.3
    found = []
    for thin in (300, 0):
        monkeypatch.setattr(bordered, "TUNING", replace(bordered.TUNING, thin=thin))
        found.append(solver(of.at(w, gates, active), lam, rho, give, excess, pairs, rows))
    assert isinstance(found[0].inverse, OfRows)
    assert isinstance(found[1].inverse, OfWeights)
    assert len(rows) + len(active) > of.P
    for a, b in zip(*(one.solve(*right) for one in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("coupled", [False, True], ids=["exponential loss", "another loss"])
@pytest.mark.parametrize("room", [2**30, 2**13], ids=["at once", "an example at a time"])
def test_rows_of_an_example_are_summed_before_their_inputs_come_in(room, coupled):
    rng = np.random.default_rng(2)
    first, last = nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False)
    module = nn.Sequential(first, nn.LeakyReLU(0.2), last).double()
    problem = Problem(module, rng.normal(size=(N, 4)), np.arange(N) % 5)
    problem.jacobian_bytes = room
    of = kinked(problem)
    point = of.at(rng.normal(size=of.P), rng.integers(2, size=of.K) + 0.0, np.array([1, 2, 30]))
    # Examples with all of their rows, with some, and one with none but a kink.
    point.select(np.delete(np.arange(of.n), [1, 2, 9, *range(40, 44)]))
    margins, kinks = point.margins, len(point.active)
    own = 0.1 + rng.random(point.count())
    coupling = np.repeat(rng.random(N), of.pairs)[margins] if coupled else None
    compliance = Compliance(own, coupling, margins // of.pairs)
    rows = point.block(slice(0, len(margins) + kinks))
    whole = np.array([compliance.times(v) for v in np.eye(len(own))])
    expected = rows.T @ np.linalg.solve(whole, rows)
    assert point.crowded()
    np.testing.assert_allclose(point.normal(compliance), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(point.squares(), (rows**2).sum(1), rtol=1e-12)


@pytest.mark.parametrize("form", [Kinked, kinked], ids=["any module", "chain"])
@pytest.mark.parametrize("pairs", [1, 2], ids=["one output", "three classes"])
@pytest.mark.parametrize(
    ("resolved", "kind"),
    [(1e-9, OfWeights), (np.inf, OfSome)],
    ids=["through the weights", "by some rows"],
)
def test_what_the_bound_does_not_hold_is_solved_without_it(
    monkeypatch, resolved, kind, pairs, form
):
    rng, n = np.random.default_rng(1), 4 * N
    module = relu_network(5, 2, 1 if pairs == 1 else 3, seed=0)
    y = np.where(rng.random(n) < 0.5, -1, 1) if pairs == 1 else np.arange(n) % 3
    problem = Problem(module, rng.normal(size=(n, 5)), y)
    w, lam, excess = rng.normal(size=problem.w0.size), rng.random(n * pairs), rng.random(n)
    gates, active, give = rng.integers(2, size=2 * n) + 0.0, np.array([1, 17]), np.full(2, 0.3)
    # Of an example only one margin has its row.
    rows, rho = np.arange(len(lam))[3:], rng.normal(size=len(w))
    right = rng.normal(size=len(w)), rng.normal(size=len(rows) + 2), 0.3
    monkeypatch.setattr(bordered, "TUNING", replace(bordered.TUNING, resolved_thin=resolved))
    found = []
    for problem.jacobian_bytes in (2**30, 64 * 2 * n):
        point = form(problem).at(w, gates, active)
        found.append(solver(point, lam, rho, give, np.repeat(excess, pairs), pairs, rows))
    few = found[1].inverse
    assert isinstance(found[0].inverse, OfRows)
    assert type(few) is kind
    assert few.held is None if kind is OfWeights else 2 < len(few.blocks[0]) < len(rows)
    np.testing.assert_allclose(few.squares, found[0].squares, rtol=1e-12)
    for a, b in zip(*(one.solve(*right) for one in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("stiffest", [0.5, 1e2])
def test_what_is_left_of_curvature_is_not_lengthened_by_it(stiffest):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    curvature = -turn @ np.diag(np.geomspace(0.01 * stiffest, stiffest, 60)) @ turn.T
    b, none = rng.normal(size=60), np.zeros(0)
    plain = SimpleNamespace(
        solve=lambda *_: (b, none, 0.0), curved=lambda v: (curvature @ v, none, 0.0)
    )
    slider = SimpleNamespace(kinked=SimpleNamespace(curved=True), counts={"curvature": 0})
    x = Newton._direction(SimpleNamespace(of=slider, linearized=plain), b, none, 0.0)[0]
    assert np.linalg.norm(x - curvature @ x - b) <= 0.1 * np.linalg.norm(b)


@pytest.mark.parametrize("form", [Kinked, kinked], ids=["any module", "chain"])
@pytest.mark.parametrize("widths", [(5, 4, 1), (5, 3, 3, 1)], ids=["two layers", "three"])
def test_more_active_kinks_than_the_bound_holds_are_solved_for_in_blocks(monkeypatch, form, widths):
    monkeypatch.setattr(bordered, "TUNING", replace(bordered.TUNING, resolved_thin=np.inf))
    rng = np.random.default_rng(2)
    y = np.where(rng.random(4 * N) < 0.5, -1, 1)
    problem = Problem(relu_network(*widths, seed=0), rng.normal(size=(4 * N, 5)), y)
    of = form(problem)
    active, rows = np.arange(0, of.K, 2), np.arange(of.n)
    w, lam, gates = rng.normal(size=of.P), rng.random(of.n), rng.integers(2, size=of.K) + 0.0
    give, right = np.full(len(active), 0.3), (rng.normal(size=of.P), None, 0.3)
    found = []
    for problem.jacobian_bytes in (2**30, 120_000):
        of = form(problem)
        found.append(solver(of.at(w, gates, active), lam, w, give, None, 1, rows))
    assert isinstance(found[0].inverse, OfRows)
    blocks = found[1].inverse.blocks
    assert len(blocks) > 1
    assert sum(map(len, blocks)) > len(active)
    assert max(map(len, blocks)) < len(active)
    for a, b in zip(*(one.solve(*right) for one in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    problem.jacobian_bytes = 64 * of.K
    with pytest.raises(ValueError, match=rf"{len(active)} active kinks need \d+ bytes, the bound"):
        solver(form(problem).at(w, gates, active), lam, w, give, None, 1, rows)


def test_the_stiffness_of_kinks_is_the_inverse_of_their_part_of_the_inverse():
    rng = np.random.default_rng(1)
    of = kinked(Problem(relu_network(3, 6, 1, seed=0), rng.normal(size=(N, 3)), np.ones(N)))
    w, active = rng.normal(size=of.P), np.arange(0, of.K, 5)
    gates, u = rng.integers(2, size=of.K).astype(float), rng.normal(size=of.n)
    stiffness, sizes = kink_stiffness(of.at(w, gates, active), np.arange(of.n), u, 1.0)
    gram = of.at(w, gates, active).gram()
    np.testing.assert_allclose(sizes**2, gram.diagonal()[of.n :])
    gram[np.diag_indices(of.n)] += np.exp(-1.0 - u)
    gram[np.diag_indices(len(gram))] += 1e-9
    inner = np.linalg.inv(gram)[of.n :, of.n :]
    np.testing.assert_allclose(stiffness, np.linalg.inv(inner), atol=1e-6)


@pytest.mark.parametrize("tol", [1e-1, 1e-4, 1e-11])
def test_the_curvature_is_solved_for_by_combining_its_products(tol):
    rng = np.random.default_rng(5)
    matrix, b = 0.2 * rng.normal(size=(12, 12)), rng.normal(size=12)
    given, images = [], []

    def apply(v):
        given.append(v.copy())
        images.append(matrix @ v)
        return images[-1]

    x, y = linear.gmres(apply, b, tol)
    np.testing.assert_allclose(x, y @ given, rtol=1e-12, atol=1e-14)
    residual = np.linalg.norm(x - matrix @ x - b) / np.linalg.norm(b)
    assert residual < 1.001 * tol
    # No combination of the same vectors has a smaller residual.
    basis = np.array(given).T
    best = np.linalg.lstsq(basis - matrix @ basis, b, rcond=None)[0]
    np.testing.assert_allclose(y, best, rtol=1e-8, atol=1e-10)
    # One iteration more without another product.
    step = b + y @ images
    assert np.linalg.norm(step - matrix @ step - b) < np.linalg.norm(matrix, 2) * 1.001 * tol * (
        np.linalg.norm(b)
    )
