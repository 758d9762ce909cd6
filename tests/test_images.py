"""Image sets and their files: the bundle, Keras's layout, JPEG files, and what goes wrong."""

import gzip
import hashlib
import io
import os
import pickle
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latephase.zoo import images
from latephase.zoo.images import DataError
from tests.conftest import ROOT

HASH = "0" * 64
SCRIPT = ROOT / "recordings" / "make_fashion_mnist_3k.py"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)


# ---------------------------------------------------------------- the bundled images


def test_the_bundle_is_balanced_and_scaled():
    for split, per_class in (("train", 200), ("test", 100)):
        task = images.bundled_fashion_mnist(split=split)
        assert task.x.shape == (10 * per_class, 1, 28, 28)
        assert task.x.dtype == torch.float32
        assert torch.bincount(task.y).tolist() == [per_class] * 10
        assert (task.x.min(), task.x.max()) == (0, 1)
        symmetric = images.bundled_fashion_mnist(split=split, pixels="symmetric").x
        assert torch.equal(symmetric, 2 * task.x - 1)
    assert task.sha256 == hashlib.sha256(images.BUNDLE.read_bytes()).hexdigest()


def test_the_bundle_has_no_image_twice():
    both = [images.bundled_fashion_mnist(split=split).x.flatten(1) for split in ("train", "test")]
    assert len(torch.unique(torch.cat(both), dim=0)) == 3000


def test_two_classes_are_signed_in_the_order_given():
    everything = images.bundled_fashion_mnist()
    pair = images.bundled_fashion_mnist(np.array([8, 3]), 50)
    first = torch.sort(torch.cat([torch.nonzero(everything.y == c)[:50, 0] for c in (3, 8)])).values
    assert torch.equal(pair.x, everything.x[first])
    assert torch.equal(pair.y, torch.where(everything.y[first] == 8, -1, 1))
    assert pair.signed
    three = images.bundled_fashion_mnist([7, 0, 5], 20)
    expected = images.bundled_fashion_mnist([5, 7], 20)
    assert torch.equal(three.x[three.y != 1], expected.x)
    assert torch.equal(three.y[three.y != 1], torch.where(expected.y == -1, 2, 0))
    assert pair.name == "fashion_mnist_3k/train (classes=[8, 3], per_class=50, pixels=unit)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": [3]}, r"classes: expected two or more different ones of \[0, 1, .* got \[3\]"),
        ({"classes": [3, 3]}, "classes: expected two or more different"),
        ({"classes": [3, 10]}, r"got \[3, 10\]"),
        ({"per_class": 0}, "per_class: expected 1 to 200 for fashion_mnist_3k, got 0"),
        ({"per_class": 101, "split": "test"}, "per_class: expected 1 to 100 .* got 101"),
        ({"split": "validation"}, "split: expected 'train' or 'test', got 'validation'"),
        ({"pixels": "raw"}, "pixels: expected 'unit' or 'symmetric', got 'raw'"),
    ],
)
def test_bad_choices_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        images.bundled_fashion_mnist(**settings)


@pytest.fixture
def bundle_copy(tmp_path, monkeypatch):
    copy = tmp_path / images.BUNDLE.name
    for suffix in ("", ".sha256"):
        shutil.copy(f"{images.BUNDLE}{suffix}", f"{copy}{suffix}")
    monkeypatch.setattr(images, "BUNDLE", copy)
    return copy


def test_a_damaged_bundle_is_named(bundle_copy):
    expected = Path(f"{bundle_copy}.sha256").read_text().split()[0]
    content = bytearray(bundle_copy.read_bytes())
    content[100_000] ^= 1
    bundle_copy.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    message = (
        f"{bundle_copy}: damaged .* expected sha256 {expected}, got {found}. Install latephase"
    )
    with pytest.raises(DataError, match=message):
        images.bundled_fashion_mnist()
    bundle_copy.unlink()
    with pytest.raises(DataError, match=f"{bundle_copy}: no such file; expected sha256 {expected}"):
        images.bundled_fashion_mnist()


@pytest.mark.parametrize("record", [None, b"", b"\xff\xfe"])
def test_a_bundle_without_its_hash_is_refused(bundle_copy, record):
    path = Path(f"{bundle_copy}.sha256")
    path.unlink() if record is None else path.write_bytes(record)
    with pytest.raises(DataError, match=f"{path}: expected the bundle's sha256"):
        images.bundled_fashion_mnist()


@needs_debian
def test_the_bundle_is_made_again_byte_for_byte(tmp_path):
    make = runpy.run_path(str(SCRIPT))["make"]
    digest = make(DEBIAN, tmp_path)
    for suffix in ("", ".sha256"):
        again = tmp_path / f"{images.BUNDLE.name}{suffix}"
        assert again.read_bytes() == Path(f"{images.BUNDLE}{suffix}").read_bytes()
    assert digest == images.bundled_fashion_mnist().sha256
    assert len(list(tmp_path.iterdir())) == 2


