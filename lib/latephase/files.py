"""Reading .npz files as what they should be: plain arrays, of which nothing is ever unpickled."""

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np


def plain_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The named arrays of an .npz; its other members are not read.

    Raises OSError if the file cannot be opened, and ValueError naming it if it is no .npz, is
    damaged, lacks one of the arrays, or has something else than numbers or text in its place.
    (`numpy.load` hands out the bytes of such a member, and takes what is no zip for a pickle.)
    """
    damage = (EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                present = {n.removesuffix(".npy") for n in archive.namelist()}
                arrays = {name: _array(archive, name) for name in names if name in present}
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
