"""What goes in: numbers of every kind, data sets, loaders and dictionaries, at every door."""

import re
from collections import UserDict
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import latephase
from latephase.problem.checks import checked_inputs, finite_inputs
from latephase.problem.examples import adapted
from latephase.problem.task import inputs_and_labels


def points(n=12):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2 * 2 - 1
    return rng.normal(size=(n, 3)) + y[:, None], y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))


X, Y = points()
WHOLE = np.round(10 * X).astype(int)
FORMS = {
    "a list": X.tolist(),
    "tensors": [torch.tensor(row) for row in X],
    "a table": pd.DataFrame(X, index=np.arange(40, 52)),
    "reversed": X[::-1].copy()[::-1],
    "another byte order": X.astype(X.dtype.newbyteorder()),
    "long double": X.astype(np.longdouble),
    "objects": X.astype(object),
    "read-only": np.broadcast_to(X, X.shape),
    "unmasked": np.ma.masked_array(X, mask=False),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_every_form_are_the_same_numbers(form):
    np.testing.assert_array_equal(checked_inputs(FORMS[form]), X)
    labels = pd.Series(Y, index=np.arange(40, 52)) if form == "a table" else Y.tolist()
    found = latephase.diagnose(network(), FORMS[form], labels)
    assert found.alignment == latephase.diagnose(network(), X, Y).alignment


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "uint32", "float16"])
def test_small_numbers_are_real_numbers_at_every_door(dtype):
    x = np.abs(WHOLE).astype(dtype)
    net, wide = nn.Linear(3, 1, bias=False), x.astype(float)
    assert finite_inputs(torch.tensor(x)).is_floating_point()
    np.testing.assert_array_equal(finite_inputs(x > 5), wide > 5)
    assert latephase.homogeneity_degree(net, x)[0] == 1.0
    margins = latephase.diagnose(net, x, Y).margins
    np.testing.assert_array_equal(margins, latephase.diagnose(net, wide, Y).margins)


def test_brain_floats_are_numbers_too():
    x = torch.tensor(X).bfloat16()
    came = latephase.diagnose(network(), x, Y)
    np.testing.assert_array_equal(came.margins, latephase.diagnose(network(), x.float(), Y).margins)


def test_pictures_of_bytes_are_followed_as_they_are():
    net = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False), nn.Flatten(), nn.Linear(36, 1, bias=False))
    pictures = np.random.default_rng(0).integers(256, size=(6, 1, 4, 4), dtype=np.uint8)
    flows = [
        latephase.gradient_flow(net, x, Y[:6], until=3.0, tol=1e-2, records=3)
        for x in (pictures, pictures.astype(float))
    ]
    assert flows[0].alignment[-1] == flows[1].alignment[-1]


def test_a_part_that_is_the_conjugates_is_an_array_like_others():
    x = torch.complex(torch.zeros(12, 3), -torch.tensor(X).float()).conj().imag
    assert x.is_neg()
    came, expected = (latephase.diagnose(network(), one, Y) for one in (x, x.resolve_neg()))
    assert came.alignment == expected.alignment


def test_indices_stay_indices():
    ids = np.random.default_rng(0).integers(5, size=(12, 2))
    for dtype in (np.int32, np.int64):
        assert checked_inputs(ids.astype(dtype)).dtype == getattr(torch, np.dtype(dtype).name)
    with pytest.raises(ValueError, match=r"type torch.int64: .*; make numbers that are no indices"):
        latephase.gradient_flow(network(), WHOLE, Y)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ma.masked_array(X, mask=X > 1), "x: expected a value everywhere, got a masked array"),
        (torch.tensor(X).to("meta"), "got one on the meta device, which has none"),
        (torch.tensor(X).to_sparse(), "expected a dense tensor of numbers, got one of torch.spars"),
        (X + 1j, "expected a floating or integer dtype, got torch.complex128"),
        ([[None] * 3] * 12, "expected numbers, got list of object"),
        (X.astype(str), "expected numbers, got <U"),
        (pd.DataFrame({"a": X[:, 0], "b": ["1"] * 12}), "expected numbers, got DataFrame of"),
        ([[1.0], [1.0, 2.0]], "x: expected numbers, got list: "),
        ([torch.ones(2), torch.ones(3)], "x: expected tensors of one shape"),
        ([], r"at least one example, got shape \[0\]"),
        (pd.DataFrame({"a": X[:, 0], "b": ["1"] * 12}), r"with other values in \['b'\]"),
        (X.astype(float) * 1e-300, "leave the range of the module's torch.float32"),
        (X.astype(float) * 1e200, "leave the range of the module's torch.float32"),
    ],
)
def test_what_holds_no_numbers_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        latephase.diagnose(network(), x, Y)


