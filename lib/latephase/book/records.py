"""Recorded runs: long ones, made once, whose results a chapter draws."""

import json
from pathlib import Path

from latephase.book import BookError

# What a record says of how it was made.
PROVENANCE = ("machine", "device", "seed", "versions", "duration")


def recorded(name: str, folder: Path = Path("../results")) -> dict:
    """Return the record `name`.json of the folder, by default seen from a chapter.

    Raises BookError where it is missing, is not JSON, or does not say how it was made.
    """
    path = folder / f"{name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise BookError(f"{path}: there is no such recorded run") from error
    except json.JSONDecodeError as error:
        raise BookError(f"{path}: not a whole JSON file: {error}") from error
    missing = [key for key in PROVENANCE if not isinstance(record, dict) or key not in record]
    if missing:
        raise BookError(f"{path}: expected a record with {', '.join(missing)}")
    return record
