"""Checkpoints as they are found: what fits a module is found in them, and nothing is executed."""

import argparse
import datetime
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import latephase
from latephase.cli import main
from latephase.weights import fitting, read_weights


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))


def trained():
    torch.manual_seed(1)
    return {name: torch.randn_like(w) for name, w in network().state_dict().items()}


def under(prefix, weights=None):
    return {f"{prefix}{name}": w for name, w in (weights or trained()).items()}


def pickled(content, name="net.pt", **how):
    return lambda folder: torch.save(content, folder / name, **how) or folder / name


def in_shards(folder):
    """A folder with two files and their index, as Hugging Face writes a large model."""
    names = {}
    for i, (name, w) in enumerate(trained().items()):
        names[name] = f"model-{i:05d}.safetensors"
        safetensors.torch.save_file({name: w}, folder / names[name])
    text = json.dumps({"metadata": {}, "weight_map": names})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def in_safetensors(folder):
    safetensors.torch.save_file(trained(), folder / "model.safetensors")
    return folder / "model.safetensors"


LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": under("model.") | {"criterion.weight": torch.ones(2)},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4, 3)}}, "param_groups": []}],
    "hyper_parameters": {"options": argparse.Namespace(lr=0.1), "folder": pathlib.Path("runs")},
}
NUMPY = {"best": np.float64(0.9), "history": np.arange(3), "when": datetime.datetime(2026, 1, 1)}
FORMATS = {
    "safetensors": in_safetensors,
    "a folder": lambda folder: in_safetensors(folder).parent,
    "shards": in_shards,
    "a state_dict": pickled(trained(), "net.pth"),
    "of old": pickled({"net": trained()}, "net.pth.tar", _use_new_zipfile_serialization=False),
    "several cards": pickled({"model": under("module.")}),
    "compiled": pickled({"model_state_dict": under("_orig_mod.")}),
    "both": pickled({"state_dict": under("module._orig_mod.")}),
    "and the other way": pickled({"state_dict": under("_orig_mod.module.")}),
    "Lightning": pickled(LIGHTNING, "last.ckpt"),
    "another name": pickled({"ema": trained(), "optimizer": {"exp_avg": torch.ones(2)}}),
    "deep": pickled({"a": {"b": trained(), "epoch": 3}}),
    "beside the rest": pickled(trained() | {"epoch": 3, "args": argparse.Namespace(lr=1.0)}),
    "beside NumPy": pickled({"model": trained(), **NUMPY}, "pytorch_model.bin"),
    "the usual first": pickled({"state_dict_ema": under("", network().state_dict()),
                                "state_dict": trained()}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_weights_of_every_form_are_those_that_were_saved(tmp_path, capsys, form):
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2 * 2 - 1
    np.savez(tmp_path / "data.npz", x=x, y=y)
    words = ["diagnose", str(FORMATS[form](tmp_path)), "--data", str(tmp_path / "data.npz")]
    words += ["--model", "tests.test_weights:network", "--json", str(tmp_path / "out.json")]
    assert main(words) == 0, capsys.readouterr().err
    module = network()
    module.load_state_dict(trained())
    expected = latephase.diagnose(module, x, y).margins.tolist()
    assert json.loads((tmp_path / "out.json").read_text())["margins"] == expected


def test_where_the_weights_stood_is_said():
    content = {"state_dict": under("model.")}
    weights, place = fitting(content, network())
    assert place == "'state_dict' after 'model.'"
    assert weights.keys() == trained().keys()
    assert fitting(trained(), network())[1] == "the whole file"


def test_key_and_prefix_choose_among_several_that_fit():
    one, two = trained(), network().state_dict()
    content = {"student": one, "teacher": two}
    with pytest.raises(ValueError, match="several fit, 'student' and 'teacher': choose by --key"):
        fitting(content, network())
    assert fitting(content, network(), key="teacher")[0]["0.weight"] is two["0.weight"]
    content = under("student.", one) | under("teacher.", two)
    with pytest.raises(ValueError, match=r"'teacher\.': choose by --key or --prefix"):
        fitting(content, network())
    for prefix in ("teacher", "teacher."):
        assert fitting(content, network(), prefix=prefix)[0]["0.weight"] is two["0.weight"]


@pytest.mark.parametrize("folder_or_file", [True, False])
def test_a_tensor_of_two_names_is_saved_under_one(tmp_path, folder_or_file):
    torch.manual_seed(2)
    module, other = Tied(), Tied()
    safetensors.torch.save_model(module, str(tmp_path / "tied.safetensors"))
    content = read_weights(tmp_path if folder_or_file else tmp_path / "tied.safetensors")
    assert "second.weight" not in content or "first.weight" not in content
    del content["norm.num_batches_tracked"]
    other.load_state_dict(fitting(content, other)[0], strict=False)
    assert torch.equal(other.second.weight, module.first.weight)
    content |= {"second.weight": torch.zeros(3, 3), "first.weight": torch.ones(3, 3)}
    with pytest.raises(ValueError, match=r"'second.weight' differ, and are one tensor"):
        fitting(content, other)


def test_names_of_a_compiled_module_are_found_from_either_side():
    compiled = nn.Sequential(network())
    compiled._modules = {"_orig_mod": compiled._modules["0"]}
    assert fitting(trained(), compiled)[0].keys() == under("_orig_mod.").keys()
    assert fitting({"module._orig_mod.weight": torch.ones(1, 3)}, nn.Linear(3, 1, bias=False))
    half = {"body._orig_mod.0.weight": torch.ones(1, 3)}
    parts = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 1, bias=False))})
    assert fitting(half, parts)[0].keys() == {"body.0.weight"}


