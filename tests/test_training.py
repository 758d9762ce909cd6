"""Discrete training: gradients in the log domain, schedules against hand-made ones, refusals."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from latephase.problem.losses import named_loss
from latephase.problem.task import Task
from latephase.training.loop import log_risk_and_gradient
from latephase.training.rules import LossBased, Rule
from latephase.training.train import Settings, read_run, train
from latephase.zoo import networks

CENTRES = np.array([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])


def three_classes(n=48, dtype=np.float32):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    return (CENTRES[y] + 0.3 * rng.normal(size=(n, 2))).astype(dtype), y


def two_classes(n=20):
    x, y = three_classes(3 * n, np.float64)
    return x[y < 2], np.where(y[y < 2] == 0, 1, -1)


def mlp(seed=0, widths=(2, 12, 3), dtype=torch.float32):
    return networks.mlp(list(widths), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tensors(x, y):
    return torch.from_numpy(x), torch.from_numpy(y)


def flat(module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).double().numpy()


# The gradient in the log domain.


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_gradient_is_that_of_the_plain_cross_entropy(scale):
    outputs = scale * torch.randn(40, 7, generator=torch.Generator().manual_seed(1)).double()
    y = torch.arange(40) % 7
    leaf = outputs.clone().requires_grad_(True)
    plain = cross_entropy(leaf, y)
    (expected,) = torch.autograd.grad(plain, leaf)
    log_risk, gradient = log_risk_and_gradient(outputs, y, named_loss("cross_entropy"))
    assert log_risk.item() == pytest.approx(plain.log().item(), rel=1e-12)
    torch.testing.assert_close(gradient * log_risk.exp(), expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
@pytest.mark.parametrize("name", ["logistic", "exponential"])
def test_the_gradient_of_one_output_is_that_of_the_plain_loss(name, shape):
    outputs = 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(2)).double()
    y = torch.where(torch.arange(40) % 3 == 0, 1.0, -1.0).double()
    leaf = outputs.clone().requires_grad_(True)
    margins = y * leaf.reshape(-1)
    plain = (softplus(-margins) if name == "logistic" else torch.exp(-margins)).mean()
    (expected,) = torch.autograd.grad(plain, leaf)
    log_risk, gradient = log_risk_and_gradient(outputs, y, named_loss(name))
    assert gradient.shape == shape
    assert log_risk.item() == pytest.approx(plain.log().item(), rel=1e-12)
    torch.testing.assert_close(gradient * log_risk.exp(), expected, rtol=1e-11, atol=1e-15)


def test_the_gradient_is_the_same_where_the_loss_underflows():
    # Shifting every true logit by c multiplies the tail of each loss by e^{-c}.
    outputs = torch.randn(10, 4, generator=torch.Generator().manual_seed(3)).double()
    y = torch.arange(10) % 4
    outputs[torch.arange(10), y] += 50.0
    loss = named_loss("cross_entropy")
    near, gradient = log_risk_and_gradient(outputs, y, loss)
    outputs[torch.arange(10), y] += 3000.0
    far, same = log_risk_and_gradient(outputs, y, loss)
    assert (near - far).item() == pytest.approx(3000.0, abs=1e-9)
    torch.testing.assert_close(same, gradient, rtol=1e-9, atol=1e-12)
    assert torch.isfinite(same).all()


def test_negligible_weights_are_zero_and_never_subnormal():
    outputs = torch.tensor([[0.0, 0.0], [60.0, 0.0], [300.0, 0.0]])
    _, gradient = log_risk_and_gradient(outputs, torch.zeros(3).long(), named_loss("cross_entropy"))
    assert gradient[1].abs().min() == 0.0
    cast = gradient.float().abs()
    assert bool(((cast == 0) | (cast > torch.finfo(torch.float32).tiny)).all())


# Training.


@pytest.mark.parametrize(("batch", "rate"), [(None, 2.0), (16, 5.0)])
def test_training_goes_on_far_below_the_smallest_number(tmp_path, batch, rate):
    x, y = three_classes()
    settings = Settings(steps=1500, batch=batch, schedule="normalized", rate=rate)
    module = mlp()
    run = train(module, x, y, settings, tmp_path)
    assert run.log_risk[-1] < -2000
    assert next(module.parameters()).dtype == torch.float32
    assert run.accuracy[-1] == 1.0
    late = run.log_risk < -10
    assert (np.diff(run.log_risk[late]) < 0).all()
    # The last checkpoint is what the caller's module holds now.
    np.testing.assert_array_equal(flat(run.load(-1, mlp(5))), flat(module))


def test_the_loss_based_schedule_passes_1e_800_too(tmp_path):
    x, y = three_classes()
    run = train(mlp(), x, y, Settings(steps=400, schedule="loss_based"), tmp_path)
    assert run.log_risk[-1] < -1842


def test_a_constant_step_is_that_of_torch(tmp_path):
    x, y = three_classes(dtype=np.float64)
    settings = Settings(steps=25, rate=0.3, momentum=0.9)
    module, other = mlp(dtype=torch.float64), mlp(dtype=torch.float64)
    train(module, x, y, settings, tmp_path)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        cross_entropy(other(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    np.testing.assert_allclose(flat(module), flat(other), rtol=1e-12, atol=1e-14)


def test_a_task_is_trained_on_as_its_points_are(tmp_path):
    x, y = three_classes()
    task, asked = Task(*tensors(x, y), "three heaps", 64 * "0"), Settings(steps=9)
    expected = train(mlp(), x, y, asked, tmp_path / "points").log_risk
    for place, call in enumerate(
        [
            lambda folder: train(mlp(), task, asked, folder),
            lambda folder: train(mlp(), task, asked, folder=folder),
            lambda folder: train(mlp(), task, settings=asked, folder=folder),
        ]
    ):
        np.testing.assert_array_equal(call(tmp_path / str(place)).log_risk, expected)


@pytest.mark.parametrize(("outputs", "loss"), [(1, "exponential"), (3, "cross_entropy")])
def test_who_names_no_loss_gets_the_one_of_the_outputs_and_is_told(tmp_path, outputs, loss):
    x, y = three_classes() if outputs == 3 else two_classes()
    network = (2, 6, outputs)
    run = train(mlp(widths=network), x, y, Settings(steps=4), tmp_path)
    assert run.settings.loss == loss
    # The folder is that of a run with the loss by its name.
    named = train(mlp(widths=network), x, y, Settings(steps=4, loss=loss), tmp_path)
    np.testing.assert_array_equal(run.log_risk, named.log_risk)


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        ("logarithmic", lambda w, g: 0.05),
        ("relative", lambda w, g: 0.05 * np.linalg.norm(w) / np.linalg.norm(g)),
    ],
)
def test_steps_that_know_the_logarithm_of_the_risk(tmp_path, schedule, factor):
    x, y = two_classes()
    module = mlp(widths=(2, 1), dtype=torch.float64)
    w = flat(module)
    train(module, x, y, Settings(steps=3, schedule=schedule, rate=0.05), tmp_path)
    for _ in range(3):
        q = np.exp(-y * (x @ w))
        ascent = ((q / q.sum() * y)[:, None] * x).sum(0)
        w = w + factor(w, ascent) * ascent
    np.testing.assert_allclose(flat(module), w, rtol=1e-12)


def by_hand(x, y, rate, steps):
    """Full-batch logistic regression under Lyu and Li's schedule, in plain NumPy."""
    w, alpha, redone = np.zeros(2), rate, []

    def risk(w):
        return np.mean(np.log1p(np.exp(-y * (x @ w))))

    for step in range(steps):
        while True:
            slope = -y / (1.0 + np.exp(y * (x @ w)))
            new = w - alpha / risk(w) * (slope[:, None] * x).mean(0)
            if risk(new) <= risk(w):
                w, alpha = new, alpha * 2**0.2
                break
            alpha /= 2**0.1
            redone.append(step)
    return w, alpha, redone


