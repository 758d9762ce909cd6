"""Recorded runs: long ones, made once, whose results a chapter draws.

A record is a JSON file that says what was run, how, and where, with the hash of what it says; one
with arrays has them in an npz file of the same name beside it, and their hash in itself.
"""

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from latebook import BookError
from latebook.claims import registry_path
from latebook.files import read_yaml

# What a record says of how it was made.
PROVENANCE = ("machine", "device", "seed", "versions", "duration")
# What one with arrays says besides; to be counted up when the arrays change their meaning.
SCHEMA = 1
WITH_ARRAYS = ("schema", "arrays", "settings", "data", "commit")


def recorded(name: str, folder: Path | None = None) -> dict:
    """Return the record `name`.json of the folder, by default `results` of the book we are in.

    Under "arrays" stand the NumPy arrays of `name`.npz where it has any. Raises BookError, with
    the command that makes it again, where it is missing, is not whole, is of another schema, or
    does not say how it was made, and where it or its arrays are not as they were written.
    """
    folder = registry_path().parents[1] / "results" if folder is None else folder
    path = folder / f"{name}.json"
    measured = (folder.parent / "benchmarks" / path.with_suffix(".py").name).is_file()
    command = f"python benchmarks/{name}.py" if measured else f"make record RUN={name}"
    again = f"To make it again: {command}"
    if not path.exists():
        raise BookError(f"{path}: there is no such recorded run. {again}")
    try:
        record = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise BookError(f"{path}: {error.strerror}. {again}") from error
    except ValueError as error:
        raise BookError(f"{path}: not a whole JSON file: {error}. {again}") from error
    missing = [key for key in PROVENANCE if not isinstance(record, dict) or key not in record]
    if missing:
        raise BookError(f"{path}: expected a record with {', '.join(missing)}. {again}")
    if record.pop("sha256", None) != sha256_of(record):
        raise BookError(f"{path}: changed since it was written: its sha256 does not fit. {again}")
    if "schema" in record or "arrays" in record or path.with_suffix(".npz").exists():
        record["arrays"] = _arrays(path, record, again)
    return record


def stored(folder: Path) -> list[str]:
    """The names of the folder's recorded runs; `ledger.quick.json` beside them is a ledger."""
    return sorted(path.stem for path in folder.glob("*.json") if "." not in path.stem)


def lacking(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Those of the names that have no record to be drawn, and why."""
    why = {}
    for name in names:
        try:
            recorded(name, folder)
        except BookError as error:
            why[name] = str(error)
    return why


def _arrays(path: Path, record: dict, again: str) -> dict:
    import numpy as np

    if record.get("schema") != SCHEMA:
        raise BookError(f"{path}: schema {record.get('schema')!r}, expected {SCHEMA}. {again}")
    if missing := [key for key in WITH_ARRAYS if key not in record]:
        raise BookError(f"{path}: expected a record with {', '.join(missing)}. {again}")
    file = path.with_suffix(".npz")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BookError(f"{file}: {error.strerror}. {again}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != record["arrays"]:
        raise BookError(
            f"{file}: sha256 {digest}, but {path.name} was written with arrays of sha256 "
            f"{record['arrays']}. {again}"
        )
    contents = record.get("contents")  # which the first records have not
    damage = (EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Never a pickle, nor a member that is no array: numpy.load would hand out its bytes.
            for name in archive.namelist():
                if name.endswith(".npy"):
                    array = np.lib.format.read_array(archive.open(name), allow_pickle=False)
                    arrays[name.removesuffix(".npy")] = array
    except damage as error:
        raise BookError(f"{file}: not a whole .npz of plain arrays: {error}. {again}") from error
    if contents is not None and contents != contents_of(arrays):
        raise BookError(f"{file}: other arrays than those whose hashes {path.name} has. {again}")
    return arrays


def contents_of(arrays: Mapping) -> dict[str, str]:
    """The hash of each array's content: where two records of one run differ."""
    return {name: content_sha256({name: array}) for name, array in sorted(arrays.items())}


def content_sha256(arrays: Mapping) -> str:
    """The sha256 of what arrays hold, whatever file they are kept in.

    Over each array in the order of their names: the line "name dtype shape", as
    "x_train uint8 [5170, 32, 32, 3]", then its numbers in C order, little-endian.
    """
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes())
    return digest.hexdigest()


def runs(path: Path) -> dict[str, dict]:
    """The runs of a file such as `recordings/runs.yml` by name; BookError if it holds none.

    Names that begin with a dot are parts that runs share.
    """
    content = read_yaml(path)
    content = content if isinstance(content, dict) else {}
    found = {name: run for name, run in content.items() if str(name)[:1] != "."}
    if not found or not all(isinstance(run, dict) for run in found.values()):
        raise BookError(f"{path}: expected recorded runs by name, each a mapping")
    # The names become those of files, and words of a shell's command.
    if wrong := [n for n in found if not re.fullmatch(r"[A-Za-z0-9]\w*", str(n), re.ASCII)]:
        raise BookError(f"{path}: expected names of letters, digits and _, got {wrong}")
    return found


def sha256_of(record: dict) -> str:
    """The hash of what a record says, in the form in which its JSON is hashed."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