@pytest.mark.parametrize(
    ("y", "outputs", "instead"),
    [
        ((Y > 0).astype(int), 1, "write 2.0 * np.asarray(y) - 1"),
        ((Y > 0).astype(np.uint8), 1, "write 2.0 * np.asarray(y) - 1"),
        (Y > 0, 1, "write 2.0 * np.asarray(y) - 1"),
        (Y, 2, "write np.asarray(y) > 0"),
        (np.arange(12) % 3 + 1, 3, "write np.asarray(y) - 1"),
        (np.eye(2)[np.arange(12) % 2], 2, "write y.argmax(1)"),
        (np.where(Y > 0, "a", "b"), 2, "write np.unique(y, return_inverse=True)[1]"),
    ],
)
def test_labels_of_another_convention_get_the_line_that_makes_them(y, outputs, instead):
    net = nn.Linear(3, outputs, bias=False)
    with pytest.raises(ValueError, match=f"; {re.escape(instead)}$"):
        latephase.diagnose(net, X, y)
    made = eval(instead.removeprefix("write "), {"np": np, "y": y})
    assert len(latephase.diagnose(net, X, made).margins) == 12


# Data sets and loaders.


class Rows(Dataset):
    """A data set whose examples are what `make` makes of a number."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i >= 12:
            raise IndexError
        return self.make(i)


class Duck:
    """A list of dictionaries, as Hugging Face's data sets are, of no class of PyTorch's."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {"x": torch.tensor(X[i]), "label": int(Y[i])}


T = TensorDataset(torch.tensor(X), torch.tensor(Y))
DATA = {
    "a data set": T,
    "pairs": Rows(lambda i: (X[i], Y[i])),
    "dictionaries": Rows(lambda i: {"x": X[i], "labels": Y[i], "text": "as it is"}),
    "no class of PyTorch's": Duck(),
    "a loader": DataLoader(T, batch_size=5),
    "a dictionary": {"x": X, "target": Y},
    "a mapping": UserDict({"x": X, "y": Y}),
    "dictionaries beside labels": Rows(lambda i: ({"x": X[i], "text": "as it is"}, Y[i])),
    "a generator": lambda: ((X[i : i + 5], Y[i : i + 5]) for i in (0, 5, 10)),
}


@pytest.mark.parametrize("form", DATA)
def test_data_of_every_form_is_diagnosed_as_its_arrays(form):
    data = DATA[form]() if form == "a generator" else DATA[form]
    found = latephase.diagnose(network(), data)
    np.testing.assert_array_equal(found.margins, latephase.diagnose(network(), X, Y).margins)


def test_other_doors_take_a_data_set_too(tmp_path):
    np.testing.assert_array_equal(latephase.hard_margin(T)[0], latephase.hard_margin(X, Y)[0])
    flow = latephase.gradient_flow(nn.Linear(3, 1, bias=False), T, until=3.0, tol=1e-2)
    assert flow.margins.shape[1] == 12
    settings = latephase.Settings(steps=2)
    assert len(latephase.train(network(), DATA["a loader"], settings, tmp_path)) == 3


def test_a_shuffling_loader_keeps_labels_with_inputs_and_the_random_state():
    loader = DataLoader(T, batch_size=5, shuffle=True)
    state = torch.random.get_rng_state()
    x, y = inputs_and_labels(loader)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(y, torch.tensor(Y))
    order = [int((torch.tensor(X) == row).all(1).nonzero()) for row in x]
    np.testing.assert_array_equal(y, Y[order])


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (X, None, "y: expected labels beside inputs of type ndarray, or a Task, a Dataset"),
        ([(X, Y)], None, "y: expected labels beside inputs of type list"),
        (TensorDataset(torch.tensor(X)), None, r"batches \(x, y\) or dictionaries, got \w+ of 1"),
        (Rows(lambda i: (object(), 1)), None, "batches of tensors, got one that raised TypeError"),
        ({"x": X, "kind": Y}, None, r"name of the labels among \['x', 'kind'\], got None"),
        ({"x": X, "y": Y, "label": Y}, None, "expected the name of the labels"),
        ({"x": X, "kind": Y}, "type", r"among \['x', 'kind'\], got 'type'"),
        (iter([]), None, "expected at least one batch, got none from list_iterator"),
        (Rows(lambda i: (X[0], 1) if i else (X[0, 1:], 1)), None, "got one that raised RuntimeEr"),
        (((x, Y) for x in (X, X[:, :2])), None, r"of one shape, got \[\[2\], \[3\]\]; pad"),
        (T, "kind", "expected dictionaries with 'kind', got list of 2"),
        (Rows(lambda i: (X[i], "a")), None, "y: expected numbers, got tuple: too many"),
        (3, None, "y: expected labels beside inputs of type int"),
    ],
)
def test_data_that_cannot_be_collected_is_refused(data, labels, message):
    with pytest.raises(ValueError, match=message):
        inputs_and_labels(data, labels)