def test_the_loss_based_schedule_is_the_one_made_by_hand(tmp_path):
    # Five wrong labels: the risk has a minimum, which large steps overshoot.
    x, y = two_classes()
    y[:5] *= -1
    module = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    settings = Settings(steps=60, schedule="loss_based", rate=2.0, loss="logistic")
    run = train(module, x, y, settings, tmp_path)
    w, alpha, redone = by_hand(x, y, 2.0, 60)
    assert len(redone) > 3
    np.testing.assert_allclose(flat(module), w, rtol=1e-9)
    assert run.schedule[-1]["redone"] == len(redone)
    assert run.schedule[-1]["coefficient"] == pytest.approx(alpha, rel=1e-12)
    assert (np.diff(run.log_risk) <= 0).all()


def test_the_loss_based_schedule_moves_as_published():
    rule = LossBased(0.1, reference=-3.0)
    assert rule.factor(-3.0, 0.0, 0.0) == pytest.approx(0.1)
    assert rule.factor(-4.0, 0.0, 0.0) == pytest.approx(0.1 * np.exp(-1.0))
    assert rule.accepts(-3.0)  # not risen
    assert rule.coefficient == pytest.approx(0.1 * 2**0.2)
    assert not rule.accepts(-2.9)
    assert not rule.accepts(float("inf"))
    assert not rule.accepts(float("nan"))
    assert rule.coefficient == pytest.approx(0.1 * 2**0.2 / 2**0.3)
    assert (rule.reference, rule.redone, rule.redone_in_a_row) == (-3.0, 3, 3)
    assert rule.accepts(-1e6)
    assert (rule.reference, rule.redone_in_a_row) == (-1e6, 0)


