"""`diagnose` on modules as they are found: in their own precision, with what they hold and return.

The classes below stand for idioms of public code; each is compared with a plain network.
"""

import random
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import latephase
from latephase.measures import layers, spectral
from latephase.problem.modules import logits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype(np.float32)
Y = np.where(X[:, 0] > 0, 1, -1)


class Plain(nn.Module):
    """Two layers without biases; what is between them is for others to change."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 5, bias=False), nn.Linear(5, 1, bias=False)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class MakesTensors(Plain):
    def forward(self, x):
        return super().forward(x) + torch.zeros(len(x), 1) @ torch.eye(1).float()


class KeepsItsActivation(Plain):
    def forward(self, x):
        self.kept = self.first(x)
        return self.last(torch.relu(self.kept))


class HoldsALock(Plain):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self(torch.ones(1, 3))

    def forward(self, x):
        with self.lock:
            return super().forward(x)


@dataclass
class Output:
    """As transformers have it."""

    logits: torch.Tensor
    hidden: torch.Tensor


class ReturnsAnObject(Plain):
    def forward(self, x):
        return Output(super().forward(x), x)


class ReturnsADictionary(Plain):
    def forward(self, x):
        return OrderedDict(logits=super().forward(x), features=x)


class ReturnsLossAndLogits(Plain):
    def forward(self, x):
        return torch.zeros(()), super().forward(x)


def closure():
    net = Plain()
    forward = net.forward
    net.forward = lambda x: forward(x) if net.first.weight.numel() else None
    return net


def weight_normalized():
    net = Plain()
    net.first = nn.utils.weight_norm(net.first)
    net(torch.ones(1, 3))
    return net


def scripted():
    return torch.jit.trace(Plain(), torch.ones(12, 3), check_trace=False)


IDIOMS = [
    MakesTensors, KeepsItsActivation, HoldsALock, ReturnsAnObject, ReturnsADictionary,
    ReturnsLossAndLogits, closure, weight_normalized, lambda: nn.DataParallel(Plain()), scripted,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", IDIOMS)
def test_idioms_give_the_plain_networks_numbers(make):
    module, expected = make().train(), latephase.diagnose(Plain(), X, Y)
    names = {name: id(value) for name, value in vars(module).items()}
    came = latephase.diagnose(module, X, Y)
    np.testing.assert_allclose(came.margins, expected.margins, rtol=1e-5, atol=1e-7)
    # Weight normalization is of degree 2 in g and last.weight, whose norm has another size.
    if make is not weight_normalized:
        assert came.alignment == pytest.approx(expected.alignment, rel=1e-5)
        assert came.degree == 2.0
    assert module.training
    assert {name: id(value) for name, value in vars(module).items()} == names


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_degree_is_measured_in_the_modules_own_precision(dtype):
    module = Plain().to(dtype)
    came = latephase.diagnose(module, X, Y)
    assert came.degree == 2.0
    # Scales of 2 and ½ are exact, in all types.
    assert came.homogeneity_defect <= 1e-15
    biased = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).to(dtype)
    assert latephase.diagnose(biased, X, Y).degree is None
    wide = latephase.diagnose(module, X, Y, dtype=torch.float64)
    by_hand = module.double()(torch.tensor(X).double())[:, 0].detach().numpy()
    np.testing.assert_allclose(wide.margins, Y * by_hand, rtol=1e-12)


def test_a_body_and_a_head_of_two_precisions():
    class Mixed(Plain):
        def forward(self, x):
            return self.last(torch.relu(self.first(x)).float())

    module = Mixed()
    module.first.bfloat16()
    came = latephase.diagnose(module, X, Y)
    assert came.degree == 2.0
    assert came.alignment_error > 1e-6
    assert came.missing.keys() <= {"kkt_stationarity", "kkt_complementarity"}


def test_within_inference_mode():
    outside, expected = closure(), latephase.diagnose(Plain(), X, Y)
    with torch.inference_mode():
        # Weights that were made outside, as Lightning's, and inside.
        for module in (outside, Plain()):
            came = latephase.diagnose(module, torch.tensor(X), Y)
            assert came.alignment == pytest.approx(expected.alignment, rel=1e-6)
        assert latephase.homogeneity_degree(module, torch.tensor(X))[0] == 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(1)), "'0.weight' of a lazy layer has no shape yet"),
        (lambda: nn.Linear(3, 1, device="meta"), "'weight' is on the meta device"),
        (lambda: ReturnsTwo(), "got tuple with 2 tensors that could be those"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)),
            "depends on the other examples of the batch .*running statistics: '1'",
        ),
        (lambda: Random(), "differ from call to call"),
        (lambda: Detached(), "do not depend on its trainable parameters"),
        (lambda: nn.Linear(3, 1, dtype=torch.complex64), "'weight' is complex"),
        (lambda: nn.Linear(4, 1), r"examples of shape \[3\] and type torch.float32: RuntimeError"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(make, message):
    module = make()
    y = Y if not isinstance(module, nn.Sequential) else (Y + 1) // 2
    with pytest.raises(ValueError, match=message):
        latephase.diagnose(module, X, y)


def test_every_door_opens_under_no_grad_and_in_inference_mode(tmp_path):
    net = nn.Linear(3, 1, bias=False)
    for i, context in enumerate((torch.no_grad, torch.inference_mode)):
        with context():
            x = torch.tensor(X)
            flow = latephase.gradient_flow(net, x, Y, until=2.0).extend(3.0)
            assert flow.smoothed_margin[-1] >= 3.0
            assert latephase.generalized_gradient(net, x, Y).norm > 0.0
            run = latephase.train(net, x, Y, latephase.Settings(3), tmp_path / str(i))
            assert run.steps[-1] == 3
    with torch.inference_mode():
        made_inside = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        latephase.train(made_inside, X, Y, latephase.Settings(3), tmp_path / "inside")


def test_a_detached_output_is_named_by_the_flow_as_well():
    with pytest.raises(ValueError, match="do not depend on its trainable parameters"):
        latephase.gradient_flow(Detached(), X, Y)


class ReturnsTwo(Plain):
    def forward(self, x):
        return super().forward(x), x


class Detached(Plain):
    def forward(self, x):
        return super().forward(x).detach()


class Random(Plain):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x))


def test_what_is_missing_says_why():
    tanh = nn.Sequential(Plain(), nn.Tanh())
    came = latephase.diagnose(tanh, X, Y)
    assert came.missing["degree"].endswith("the first call that is not homogeneous is tanh in '1'")
    undefined = {name for name in came.__dataclass_fields__ if getattr(came, name) is None}
    assert {name for name in undefined if not name.startswith("least_norm")} <= came.missing.keys()
    left_out = latephase.diagnose(tanh, X, Y, degree=False, layers=False)
    assert left_out.missing["degree"] == "it was not asked for"
    assert len(left_out.layers) == 0
    assert list(left_out.layers) == list(came.layers)
    far = Plain().half()
    far.first.weight.data *= 1e5
    assert latephase.diagnose(far, X / 1e3, Y).missing["degree"] == (
        "its outputs leave the range of its type"
    )


def test_the_error_of_an_alignment_covers_that_of_its_precision():
    for seed in range(5):
        torch.manual_seed(seed)
        sizes = [3, 20, 20, 20, 1]
        deep = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        module = nn.Sequential(*deep[:-1]).bfloat16()
        rounded = latephase.diagnose(module, X, Y, degree=False)
        exact = latephase.diagnose(module, X, Y, degree=False, dtype=torch.float64)
        off = abs(rounded.alignment - exact.alignment)
        assert off <= 10 * rounded.alignment_error
        assert rounded.alignment_error < 0.2
        assert exact.alignment_error < 1e-14
        assert "±" in repr(rounded)
        assert "±" not in repr(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_large_matrices_are_those_of_the_decomposition(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in [(300, 400), (400, 290)]))
    module = module.to(dtype)
    with torch.no_grad():
        # Singular vectors that can be told from the next.
        u = torch.randn(400).to(dtype)
        module[0].weight += 0.1 * u[:, None]
        module[1].weight += 0.1 * u
    table = spectral.layer_table(module)
    lower, upper = (part.weight.detach().double().numpy() for part in module)
    tops = [layers.top_singular(matrix) for matrix in (lower, upper)]
    np.testing.assert_allclose(table["spectral_norm"], [top[0] for top in tops], rtol=1e-5)
    np.testing.assert_allclose(
        table["frobenius_norm"], [np.linalg.norm(a) for a in (lower, upper)], rtol=1e-5
    )
    assert table["alignment_with_next"][0] == pytest.approx(abs(tops[1][2] @ tops[0][1]), abs=1e-3)
    expected = layers.balancedness(lower, upper) / np.linalg.norm(lower) ** 2
    assert table["imbalance_with_next"][0] == pytest.approx(expected, rel=1e-3)


def exported():
    size = {0: torch.export.Dim("n", min=2)}
    return torch.export.export(Plain(), (torch.tensor(X),), dynamic_shapes=(size,)).module()


def test_a_module_of_torch_export_stays_in_its_mode():
    came, expected = latephase.diagnose(exported(), X, Y), latephase.diagnose(Plain(), X, Y)
    assert came.alignment == pytest.approx(expected.alignment, rel=1e-5)


def test_an_error_of_the_forward_is_named_with_its_line():
    class Picky(Plain):
        def forward(self, x):
            if len(x) > 2:
                raise ValueError("not so many")
            return super().forward(x)

    with pytest.raises(ValueError, match=r"module: it raised ValueError: not so many \(test_any_"):
        latephase.diagnose(Picky(), X, Y)


def test_logits_of_a_container():
    one, two = torch.zeros(2, 3), torch.zeros(2, 4)
    assert logits((torch.zeros(()), one)) is one
    assert logits({"features": two, "logits": one}) is one
    assert logits([torch.zeros(2, dtype=torch.int64), one]) is one
    for none in (None, "text", {}, (one, two)):
        with pytest.raises(ValueError, match="alone or as the logits of a container"):
            logits(none)


class Altered(Plain):
    """Calls a function of the module and its input before the plain forward."""

    def __init__(self, alter, prepare=lambda module: None):
        super().__init__()
        self.kept, self.array, self.tensor = {"calls": []}, np.zeros(2), torch.zeros(2)
        prepare(self)
        self.alter = alter

    def forward(self, x):
        self.alter(self, x)
        return super().forward(x)


class Stateful(Plain):
    before = None

    def forward(self, x):
        out = super().forward(x)
        self.before = out if self.before is None or len(out) != len(self.before) else self.before
        return out + 0 * self.before


ALTERATIONS = [
    lambda module, x: module.kept["calls"].append(len(x)),
    lambda module, x: module.array.__iadd__(1),
    lambda module, x: module.tensor.add_(1),
    lambda module, x: (torch.rand(1), np.random.rand(), random.random()),  # noqa: NPY002
    lambda module, x: torch.set_default_dtype(torch.float64),
    lambda module, x: torch.set_grad_enabled(True),
    lambda module, x: x.sub_(x.mean(1, keepdim=True)),
]


def states():
    return torch.get_rng_state().tolist(), random.getstate(), torch.get_default_dtype()


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_nothing_that_a_forward_changes_stays_changed(alter):
    module, x = Altered(alter), torch.tensor(X)
    before = states(), np.random.get_state()[1].tolist()  # noqa: NPY002
    latephase.diagnose(module, x, Y)
    assert module.kept == {"calls": []}
    assert not module.array.any()
    assert not module.tensor.any()
    np.testing.assert_array_equal(x, X)
    assert (states(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


@dataclass(slots=True)
class Slotted:
    calls: int = 0


class Helper:
    """A plain object beside the weights, as counters, caches and samplers are."""

    def __init__(self):
        self.calls, self.seen, self.slotted = 0, [], Slotted()
        self.bag, self.norm = SimpleNamespace(calls=0), nn.BatchNorm1d(3)
        self.draws = [torch.Generator(), np.random.default_rng(0), random.Random(0)]

    def used(self, x):
        self.calls += 1
        self.bag.calls += 1
        self.slotted.calls += 1
        self.seen.append(x)
        self.last = self.norm(x)
        torch.rand(1, generator=self.draws[0])
        return self.draws[1].random() + self.draws[2].random()

    def state(self):
        one, two, three = self.draws
        drawn = one.get_state().tolist(), two.bit_generator.state, three.getstate()
        counted = self.calls, self.bag.calls, self.slotted.calls, len(self.seen)
        return drawn, counted, self.norm.running_mean.tolist(), hasattr(self, "last")


def test_plain_objects_and_generators_that_a_module_holds_are_put_back():
    module = Altered(lambda module, x: module.helper.used(x))
    module.helper = Helper()
    before = module.helper.state()
    latephase.diagnose(module, X, Y, batch_size=4)
    assert module.helper.state() == before


def test_gradients_that_the_caller_has_stay():
    module = Altered(lambda module, x: [setattr(w, "grad", None) for w in module.parameters()])
    module(torch.tensor(X)).sum().backward()
    before = module.first.weight.grad = torch.ones(5, 3)
    latephase.diagnose(module, X, Y)
    assert module.first.weight.grad is before
    assert module.last.weight.grad is not None


def test_functions_that_a_module_holds_are_those_of_its_copy():
    forward, hooked = closure(), Plain()
    hooked.register_forward_hook(lambda module, args, out: out * hooked.last.weight.norm())
    for module, degree in ((forward, 2.0), (hooked, 3.0)):
        assert latephase.homogeneity_degree(module.double(), X) == (degree, pytest.approx(0.0))
        assert latephase.diagnose(module.float(), X, Y, dtype=torch.float64).degree == degree


def test_the_callers_autocast_changes_nothing(tmp_path):
    expected = latephase.diagnose(Plain(), X, Y)
    with torch.autocast("cpu", torch.bfloat16):
        came = latephase.diagnose(Plain(), X, Y)
        run = latephase.train(Plain(), X, Y, latephase.Settings(20, rate=1.0), tmp_path)
        assert torch.is_autocast_enabled("cpu")
    assert (came.degree, came.alignment) == (2.0, expected.alignment)
    assert run.log_risk[-1] < run.log_risk[0]


@pytest.mark.parametrize("last", [torch.Tensor.bfloat16, torch.Tensor.float])
def test_a_forward_in_autocast_has_its_own_precision(last):
    class Cast(Plain):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return last(super().forward(x))

    came, expected = latephase.diagnose(Cast(), X, Y), latephase.diagnose(Plain(), X, Y)
    assert abs(came.alignment - expected.alignment) < came.alignment_error
    module = Cast()
    module.last.weight.data *= 40.0
    assert "does not resolve" in latephase.diagnose(module, X, Y).missing["alignment"]


def test_what_a_module_keeps_of_a_batch_does_not_reach_the_next():
    came, expected = (latephase.diagnose(m, X, Y, batch_size=4) for m in (Stateful(), Plain()))
    np.testing.assert_allclose(came.margins, expected.margins, rtol=1e-6)
    assert came.alignment == pytest.approx(expected.alignment, rel=1e-6)


@dataclass
class Scores:
    scores: torch.Tensor
    loss: object = None


class Returning(Plain):
    """Changes what it returns."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


