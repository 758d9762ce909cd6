"""The linear system of an implicit step: its parts eliminated first change nothing but its cost."""

from dataclasses import replace

import numpy as np
import pytest

from latephase.flow import sliding
from latephase.flow.sliding import Ball, Bordered
from latephase.problem.kinked import kinked
from latephase.problem.margins import Problem
from tests.test_nonsmooth_flow import relu_network

N = 12


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
    block = np.repeat(lam.reshape(-1, pairs).sum(1), pairs)
    excess = (block, np.repeat(rng.random(N), pairs))
    right = rng.normal(size=of.P), rng.normal(size=of.n + len(active)), 0.3
    found = []
    for least in (len(active) + 1, len(active)):
        monkeypatch.setattr(sliding, "TUNING", replace(sliding.TUNING, eliminated=least))
        point = of.at(w, gates, active)
        found.append(Bordered(point, Ball(w, 0.1, 1.0), lam, rho, give, excess, pairs))
    dense, split = found
    assert dense.blocks is None
    # Units with different numbers of kinks, and none left among the margins.
    assert len(split.factor[0]) == of.n + np.count_nonzero(active >= N * widths[1])
    for a, b in zip(dense.solve(*right), split.solve(*right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(dense.squares, split.squares)
