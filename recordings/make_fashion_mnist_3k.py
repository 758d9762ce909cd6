"""Makes fashion_mnist_3k.npz and its sha256 from the full Fashion-MNIST.

    python make_fashion_mnist_3k.py [FOLDER] [--into FOLDER]

FOLDER holds the four files train-images-idx3-ubyte.gz and so on, as Debian's package
dataset-fashion-mnist installs them. The bundle takes the first 200 training and 100 test images
of each class, in the full set's order: x_train, y_train, x_test, y_test (uint8, Keras's layout)
and index_train, index_test (int32, each image's place in the full set).
"""

import argparse
import gzip
import hashlib
import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from latephase.zoo.images import BUNDLE, DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Of the published files, decompressed: compressors differ, the content does not.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def make(source: Path, into: Path) -> str:
    """The sha256 of the bundle written to the folder `into`. Raises DataError on a bad source."""
    arrays = {}
    for split, prefix, per_class in (("train", "train", 200), ("test", "t10k", 100)):
        images = _published(source, f"{prefix}-images-idx3-ubyte")[16:].reshape(-1, 28, 28)
        labels = _published(source, f"{prefix}-labels-idx1-ubyte")[8:]
        chosen = np.sort(
            np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
        )
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images[chosen], labels[chosen]
        arrays[f"index_{split}"] = chosen.astype("<i4")
    content = _npz(arrays)
    digest = hashlib.sha256(content).hexdigest()
    _write(into / BUNDLE.name, content)
    _write(into / f"{BUNDLE.name}.sha256", f"{digest}  {BUNDLE.name}\n".encode())
    return digest


def _published(source, name):
    """Bytes [size] of one decompressed file; the header of an idx file is 4 + 4·dimensions long."""
    path = source / f"{name}.gz"
    expected = f"expected sha256 {FASHION_MNIST_SHA256[name]} once decompressed"
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: {error}; {expected}. Install Debian's package dataset-fashion-mnist"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != FASHION_MNIST_SHA256[name]:
        raise DataError(f"{path}: {expected}, got {digest}")
    return np.frombuffer(content, np.uint8)


def _npz(arrays):
    """The bytes of an .npz that depend on the arrays alone.

    Stored, not deflated, because zlib's implementations compress differently; with one fixed
    date and one fixed system in every header.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.writestr(entry, member.getvalue())
    return buffer.getvalue()


def _write(path, content):
    aside = path.with_name(path.name + ".partial")
    aside.write_bytes(content)
    os.replace(aside, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the bundled Fashion-MNIST subset.")
    parser.add_argument("source", nargs="?", type=Path, default=DEBIAN, metavar="FOLDER")
    parser.add_argument("--into", type=Path, default=BUNDLE.parent, metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        print(make(arguments.source, arguments.into), arguments.into / BUNDLE.name)
    except (DataError, OSError) as error:
        raise SystemExit(str(error)) from error