def test_the_only_scores_of_a_dataclass_are_taken():
    came = latephase.diagnose(Returning(Scores), X, Y)
    np.testing.assert_allclose(came.margins, latephase.diagnose(Plain(), X, Y).margins, rtol=1e-6)


@pytest.mark.parametrize("door", [latephase.diagnose, latephase.gradient_flow])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out[:1], r"got \[1, 1\] of 2 examples"),
        (lambda out: out.sum(), r"got \[\] of 2 examples"),
        (lambda out: out[:, :0], r"got \[2, 0\] of 2 examples"),
        (lambda out: out.long(), "dense floating numbers, got torch.int64"),
        (lambda out: out.to_sparse(), "dense floating numbers, got torch.sparse_coo"),
        (lambda out: out / (torch.arange(len(out)) < 2)[:, None], "NaN or infinite values"),
    ],
)
def test_outputs_that_are_no_logits_are_one_sentence(door, change, message):
    with pytest.raises(ValueError, match=message):
        door(Returning(change), X, Y)


def test_a_forward_that_makes_or_freezes_parameters_is_refused():
    def make(module, x):
        module.more = nn.Parameter(torch.ones(1))

    for alter in (make, lambda module, x: module.first.weight.requires_grad_(False)):
        module = Altered(alter)
        with pytest.raises(ValueError, match="makes or freezes parameters"):
            latephase.diagnose(module, X, Y)
        assert all(w.requires_grad for w in module.parameters())
        assert len(list(module.parameters())) == 2


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Bent(Plain):
    """Puts a function between the layers."""

    def __init__(self, between):
        super().__init__()
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def detached_scale(z):
    return z / z.norm(dim=1, keepdim=True).detach()


