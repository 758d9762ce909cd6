"""States on disk: exact resume, kills at any moment, damage, strangers, a full disk."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from latephase.measures.diagnosis import diagnose
from latephase.problem.losses import named_loss
from latephase.training import checkpoints
from latephase.training.loop import Trainer
from latephase.training.train import Settings, read_run, train
from latephase.zoo import networks
from tests.conftest import ROOT


def network(seed=0, width=6, normalized=True):
    """Batch normalization and dropout: buffers to keep and randomness to repeat."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False),
        nn.BatchNorm2d(width) if normalized else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(36 * width, 3),
    )


def data(n=40):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    return rng.normal(size=(n, 1, 8, 8)).astype(np.float32) + y[:, None, None, None], y


def settings(schedule="constant", **changes) -> Settings:
    given = {"steps": 30, "batch": 8, "schedule": schedule, "rate": 0.05}
    given["momentum"] = 0.0 if schedule == "loss_based" else 0.9
    return Settings(**{**given, **changes})


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Stopped(BaseException):
    """What ends the training in the middle, as a signal would."""


def stop_after(monkeypatch, steps):
    """Let the training take so many more steps, then stop."""
    taken = iter(range(steps))
    original = Trainer.take_step

    def take_step(self, position):
        if next(taken, None) is None:
            raise Stopped
        return original(self, position)

    monkeypatch.setattr(Trainer, "take_step", take_step)


# Exact resume.


@pytest.mark.parametrize("schedule", ["constant", "normalized", "loss_based"])
@pytest.mark.parametrize("changes", [{}, {"channels_last": True, "labels": "renewed"}])
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, monkeypatch, schedule, changes):
    x, y = data()
    asked = settings(schedule, **changes)
    whole = network()
    expected = train(whole, x, y, asked, tmp_path / "whole")
    for steps in (0, 1, 6, 5, 11):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Stopped):
                train(network(), x, y, asked, tmp_path / "parts", save_every=0.0)
    parts = network(seed=7)
    run = train(parts, x, y, asked, tmp_path / "parts", save_every=0.0)
    assert_same_bits(tensors(parts), tensors(whole))
    assert [c.name for c in tmp_path.glob("parts/latest*")] == []
    for name in ("steps", "log_risk", "accuracy"):
        np.testing.assert_array_equal(getattr(run, name), getattr(expected, name))
    assert run.schedule == expected.schedule
    for k in range(len(run)):
        a, b = run.load(k, network()), expected.load(k, network())
        assert_same_bits(tensors(a), tensors(b))


LEVELS = [-5.0, 0.0, 1.0, 2.0, 4.0, 4.1, 8.0]


def to_levels(folder, batch=None, module=None, **given):
    module = module or network(normalized=False)
    asked = settings("normalized", steps=400, batch=batch, rate=0.2)
    return train(module, *data(), asked, folder, at=LEVELS, **given), module


@pytest.mark.parametrize("batch", [None, 8])
def test_checkpoints_at_levels_are_the_first_beyond_each(tmp_path, batch):
    run, _ = to_levels(tmp_path, batch)
    alpha = named_loss("cross_entropy").inverse(torch.from_numpy(run.log_risk + np.log(40)))
    passed = np.searchsorted(LEVELS, alpha.numpy(), side="right")
    assert run.steps[0] == 0
    assert passed[-2] < passed[-1] == len(LEVELS)
    assert np.all(np.diff(passed) > 0)
    assert run.steps[-1] < 400
    assert np.all(run.steps % (5 if batch else 1) == 0)


def test_a_run_that_does_not_reach_its_last_level_ends_with_its_steps(tmp_path):
    asked = settings("normalized", steps=13)
    for _ in range(2):
        run = train(network(), *data(), asked, tmp_path, at=[50.0])
        assert run.steps.tolist() == [0, 13]
    for schedule, levels in (("loss_based", [1.0]), ("normalized", [1.0, 1.0])):
        with pytest.raises(ValueError, match="at: expected ascending levels of α"):
            train(network(), *data(), settings(schedule), tmp_path / "no", at=levels)


