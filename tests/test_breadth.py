"""Random problems: each ends right, or with an error that names the reason, in bounded time.

"Right" is what the theory says of every flow: α arrives, ‖W‖ grows, and α/‖W‖^L does not fall from
α = 2 on; before, only as the tolerance lets it.
"""

import time

import numpy as np
import pytest
import torch

import latephase
from latephase.zoo import networks

UNITS = [1.0, 1.0, 1.0, 1e-12, 1e-6, 1e6, 1e12]
KINDS = [
    "linear",
    "deep 2",
    "deep 3",
    "deep 4",
    "squared_relu",
    "fixed signs",
    "relu",
    "leaky_relu",
]
# CPU seconds; the longest seen took a third of it.
LIMIT = 120.0


def problem(seed: int) -> dict:
    """Draw dimension, size, classes, copies, units, model, loss, tolerance and goal."""
    rng = np.random.default_rng([seed, 2020])
    d, n, classes = int(rng.integers(1, 12)), int(rng.integers(1, 40)), int(rng.choice([1, 1, 3]))
    x = rng.normal(size=(n, d))
    shape = rng.choice(["any", "any", "any", "copies", "collinear", "idle feature"])
    if shape == "copies":
        x = np.repeat(x, 2, axis=0)
    elif shape == "collinear":
        x = np.outer(x[:, 0], np.ones(d))
    elif shape == "idle feature" and d > 1:
        x[:, 0] = 0.0
    y = np.argmax(x @ rng.normal(size=(d, 3)), axis=1)
    if classes == 1 or len(set(y.tolist())) < 3:
        classes, y = 1, np.where(x @ rng.normal(size=d) > 0, 1, -1)
    kind, scale = str(rng.choice(KINDS)), float(10 ** rng.uniform(-2, 1))
    width, draw = int(rng.integers(2, 9)), torch.Generator().manual_seed(seed)
    if kind == "linear":
        module = networks.linear(d, classes, generator=draw, scale=scale)
    elif kind.startswith("deep"):
        between = [width] * (int(kind[-1]) - 1)
        module = networks.deep_linear([d, *between, classes], generator=draw, scale=scale)
    else:
        fixed = kind == "fixed signs" and classes == 1
        name = "squared_relu" if kind == "fixed signs" else kind
        module = networks.two_layer(
            d, 2 * width, name, fixed_signs=fixed, outputs=classes, generator=draw, scale=scale
        )
    loss = "cross_entropy" if classes == 3 else str(rng.choice(["exponential", "logistic"]))
    units = float(rng.choice(UNITS))
    return {
        "arguments": (module, x * units, y, loss),
        "until": float(10 ** rng.uniform(1, 60)),
        "tol": float(rng.choice([1e-3, 1e-4])),
        "what": f"{kind}, {len(x)} × {d} ({shape}), {classes} output, {loss}, units {units:g}",
        "units": units,
    }


def outcome(seed: int) -> str:
    """Check the flow of a problem; return how it ends: "arrives", or the name of its error."""
    drawn = problem(seed)
    until, tol = drawn["until"], drawn["tol"]
    begin, error = time.process_time(), None
    try:
        flow = latephase.gradient_flow(*drawn["arguments"], until=until, tol=tol, records=10_000)
    except (latephase.NotSeparated, latephase.StepCollapse) as caught:
        error, flow = caught, caught.trajectory
    took = time.process_time() - begin
    assert took < LIMIT, f"{drawn['what']}: {took:.0f} s"
    if error is None:
        assert until <= flow.smoothed_margin[-1] <= until * 1.001 or len(flow.margins) == 1
    elif isinstance(error, latephase.StepCollapse):
        # In ordinary and small units smooth models and ReLUs are followed to the end.
        assert drawn["units"] >= 1e6, f"{drawn['what']}: {error}"
        assert "units" in str(error), f"{drawn['what']}: {error}"
    if flow is not None and len(flow.smoothed_margin) > 1:
        gained = np.diff(flow.normalized_smoothed_margin) / flow.normalized_smoothed_margin[1:]
        late = flow.smoothed_margin[:-1] >= 2.0
        assert (gained[late] >= -1e-12).all(), f"{drawn['what']}: fell by {-gained[late].min():.1e}"
        assert (gained >= -10 * tol).all(), f"{drawn['what']}: fell by {-gained.min():.1e}"
        assert (np.diff(flow.log_norm)[late] > 0).all(), drawn["what"]
        assert not np.isnan(flow.log_time).any(), drawn["what"]
        for name in ("alignment", "path_length", "direction", "margins", "dual"):
            assert np.isfinite(getattr(flow, name)).all(), f"{drawn['what']}: {name}"
    return type(error).__name__ if error else "arrives"


@pytest.mark.parametrize("seed", range(6))
def test_random_problems(seed):
    outcome(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 206))
def test_many_random_problems(seed):
    outcome(seed)


ONE = np.array([[0.3, -1.2]])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (ONE, [1]),
        (np.repeat(ONE, 5, axis=0), [1] * 5),
        (np.outer([1.0, 2.0, -1.0], ONE), [1, 1, -1]),
        (np.hstack([np.zeros((3, 1)), [[1.0], [2.0], [-1.0]]]), [1, 1, -1]),
        (1e-12 * np.outer([1.0, 2.0, -1.0], ONE), [1, 1, -1]),
        (1e12 * np.outer([1.0, 2.0, -1.0], ONE), [1, 1, -1]),
    ],
    ids=["one example", "copies", "collinear", "an idle feature", "tiny", "huge"],
)
@pytest.mark.parametrize("depth", [1, 3])
def test_degenerate_data_have_the_closed_limit(x, y, depth):
    # All examples lie on one line, which is the direction of largest margin.
    draw = torch.Generator().manual_seed(0)
    module = networks.deep_linear([2, *[3] * (depth - 1), 1], generator=draw, scale=0.5)
    flow = latephase.gradient_flow(module, x, np.array(y), until=1e20)
    product = flow.write_to(module, normalized=True)(torch.from_numpy(np.eye(2))).detach().numpy()
    found, line = product.ravel() / np.linalg.norm(product), x[0] / np.linalg.norm(x[0])
    assert found @ line > 1 - 1e-6
    assert flow.normalized_margin[-1] > 0


def test_examples_that_are_all_zero_are_refused():
    module = torch.nn.Linear(2, 1, bias=False)
    with pytest.raises(ValueError, match="outputs are all zero"):
        latephase.gradient_flow(module, np.zeros((3, 2)), np.ones(3))


@pytest.mark.parametrize("units", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_what_is_not_separable_is_said_not_to_be_in_any_units(units):
    x, y = units * np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), np.array([1, -1, 1])
    torch.manual_seed(3)
    module = torch.nn.Linear(2, 1, bias=False)
    # Where float64 cannot resolve W so finely, the units are to blame, and named.
    ends = (latephase.NotSeparated, latephase.StepCollapse)
    with pytest.raises(ends, match=r"stationary|vanishes|units of the inputs") as raised:
        latephase.gradient_flow(module, x, y)
    assert isinstance(raised.value, latephase.NotSeparated) or units > 1e6
