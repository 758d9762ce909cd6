"""Files: YAML read strictly; products written whole, sealed, and made by one process at a time."""

import contextlib
import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import yaml

from latebook import BookError


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part.

    Raises BookError when the disk refuses; the old file is then untouched.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf8") as file:
            file.write(text)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise BookError(f"cannot write {path}: {error.strerror or error}") from error


def write_sealed(path: Path, text: str) -> None:
    """Write `text` whole, and its sha256 beside it, by which `broken_seal` knows it again."""
    own = f"{hashlib.sha256(text.encode()).hexdigest()}  {path.name}\n"
    if path.exists():  # killed between the writes, a file is known: the old one or the new one
        write_whole(_seal(path), f"{file_sha256(path)}  {path.name}\n{own}")
    write_whole(path, text)
    write_whole(_seal(path), own)


def broken_seal(path: Path) -> str | None:
    """What is wrong with a sealed file, in a line: it is not as it was written. None if it is."""
    try:
        sealed = [line[:64] for line in _seal(path).read_text(encoding="utf8").splitlines()]
    except (OSError, ValueError):
        sealed = []
    if not sealed:
        return f"{path}: its hash is not there, in {_seal(path).name}"
    if file_sha256(path) in sealed:
        return None
    return f"{path}: cut off or changed since it was written"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


@contextlib.contextmanager
def held(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` against other processes that make the same.

    The lock ends with the last process that has its descriptor, which children started with
    close_fds=False have, however that ends: none is left over. Raises BookError where the system
    refuses and where another process holds it or, with `wait`, says so and waits.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path, "a+b", buffering=0))
            _take(lock, what, wait)
            os.set_inheritable(lock.fileno(), True)
            lock.truncate(0)
            lock.write(b"%d" % os.getpid())
        except OSError as error:
            raise BookError(f"cannot write {path}: {error.strerror}") from error
        yield


def _take(lock: FileIO, what: str, wait: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        other = f"another process ({lock.read().decode() or 'unknown'}) is making {what}"
        if not wait:
            raise BookError(f"{other}; wait for it to end, or stop it") from error
        print(f"book: {other}; waiting for it to end", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def require_room(folder: Path) -> None:
    """Raise BookError where nothing can be written in the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise BookError(f"cannot write in {folder}: {error.strerror}") from error


# The parser in C, where PyYAML came with it, takes an eighth of the time.
class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML lets the last of two equal keys win in silence; here the second one is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                line = key_node.start_mark.line + 1
                name = key_node.start_mark.name
                raise BookError(f"{name}, line {line}: the key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path):
    """The content of a YAML file; BookError if it is missing, malformed or has a key twice."""
    try:
        with open(path, encoding="utf8") as file:
            return yaml.load(file, Loader=_StrictLoader)
    except OSError as error:
        raise BookError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BookError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
