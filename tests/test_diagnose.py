"""Diagnosis of networks trained elsewhere, against the flow's own numbers."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import latephase
from latephase.figures import tables
from latephase.problem.task import Task


def data(n=30, dims=4, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=dims)
    x = rng.normal(size=(n, dims))
    y = np.sign(x @ w)
    return x + 0.3 * y[:, None] * w / np.linalg.norm(w), y


def network(seed=0, bias=False, outputs=1):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 6, bias=False),
        nn.Linear(6, 5, bias=False),
        nn.Linear(5, outputs, bias=bias),
    )


def test_agrees_with_the_flow_where_it_ended():
    x, y = data()
    module = network().double()
    flow = latephase.gradient_flow(module, x, y, until=25.0)
    came = latephase.diagnose(flow.write_to(module), x, y)
    for name in (
        "smoothed_margin",
        "log_norm",
        "normalized_margin",
        "normalized_smoothed_margin",
        "alignment",
        "kkt_stationarity",
        "kkt_complementarity",
    ):
        # The flow carries its dual variables; these come from the margins, α apart by the gap.
        assert getattr(came, name) == pytest.approx(getattr(flow, name)[-1], rel=1e-4), name
    np.testing.assert_allclose(came.dual, flow.dual[-1], atol=1e-4)
    assert came.degree == 3.0
    assert came.training_error == 0.0


def test_batches_dtype_and_mode():
    x, y = data()
    module = nn.Sequential(nn.Dropout(0.5), network()).train()
    module[1].eval()
    whole = latephase.diagnose(module, x, y)
    pieces = latephase.diagnose(module, x, y, batch_size=7, progress=False)
    assert pieces.alignment == pytest.approx(whole.alignment, abs=1e-6)  # float32
    assert module.training
    assert not module[1].training
    assert next(module.parameters()).dtype == torch.float32
    wide = latephase.diagnose(module.double(), x, y)
    assert wide.alignment == pytest.approx(whole.alignment, abs=1e-6)
    np.testing.assert_allclose(wide.margins, whole.margins, rtol=1e-4, atol=1e-6)


def test_classes_against_autograd():
    x, _ = data()
    labels = np.arange(30) % 3
    module = network(outputs=3).double()
    came = latephase.diagnose(module, x, labels, "cross_entropy", batch_size=8)
    risk = nn.functional.cross_entropy(
        module(torch.tensor(x)), torch.tensor(labels), reduction="sum"
    )
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(risk, module.parameters())])
    w = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    expected = -torch.dot(w, gradient) / (w.norm() * gradient.norm())
    assert came.alignment == pytest.approx(expected.item(), abs=1e-12)
    assert came.margins.shape == (30,)
    assert came.dual.shape == (30, 2)


def test_margins_are_raw_and_normalized_ones_are_the_flows():
    x, y = data()
    module = network().double()
    flow = latephase.gradient_flow(module, x, y, until=25.0)
    came = latephase.diagnose(flow.write_to(module), x, y)
    assert came.raw_margins is came.margins
    np.testing.assert_allclose(came.normalized_margins, flow.margins[-1], rtol=1e-9)
    assert came.normalized_margins.min() == pytest.approx(came.normalized_margin, rel=1e-12)
    assert replace(came, degree=None).normalized_margins is None


def test_a_task_stands_for_its_points_and_labels():
    x, y = data()
    task = Task(torch.tensor(x), torch.tensor(y.astype(int)), "points", "0" * 64)
    came = latephase.diagnose(network(), task)
    assert came.smoothed_margin == latephase.diagnose(network(), x, y).smoothed_margin
    with pytest.raises(ValueError, match="y: expected none beside the task 'points'"):
        latephase.diagnose(network(), task, y)
    with pytest.raises(ValueError, match="y: expected labels"):
        latephase.diagnose(network(), x)


@pytest.mark.parametrize(
    ("outputs", "loss"), [(1, "exponential"), (2, "cross_entropy"), (3, "cross_entropy")]
)
def test_the_loss_that_nobody_named_follows_from_the_outputs(outputs, loss):
    x, y = data()
    labels = y if outputs == 1 else np.arange(30) % outputs
    module = network(outputs=outputs)
    came = latephase.diagnose(module, x, labels)
    assert came.smoothed_margin == latephase.diagnose(module, x, labels, loss).smoothed_margin
    other = latephase.diagnose(network(), x, y, "logistic").smoothed_margin
    assert outputs > 1 or came.smoothed_margin != other


def test_a_diagnosis_is_one_line_one_object_and_one_key():
    x, y = data()
    one, two = (latephase.diagnose(network(), x, y) for _ in range(2))
    assert one == one
    assert one != two
    assert {one: 1}[one] == 1
    assert "30 examples" in repr(one)
    assert "degree 3" in repr(one)
    assert "no degree" in repr(replace(one, degree=None, alignment=None))
    assert "\n" not in repr(one)
    assert len(repr(one)) < 200


def test_json_is_strict_and_complete():
    x, y = data()
    came = latephase.diagnose(network(), x, y, degree=3.0)
    came = replace(came, kkt_stationarity=None, kkt_complementarity=np.inf)
    assert np.isnan(came.homogeneity_defect)  # with a degree that was given
    row = json.loads(came.to_json(), parse_constant=pytest.fail)
    assert row["kkt_stationarity"] is row["kkt_complementarity"] is None
    assert row["homogeneity_defect"] is None
    assert row["alignment"] == came.alignment
    assert row["margins"] == came.margins.tolist()
    assert row["dual"] == came.dual.tolist()
    assert row["layers"][0]["shape"] == [6, 4]
    assert row["layers"][2]["alignment_with_next"] is None
    assert set(row) == set(came.__dataclass_fields__)


def test_a_diagnosis_draws_itself():
    x, y = data()
    came = latephase.diagnose(network(), x, y)
    figure = came.plot()
    left, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_xdata(), np.sort(came.margins))
    widths = [bar.get_width() for bar in right.patches]
    np.testing.assert_allclose(widths, came.layers["spectral_ratio"])
    assert len(tables.table(figure)) == len(came.margins) + len(came.layers)
    plt.close(figure)


def test_without_a_degree_what_needs_one_is_none():
    x, y = data()
    module = network(bias=True)
    with torch.no_grad():
        module[2].bias.fill_(0.3)
    came = latephase.diagnose(module, x, y)
    assert came.degree is None
    assert came.normalized_margin is None
    assert came.normalized_smoothed_margin is None
    assert came.kkt_stationarity is None
    assert came.alignment is not None
    assert came.homogeneity_defect > 1e-3


def test_dual_quantities_are_none_where_float32_does_not_resolve_them():
    x, y = data()
    module = network()
    with torch.no_grad():
        module[0].weight.mul_(1e6)
    came = latephase.diagnose(module, x, y)
    assert came.alignment is None
    assert came.dual is None
    assert came.kkt_stationarity is None
    assert came.normalized_margin is not None
    assert latephase.diagnose(module.double(), x, y).alignment is not None


def test_layer_table():
    x, y = data()
    module = network().double()
    u, v = np.array([1.0, 2, 2, 0, 0, 0]) / 3, np.array([1.0, 0, 0, 0])
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor(np.outer(u, v)))
        module[1].weight.copy_(torch.tensor(np.outer([2.0, 0, 0, 0, 0], u)))
    layers = latephase.diagnose(module, x, y).layers
    assert list(layers["layer"]) == ["0.weight", "1.weight", "2.weight"]
    np.testing.assert_allclose(layers["spectral_ratio"][:2], 1.0, rtol=1e-12)
    assert layers["alignment_with_next"][0] == pytest.approx(1.0, abs=1e-12)
    # 4 uuᵀ - uuᵀ over ‖W_1‖² = 1.
    assert layers["imbalance_with_next"][0] == pytest.approx(3.0, abs=1e-12)
    assert np.isnan(layers["alignment_with_next"][2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.full((30, 4), np.nan)}, "NaN or infinite values"),
        ({"y": np.zeros(30)}, r"labels -1 and \+1"),
        ({"module": nn.ReLU()}, "at least one trainable parameter"),
        ({"module": 3}, "expected a torch.nn.Module"),
        ({"loss": "hinge"}, "expected one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"degree": np.nan}, "degree: expected a positive number"),
        ({"degree": "2"}, "degree: expected a positive number"),
        ({"dtype": np.float64}, "dtype: expected a floating torch.dtype"),
        ({"dtype": torch.complex64}, "dtype: expected a floating torch.dtype"),
        ({"kink_tol": -1.0}, "kink_tol: expected a number of at least 0"),
        ({"y": np.ones(30) * 1j}, "y: expected real labels"),
        ({"loss": nn.CrossEntropyLoss(ignore_index=1)}, "with ignore_index=-100"),
    ],
)
def test_bad_input(change, message):
    x, y = data()
    arguments = {"module": network(), "x": x, "y": y} | change
    with pytest.raises(ValueError, match=message):
        latephase.diagnose(**arguments)


def test_a_progress_bar_is_shown_when_asked_for(capsys):
    x, y = data()
    latephase.diagnose(network(), x, y, batch_size=4, progress=True)
    shown = capsys.readouterr().err
    assert "outputs: 100%" in shown
    assert "gradient: 100%" in shown
    latephase.diagnose(network(), x, y, batch_size=4, progress=False)
    assert capsys.readouterr().err == ""


def test_the_least_norm_gradient_stands_beside_pytorchs_own():
    # One example on the kink of a unit w = (1, 0), as in test_generalized_gradient.py.
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU()).double()
    net[0].weight.data[:] = torch.tensor([[1.0, 0.0]])
    x, y = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([-1, 1])
    came = latephase.diagnose(net, x, y)
    assert (came.active_kinks, came.least_norm_missing) == (1, "")
    # ∇α = q₂ (1, 1 - e s) with the gate s = 1/e; PyTorch has s = 0.
    assert came.alignment == pytest.approx(0.5**0.5)
    assert came.least_norm_alignment == pytest.approx(1.0)
    assert np.isnan(came.least_norm_kkt_stationarity), "a margin is zero"
    assert latephase.diagnose(net, x[1:], y[1:]).active_kinks == 0
    assert '"active_kinks": 1' in came.to_json()


def test_without_kinks_nearby_the_least_norm_gradient_is_the_own_one():
    x, y = data()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False))
    came = latephase.diagnose(net.double(), x, y)
    assert came.active_kinks == 0
    for name in ("alignment", "kkt_stationarity", "kkt_complementarity"):
        assert getattr(came, f"least_norm_{name}") == pytest.approx(
            getattr(came, name), rel=1e-12, nan_ok=True
        )


def test_a_missing_least_norm_has_its_reason(monkeypatch):
    x, y = data()
    rounded = nn.Sequential(nn.Linear(4, 1, bias=False), nn.ReLU6()).double()
    came = latephase.diagnose(rounded, x, y)
    assert came.alignment is not None
    assert came.active_kinks is came.least_norm_alignment is None
    assert came.least_norm_missing.startswith("module: hardtanh in '1': its kinks")
    with monkeypatch.context() as smaller:
        smaller.setattr("latephase.measures.diagnosis._LEAST_NORM_BYTES", 959)
        came = latephase.diagnose(nn.Linear(4, 1, bias=False).double(), x, y)
    assert came.least_norm_missing.startswith("a Jacobian of 30 margins needs 960 bytes")
    far = nn.Linear(4, 1, bias=False)
    far.weight.data[:] = 1e8
    came = latephase.diagnose(far, x, y)
    assert came.least_norm_missing == "the dtype does not resolve the dual variables"
    dead = nn.Sequential(nn.Linear(4, 1, bias=False), nn.ReLU()).double()
    dead[0].weight.data[:] = 0.0
    came = latephase.diagnose(nn.Sequential(*dead, nn.Linear(1, 1, bias=False).double()), x, y)
    assert came.least_norm_missing == "the least-norm gradient is zero"
    assert came.least_norm_alignment is None