def test_an_epoch_that_leaves_the_numbers_is_done_again(tmp_path):
    x, y = three_classes()
    settings = Settings(steps=60, batch=16, schedule="loss_based", rate=1e4)
    run = train(mlp(), x, y, settings, tmp_path)
    assert run.schedule[-1]["redone"] > 10
    assert (np.diff(run.log_risk) <= 0).all()
    assert set(run.steps % 3) == {0}


def test_a_normalized_step_lowers_the_log_risk_by_its_rate_at_most(tmp_path):
    assert Rule("normalized", 0.5).factor(-1e5, 0.1, 1.0) == 0.5
    assert Rule("normalized", 0.5).factor(-1e5, 10.0, 1.0) == pytest.approx(0.005)
    assert Rule("normalized", 0.5, 0.5).factor(-1e4, 10.0, 1.0) == pytest.approx(0.5)
    assert Rule("normalized", 0.5, 0.5).factor(2.0, 10.0, 1.0) == pytest.approx(0.005)
    x, y = two_classes()
    module = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    settings = Settings(steps=3, schedule="normalized", rate=0.25, loss="exponential")
    train(module, x, y, settings, tmp_path)
    w = np.zeros(2)
    for _ in range(3):
        q = np.exp(-y * (x @ w))
        ascent = ((q / q.sum() * y)[:, None] * x).sum(0)
        w += 0.25 / max(1.0, ascent @ ascent) * ascent
    np.testing.assert_allclose(flat(module), w, rtol=1e-12)