def test_the_script_refuses_another_source(tmp_path):
    make = runpy.run_path(str(SCRIPT))["make"]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match=f"{path}: .*No such file.*dataset-fashion-mnist"):
        make(tmp_path, tmp_path)
    path.write_bytes(gzip.compress(b"another file"))
    with pytest.raises(DataError, match=f"{path}: expected sha256 c59f468a.* got "):
        make(tmp_path, tmp_path)
    path.write_bytes(gzip.compress(b"cut short")[:-9])
    with pytest.raises(DataError, match=f"{path}: .*expected sha256 c59f468a"):
        make(tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- Keras-layout files


def keras_arrays(shape=(8, 8), n=12):
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 3
    return arrays


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (8, 6, 3)])
def test_keras_layouts_become_channels_first(tmp_path, shape):
    arrays = keras_arrays(shape)
    arrays["y_test"] = arrays["y_test"].astype(np.uint8)[:, None]  # as Keras stores CIFAR-10
    path = tmp_path / "small.npz"
    np.savez_compressed(path, **arrays)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    task = images.keras_npz(path, split="test", sha256=digest.upper())
    assert task.x.shape == (12, shape[2] if len(shape) == 3 else 1, 8, 6)
    pixels = arrays["x_test"].reshape(12, 8, 6, -1).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(task.x.numpy(), pixels / np.float32(255))
    assert task.y.tolist() == arrays["y_test"].ravel().tolist()
    assert (task.sha256, task.name.split("/")[0]) == (digest, "small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "expected arrays x_train, .* got x_test, y_test, y_train, without x_t"),
        ({"x_train": np.zeros((12, 8, 8))}, r"expected x_train uint8 .* got float64 \[12, 8, 8\]"),
        ({"x_train": np.zeros((12, 3, 8, 8), np.uint8)}, r"got uint8 \[12, 3, 8, 8\]"),
        ({"x_train": np.zeros((12, 64), np.uint8)}, r"got uint8 \[12, 64\]"),
        ({"x_train": np.zeros((11, 8, 8), np.uint8)}, "got 11 images and 12 labels in the train"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.arange(0)}, "got 0 images"),
        ({"y_train": np.arange(12) / 3}, r"expected integer labels .* got float64 \[12\]"),
        ({"y_train": np.zeros((12, 2), int)}, r"expected integer labels .* got int64 \[12, 2\]"),
        ({"y_train": np.array(3)}, r"expected integer labels .* got int64 \[\]"),
        ({"y_train": np.arange(12) % 3 + 1}, r"expected labels 0..k-1.* got \[1, 2, 3\] in y_tr"),
        ({"y_train": np.arange(12) % 3 - 1}, r"got \[-1, 0, 1\] in y_train"),
        ({"y_train": np.array([{}] * 12)}, "expected a readable .npz file; .*allow_pickle=False"),
    ],
)
def test_other_contents_are_refused(tmp_path, change, message):
    arrays = {k: v for k, v in (keras_arrays() | change).items() if v is not None}
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*{message}"):
        images.keras_npz(path)


def test_test_labels_must_occur_in_training(tmp_path):
    np.savez(tmp_path / "bad.npz", **keras_arrays() | {"y_test": np.full(12, 3)})
    with pytest.raises(DataError, match=r"got \[0, 1, 2\] in y_train and \[3\] in y_test"):
        images.keras_npz(tmp_path / "bad.npz", split="test")


def test_damaged_keras_files_are_named(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(DataError, match=f"{path}: no such file; expected sha256 {HASH}"):
        images.keras_npz(path, sha256=HASH)
    path.mkdir()
    with pytest.raises(DataError, match=f"{path}: Is a directory; expected a readable file"):
        images.keras_npz(path)
    path.rmdir()
    np.savez_compressed(path, **keras_arrays())
    whole = path.read_bytes()
    with pytest.raises(DataError, match=f"{path}: damaged or another version; expected sha256 000"):
        images.keras_npz(path, sha256=HASH)
    middle = bytearray(whole)
    middle[300] ^= 0xFF  # inside the compressed pixels, where only the checksum tells
    for content in (b"", b"no zip", whole[: len(whole) // 2], bytes(middle), pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path}: expected a readable .npz file"):
            images.keras_npz(path)


@pytest.mark.skipif(
    "LATEPHASE_CIFAR10_NPZ" not in os.environ,
    reason="LATEPHASE_CIFAR10_NPZ does not name CIFAR-10 in an .npz of Keras's layout",
)
def test_cifar10_from_a_keras_file():
    path = Path(os.environ["LATEPHASE_CIFAR10_NPZ"])
    for split in ("train", "test"):
        task = images.keras_npz(path, split=split)
        assert task.x.shape[1:] == (3, 32, 32)
        assert task.class_count == 10
        pair = images.keras_npz(path, classes=[3, 5], per_class=20, split=split, pixels="symmetric")
        assert torch.bincount(pair.y + 1).tolist() == [20, 0, 20]
        assert -1 <= pair.x.min() < 0 < pair.x.max() <= 1


def as_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


def test_jpeg_files_in_an_npz(tmp_path):
    tones = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, 3), 20, np.uint8)
    files = [as_jpeg(tone) for tone in tones]
    whole = {
        "jpeg_train": np.concatenate(files),
        "offset_train": np.cumsum([0, *map(len, files)]),
        "y_train": np.arange(10),
    }
    path = tmp_path / "tones.npz"
    np.savez(path, **whole)
    task = images.jpeg_npz(path)
    assert task.x.shape == (10, 3, 8, 8)
    assert torch.allclose(task.x[:, 0, 0, 0], torch.arange(10) * 20 / 255, atol=2 / 255)
    assert "JPEG re-encoded" in task.name
    for change, message in (
        ({"offset_train": whole["offset_train"][1:]}, r"offset_train \[10 \+ 1\]"),
        ({"offset_train": whole["offset_train"][::-1].copy()}, "to rise from 0 to"),
        ({"jpeg_train": np.zeros_like(whole["jpeg_train"])}, "expected JPEG files of one size"),
    ):
        np.savez(path, **(whole | change))
        with pytest.raises(DataError, match=message):
            images.jpeg_npz(path)
    np.savez(path, y_train=whole["y_train"])
    with pytest.raises(DataError, match="without jpeg_train, offset_train"):
        images.jpeg_npz(path)
