"""Writing a recorded run: how it was made, its arrays, and the hashes by which it is known again.

`make.py` and the benchmarks write with it; `latebook.records` reads what it wrote.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from latebook import BookError
from latebook.files import write_whole
from latebook.records import PROVENANCE, SCHEMA, WITH_ARRAYS, contents_of, sha256_of
from latephase import files


def sealed(record: Mapping) -> dict:
    """The record as JSON holds it, with the sha256 of what it says, anew where it has one."""
    content = json.loads(json.dumps({k: v for k, v in record.items() if k != "sha256"}))
    return content | {"sha256": sha256_of(content)}


def write(name: str, folder: Path, record: Mapping, arrays: Mapping | None = None) -> Path:
    """Write a record, with arrays one of the present schema, and return its JSON file.

    The arrays appear first, so that a record that is cut off in between is refused and not drawn.
    Raises BookError for a record that does not say how it was made, or when the disk refuses.
    """
    path, expected = folder / f"{name}.json", PROVENANCE
    if arrays is not None:
        data, expected = _packed(arrays), (*PROVENANCE, *WITH_ARRAYS)
        record = {**record, "schema": SCHEMA, "arrays": hashlib.sha256(data).hexdigest()}
        record["contents"] = contents_of(arrays)
    if missing := [key for key in expected if key not in record]:
        raise BookError(f"{name}: expected a record with {', '.join(missing)}")
    if arrays is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_whole(path.with_suffix(".npz"), lambda stream: stream.write(data))
        except OSError as error:
            raise BookError(f"cannot write {path}: {error.strerror or error}") from error
    write_whole(path, json.dumps(sealed(record), indent=1, ensure_ascii=False) + "\n")
    return path


def _packed(arrays: Mapping) -> bytes:
    """The arrays as an .npz; equal arrays are equal bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in sorted(arrays):
            # With a date of its own each time, equal arrays would have another hash.
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.asarray(arrays[key]), allow_pickle=False)
    return content.getvalue()
