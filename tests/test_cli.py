"""`latephase diagnose`: what it prints and writes, what it refuses, and with which exit code."""

import importlib.util
import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

import latephase
from latephase.cli import main
from latephase.zoo.networks import two_layer

FACTORY = "tests.test_cli:network"
ARGUMENTS = '{"width": 6}'


def network(width):
    return two_layer(3, width, "squared_relu", generator=torch.Generator().manual_seed(0))


def biased():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))


@pytest.fixture
def files(tmp_path):
    """A checkpoint of a two-layer network and data, as words of a command line."""
    trained = network(6)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "net.safetensors")
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "net.pt")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), np.where(rng.normal(size=20) > 0, 1, -1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path, trained, x, y


def words(folder, checkpoint="net.safetensors", *more, **changes):
    options = {
        "--model": FACTORY,
        "--arguments": ARGUMENTS,
        "--data": str(folder / "data.npz"),
        "--loss": "logistic",
    } | {f"--{name}": value for name, value in changes.items()}
    flat = [word for pair in options.items() for word in pair]
    return ["diagnose", str(folder / checkpoint), *flat, *more]


@pytest.mark.parametrize("checkpoint", ["net.safetensors", "net.pt"])
def test_it_prints_and_writes_what_diagnose_measures(files, capsys, checkpoint):
    folder, trained, x, y = files
    outputs = ["--json", str(folder / "out.json"), "--figure", str(folder / "out.svg")]
    assert main(words(folder, checkpoint, *outputs)) == 0
    expected = latephase.diagnose(trained, x, y, "logistic")
    row = json.loads((folder / "out.json").read_text())
    assert row["smoothed_margin"] == expected.smoothed_margin
    assert row["alignment"] == expected.alignment
    assert row["degree"] == 3.0
    assert row["margins"] == expected.margins.tolist()
    assert [layer["layer"] for layer in row["layers"]] == list(expected.layers["layer"])
    assert row["layers"][-1]["alignment_with_next"] is None
    assert "<svg" in (folder / "out.svg").read_text()
    shown = capsys.readouterr().out
    assert f"{expected.smoothed_margin:.6g}" in shown
    assert not list(folder.glob(".*aside"))


def test_what_is_not_defined_is_said_and_null(files, capsys):
    folder = files[0]
    out = ["--json", str(folder / "out.json")]
    safetensors.torch.save_file(biased().state_dict(), folder / "net.safetensors")
    factory = {"model": "tests.test_cli:biased", "arguments": "{}"}
    assert main(words(folder, "net.safetensors", *out, **factory)) == 0
    assert json.loads((folder / "out.json").read_text())["normalized_margin"] is None
    assert "normalized margin              —  (no degree)" in capsys.readouterr().out


class Evil:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_objects_in_a_checkpoint_are_refused_and_not_made(files, capsys, monkeypatch):
    folder = files[0]
    monkeypatch.chdir(folder)
    torch.save({"weight": Evil()}, folder / "evil.pt")
    (folder / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "plain.pt"):
        assert main(words(folder, name)) == 2
        assert "never unpickled" in capsys.readouterr().err
    assert not (folder / "pwned").exists()


def half(picture):
    return torchvision.transforms.functional.pil_to_tensor(picture)[:1, ::2] / 255.0


class Half:
    """A transform that is made before it is used, as those of torchvision's weights."""

    def __call__(self, picture):
        return half(picture)


def seer():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2, bias=False))