def test_batches_cover_each_epoch_once_in_an_order_of_its_own(tmp_path):
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(x[:, 0].tolist())
            return super().forward(x)

    x = np.c_[np.arange(10.0), np.ones(10)].astype(np.float32)
    train(Spy(2, 3), x, np.arange(10) % 3, Settings(steps=6, batch=4, rate=1e-3), tmp_path)
    assert [len(batch) for batch in seen] == [4, 3, 3, 4, 3, 3]
    first, second = ([i for batch in epoch for i in batch] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_renewed_labels_are_drawn_anew_each_epoch_and_cannot_be_learned(tmp_path):
    x, y = three_classes(300)
    settings = Settings(
        steps=200, batch=30, schedule="normalized", rate=0.1, labels="renewed", checkpoints=20
    )
    run = train(mlp(), x, y, settings, tmp_path / "a")
    assert 0.2 < run.accuracy[1:].mean() < 0.5
    assert run.log_risk[-1] > np.log(0.8)
    again = train(mlp(), x, (y + 1) % 3, settings, tmp_path / "b")
    # Nothing of the given labels is left.
    np.testing.assert_array_equal(run.log_risk, again.log_risk)


def test_checkpoints_lie_evenly_in_ln_steps():
    steps = Settings(steps=10_000, checkpoints=30).due_steps(7)
    assert steps[:2] == [0, 1]
    assert steps[-1] == 10_000
    assert len(steps) <= 30
    ratios = np.diff(np.log(steps[10:]))
    assert ratios.max() < 1.2 * ratios.min()
    assert set(np.array(Settings(steps=70, schedule="loss_based").due_steps(7)) % 7) == {0}
    assert Settings(steps=1).due_steps(1) == [0, 1]


def test_autocast_and_channels_last_train_the_same_network(tmp_path):
    x, y = three_classes()
    image = x[:, :, None, None] * np.ones((1, 1, 6, 6), dtype=np.float32)

    def network():
        generator = torch.Generator().manual_seed(0)
        return networks.convolutional(
            (2, 6, 6), (4,), outputs=3, generator=generator, dtype=torch.float32
        )

    runs = [
        train(network(), image, y, Settings(steps=40, rate=0.05, **how), tmp_path / str(i))
        for i, how in enumerate(
            [{}, {"channels_last": True}, {"channels_last": True, "autocast": "bfloat16"}]
        )
    ]
    plain, last, half = (run.log_risk for run in runs)
    np.testing.assert_allclose(last, plain, rtol=1e-3)
    np.testing.assert_allclose(half, plain, rtol=0.2, atol=0.05)
    assert half[-1] != plain[-1]


def test_the_modes_of_the_module_and_the_random_state_are_left_as_they_were(tmp_path):
    x, y = three_classes()
    module = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    module.eval()
    module[1].train()
    state = torch.random.get_rng_state()
    train(module, x, y, Settings(steps=5), tmp_path)
    assert [part.training for part in module] == [False, True, False, False]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_progress_bar_shows_risk_and_accuracy_and_is_off_by_default(tmp_path, capsys):
    x, y = three_classes()
    settings = Settings(steps=60, batch=16, schedule="loss_based", rate=10.0)
    train(mlp(), x, y, settings, tmp_path / "a")
    assert capsys.readouterr() == ("", "")
    train(mlp(), x, y, settings, tmp_path / "b", progress=True)
    shown = capsys.readouterr().err
    assert "ln R" in shown
    assert "accuracy" in shown
    assert "60/60" in shown


def test_frozen_parameters_stay(tmp_path):
    x, y = three_classes()
    module = mlp()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    train(module, x, y, Settings(steps=5, momentum=0.5), tmp_path)
    assert torch.equal(module[0].weight, before)


# Where training leaves the numbers.


@pytest.mark.parametrize("schedule", ["constant", "normalized"])
def test_divergence_says_at_which_step_and_what_to_change(tmp_path, schedule):
    x, y = three_classes()
    rate = 1e5 if schedule == "constant" else 1e30
    settings = Settings(steps=100, rate=rate, momentum=0.9, schedule=schedule)
    message = rf"step \d+: .* smaller rate than {rate:g} or a smaller momentum than 0\.9"
    with pytest.raises(FloatingPointError, match=message.replace("+3", r"\+3")):
        train(mlp(), x, y, settings, tmp_path)
    run = read_run(tmp_path)
    assert run.steps[0] == 0
    assert np.isfinite(run.log_risk).all()
    with pytest.raises(FloatingPointError, match="step"):
        train(mlp(), x, y, settings, tmp_path)


def test_a_start_without_numbers_is_refused_under_every_schedule(tmp_path):
    x, y = three_classes()
    for schedule in ("constant", "normalized", "loss_based"):
        module = mlp()
        with torch.no_grad():
            module[0].weight[0, 0] = torch.nan
        with pytest.raises(FloatingPointError, match="step 0: ln R = nan"):
            train(module, x, y, Settings(steps=5, schedule=schedule), tmp_path / schedule)


def test_autocast_is_named_where_it_may_be_the_cause(tmp_path):
    x, y = three_classes()
    with pytest.raises(FloatingPointError, match="leave autocast off"):
        train(mlp(), x, y, Settings(steps=99, rate=1e6, autocast="bfloat16"), tmp_path)


def test_a_loss_based_run_that_cannot_move_ends(tmp_path):
    # At the minimum of the risk every step raises it, or leaves it to rounding.
    x = np.array([[1.0], [1.0]])
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 30.0)

    class Falls(nn.Module):
        """Learns in training mode the opposite of what evaluation shows."""

        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return self.inner(x) if self.training else -self.inner(x)

    settings = Settings(steps=5, schedule="loss_based", loss="logistic")
    with pytest.raises(FloatingPointError, match=r"step 0: .* in 200 tries"):
        train(Falls(), 0.1 * x, np.array([1, 1]), settings, tmp_path)


