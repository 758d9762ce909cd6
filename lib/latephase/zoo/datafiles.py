"""Data files: where they live, whether they are whole, how they get there.

A file's hash is checked before its content is used. A download lands in a folder aside and is
renamed into place once every hash fits, so an interrupted one is never taken for done.
"""

import hashlib
import http.client
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from latephase.files import plain_arrays


class DataError(ValueError):
    """A data file is missing, damaged or of another form, or could not be downloaded."""


def data_home() -> Path:
    """The folder of downloaded sets: LATEPHASE_DATA, or `latephase` in the user's cache."""
    named = os.environ.get("LATEPHASE_DATA")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(named or Path(cache) / "latephase").expanduser()


def verified(path: Path, algorithm: str, expected: str | None, remedy: str) -> str:
    """The file's hex digest, equal to `expected` where that is given.

    Raises DataError naming the file, the expected digest, what was found and the remedy.
    """
    wanted = f"expected {algorithm} {expected}" if expected else "expected a readable file"
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: _hasher(algorithm)).hexdigest()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {wanted}. {remedy}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {wanted}. {remedy}") from error
    if expected and digest != expected.lower():
        raise DataError(f"{path}: damaged or another version; {wanted}, got {digest}. {remedy}")
    return digest


def _hasher(algorithm):
    # md5 is what the publisher of CIFAR-10 gives; hardened builds refuse it without this flag.
    return hashlib.new(algorithm, usedforsecurity=False)


def listing_sha256(files: list[Path]) -> str:
    """sha256 of the lines that `sha256sum` prints for the files, run in their own folder."""
    lines = [f"{verified(path, 'sha256', None, '')}  {path.name}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def obtain(
    fetch: Callable[[str], object],
    folder: str,
    digests: Mapping[str, str],
    algorithm: str,
    download: bool,
    remedy: str,
) -> Path:
    """The folder below `data_home()` in which every file of `digests` (name → digest) is whole.

    With `download`, `fetch(root)` is called if one is not, and writes them to root/folder. Raises
    DataError, also when the download fails; files already whole stay as they are then.
    """
    home = data_home()

    def check(root, advice):
        for name, expected in digests.items():
            verified(root / folder / name, algorithm, expected, advice)

    try:
        check(home, remedy)
        return home / folder
    except DataError as error:
        if not download:
            raise
        lacking = str(error).removesuffix(" " + remedy)
    failures = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=home) as aside:
            fetch(aside)
            check(Path(aside), "The publisher's file is not the known one.")
            (home / folder).mkdir(parents=True, exist_ok=True)
            for name in digests:
                os.replace(Path(aside) / folder / name, home / folder / name)
    except failures as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{lacking} The download failed ({reason}): see to the network, to the space in {home} "
            f"and the right to write there, then try again. {remedy}"
        ) from error
    return home / folder


def keras_arrays(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split of an .npz in Keras's layout.

    uint8 [n, height, width] or [n, height, width, 1 or 3], and int64 [n].
    Reads x_train, y_train, x_test, y_test, never a pickle; the labels of the training split must
    be exactly 0..k-1 and those of the test split among them. Raises DataError.
    """
    x_name, y_name = f"x_{split}", f"y_{split}"
    arrays = _npz_arrays(path, {x_name, y_name, "y_train"})
    images, labels = arrays[x_name], _flat_labels(path, arrays[y_name])
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
    known = np.unique(_flat_labels(path, arrays["y_train"]))
    if not np.array_equal(known, np.arange(len(known))) or not np.isin(labels, known).all():
        raise DataError(
            f"{path}: expected labels 0..k-1, each of them in y_train; got {known[:12].tolist()} "
            f"in y_train and {np.unique(labels)[:12].tolist()} in {y_name}"
        )
    return images, labels


def jpeg_arrays(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """JPEG files of one split, one after the other, where they begin, and labels int64 [n].

    Reads jpeg_SPLIT uint8, offset_SPLIT integer [n + 1] ascending from 0 to the end of the files,
    and y_SPLIT. Raises DataError.
    """
    arrays = _npz_arrays(path, {f"jpeg_{split}", f"offset_{split}", f"y_{split}"})
    files, offsets = arrays[f"jpeg_{split}"], arrays[f"offset_{split}"]
    labels = _flat_labels(path, arrays[f"y_{split}"])
    if files.dtype != np.uint8 or files.ndim != 1 or offsets.shape != (len(labels) + 1,):
        raise DataError(
            f"{path}: expected jpeg_{split} uint8 [bytes] and offset_{split} [{len(labels)} + 1], "
            f"got {files.dtype} {list(files.shape)} and {list(offsets.shape)}"
        )
    if offsets[0] != 0 or offsets[-1] != len(files) or np.any(np.diff(offsets) <= 0):
        raise DataError(f"{path}: expected offset_{split} to rise from 0 to {len(files)}")
    return files, offsets, labels


def _npz_arrays(path, names):
    try:
        return plain_arrays(path, names)
    except OSError as error:
        raise DataError(f"{path}: expected a readable .npz file; {error}") from error
    except ValueError as error:
        raise DataError(str(error)) from error


def _flat_labels(path, labels):
    if labels.dtype.kind not in "iu" or not (labels.ndim == 1 or labels.shape[1:] == (1,)):
        raise DataError(
            f"{path}: expected integer labels [n] or [n, 1], "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    return labels.reshape(-1).astype(np.int64)
