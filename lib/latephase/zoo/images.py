"""Image sets as tasks: the bundled Fashion-MNIST subset, and .npz files of pixels or of JPEG files.

Every set takes
- `classes`: labels of the source to keep, all by default. Two classes become y = -1 and +1 in the
  order given, more become 0..k-1 in that order;
- `per_class`: how many of each, the first in the source's order; all by default;
- `split`: "train" or "test";
- `pixels`: "unit" divides by 255, so that x is in [0, 1]; "symmetric" maps to [-1, 1]. Neither
  looks at the data, so both splits are scaled alike;
and gives a `Task` with x [n, channels, height, width] float32 in the source's order. Nothing here
reaches a network or unpickles, and a file's hash is checked before its content is used.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from latephase.files import plain_arrays
from latephase.problem.task import Task

BUNDLE = Path(__file__).with_name("bundled") / "fashion_mnist_3k.npz"


class DataError(ValueError):
    """A data file is missing, damaged or of another form."""


def bundled_fashion_mnist(
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    split: str = "train",
    pixels: str = "unit",
) -> Task:
    """The Fashion-MNIST images that come with the library: 200 a class for training, 100 for test.

    x [n, 1, 28, 28]; the first images of each class in the full set's order, their places in it
    kept in the file as `index_train` and `index_test`. Raises DataError if the file is damaged.
    """
    remedy = "Install latephase again or, in a clone, restore lib/latephase/zoo/bundled from git."
    named = BUNDLE.with_name(BUNDLE.name + ".sha256")
    try:
        expected = named.read_text(encoding="ascii").split()[0]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{named}: expected the bundle's sha256; {error}. {remedy}") from error
    choice = classes, per_class, split, pixels
    return _task(BUNDLE.stem, BUNDLE, _pixels, choice, expected, remedy)


def keras_npz(
    path: str | os.PathLike,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    split: str = "train",
    pixels: str = "unit",
    sha256: str | None = None,
) -> Task:
    """Images of an .npz with the arrays x_train, y_train, x_test, y_test, as Keras stores them.

    x uint8 [n, height, width] or [n, height, width, 1 or 3]; y integer [n] or [n, 1], labels
    0..k-1. `sha256`, if given, must fit the file. Raises DataError naming the file, what was
    expected and what came.
    """
    path, choice = Path(path), (classes, per_class, split, pixels)
    return _task(path.stem, path, _pixels, choice, sha256)


def jpeg_npz(
    path: str | os.PathLike,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    split: str = "train",
    pixels: str = "unit",
    sha256: str | None = None,
) -> Task:
    """Colour images of an .npz that holds each as a JPEG file: pixels near those of the originals.

    jpeg_train, jpeg_test uint8, the files one after the other; offset_train, offset_test integer
    [n + 1], where each begins and the last ends; y_train, y_test [n], labels 0..k-1. All images
    are of one size. The task's name says that they were re-encoded. Raises DataError.
    """
    path, choice = Path(path), (classes, per_class, split, pixels)
    return _task(f"{path.stem} (JPEG re-encoded)", path, _jpeg, choice, sha256)


def pooled(task: Task, size: int) -> Task:
    """The task with images averaged over squares of size × size pixels; size 1 is the task itself.

    Images are first continued at their edges until a side is a multiple of 8 · size, so that
    28 × 28 becomes 16 × 16 at size 2.
    """
    if size < 1:
        raise ValueError(f"size: expected a positive integer, got {size!r}")
    if size == 1:
        return task
    missing = -task.x.shape[-1] % (8 * size)
    border = (missing // 2, missing - missing // 2) * 2
    x = torch.nn.functional.pad(task.x, border, mode="replicate")
    x = torch.nn.functional.avg_pool2d(x, size)
    return replace(task, x=x, name=f"{task.name}, averaged over {size} × {size} pixels")


def _task(source, path, read, choice, sha256, remedy="Correct the path or the hash.") -> Task:
    classes, per_class, split, pixels = choice
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if pixels not in ("unit", "symmetric"):
        raise ValueError(f"pixels: expected 'unit' or 'symmetric', got {pixels!r}")
    digest = _verified(path, sha256, remedy)
    images, labels = read(path, split)
    found = np.unique(labels).tolist()
    kept = found if classes is None else list(classes)
    if len(kept) < 2 or len(set(kept)) < len(kept) or not set(kept) <= set(found):
        raise ValueError(f"classes: expected two or more different ones of {found}, got {classes}")
    kept = [found[found.index(c)] for c in kept]  # plain integers, whatever was given
    members = [np.flatnonzero(labels == c) for c in kept]
    fewest = min(map(len, members))
    if per_class is not None and not 1 <= per_class <= fewest:
        raise ValueError(f"per_class: expected 1 to {fewest} for {source}, got {per_class}")
    order = np.sort(np.concatenate([m[:per_class] for m in members]))
    renamed = np.zeros(max(found) + 1, dtype=np.int64)
    renamed[kept] = [-1, 1] if len(kept) == 2 else np.arange(len(kept))
    x = torch.from_numpy(images[order]).to(torch.float32) / 255
    x = x.unsqueeze(1) if x.ndim == 3 else x.movedim(3, 1).contiguous()
    if pixels == "symmetric":
        x = 2 * x - 1
    chosen = f"classes={kept}, per_class={per_class or 'all'}, pixels={pixels}"
    y = torch.from_numpy(renamed[labels[order]])
    return Task(x, y, f"{source}/{split} ({chosen})", digest)


def _verified(path: Path, expected: str | None, remedy: str) -> str:
    """The file's sha256, equal to `expected` where that is given."""
    wanted = f"expected sha256 {expected}" if expected else "expected a readable file"
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {wanted}. {remedy}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {wanted}. {remedy}") from error
    if expected and digest != expected.lower():
        raise DataError(f"{path}: damaged or another version; {wanted}, got {digest}. {remedy}")
    return digest


