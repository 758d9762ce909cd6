"""Image sets as tasks: the bundled Fashion-MNIST subset, the full sets, Keras-layout files.

Every function takes
- `classes`: labels of the source to keep, all by default. Two classes become y = -1 and +1 in the
  order given, more become 0..k-1 in that order;
- `per_class`: how many of each, the first in the source's order; all by default;
- `split`: "train" or "test";
- `pixels`: "unit" divides by 255, so that x is in [0, 1]; "symmetric" maps to [-1, 1]. Neither
  looks at the data, so both splits are scaled alike;
and returns a `Task` with x [n, channels, height, width] float32 in the source's order. Nothing
here reaches the network except `fashion_mnist` and `cifar10` called with `download=True`.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from latephase.problem.task import Task
from latephase.zoo.datafiles import (
    DataError,
    jpeg_arrays,
    keras_arrays,
    listing_sha256,
    obtain,
    verified,
)

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

# Of the published files, decompressed: compressors differ, the content does not.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
BUNDLE = Path(__file__).with_name("bundled") / "fashion_mnist_3k.npz"


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
    _check_choices(split, pixels)
    remedy = "Install latephase again or, in a clone, restore lib/latephase/zoo/bundled from git."
    record = BUNDLE.with_name(BUNDLE.name + ".sha256")
    try:
        expected = record.read_text(encoding="ascii").split()[0]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{record}: expected the bundle's sha256; {error}. {remedy}") from error
    digest = verified(BUNDLE, "sha256", expected, remedy)
    images, labels = keras_arrays(BUNDLE, split)
    return _task(BUNDLE.stem, images, labels, digest, classes, per_class, split, pixels)


def fashion_mnist(
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    split: str = "train",
    pixels: str = "unit",
    download: bool = False,
) -> Task:
    """Fashion-MNIST in full, 60,000 and 10,000 images, from `data_home()`; x [n, 1, 28, 28].

    `download=True` fetches through torchvision what is missing or damaged. Raises DataError.
    """
    # torchvision takes a second to import, for which the bundled set need not wait. Its reader of
    # one file is used, since its data set class would prefer an unchecked folder `processed`.
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.mnist import read_image_file, read_label_file

    _check_choices(split, pixels)
    remedy = (
        f"{_fetch_command('fashion_mnist')} Or decompress the four files of Debian's package "
        "dataset-fashion-mnist (/usr/share/datasets/fashion-mnist) to the place named."
    )
    folder = obtain(
        lambda root: FashionMNIST(root, download=True),
        "FashionMNIST/raw",
        FASHION_MNIST_SHA256,
        "sha256",
        download,
        remedy,
    )
    prefix = {"train": "train", "test": "t10k"}[split]
    files = [folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte"]
    images, labels = read_image_file(files[0]).numpy(), read_label_file(files[1]).numpy()
    digest = listing_sha256(files)
    return _task("fashion_mnist", images, labels, digest, classes, per_class, split, pixels)


def cifar10(
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    split: str = "train",
    pixels: str = "unit",
    download: bool = False,
) -> Task:
    """CIFAR-10 in full, 50,000 and 10,000 images, from `data_home()`; x [n, 3, 32, 32].

    `download=True` fetches through torchvision what is missing or damaged. The files are pickles
    and are loaded only after the published md5 of every one of them fits. Raises DataError.
    """
    from torchvision.datasets import CIFAR10

    _check_choices(split, pixels)
    published = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    published[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    remedy = f"{_fetch_command('cifar10')} Or read a Keras-layout file with keras_npz."
    folder = obtain(
        lambda root: CIFAR10(root, download=True),
        CIFAR10.base_folder,
        published,
        "md5",
        download,
        remedy,
    )
    source = CIFAR10(folder.parent, train=split == "train")
    batches = CIFAR10.train_list if split == "train" else CIFAR10.test_list
    digest = listing_sha256([folder / name for name, _ in batches])
    labels = np.asarray(source.targets)
    return _task("cifar10", source.data, labels, digest, classes, per_class, split, pixels)


def keras_npz(
    path: str | os.PathLike,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    split: str = "train",
    pixels: str = "unit",
    sha256: str | None = None,
) -> Task:
    """Images of an .npz with the arrays x_train, y_train, x_test, y_test, as Keras stores them.

    x uint8 [n, height, width] or [n, height, width, channels]; y integer [n] or [n, 1], labels
    0..k-1. `sha256`, if given, must fit the file. Never unpickles. Raises DataError naming the
    file, what was expected and what came.
    """
    _check_choices(split, pixels)
    path = Path(path)
    digest = verified(path, "sha256", sha256, "Correct the path or the hash, or fetch it again.")
    images, labels = keras_arrays(path, split)
    return _task(path.stem, images, labels, digest, classes, per_class, split, pixels)


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
    from PIL import Image  # torchvision depends on it

    _check_choices(split, pixels)
    path = Path(path)
    digest = verified(path, "sha256", sha256, "Correct the path or the hash, or fetch it again.")
    files, offsets, labels = jpeg_arrays(path, split)
    pieces = [io.BytesIO(files[a:b].tobytes()) for a, b in pairwise(offsets)]
    try:
        images = np.stack(
            [np.asarray(Image.open(p, formats=["JPEG"]).convert("RGB")) for p in pieces]
        )
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected JPEG files of one size in {split}; {error}") from error
    name = f"{path.stem} (JPEG re-encoded)"
    return _task(name, images, labels, digest, classes, per_class, split, pixels)


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


def _task(source, images, labels, digest, classes, per_class, split, pixels) -> Task:
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


def _check_choices(split, pixels):
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if pixels not in ("unit", "symmetric"):
        raise ValueError(f"pixels: expected 'unit' or 'symmetric', got {pixels!r}")


def _fetch_command(name):
    return (
        "To fetch it: LATEPHASE_DATA=FOLDER python -c "
        f"'from latephase.zoo.images import {name}; {name}(download=True)' (without "
        "LATEPHASE_DATA it goes to the user's cache). The quick book needs no download."
    )
