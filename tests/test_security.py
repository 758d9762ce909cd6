"""What comes from outside is data: no pickle in it runs, no archive leaves its folder.

The trap is an object whose unpickling makes a folder; it is laid in every kind of file that the
library and the book read.
"""

import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recordings.writing import sealed

from latebook import BookError
from latebook.claims import load
from latebook.files import read_yaml
from latebook.layout import Book
from latebook.records import PROVENANCE, SCHEMA, recorded, runs
from latephase import cli
from latephase.flow.trajectory import Trajectory
from latephase.training import checkpoints
from latephase.weights import read_weights
from latephase.zoo import images
from latephase.zoo.images import DataError
from tests.conftest import ROOT, chapter
from tests.test_images import as_jpeg
from tests.test_trajectory import trajectory

# ---------------------------------------------------------------- pickles


@pytest.fixture
def sprung(tmp_path) -> Path:
    return tmp_path / "sprung"


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def as_object_array(arrays: dict, name: str, trap: Trap) -> bytes:
    """An .npz that is whole but for one array, of objects, which NumPy stores as a pickle."""
    file = io.BytesIO()
    np.savez(file, **(arrays | {name: np.array([trap], dtype=object)}))
    return file.getvalue()


def as_foreign_member(arrays: dict, name: str, trap: Trap) -> bytes:
    """An .npz in which a pickle stands in the place of an array."""
    file = io.BytesIO()
    np.savez(file, **{key: array for key, array in arrays.items() if key != name})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{name}.npy", pickle.dumps(trap))
    return file.getvalue()


def as_pickle(arrays: dict, name: str, trap: Trap) -> bytes:
    """A plain pickle under the name of an .npz."""
    return pickle.dumps(trap)


def as_npy(arrays: dict, name: str, trap: Trap) -> bytes:
    """A single array of objects under the name of an .npz."""
    file = io.BytesIO()
    np.save(file, np.array([trap], dtype=object))
    return file.getvalue()


FORMS = [as_object_array, as_foreign_member, as_pickle, as_npy]


def keras_arrays() -> dict:
    image, label = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
    return {"x_train": image, "y_train": label, "x_test": image, "y_test": label}


def jpeg_arrays() -> dict:
    return {"jpeg_train": np.zeros(4, np.uint8), "offset_train": [0, 4], "y_train": [0]}