@pytest.mark.parametrize("batch", [None, 8])
def test_an_interrupted_run_to_a_level_ends_in_the_same_bits(tmp_path, monkeypatch, batch):
    expected, whole = to_levels(tmp_path / "whole", batch)
    for steps in (0, 3, 8, 13):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Stopped):
                to_levels(tmp_path / "parts", batch, save_every=0.0)
    for _ in range(2):
        other = network(seed=7, normalized=False)
        run, parts = to_levels(tmp_path / "parts", batch, other, save_every=0.0)
        assert_same_bits(tensors(parts), tensors(whole))
        assert run.steps.tolist() == expected.steps.tolist()
    assert [c.name for c in tmp_path.glob("parts/latest*")] == []


@pytest.mark.parametrize("schedule", ["loss_based", "normalized"])
def test_a_folder_written_by_the_first_version_is_continued(tmp_path, schedule):
    # Written by commit 98d4629, to its end; its last state is taken away.
    shutil.copytree(ROOT / "tests" / "data" / "runs_98d4629" / schedule, tmp_path / "run")
    rng, y = np.random.default_rng(0), np.arange(12) % 3
    centres = np.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])
    x = (centres[y] + 0.3 * rng.normal(size=(12, 2))).astype(np.float32)
    module = networks.mlp([2, 4, 3], generator=torch.Generator(), dtype=torch.float32)
    before = read_run(tmp_path / "run")
    assert before.settings.loss == "cross_entropy"
    last = tensors(before.load(-1, module))
    for ending in ("json", "safetensors"):
        (tmp_path / "run" / f"step-0000000012.{ending}").unlink()
    asked = replace(before.settings, loss=None)
    with warnings.catch_warnings():  # another machine, other versions
        warnings.simplefilter("ignore", UserWarning)
        run = train(module, x, y, asked, tmp_path / "run")
    # To rounding in float32, which steps sized by the loss amplify: another processor was 4e-4 off.
    np.testing.assert_allclose(run.log_risk, before.log_risk, rtol=1e-3)
    for name, tensor in tensors(module).items():
        torch.testing.assert_close(tensor, last[name], rtol=2e-3, atol=2e-3)
    for held, had in zip(run.schedule, before.schedule, strict=True):
        for name, value in had.items():
            assert held[name] == (None if value is None else pytest.approx(value, rel=1e-3))


def test_a_finished_run_is_returned_without_training(tmp_path, monkeypatch):
    x, y = data()
    run = train(network(), x, y, settings(), tmp_path)
    stop_after(monkeypatch, 0)
    module = network(seed=3)
    again = train(module, x, y, settings(), tmp_path)
    np.testing.assert_array_equal(again.log_risk, run.log_risk)
    assert_same_bits(tensors(module), tensors(run.load(-1, network())))


def test_running_statistics_are_part_of_the_state(tmp_path):
    x, y = data()
    run = train(network(), x, y, settings(), tmp_path)
    loaded = run.load(-1, network())
    assert loaded[1].num_batches_tracked == 30
    assert loaded[1].running_mean.abs().min() > 0
    # In double precision the same numbers, for those who measure there.
    wide = run.load(-1, network().double())
    assert wide[0].weight.dtype == torch.float64
    assert torch.equal(wide[0].weight.float(), loaded[0].weight)


def test_another_program_can_read_a_checkpoint(tmp_path):
    x, y = data()
    module = network()
    train(module, x, y, settings(), tmp_path)
    (path,) = tmp_path.glob("step-0000000030.safetensors")
    stored = load_file(path)
    assert {name for name in stored if name.startswith("momentum/")} == {
        f"momentum/{name}" for name, _ in module.named_parameters()
    }
    weights = {name: t for name, t in stored.items() if not name.startswith("momentum/")}
    assert_same_bits(weights, tensors(module))
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["architecture"]["0.weight"] == [[6, 1, 3, 3], "float32"]
    assert described["settings"]["momentum"] == 0.9
    assert {"latephase", "torch"} <= described["versions"].keys()