def test_a_lazy_module_takes_the_shapes_of_the_file():
    lazy = nn.LazyLinear(4, bias=False)
    lazy.load_state_dict(fitting({"model": {"weight": torch.ones(4, 3)}}, lazy)[0])
    assert lazy.weight.shape == (4, 3)


CYCLE = {"a": trained() | {"0.weight": torch.ones(5, 3)}}
CYCLE["a"]["again"] = CYCLE
MISFITS = [
    ({"epoch": 3}, {}, "expected tensors by name, .* got none"),
    ({"model": {"0.weight": torch.ones(4, 3)}}, {}, "'model': missing '2.weight', not in the mod"),
    (trained() | {"extra": torch.ones(2)}, {}, "whole file: missing none, not in the module 'ex"),
    (CYCLE, {}, r"'a': '0.weight' has shape \[5, 3\], in the module \[4, 3\]"),
    ({"a": trained()}, {"key": "b"}, "--key: expected one of 'a'; got 'b'"),
    (under("a."), {"prefix": "b"}, r"after 'b.': missing '0.weight', '2.weight'"),
    (under("a."), {"prefix": ""}, "the whole file: missing '0.weight', '2.weight'"),
]


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_of_wrapped_parts_are_those_without_the_wrapper(wrapper):
    wrapped = {name.replace(".", f".{wrapper}."): w for name, w in trained().items()}
    assert fitting(under("module.", wrapped), network())[0].keys() == trained().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to("meta"), "is no dense tensor of numbers$"),
        (lambda w: w.to_sparse(), "is no dense tensor of numbers$"),
        (lambda w: w.to(torch.int8), "is of torch.int8, in the module of torch.float32$"),
        (lambda w: w.to(torch.complex64), "is of torch.complex64, in the module of torch.float32$"),
    ],
)
def test_tensors_that_are_no_weights_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fitting({name: change(w) for name, w in trained().items()}, network())


def test_weights_that_are_no_numbers_fit_by_name():
    broken = {name: w * np.nan for name, w in trained().items()}
    assert fitting(broken, network())[0].keys() == broken.keys()


@pytest.mark.parametrize(("content", "how", "message"), MISFITS)
def test_what_does_not_fit_is_said(content, how, message):
    with pytest.raises(ValueError, match=message):
        fitting(content, network(), **how)


class Foreign:
    """A class that no list of harmless ones has."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": network()}, r"\(it holds torch.nn.modules.container.Sequential\)"),
        ({"w": trained(), "of": Foreign()}, r"\(it holds tests.test_weights.Foreign\); objects"),
        ({"w": trained(), "of": print}, r"\(it holds print\)"),
        ({"w": trained(), "of": os.system}, r"\(it holds \w+.system\)"),
        ([torch.ones(2)], "expected tensors by name, .*; got list"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_other_objects_are_refused_by_name_in_one_sentence(tmp_path, content, message, zipped):
    path = pickled(content, _use_new_zipfile_serialization=zipped)(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_harmless_objects_are_not_made(tmp_path):
    content = read_weights(FORMATS["beside NumPy"](tmp_path))
    assert type(content["best"]).__name__ == type(content["when"]).__name__ == "_Inert"


@pytest.mark.parametrize("cut", [0, 20, 700])
def test_a_file_that_was_cut_off_is_refused_in_one_sentence(tmp_path, cut):
    path = FORMATS["a state_dict"](tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a file of tensors only") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps({"weight": 3}))
    with pytest.raises(ValueError, match="not a file of tensors only"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_named_as_one(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match="a TorchScript archive, which is a program"):
        read_weights(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"w": "../evil.safetensors"}}', "expected .safetensors files beside it"),
        ('{"weight_map": {"w": "none.safetensors"}}', "no such checkpoint file"),
        ('{"weight_map": {"w": "whole.safetensors"}}', "its files lack 'w'"),
        ('{"weight_map": {"w": "net.pt"}}', "expected .safetensors files beside it"),
        ("{}", "expected JSON with a weight_map; KeyError"),
        ("{", "expected JSON with a weight_map; JSONDecodeError"),
    ],
)
def test_an_index_is_not_trusted(tmp_path, index, message):
    safetensors.torch.save_file({"v": torch.ones(2)}, tmp_path / "whole.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    for given in (path, tmp_path):
        with pytest.raises(ValueError, match=message):
            read_weights(given)
    with pytest.raises(ValueError, match="expected a folder with one"):
        (tmp_path / "empty").mkdir(exist_ok=True) or read_weights(tmp_path / "empty")
