"""A bound on bytes: what a flow holds stays within it, and its result does not depend on it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import latephase
from latephase.flow import bordered
from latephase.problem.vectors import angle

ROOT = Path(__file__).resolve().parents[1]

# Peak less what the process held once the same had run on few examples, so that all is imported.
MEASURED = """
import gc, sys
import numpy as np, torch, latephase
from tests.test_flow import linear, separable
from tests.test_memory import classes
torch.set_num_threads(1)

def status(name):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def followed(module, x, y, bound):
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    latephase.gradient_flow(module, x, y, until=10.0, jacobian_bytes=bound)
    return status("VmHWM") - before

followed(linear(20), *separable(50, 20), 2**30)
followed(*classes(3), 2**30)
x, y = separable(4000, 20)
data = x.nbytes
print(followed(linear(20), x, y, 10**6) - data)
print(followed(*classes(16), 10**6))
"""


def classes(k, n=64, dims=20):
    """Return a linear module of k classes with clusters of examples: n (k - 1) rows of margins."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    x = 2.0 * rng.normal(size=(k, dims))[y] + 0.1 * rng.normal(size=(n, dims))
    module = nn.Linear(dims, k, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    return module, x, y


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks as Linux counts them")
def test_the_peak_stays_below_twice_the_bound():
    def peaks():
        command = [sys.executable, "-c", MEASURED]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return tuple(map(int, run.stdout.split()[-2:]))

    # The allocator's pages add 0.1 to 0.4 MB that differ from process to process, never less than
    # nothing: the least of three processes is what the flow took.
    through_weights, by_some_rows = np.min([peaks() for _ in range(3)], axis=0)
    # B Bᵀ takes 128 MB of the former and 7 MB of the latter, several times while it is made.
    assert through_weights < 2 * 10**6
    assert by_some_rows < 2 * 10**6


@pytest.mark.parametrize(
    ("bound", "used"),
    [(24 * 160**2, "OfWeights"), (24 * 160**2 - 1, "OfSome")],
    ids=["through the weights", "by some rows"],
)
def test_the_direction_does_not_depend_on_the_bound(monkeypatch, bound, used):
    module, x, y = classes(8)
    seen, found = set(), bordered.inverse_of

    def noted(point, compliance):
        inverse = found(point, compliance)
        seen.add(type(inverse).__name__)
        return inverse

    expected = latephase.gradient_flow(module, x, y).direction[-1]
    monkeypatch.setattr(bordered, "inverse_of", noted)
    flow = latephase.gradient_flow(module, x, y, jacobian_bytes=bound)
    assert used in seen
    assert angle(flow.direction[-1], expected) < 1e-9