@pytest.mark.parametrize("schedule", ["constant", "loss_based"])
def test_steps_may_be_raised_after_the_end(tmp_path, schedule):
    whole, parts = network(normalized=False), network(normalized=False)
    train(whole, *data(), settings(schedule, steps=30), tmp_path / "whole")
    for steps in (10, 30):
        run = train(parts, *data(), settings(schedule, steps=steps), tmp_path / "parts")
        assert (run.settings.steps, run.steps[-1]) == (steps, steps)
    assert_same_bits(tensors(parts), tensors(whole))
    with pytest.raises(ValueError, match=r"steps: expected at least .* 30, got 20"):
        train(parts, *data(), settings(schedule, steps=20), tmp_path / "parts")


def test_a_run_to_a_level_that_ended_within_an_epoch_goes_on_with_its_batches(tmp_path):
    whole, parts = network(normalized=False), network(normalized=False)
    train(whole, *data(), settings(steps=25), tmp_path / "whole", at=[1e3])
    for steps in (7, 25):
        train(parts, *data(), settings(steps=steps), tmp_path / "parts", at=[1e3])
    assert_same_bits(tensors(parts), tensors(whole))


def test_a_callback_sees_every_checkpoint_once_and_changes_nothing(tmp_path, monkeypatch):
    seen = []

    def look(step, module):
        seen.append((step, float(next(module.parameters()).detach().sum()), module.training))
        torch.rand(3)

    whole, parts = network(), network()
    train(whole, *data(), settings(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        with pytest.raises(Stopped):
            train(parts, *data(), settings(), tmp_path / "parts", callback=look, save_every=0.0)
    run = train(parts, *data(), settings(), tmp_path / "parts", callback=look)
    assert_same_bits(tensors(parts), tensors(whole))
    kept = [run.load(k, network()) for k in range(len(run))]
    sums = [float(next(net.parameters()).detach().sum()) for net in kept]
    assert seen == [(step, one, False) for step, one in zip(run.steps, sums, strict=True)]


def scaled(step, module):
    with torch.no_grad():
        module[0].weight.mul_(2.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (scaled, "0.weight"),
        (lambda step, module: module.double(), "0.weight"),
        (lambda step, module: module[5].bias.requires_grad_(False), "5.bias"),
        (lambda step, module: module[1].running_mean.add_(1.0), "1.running_mean"),
    ],
)
def test_a_callback_that_changes_the_module_is_named(tmp_path, change, named):
    with pytest.raises(ValueError, match=f"callback: it changed '{named}' of the module at step 0"):
        train(network(), *data(), settings(), tmp_path, callback=change)


class Drawn(nn.Module):
    """Draws from Python and NumPy, keeps a lock, and a buffer on its weights' memory."""

    def __init__(self):
        super().__init__()
        self.inner, self.lock = network(), threading.Lock()
        self.register_buffer("view", self.inner[0].weight.detach())

    def forward(self, x):
        kept = random.random() + np.random.rand()  # noqa: NPY002
        return self.inner(x) * (kept if self.training else 1.0)


def test_all_that_is_drawn_is_drawn_again_and_what_shares_memory_is_kept(tmp_path):
    def stop(step, module):
        torch.set_grad_enabled(False)
        if step > 0:
            raise Stopped

    few = settings(steps=9, checkpoints=3)
    whole, parts = Drawn(), Drawn()
    run = train(whole, *data(), few, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(parts, *data(), few, tmp_path / "parts", callback=stop)
    assert torch.is_grad_enabled()
    train(parts, *data(), few, tmp_path / "parts")
    assert_same_bits(tensors(parts), tensors(whole))
    assert len(run.diagnose(whole, *data(), degree=False, layers=False)) == len(run)


def test_a_run_is_diagnosed_checkpoint_by_checkpoint_and_drawn(tmp_path):
    module = network()
    run = train(module, *data(), settings(steps=4), tmp_path)
    before = tensors(module)
    table = run.diagnose(module, *data(), degree=2.0)
    assert_same_bits(tensors(module), before)
    assert table["step"].tolist() == run.steps.tolist()
    np.testing.assert_allclose(table["training_error"], 1 - run.accuracy, rtol=1e-12)
    alone = diagnose(run.load(1, network()), *data(), degree=2.0)
    assert table["alignment"][1] == alone.alignment
    assert table["normalized_margin"][1] == alone.normalized_margin
    left, right = run.plot().axes
    np.testing.assert_array_equal(left.lines[0].get_ydata(), -run.log_risk)
    np.testing.assert_array_equal(right.lines[0].get_xdata(), run.steps)


TRAINING = """
import sys
sys.path.insert(0, {root!r})
from tests.test_checkpoints import data, network, settings
from latephase.training.train import train
x, y = data(400)
asked = settings({schedule!r}, steps={steps}, batch=20, checkpoints=30)
module = network(width=16, normalized={schedule!r} != "loss_based")
train(module, x, y, asked, sys.argv[1], save_every=0.02)
"""


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["constant", "loss_based"])
def test_a_run_killed_at_ten_random_moments_ends_in_the_same_bits(tmp_path, schedule):
    # An epoch done again costs as much and counts for nothing.
    steps = 300 if schedule == "loss_based" else 900
    code = TRAINING.format(root=str(ROOT), schedule=schedule, steps=steps)
    command = [sys.executable, "-c", code]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder):
        return subprocess.Popen([*command, str(tmp_path / folder)], env=environment)

    def reached() -> int:
        # By name: a latest state may be gone before it is read.
        names = [path.stem for path in (tmp_path / "parts").glob("*-*.json")]
        return max((int(name.split("-")[1]) for name in names), default=-1)

    assert start("whole").wait() == 0
    seconds = read_run(tmp_path / "whole").seconds[-1]
    rng, seen = random.Random(0), [reached()]
    for _ in range(10):
        process = start("parts")
        while reached() == seen[-1]:
            assert process.poll() is None, "done before its last kill: make the run longer"
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, seconds / 25))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        seen.append(reached())
    assert sorted(set(seen)) == seen
    assert start("parts").wait() == 0
    whole, parts = read_run(tmp_path / "whole"), read_run(tmp_path / "parts")
    np.testing.assert_array_equal(whole.log_risk, parts.log_risk)
    for k in range(len(whole)):
        a, b = (
            tensors(run.load(k, network(width=16, normalized=schedule != "loss_based")))
            for run in (whole, parts)
        )
        assert_same_bits(a, b)
    assert list(tmp_path.glob("parts/*.aside")) == []


