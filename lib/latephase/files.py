"""Files: written whole or not at all; .npz read as plain arrays, of which nothing is unpickled."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# How the name of a file ends while it is being written.
ASIDE = ".aside"


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """Write what `write` puts into a binary stream; the file appears whole or not at all.

    It reaches the disk before it takes its name, so that a file that stood there is replaced or
    intact, through a kill or a loss of power. Raises OSError naming the path where the file system
    refuses.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}.{os.getpid()}{ASIDE}")
    try:
        with open(aside, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError as error:
        message = f"{path}: cannot be written: {error.strerror or error}"
        raise OSError(error.errno, message) from error
    finally:
        with contextlib.suppress(OSError):  # read-only: there is nothing to take away
            aside.unlink(missing_ok=True)


def plain_arrays(
    path: Path, names: Collection[str], optional: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """The named arrays of an .npz, the optional ones where it has them; others are not read.

    Raises OSError if the file cannot be opened, and ValueError naming it if it is no .npz, is
    damaged, lacks one of the arrays, or has something else than numbers or text in its place.
    (`numpy.load` hands out the bytes of such a member, and takes what is no zip for a pickle.)
    """
    damage = (EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                present = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}
                arrays = {name: _array(archive, name) for name in {*names, *optional} & present}
        except damage as error:
            raise ValueError(f"{path}: expected a readable .npz file; {error}") from error
    if missing := set(names) - present:
        raise ValueError(
            f"{path}: expected arrays {', '.join(sorted(names))}; got "
            f"{', '.join(sorted(present)) or 'none'}, without {', '.join(sorted(missing))}"
        )
    return arrays


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)
