"""The result object: saved without pickle, whole or not at all."""

import numpy as np
import pytest
import torch

from latephase.flow.trajectory import _SERIES, FORMAT, Trajectory


def trajectory(records=4, parameters=6, examples=3):
    rng = np.random.default_rng(0)
    series = {name: rng.normal(size=records) for name in _SERIES}
    return Trajectory(
        **series,
        direction=rng.normal(size=(records, parameters)),
        margins=rng.normal(size=(records, examples)),
        dual=rng.normal(size=(records, examples)),
        log_dual=np.array([0.0, -1e300, -1.0]),
        degree=2.0,
        evaluations={"gradient": 5, "jacobian": 3},
        steps=9,
        settings={"tol": 1e-4, "loss": "exponential", "kink_smoothing": None},
        continuation=lambda t, until: t,
    )


def test_saved_and_loaded_unchanged(tmp_path):
    before = trajectory()
    before.save(tmp_path / "flow.npz")
    after = Trajectory.load(tmp_path / "flow.npz")
    for name in (*_SERIES, "direction", "margins", "dual", "log_dual"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert after.settings == before.settings
    assert after.evaluations == before.evaluations
    assert (after.degree, after.steps, len(after)) == (2.0, 9, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["flow.npz"]
    with np.load(tmp_path / "flow.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "flow.npz"
    trajectory().save(path)
    old = path.read_bytes()

    def interrupted(stream, **arrays):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trajectory(records=8).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["flow.npz"]


def test_load_refuses_other_files(tmp_path):
    np.savez(tmp_path / "other.npz", direction=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected arrays .*; got direction, without align"):
        Trajectory.load(tmp_path / "other.npz")


@pytest.mark.parametrize("change", [-1, 1])
def test_load_refuses_another_format(tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        patch.setattr("latephase.flow.trajectory.FORMAT", FORMAT + change)
        trajectory().save(tmp_path / "flow.npz")
    with pytest.raises(ValueError, match="trajectory of another format"):
        Trajectory.load(tmp_path / "flow.npz")


def test_extend_needs_the_module(tmp_path):
    trajectory().save(tmp_path / "flow.npz")
    with pytest.raises(ValueError, match="holds no module and data"):
        Trajectory.load(tmp_path / "flow.npz").extend(1e9)
    assert trajectory().extend(1e9).steps == 9


def test_dataframe_has_a_row_for_each_record():
    frame = trajectory().to_dataframe()
    assert list(frame.columns) == list(_SERIES)
    assert len(frame) == 4


def test_write_to():
    t = trajectory().replace(log_norm=np.array([0.0, 1.0, 2.0, 100.0]))
    module = torch.nn.Sequential(
        torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False)
    )
    t.write_to(module, record=1)
    expected = np.e * t.direction[1]
    came = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()
    np.testing.assert_allclose(came, expected, rtol=1e-6)  # float32
    with pytest.raises(ValueError, match="does not fit into the module's dtype"):
        t.write_to(module)
    t.write_to(module, normalized=True)
    came = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()
    np.testing.assert_allclose(came, t.direction[-1], rtol=1e-6)
    with pytest.raises(ValueError, match="expected a module with 6 trainable parameters, got 2"):
        t.write_to(torch.nn.Linear(2, 1, bias=False))