def read_record(path):
    """A record whose maker also wrote the hash."""
    record = dict.fromkeys((*PROVENANCE, "settings", "data", "commit"), 1)
    record |= {"schema": SCHEMA, "arrays": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(sealed(record)))
    recorded(path.stem, path.parent)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("read", "arrays", "name", "error"),
    [
        (images.keras_npz, keras_arrays(), "x_train", DataError),
        (images.jpeg_npz, jpeg_arrays(), "jpeg_train", DataError),
        (cli.read_data, {"x": np.zeros((2, 3)), "y": np.arange(2)}, "x", ValueError),
        (read_record, {"margins": np.zeros(3)}, "margins", BookError),
        (Trajectory.load, None, "direction", ValueError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_pickle_among_arrays_is_refused_and_never_run(
    tmp_path, sprung, form, read, arrays, name, error
):
    if arrays is None:
        trajectory().save(tmp_path / "whole.npz")
        with np.load(tmp_path / "whole.npz") as whole:
            arrays = dict(whole)
    path = tmp_path / "evil.npz"
    path.write_bytes(form(arrays, name, Trap(sprung)))
    with pytest.raises(error, match="evil"):
        read(path)
    assert not sprung.exists()


def test_the_trap_would_be_sprung(tmp_path, sprung):
    """Each form does run code in a reader that unpickles: the tests above can fail."""
    (tmp_path / "evil.npz").write_bytes(as_object_array({}, "x", Trap(sprung)))
    with np.load(tmp_path / "evil.npz", allow_pickle=True) as arrays:
        assert arrays["x"].shape == (1,)
    assert sprung.exists()
    sprung.rmdir()
    pickle.loads(as_pickle({}, "x", Trap(sprung)))
    assert sprung.exists()


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".tar", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_weights_is_refused_and_never_run(tmp_path, sprung, suffix, zipped):
    path = tmp_path / f"evil{suffix}"
    torch.save({"weight": Trap(sprung)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="evil"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="evil"):
        read_weights(path)
    assert not sprung.exists()


def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(tmp_path, sprung):
    content = {"step": 3, "architecture": {}, "settings": {}}
    state = checkpoints.write(tmp_path, "step-0000000003", {"w": torch.zeros(2)}, content)
    for evil in (pickle.dumps(Trap(sprung)), as_npy({}, "", Trap(sprung))):
        state.path.with_suffix(".safetensors").write_bytes(evil)
        digest = hashlib.sha256(evil).hexdigest()
        changed = state.content | {"bytes": len(evil), "sha256": digest}
        state.path.write_text(json.dumps(changed))
        (found,) = checkpoints.listed(tmp_path, checkpoints.DUE)
        with pytest.raises(ValueError, match="no safetensors file"):
            found.tensors()
    state.path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="truncated or no JSON"):
        checkpoints.listed(tmp_path, checkpoints.DUE)
    assert not sprung.exists()


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    file = as_jpeg(np.zeros((8, 8, 3), np.uint8))
    arrays = {"jpeg_train": file, "offset_train": [0, len(file)], "y_train": [0]}
    np.savez(tmp_path / "large.npz", **arrays)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(DataError, match=r"large\.npz: expected JPEG files .*decompression bomb"):
        images.jpeg_npz(tmp_path / "large.npz")


# What is neither a pickle nor refused by its reader alone is found by reading the sources.


def test_nothing_in_the_repository_unpickles():
    calls = re.compile(
        r"pickle\.loads?\(|allow_pickle=True|weights_only=False|yaml\.(unsafe_|full_)?load\(|"
        r"\bjoblib\b|read_pickle|extractall|unpack_archive|\bexec\(|(?<![\w.])eval\("
    )
    sources = [*ROOT.glob("lib/**/*.py"), *ROOT.glob("recordings/*.py"), *ROOT.glob("book/*.ipynb")]
    sources += [*ROOT.glob("benchmarks/*.py"), ROOT / "Snakefile"]
    assert len(sources) > 60
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf8").splitlines()
        if calls.search(line) or (" torch.load(" in line and "weights_only=True" not in line)
        or ("np.load(" in line and "allow_pickle=False" not in line)
    ]  # fmt: skip
    assert sorted(found) == [
        # Their loaders are SafeLoaders.
        "lib/latebook/files.py: return yaml.load(file, Loader=_StrictLoader)",
        'lib/latebook/registration.py: rows = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", '
        "yaml.SafeLoader))",
    ]


@pytest.mark.parametrize("name", ["../x_train.npy", "/x_train.npy", "../../escaped"])
def test_names_in_an_npz_lead_nowhere(tmp_path, name):
    """An .npz is read in memory; a member with a path is one array more, which nobody asks for."""
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    whole = folder / "set.npz"
    np.savez(whole, **keras_arrays())
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(name, b"outside")
    assert len(images.keras_npz(whole)) == 4
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["set.npz"]


# ---------------------------------------------------------------- parameters and YAML


def test_a_parameter_is_data_and_never_code(book, sprung):
    touch = f"__import__('pathlib').Path({str(sprung)!r}).touch()"
    words = [
        touch,
        f'"+{touch}+"',
        f"'+{touch}+'",
        f'"""\n{touch}\n"""',
        f"\\'+{touch}#",
        f"1\n{touch}",
        f"1\r{touch}",
        f"1\u2028{touch}",
        f"{{{touch}}}",
        f"!{touch}",
        f"%run {touch}",
    ]
    number = {"words": words, touch: {f"'+{touch}+'": 1}}
    book.write_chapters("first")
    book.write_yaml("profiles/quick.yml", {"first": {"number": number}})
    notebook = chapter("first", f"assert number == {number!r}, number")
    notebook.cells[-1].source = notebook.cells[-1].source.replace("[number]", "[0.5]")
    book.write_notebook("first", notebook)
    done = book.call("chapter", "--chapter", "first")
    assert done.returncode == 0, done.stderr
    assert not sprung.exists()


def test_a_parameters_name_is_one_that_the_chapter_declares(book, sprung):
    name = f"number = open({str(sprung)!r}, 'w').close(); x"
    book.write_chapters("first")
    book.write_yaml("profiles/quick.yml", {"first": {"number": 0.5, name: 1}})
    red = book.call("chapter", "--chapter", "first")
    assert red.returncode == 1
    assert "first.ipynb declares no parameter" in red.stderr
    assert not sprung.exists()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [{sprung}]",
        "!!python/object/new:os.mkdir [{sprung}]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!!python/object:tests.test_security.Trap {{path: {sprung}}}",
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda path: Book(path.parents[1], "quick").parameters("first"),
        load,
        read_yaml,
        runs,
    ],
    ids=["profile", "claims", "contents", "runs"],
)
def test_a_tag_of_yaml_that_makes_objects_is_refused(tmp_path, sprung, tag, read):
    path = tmp_path / "profiles" / "quick.yml"
    path.parent.mkdir()
    path.write_text(f"first:\n  number: {tag.format(sprung=sprung)}\n")
    with pytest.raises(BookError, match=r"quick\.yml is not valid YAML: could not determine a con"):
        read(path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "name", ["a../outside", "/outside", "a b", "one; touch x", "$(touch x)", "-f", "a/b"]
)
def test_a_run_has_a_name_that_is_only_a_name(tmp_path, name):
    path = tmp_path / "runs.yml"
    path.write_text(json.dumps({f"{name}": {"seed": 0}}))
    with pytest.raises(BookError, match=r"runs\.yml: expected names of letters, digits"):
        runs(path)