# Strangers and damage.


@pytest.fixture
def finished(tmp_path):
    x, y = data()
    train(network(), x, y, settings(), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"), [("rate", 0.1), ("seed", 1), ("schedule", "normalized")]
)
def test_a_folder_of_other_settings_is_refused(finished, name, value):
    message = f"a run with {name}=.*, asked for {name}={value!r}; give train another folder"
    with pytest.raises(ValueError, match=message):
        train(network(), *data(), settings(**{name: value}), finished)


def test_a_folder_of_another_architecture_or_other_data_is_refused(finished):
    x, y = data()
    message = r"another architecture, where 0.weight is \[6, 1, 3, 3\].*; in the module it is \[5,"
    with pytest.raises(ValueError, match=message):
        train(network(width=5), x, y, settings(), finished)
    with pytest.raises(ValueError, match=message):
        read_run(finished).load(0, network(width=5))
    with pytest.raises(ValueError, match=r"1.weight is .*; in the module it is absent"):
        read_run(finished).load(0, network()[:1])
    with pytest.raises(
        ValueError, match="a run on other data, or on these in another order; give train"
    ):
        train(network(), x, (y + 1) % 3, settings(), finished)
    frozen = network()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen parameters none, asked for 0\.weight"):
        train(frozen, x, y, settings(), finished)
    with pytest.raises(ValueError, match=r"is .* of float32; in the module it is .* of float64"):
        train(network().double(), x, y, settings(), finished)


def test_a_module_of_the_same_shapes_that_computes_something_else_is_refused(finished):
    other = network()
    other[2] = nn.Tanh()
    with pytest.raises(ValueError, match=r"ln R was .*, and of this module it is"):
        train(other, *data(), settings(steps=40), finished)


