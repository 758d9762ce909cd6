"""Makes the .npz of the recorded runs from CIFAR-10 as torchvision downloads it.

    python recordings/cifar10.py FOLDER [--into cifar10_5k.npz]

FOLDER is the root that was given to `torchvision.datasets.CIFAR10(root, download=True)`, the
folder `cifar-10-batches-py` in it, or the archive `cifar-10-python.tar.gz`. The .npz takes the
first 1,102 images of the first training batch, the first 1,017 of each of the other four, and the
first 1,017 of the test batch, in their order: x_train, y_train, x_test, y_test (uint8, Keras's
layout). It is written only if these are the arrays of the recorded runs, by the hash of their
content in `recordings/runs.yml`.

The batches are pickles. No name in them is resolved but those of a NumPy array, so that a file that
is something else runs nothing.
"""

import argparse
import pickle
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from latebook import BookError
from latebook.files import read_yaml
from latebook.records import content_sha256
from latephase.files import write_whole

RUNS = Path(__file__).with_name("runs.yml")
BATCHES = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
# How many images of each batch; the sizes of the file that the runs were made from.
TAKEN = {f"data_batch_{k}": 1102 if k == 1 else 1017 for k in range(1, 6)} | {"test_batch": 1017}
# The names of an array in a pickle: of NumPy 1 or 2, with the bytes as text in protocol 2.
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


class _Batch(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch does")
        return _KNOWN[module, name]


def arrays(source: Path, taken: dict[str, int] = TAKEN) -> dict[str, np.ndarray]:
    """x_train, x_test uint8 [n, 32, 32, 3] and y_train, y_test uint8 [n] of the first images.

    source: the folder of the batches, one that holds it, or the archive. Raises BookError naming
    the batch that is missing, is not one of CIFAR-10, or has too few images.
    """
    parts = {"train": [], "test": []}
    for name, count in taken.items():
        split = "test" if name == "test_batch" else "train"
        parts[split].append(_batch(source, name, count))
    found = {}
    for split, batches in parts.items():
        images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
        # A batch has the red, the green and the blue plane of an image one after the other.
        found[f"x_{split}"] = np.ascontiguousarray(
            images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        )
        found[f"y_{split}"] = labels
    return found


def _batch(source: Path, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images [count, 3072] and labels [count] of a batch, uint8."""
    try:
        if source.is_dir():
            with open(_folder(source) / name, "rb") as file:
                content = _read(file)
        else:
            with tarfile.open(source) as archive:
                content = _read(archive.extractfile(f"{BATCHES}/{name}"))
        images, labels = content["data"][:count], np.asarray(content["labels"][:count])
        if images.dtype != np.uint8 or images.shape[1:] != (3072,) or labels.dtype.kind != "i":
            raise ValueError(f"data {images.dtype} {images.shape}, labels {labels.dtype}")
    except (OSError, tarfile.TarError) as error:
        raise BookError(f"{source}: {BATCHES}/{name}: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise BookError(f"{source}: {BATCHES}/{name} is no batch of CIFAR-10: {error}") from error
    if len(images) < count or len(labels) < count:
        raise BookError(
            f"{source}: {BATCHES}/{name}: expected at least {count} images with labels, "
            f"got {len(images)} and {len(labels)}"
        )
    return images, labels.astype(np.uint8)


def _folder(source: Path) -> Path:
    return source / BATCHES if (source / BATCHES).is_dir() else source


def _read(file: BinaryIO) -> dict:
    # Written by Python 2, whose strings are bytes.
    return _Batch(file, encoding="latin1").load()


def main(words: list[str] | None = None) -> int:
    """Write the .npz and print its content's hash; 0, or 1 with what is wrong."""
    parser = argparse.ArgumentParser(prog="recordings/cifar10.py", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FOLDER")
    parser.add_argument("--into", type=Path, default=Path("cifar10_5k.npz"), metavar="FILE")
    options = parser.parse_args(words)
    try:
        expected = read_yaml(RUNS)[".cifar10"]["content"]
        made = arrays(options.source)
        if (found := content_sha256(made)) != expected:
            raise BookError(
                f"{options.source}: its first images are not those of the recorded runs: expected "
                f"content of sha256 {expected} ({RUNS.name}), got {found}"
            )
        write_whole(options.into, lambda file: np.savez_compressed(file, **made))
    except (BookError, OSError) as error:
        print(f"cifar10: {error}", file=sys.stderr)
        return 1
    print(f"{found}  {options.into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
