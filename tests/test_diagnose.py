"""Diagnosis of networks trained elsewhere, against the flow's own numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import latephase


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
