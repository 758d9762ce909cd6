"""The reference in many digits: its method, a closed form, and the library beside what is kept."""

import importlib

import mpmath
import numpy as np
import pytest
import torch

from latebook.records import recorded
from tests.conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with mpmath.workdps(54):
        yield importlib.import_module("reference_flow")


def test_radau_of_three_stages_is_of_order_five(benchmark):
    nodes, matrix, _, first = benchmark.radau(3)
    root = mpmath.sqrt(6)
    for came, expected in zip(nodes, [(4 - root) / 10, (4 + root) / 10, 1], strict=True):
        assert abs(came - expected) < 1e-50
    for degree in range(5):
        came = benchmark.dot(matrix[-1], [c**degree for c in nodes])
        assert abs(came - mpmath.mpf(1) / (degree + 1)) < 1e-50
    # The polynomial through the nodes, at 0.
    assert abs(benchmark.dot(first, [3 * c**2 - c + 2 for c in nodes]) - 2) < 1e-50


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_one_example_with_one_weight_has_its_closed_form(benchmark, loss):
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(module.weight, 0.5)
    x, y = np.ones((1, 1)), np.ones(1)
    case = benchmark.Small(module, x, y, loss, 1, benchmark.of_linear(x, y))
    flow = benchmark.Flow(case, *benchmark.FIRST)
    # ẇ = e^{-w}, or 1/(1 + e^w).
    start, rest = mpmath.mpf(1) / 2, 0 if loss == "exponential" else 1
    for level in (1, 3, 1000):
        flow.run(mpmath.asinh(level))
        found = flow.fields()
        time = mpmath.exp(level) - mpmath.exp(start) + rest * (level - start)
        assert abs(found["log_time"][0] - mpmath.log(time)) < 1e-20
        assert abs(found["log_norm"][0] - mpmath.log(level)) < 1e-30
        # The root of what rounding leaves.
        assert max(found["path_length"][0], found["misalignment"][0]) < 1e-25


def test_the_library_is_near_what_is_kept(benchmark):
    kept = recorded(benchmark.NAME, ROOT / "results")["reference"]
    assert all(one["agreement"] <= benchmark.AGREEMENT for one in kept.values())
    for name, case in benchmark.cases().items():
        # Its start is still the one that is kept.
        assert kept[name]["start"] == [float(v) for v in case.start()]
        for row in benchmark.errors(case, kept[name], 1e-4):
            assert max(row["direction"], row["log_norm"], row["margins"]) < 1e-4, name
            assert max(row["log_time"], row["normalized_smoothed_margin"]) < 1e-4, name
            # Of a linear model in the plane, too, whose direction turns back within a step.
            assert row["path_length"] < 10 * 1e-4, name