# Bad input.


@dataclass
class Share:
    """The rule "relative", as a user would write it."""

    rate: float

    def factor(self, log_risk, gradient_norm, norm):
        if isinstance(self.rate, str):
            return self.rate
        return self.rate * norm / gradient_norm


class Nameless:
    def factor(self, log_risk, gradient_norm, norm):
        return 1.0


def test_a_rule_and_a_loss_by_object(tmp_path):
    x, y = three_classes()
    plain = train(mlp(), x, y, Settings(6, schedule="relative", rate=0.01), tmp_path / "name")
    own = Settings(6, schedule=Share(0.01), loss=nn.CrossEntropyLoss())
    run = train(mlp(), x, y, own, tmp_path / "object")
    assert run.log_risk.tolist() == plain.log_risk.tolist()
    assert run.settings.loss == "cross_entropy"
    assert train(mlp(), x, y, replace(own, steps=8), run.folder).steps[-1] == 8
    with pytest.raises(ValueError, match=r"run with schedule=.*Share\(rate=0.01\).*0.02"):
        train(mlp(), x, y, replace(own, schedule=Share(0.02)), run.folder)
    with pytest.raises(ValueError, match="holds only the repr of"):
        train(mlp(), x, y, replace(read_run(run.folder).settings, steps=9), run.folder)
    for rate in (float("nan"), "big"):
        with pytest.raises(ValueError, match=rf"Share\(rate='?{rate}'?\) answered '?(nan|big)"):
            train(mlp(), x, y, replace(own, schedule=Share(rate)), tmp_path / f"{rate}")
    with pytest.raises(FloatingPointError, match=r"step 0: a step of .* a rule of smaller steps"):
        train(mlp(), x, y, replace(own, schedule=Share(1e300)), tmp_path / "huge")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected an integer of 1 or more, got 0"),
        ({"steps": 2.5}, "steps: expected an integer"),
        ({"batch": 0}, "batch: expected an integer of 1 or more"),
        ({"checkpoints": 1}, "checkpoints: expected an integer of 2 or more"),
        ({"seed": -1}, "seed: expected an integer of 0 or more"),
        ({"rate": 0.0}, "rate: expected a positive number"),
        ({"rate": float("nan")}, "rate: expected a positive number"),
        ({"growth": 1.0}, "growth: expected 0 or more and below 1"),
        ({"momentum": 1.0}, "momentum: expected 0 or more and below 1"),
        ({"schedule": "loss_based", "momentum": 0.5}, "momentum: expected 0 under 'loss_based'"),
        ({"schedule": "cosine"}, "schedule: expected one of .*'loss_based'.*, got 'cosine'"),
        ({"schedule": Share}, "schedule: expected one of .* or an object with a method factor"),
        ({"schedule": Nameless()}, "schedule: expected a rule whose repr tells its settings"),
        ({"loss": "hinge"}, "loss: expected one of"),
        ({"loss": nn.BCEWithLogitsLoss()}, "loss: binary cross-entropy takes labels 0 and 1"),
        ({"rate": "fast"}, "rate: expected a number, got 'fast'"),
        ({"momentum": None}, "momentum: expected a number"),
        ({"device": "gpu"}, "device: expected one such as 'cpu' or 'cuda', got 'gpu'"),
        ({"device": "meta"}, "device: expected one such as"),
        ({"schedule": Share(lambda: 0.1)}, "expected a rule whose repr tells its settings"),
        ({"autocast": "float16"}, "autocast: expected one of"),
        ({"labels": "random"}, "labels: expected one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"steps": 5, **change})


def test_numbers_of_numpy_and_a_device_are_settings_like_others(tmp_path):
    x, y = three_classes()
    asked = Settings(np.int64(4), rate=np.float32(0.25), device=torch.device("cpu"))
    assert asked == Settings(4, rate=0.25)
    levels = (level for level in np.array([1e3, 1e4]))
    assert train(mlp(), x, y, asked, tmp_path, at=levels).steps.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"at": 3.0}, "at: expected a list of levels"),
        ({"at": ["far"]}, "at: expected a list of levels"),
        ({"at": [1.0, float("inf")]}, "at: expected ascending levels"),
        ({"callback": "print"}, "callback: expected a function"),
        ({"save_every": None}, "save_every: expected a number"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        train(mlp(), *three_classes(), Settings(4), tmp_path / "run", **option)
    assert not (tmp_path / "run").exists()


def test_bfloat16_weights_are_trained_as_they_are(tmp_path):
    x, y = three_classes()
    run = train(mlp().bfloat16(), x, y, Settings(40, schedule="normalized", rate=0.3), tmp_path)
    assert run.log_risk[-1] < run.log_risk[0]
    with pytest.raises(ValueError, match=r"leave the range of the module's torch\.float16"):
        train(mlp().half(), x * 1e6, y, Settings(4), tmp_path / "half")


def test_a_dictionary_of_one_entry_stands_for_it(tmp_path):
    x, y = three_classes()
    run = train(mlp(), {"pixels": x}, y, Settings(4), tmp_path / "one")
    alone = train(mlp(), x, y, Settings(4), tmp_path / "alone")
    assert run.log_risk.tolist() == alone.log_risk.tolist()
    with pytest.raises(ValueError, match="got a dictionary with \\['a', 'b'\\]"):
        train(mlp(), {"a": x, "b": x}, y, Settings(4), tmp_path / "two")


def test_data_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    x, y = three_classes()
    network = networks.convolutional(
        (1, 12, 12), (4,), outputs=3, generator=torch.Generator(), dtype=torch.float32
    )
    cases = [
        (network, np.zeros((48, 1, 16, 16)), y, r"does not take examples of shape \[1, 16, 16\]"),
        (network, np.zeros((48, 3, 12, 12)), y, r"does not take examples of shape \[3, 12, 12\]"),
        (mlp(), x, y + 1, r"y: expected integer labels 0..2 for 3 outputs, got \[1, 2, 3\]"),
        (mlp(), x, y[:-1], "y: expected 48 labels"),
        (mlp(), np.where(x > 2.5, np.nan, x), y, "x: NaN or infinite values in"),
        (mlp(), x[:0], y[:0], "x: expected at least one example"),
        (mlp(widths=(2, 4, 1)), x, y, r"y: expected labels -1 and \+1 for a single output"),
        ("mlp", x, y, "module: expected a torch.nn.Module, got str"),
        (nn.ReLU(), x, y, "module: expected at least one trainable parameter"),
    ]
    for module, inputs, labels, message in cases:
        with pytest.raises(ValueError, match=message):
            train(module, inputs, labels, Settings(steps=5), tmp_path / "run")
    asked = Settings(steps=5, loss="cross_entropy")
    with pytest.raises(ValueError, match="is called logistic"):
        train(mlp(widths=(2, 4, 1)), x, np.sign(y - 0.5), asked, tmp_path / "run")
    for words in ((x, y), (x, y, Settings(steps=5)), (Task(*tensors(x, y), "few", 64 * "0"),)):
        with pytest.raises(ValueError, match="expected Settings and a folder, got"):
            train(mlp(), *words)
    assert not (tmp_path / "run").exists()