def test_a_place_where_no_folder_can_be_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        with pytest.raises(ValueError, match="folder: expected one, or a place for it"):
            train(network(), *data(), settings(), place)


def test_a_damaged_checkpoint_is_named_with_what_to_do(finished):
    x, y = data()
    path = finished / "step-0000000030.safetensors"
    whole = path.read_bytes()
    remedy = r"delete step-0000000030.safetensors and step-0000000030.json together"
    flipped = bytes([whole[-1] ^ 1])
    for content, message in [
        (whole[:-10], f"expected {len(whole)} bytes, got {len(whole) - 10}: truncated"),
        (whole[:-1] + flipped, "its sha256 is not the one in step-0000000030.json"),
        (None, "missing, though step-0000000030.json is there"),
    ]:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        for attempt in (
            lambda: train(network(), x, y, settings(), finished),
            lambda: read_run(finished).load(-1, network()),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                attempt()
            assert remedy in str(caught.value)
            assert str(path) in str(caught.value)
        # Others are read as before.
        read_run(finished).load(-2, network())
    # The remedy works.
    path.with_suffix(".json").unlink()
    run = train(network(), x, y, settings(), finished)
    assert run.steps[-1] == 30
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"step": 3', "truncated or no JSON"),
        ('{"step": 3}', "not a checkpoint of latephase"),
        ("[]", "not a checkpoint of latephase"),
    ],
)
def test_a_json_that_is_no_checkpoint_is_named(finished, content, message):
    (finished / "step-0000000003.json").write_text(content)
    for attempt in (
        lambda: train(network(), *data(), settings(), finished),
        lambda: read_run(finished),
    ):
        with pytest.raises(ValueError, match=f"step-0000000003.json: {message}"):
            attempt()


def test_a_checkpoint_of_another_format_is_refused(finished):
    path = finished / "step-0000000030.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="a checkpoint of format 2, expected 1"):
        read_run(finished)


def test_an_empty_folder_and_a_vanished_checkpoint_are_named(finished, tmp_path):
    with pytest.raises(ValueError, match="no checkpoints of a training run there"):
        read_run(tmp_path / "nothing")
    run = read_run(finished)
    checkpoints.delete(checkpoints.listed(finished, checkpoints.DUE)[-1])
    with pytest.raises(ValueError, match="the checkpoint of step 30 is gone"):
        run.load(-1, network())


def test_what_a_dead_process_left_is_cleared_away_and_nothing_else(finished):
    left = [
        "step-0000000031.safetensors",
        "step-0000000031.safetensors.aside",
        "latest-0000000031.json.aside",
    ]
    kept = ["notes.txt", "model.safetensors", "other.aside"]
    for name in left + kept:
        (finished / name).write_text("x")
    train(network(), *data(), settings(), finished)
    assert not any((finished / name).exists() for name in left)
    assert all((finished / name).exists() for name in kept)


def test_two_processes_do_not_train_in_one_folder(finished):
    held = checkpoints.held(finished)
    with held, pytest.raises(ValueError, match="another process is training there"):
        train(network(), *data(), settings(), finished)
    train(network(), *data(), settings(), finished)


def test_a_change_of_versions_is_said(finished):
    for path in finished.glob("*.json"):
        content = json.loads(path.read_text())
        content["versions"]["torch"] = "1.0"
        path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="begun with versions .* need not be bit for bit"):
        train(network(), *data(), settings(), finished)


def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path, monkeypatch, limited):
    x, y = data()
    whole = network()
    train(whole, x, y, settings(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Stopped):
            train(network(), x, y, settings(), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    limited()
    with pytest.raises(OSError, match=r"step-\d+.json: the state at step \d+ could not") as e:
        train(network(), x, y, settings(), tmp_path / "run")
    limited(None)
    assert e.value.errno is not None
    assert "earlier states in the folder are intact. Make room for" in str(e.value)
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert after == before
    module = network()
    train(module, x, y, settings(), tmp_path / "run")
    assert_same_bits(tensors(module), tensors(whole))
