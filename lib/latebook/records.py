"""Recorded runs: long ones, made once, whose results a chapter draws.

A record is a JSON file that says what was run, how, and where, with the hash of what it says; one
with arrays has them in an npz file of the same name beside it, and their hash in itself.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from latebook import BookError
from latebook.claims import registry_path
from latebook.files import read_yaml, write_whole

# What a record says of how it was made.
PROVENANCE = ("machine", "device", "seed", "versions", "duration")
# What one with arrays says besides; to be counted up when the arrays change their meaning.
SCHEMA = 1
_ARRAYS = ("schema", "arrays", "settings", "data", "commit")


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
    try:
        record = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise BookError(f"{path}: there is no such recorded run. {again}") from error
    except OSError as error:
        raise BookError(f"{path}: {error.strerror}. {again}") from error
    except ValueError as error:
        raise BookError(f"{path}: not a whole JSON file: {error}. {again}") from error
    missing = [key for key in PROVENANCE if not isinstance(record, dict) or key not in record]
    if missing:
        raise BookError(f"{path}: expected a record with {', '.join(missing)}. {again}")
    if record.pop("sha256", None) != _digest(record):
        raise BookError(f"{path}: changed since it was written: its sha256 does not fit. {again}")
    if "schema" in record or "arrays" in record or path.with_suffix(".npz").exists():
        record["arrays"] = _arrays(path, record, again)
    return record


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
    if missing := [key for key in _ARRAYS if key not in record]:
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
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            # Never a pickle, nor a member that is no array: numpy.load would hand out its bytes.
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(archive.read(name)), allow_pickle=False
                )
                for name in names
            }
    except damage as error:
        raise BookError(f"{file}: not a whole .npz of plain arrays: {error}. {again}") from error
    if contents is not None and contents != _contents(arrays):
        raise BookError(f"{file}: other arrays than those whose hashes {path.name} has. {again}")
    return arrays


def _contents(arrays: Mapping) -> dict[str, str]:
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
    found = (
        {n: run for n, run in content.items() if str(n)[:1] != "."}
        if isinstance(content, dict)
        else {}
    )
    if not found or not all(isinstance(run, dict) for run in found.values()):
        raise BookError(f"{path}: expected recorded runs by name, each a mapping")
    # The names become those of files, and words of a shell's command.
    if wrong := [n for n in found if not re.fullmatch(r"[A-Za-z0-9]\w*", str(n), re.ASCII)]:
        raise BookError(f"{path}: expected names of letters, digits and _, got {wrong}")
    return found


def sealed(record: Mapping) -> dict:
    """The record as JSON holds it, with the sha256 of what it says, anew where it has one."""
    content = json.loads(json.dumps({k: v for k, v in record.items() if k != "sha256"}))
    return content | {"sha256": _digest(content)}


def _digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write(name: str, folder: Path, record: Mapping, arrays: Mapping | None = None) -> Path:
    """Write a record, with arrays one of the present schema, and return its JSON file.

    The arrays appear first, so that a record that is cut off in between is refused and not drawn.
    Raises BookError for a record that does not say how it was made, or when the disk refuses.
    """
    path, expected = folder / f"{name}.json", PROVENANCE
    if arrays is not None:
        data, expected = _packed(arrays), (*PROVENANCE, *_ARRAYS)
        record = {**record, "schema": SCHEMA, "arrays": hashlib.sha256(data).hexdigest()}
        record["contents"] = _contents(arrays)
    if missing := [key for key in expected if key not in record]:
        raise BookError(f"{name}: expected a record with {', '.join(missing)}")
    if arrays is not None:
        aside = folder / f".{name}.npz.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            os.replace(aside, path.with_suffix(".npz"))
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise BookError(f"cannot write {path}: {error.strerror or error}") from error
    write_whole(path, json.dumps(sealed(record), indent=1, ensure_ascii=False) + "\n")
    return path


def _packed(arrays: Mapping) -> bytes:
    """The arrays as an .npz; equal arrays are equal bytes."""
    import numpy as np

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in sorted(arrays):
            # With a date of its own each time, equal arrays would have another hash.
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.asarray(arrays[key]), allow_pickle=False)
    return content.getvalue()