def _pixels(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, height, width] or [n, height, width, 1 or 3], and labels int64 [n].

    The labels of the training split must be exactly 0..k-1 and those of the test split among them.
    """
    x_name, y_name = f"x_{split}", f"y_{split}"
    arrays = _arrays(path, {x_name, y_name, "y_train"})
    images, labels = arrays[x_name], _labels(path, arrays[y_name])
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3):
        raise DataError(
            f"{path}: expected {x_name} uint8 [n, height, width] or [n, height, width, 1 or 3], "
            f"got {images.dtype} {list(images.shape)}"
        )
    if len(images) != len(labels) or images.size == 0:
        raise DataError(
            f"{path}: expected one label an image and at least one image, got {len(images)} images "
            f"and {len(labels)} labels in the {split} split"
        )
    known = np.unique(_labels(path, arrays["y_train"]))
    if not np.array_equal(known, np.arange(len(known))) or not np.isin(labels, known).all():
        raise DataError(
            f"{path}: expected labels 0..k-1, each of them in y_train; got {known[:12].tolist()} "
            f"in y_train and {np.unique(labels)[:12].tolist()} in {y_name}"
        )
    return images, labels


def _jpeg(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, height, width, 3] decoded from their JPEG files, and labels int64 [n]."""
    from PIL import Image  # torchvision depends on it

    arrays = _arrays(path, {f"jpeg_{split}", f"offset_{split}", f"y_{split}"})
    files, offsets = arrays[f"jpeg_{split}"], arrays[f"offset_{split}"]
    labels = _labels(path, arrays[f"y_{split}"])
    if files.dtype != np.uint8 or files.ndim != 1 or offsets.shape != (len(labels) + 1,):
        raise DataError(
            f"{path}: expected jpeg_{split} uint8 [bytes] and offset_{split} [{len(labels)} + 1], "
            f"got {files.dtype} {list(files.shape)} and {list(offsets.shape)}"
        )
    if offsets[0] != 0 or offsets[-1] != len(files) or np.any(np.diff(offsets) <= 0):
        raise DataError(f"{path}: expected offset_{split} to rise from 0 to {len(files)}")
    pieces = [io.BytesIO(files[a:b].tobytes()) for a, b in pairwise(offsets)]
    try:
        opened = [Image.open(piece, formats=["JPEG"]).convert("RGB") for piece in pieces]
        return np.stack([np.asarray(image) for image in opened]), labels
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected JPEG files of one size in {split}; {error}") from error


def _arrays(path, names):
    try:
        return plain_arrays(path, names)
    except OSError as error:
        raise DataError(f"{path}: expected a readable .npz file; {error}") from error
    except ValueError as error:
        raise DataError(str(error)) from error


def _labels(path, labels):
    if labels.dtype.kind not in "iu" or not (labels.ndim == 1 or labels.shape[1:] == (1,)):
        raise DataError(
            f"{path}: expected integer labels [n] or [n, 1], "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    return labels.reshape(-1).astype(np.int64)