# Dictionaries with several entries, and modules that are not called with one tensor.


class Words(nn.Module):
    """A module as those for language are: ids with a mask, by name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, input_ids, attention_mask):
        return self.head((self.table(input_ids) * attention_mask[..., None]).sum(1))


IDS = torch.randint(7, (12, 5), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": (IDS > 1).float(), "labels": torch.arange(12) % 3}
NAMES = ["input_ids", "attention_mask"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "how",
    [
        {"inputs": NAMES},
        {"forward": lambda module, batch: module(batch["input_ids"], batch["attention_mask"])},
    ],
)
def test_dictionaries_are_passed_on_by_name_or_by_a_function(how, dtype):
    net = Words().to(dtype)
    found = latephase.diagnose(net, BATCH, batch_size=5, **how)
    logits = net(IDS, BATCH["attention_mask"].to(dtype))
    y = BATCH["labels"]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    margins = logits.gather(1, y[:, None])[:, 0] - others
    np.testing.assert_allclose(found.margins, margins.detach(), rtol=1e-5)
    assert found.degree == 2.0
    assert list(found.layers["layer"]) == ["table.weight", "head.weight"]
    assert found.least_norm_alignment == pytest.approx(found.alignment, rel=1e-4)
    loader = DataLoader([{n: v[i] for n, v in BATCH.items()} for i in range(12)], batch_size=4)
    np.testing.assert_array_equal(
        latephase.diagnose(net, loader, "labels", batch_size=5, **how).margins, found.margins
    )


def test_a_function_calls_the_module_with_a_tensor_too():
    found = latephase.diagnose(network(), X, Y, forward=lambda module, x: -module(x))
    np.testing.assert_array_equal(found.margins, -latephase.diagnose(network(), X, Y).margins)
    assert list(found.layers["layer"]) == ["0.weight", "2.weight"]


def test_one_entry_of_several_is_the_argument():
    data = {"image": X, "id": np.arange(12), "y": Y}
    found = latephase.diagnose(network(), data, inputs="image")
    np.testing.assert_array_equal(found.margins, latephase.diagnose(network(), X, Y).margins)


def test_copies_of_a_called_module_share_the_data():
    module, rows = adapted(Words(), BATCH, inputs=NAMES)
    assert torch.equal(rows, torch.arange(12))
    assert deepcopy(module).kept is module.kept


def test_what_is_no_module_is_refused_as_that():
    with pytest.raises(ValueError, match=r"expected a torch.nn.Module, got int"):
        latephase.diagnose(3, BATCH, inputs=NAMES)


@pytest.mark.parametrize(
    ("x", "how", "message"),
    [
        (BATCH, {}, r"inputs: expected the names of those of \['input_ids', .*or forward=f"),
        (BATCH, {"inputs": ["ids"]}, r"expected names among \['input_ids', .* got \['ids'\]"),
        (X, {"inputs": "x"}, "inputs: expected none beside x of type ndarray, got 'x'"),
        ({"a": X, "b": X[:5]}, {"inputs": ["a", "b"]}, r"entries of one length, got \[5, 12\]"),
    ],
)
def test_entries_that_nobody_says_what_to_do_with_are_refused(x, how, message):
    with pytest.raises(ValueError, match=message):
        adapted(Words(), x, **how)


@pytest.mark.parametrize(
    "x",
    [
        X + 1j,
        X.astype(str),
        np.ma.masked_array(X, mask=X > 1),
        torch.tensor(X).to_sparse(),
        [[1], []],
    ],
)
def test_the_exact_solver_takes_no_more_than_the_others(x):
    with pytest.raises(ValueError, match=r"x: expected (numbers|a value|a dense|a floating)"):
        latephase.hard_margin(x, Y)


def test_the_exact_solver_takes_what_the_others_do():
    expected = latephase.hard_margin(X, Y)
    for x in (torch.tensor(X, requires_grad=True), pd.DataFrame(X)):
        np.testing.assert_array_equal(latephase.hard_margin(x, Y)[0], expected[0])


@pytest.mark.parametrize(
    "setting",
    [
        *({"until": "3"}, {"tol": None}, {"records": 2.5}, {"attempts": "x"}),
        *({"jacobian_bytes": "1"}, {"degree": "1"}, {"degree": np.nan}, {"kink_smoothing": "a"}),
        *({"companion": "x"}, {"homogenized": 1}),
    ],
)
def test_a_setting_of_another_kind_is_named(setting):
    (name,) = setting
    net = nn.Linear(3, 1, bias=False)
    with pytest.raises(ValueError, match=f"^{name}: "):
        latephase.gradient_flow(net, X, Y, **setting)
    if name in ("until", "degree"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            latephase.gradient_descent(net, X, Y, **setting)
