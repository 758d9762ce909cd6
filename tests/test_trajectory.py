"""The result object: saved without pickle, whole or not at all."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from latephase.flow.errors import NotSeparated, SolverError, StepCollapse
from latephase.flow.gradient_flow import gradient_flow
from latephase.flow.trajectory import _SERIES, FORMAT, RECORDED, Trajectory
from tests.conftest import ROOT


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
    with pytest.raises(ValueError, match=f"another format, {FORMAT + change}; .* {FORMAT}$"):
        Trajectory.load(tmp_path / "flow.npz")


# tests/data: flows of these modules, as version 98d4629 saved them.
def linear(weight):
    module = torch.nn.Linear(2, len(weight), bias=False).double()
    module.weight.data[:] = torch.tensor(weight)
    return module


@pytest.mark.parametrize(
    ("name", "module", "x", "y", "loss", "records"),
    [
        (
            "linear.npz",
            linear([[0.3, -0.1]]),
            [[0.5, 1.5], [1.5, 0.5], [-0.5, -1.5], [-2.0, -0.5]],
            [1, 1, -1, -1],
            "logistic",
            4,
        ),
        (
            "classes.npz",
            linear([[0.3, -0.1], [0.2, 0.1], [-0.1, 0.0]]),
            [[2.0, 0.1], [0.2, 2.0], [-2.0, -1.5]],
            [0, 1, 2],
            "exponential",
            3,
        ),
    ],
    ids=["two classes", "three classes"],
)
def test_what_an_earlier_version_saved_loads_and_ends_where_this_one_does(
    name, module, x, y, loss, records
):
    old = Trajectory.load(ROOT / "tests" / "data" / name)
    new = gradient_flow(module, np.array(x), np.array(y), loss, until=1e3, records=records)
    # Steps, and so the records between, are another method's; its error is a part of tol.
    for field in RECORDED:
        assert getattr(new, field).shape == getattr(old, field).shape
    np.testing.assert_allclose(new.direction[-1], old.direction[-1], atol=1e-4)
    np.testing.assert_allclose(new.margins[-1], old.margins[-1], rtol=1e-3)
    assert (old.degree, old.evaluations.keys()) == (new.degree, new.evaluations.keys())
    assert old.settings.items() <= new.settings.items()


def test_a_trajectory_shows_itself_in_one_line():
    assert repr(trajectory().replace(smoothed_margin=np.array([0.1, 1.0, 2e3, 1e12]))) == (
        "Trajectory(4 records, α 0.1 to 1e+12, degree 2, 6 parameters, 3 examples)"
    )


def test_equality_and_hash_are_identity():
    one, other = trajectory(), trajectory()
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2


def test_a_pickled_trajectory_is_as_a_loaded_one():
    before = trajectory()
    after = pickle.loads(pickle.dumps(before))
    np.testing.assert_array_equal(after.direction, before.direction)
    assert after.settings == before.settings
    with pytest.raises(ValueError, match="unpickled"):
        after.extend(1e9)


@pytest.mark.parametrize("kind", [NotSeparated, StepCollapse])
def test_errors_pickle_with_what_they_carry(kind):
    before = kind("the risk is stationary", 0.5, trajectory())
    assert isinstance(before, SolverError)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is kind
    assert (str(after), after.best_smoothed_margin) == ("the risk is stationary", 0.5)
    np.testing.assert_array_equal(after.trajectory.dual, before.trajectory.dual)


def inseparable(seed):
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    return gradient_flow(linear([[0.1, 0.2]]), points, torch.ones(3), until=10.0 + seed)


def test_a_seed_that_is_not_separable_does_not_break_a_pool_of_processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for seed in range(2):
            with pytest.raises(NotSeparated, match="on the wrong side") as caught:
                pool.submit(inseparable, seed).result()
            assert caught.value.best_smoothed_margin < 0.0


def test_the_plot_has_the_margin_and_the_alignment():
    shown = trajectory().replace(smoothed_margin=np.array([1.0, 2.0, 3.0, 4.0]))
    shown = shown.replace(normalized_margin=np.array([0.1, 0.1, 0.2, 0.3]))
    left, right = shown.plot().axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), shown.normalized_smoothed_margin)
    np.testing.assert_array_equal(right.lines[0].get_ydata(), shown.misalignment)
    assert {axes.get_xlabel() for axes in (left, right)} == {"smoothed margin α"}
    plt.close("all")


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


def test_a_copy_extends_as_the_flow_does_and_says_what_it_holds():
    flow = trajectory()
    for twin in (copy.copy(flow), copy.deepcopy(flow)):
        assert twin.extend(1e9) is twin
        np.testing.assert_array_equal(twin.direction, flow.direction)
    assert copy.deepcopy(flow).direction is not flow.direction
    below = flow.replace(smoothed_margin=np.array([-3.2, -3.1, -3.0, -2.96]))
    assert "α -3.2 to -2.96" in repr(below)


@pytest.mark.parametrize("alpha", ["a", None, [1.0, 2.0], -1.0, 0.0])
def test_no_record_is_nearest_to_what_is_no_margin(alpha):
    with pytest.raises(ValueError, match="at: expected a positive smoothed margin"):
        trajectory().at(alpha)


def test_a_flow_below_zero_is_not_drawn_on_logarithmic_axes():
    below = trajectory().replace(smoothed_margin=np.array([-3.2, -3.1, -3.0, -2.96]))
    with pytest.raises(ValueError, match="expected records with α > 0"):
        below.plot()


@pytest.mark.parametrize("levels", [10, "ab", [10, None], [[1, 2]]])
def test_levels_that_are_no_list_of_numbers_are_refused(levels):
    with pytest.raises(ValueError, match="at: expected a list of smoothed margins"):
        gradient_flow(torch.nn.Linear(2, 1, bias=False), np.eye(2), np.ones(2), at=levels)