@pytest.mark.parametrize(
    "between", [torch.Tensor.detach, detached_scale, Straight.apply, lambda z: z.data.relu()]
)
def test_a_gradient_that_is_not_that_of_the_outputs_is_not_used(between):
    came = latephase.diagnose(Bent(between), X, Y)
    assert came.alignment is None
    assert "is not their derivative" in came.missing["alignment"]
    np.testing.assert_allclose(
        came.margins, Y * Bent(between)(torch.tensor(X))[:, 0].tolist(), 1e-4
    )
    for door in (latephase.gradient_flow, latephase.gradient_descent):
        with pytest.raises(ValueError, match=r"is not their derivative|autograd\.Function"):
            door(Bent(between), X, Y)


def test_recurrent_layers_are_named_where_they_break_the_degree():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.last(self.cells(x[:, None])[0][:, -1])

    assert latephase.diagnose(Recurrent(), X, Y).missing["degree"].endswith("lstm in 'cells'")


def test_sparse_gradients_unused_and_empty_parameters():
    class Bag(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.last = nn.Embedding(7, 4, sparse=sparse), nn.Linear(4, 1, bias=False)
            self.unused, self.empty = nn.Linear(2, 2), nn.Parameter(torch.zeros(0, 3))
            self.register_buffer("sparse", torch.eye(3).to_sparse())

        def forward(self, x):
            return self.last(self.table(x).relu().mean(1))

    x = np.random.default_rng(0).integers(0, 7, size=(12, 5))
    came, expected = (latephase.diagnose(Bag(sparse), x, Y) for sparse in (True, False))
    assert came.alignment == expected.alignment
    flow = latephase.gradient_descent(Bag(False), x, Y, steps=3)
    assert flow.smoothed_margin[-1] > flow.smoothed_margin[0]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_attention_has_a_generalized_gradient():
    layer = nn.TransformerEncoderLayer(3, 1, 8, batch_first=True)
    module = nn.Sequential(nn.Unflatten(1, (1, 3)), layer, nn.Flatten(), nn.Linear(3, 1))
    found = latephase.generalized_gradient(module, X, Y)
    assert found.exact
    assert latephase.diagnose(module, X, Y).least_norm_alignment is not None


def test_wrapped_modules_are_followed_as_what_they_wrap():
    plain = latephase.generalized_gradient(Plain(), X, Y)
    wrapped = latephase.generalized_gradient(nn.DataParallel(Plain()), X, Y)
    np.testing.assert_array_equal(plain.gradient, wrapped.gradient)


def test_a_norm_of_one_number_is_an_absolute_value():
    with pytest.raises(ValueError, match="norm of a single number has the kink"):
        latephase.gradient_flow(Bent(lambda z: z[..., None].norm(dim=-1)), X, Y)


def test_a_graph_that_the_caller_has_made_still_has_its_gradient():
    module = Plain()
    before = module(torch.from_numpy(X)).square().sum()
    latephase.diagnose(module, X, Y)
    before.backward()
    assert module.first.weight.grad is not None