@pytest.mark.parametrize("transform", [None, "half", "Half"])
def test_a_folder_of_pictures_is_read_as_the_transform_says(tmp_path, transform):
    pictures = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8)
    for i, picture in enumerate(pictures):
        place = tmp_path / "set" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(place / f"{i}.png")
    x = torch.cat([pictures[::2], pictures[1::2]]) / 255.0
    x = x if transform is None else x[:, :1, ::2]
    net = seer()
    net(x)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    out = tmp_path / "out.json"
    command = ["diagnose", str(tmp_path / "net.safetensors"), "--data", str(tmp_path / "set")]
    command += ["--model", "tests.test_cli:seer", "--json", str(out)]
    command += ["--transform", f"tests.test_cli:{transform}"] if transform else []
    assert main(command) == 0
    expected = latephase.diagnose(net, x, [0] * 3 + [1] * 3).margins
    assert json.loads(out.read_text())["margins"] == expected.tolist()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_data_by_other_names_and_json_on_the_standard_output(files, capsys, suffix):
    folder, trained, x, y = files
    named = {"images": x, "target": y, "more": y}
    np.savez(folder / "named.npz", **named)
    tensors = {name: torch.tensor(value) for name, value in named.items()}
    safetensors.torch.save_file(tensors, folder / "named.safetensors")
    names = {"data": str(folder / f"named.{suffix}"), "inputs": "images", "labels": "target"}
    assert main(words(folder, "net.safetensors", "--json", "-", **names)) == 0
    said = capsys.readouterr()
    row = json.loads(said.out)
    assert row["margins"] == latephase.diagnose(trained, x, y, "logistic").margins.tolist()
    assert "smoothed margin" in said.err
    assert not (folder / "-").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "none.safetensors"}, "no such checkpoint file"),
        ({"checkpoint": "cut.safetensors"}, "not a whole safetensors file"),
        ({"checkpoint": "data.npz"}, "expected .safetensors"),
        ({"checkpoint": "other.safetensors"}, "does not fit"),
        ({"data": "none.npz"}, "no such data file"),
        ({"data": "cut.npz"}, "expected a readable .npz file"),
        ({"data": "x.npz"}, "without y"),
        ({"data": "x.npz", "labels": "target"}, "without target"),
        ({"data": "other.safetensors"}, "expected 'x' and 'y'; got 'w'"),
        ({"data": "x.npz", "transform": "a:b"}, "--transform: expected a folder of pictures"),
        ({"data": "."}, "class folder"),
        ({"data": "objects.npz"}, "expected a readable .npz file"),
        ({"model": "latephase.zoo.networks"}, "expected package.module:factory"),
        ({"model": "latephase.zoo.networks:three"}, "cannot be imported"),
        ({"model": "no_such_package:net"}, "cannot be imported"),
        ({"model": "builtins:dict"}, "no torch.nn.Module"),
        ({"arguments": "{"}, "not JSON"),
        ({"arguments": "[1]"}, "expected a JSON object"),
        ({"arguments": '{"widht": 3}'}, "raised TypeError"),
        ({"loss": "hinge"}, "loss"),
        ({"device": "quantum"}, "cannot be used"),
        ({"figure": "out.gif"}, "expected .svg, .png or .pdf"),
        ({"json": "nowhere/out.json"}, "there is no folder"),
        ({"json": "out.svg", "figure": "out.svg"}, "expected two files"),
        ({"json": "net.safetensors"}, "expected a file to write that is not among those to read"),
        ({"json": "data.npz"}, "expected a file to write that is not among those to read"),
        ({"checkpoint": "pointer.pt"}, "a pointer of Git LFS"),
        ({"data": "raw.npz"}, "got none, without x, y"),
        ({"model": ".networks:net"}, "cannot be imported: TypeError"),
        ({"data": ".", "transform": "torchvision.transforms:Resize"}, "makes nothing without"),
        ({"data": ".", "transform": "math:pi"}, "expected a function of a picture, got 3.14"),
    ],
)
def test_input_it_cannot_use_is_named(files, capsys, change, message):
    folder, _, x, _ = files
    whole = (folder / "net.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-8])
    (folder / "cut.npz").write_bytes((folder / "data.npz").read_bytes()[:100])
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "objects.npz", x=np.array([{}], dtype=object), y=[1])
    safetensors.torch.save_file({"w": torch.zeros(2)}, folder / "other.safetensors")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with zipfile.ZipFile(folder / "raw.npz", "w") as archive:
        archive.writestr("x", "1")
    checkpoint = change.pop("checkpoint", "net.safetensors")
    for name in ("data", "json", "figure"):
        if name in change:
            change[name] = str(folder / change[name])
    assert main(words(folder, checkpoint, **change)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("latephase: ")
    assert (folder / "net.safetensors").read_bytes() == whole


def test_a_figure_without_seaborn_is_refused_before_anything_is_done(files, capsys, monkeypatch):
    folder = files[0]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "seaborn" else find(n))
    outputs = ["--json", str(folder / "out.json"), "--figure", str(folder / "out.svg")]
    # Nor is anything else looked at: the checkpoint is not there.
    assert main(words(folder, "none.safetensors", *outputs)) == 2
    assert capsys.readouterr().err == (
        "latephase: --figure: needs seaborn, which is not installed: "
        "pip install 'latephase[plot]'\n"
    )
    assert not list(folder.glob("out.*"))


def test_without_a_loss_the_library_chooses(files, capsys):
    folder, trained, x, y = files
    command = words(folder)
    place = command.index("--loss")
    del command[place : place + 2]
    assert main(command) == 0
    expected = latephase.diagnose(trained, x, y, "exponential")
    assert f"{expected.smoothed_margin:.6g}" in capsys.readouterr().out


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"latephase {latephase.__version__}\n"


def test_help_and_a_missing_option_end_as_argparse_does(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", "--help"])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", "net.safetensors"])
    assert ended.value.code == 2
    assert "--model" in capsys.readouterr().err
