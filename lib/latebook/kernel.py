"""The kernel of a chapter: IPython's own, watched. `execute` starts it, nobody else.

    python -m latebook.kernel ROOT LOG -f CONNECTION

It writes into LOG, a JSON object a line, the environment it computes in, then each file below ROOT
that it opens for reading, with its sha256, then what it refused. A chapter reads what the declared
readers give it (`latebook.records.recorded`, the library's own data, `claims.yml`), and files that
it wrote itself. Anything else is refused with a BookError that names it, also where the chapter
catches that: other files, a network, programs which would read for it.

What is watched is what Python announces to its audit hooks; an extension that opens a file in C
announces nothing.
"""

import importlib.machinery
import json
import os
import socket
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from latebook import BookError, provenance
from latebook.files import file_sha256

# Where systems keep what is theirs, and nobody a chapter's data.
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys", "/dev", "/nix")
_SYSTEM += ("/gnu", "/System", "/Library", "/private/etc")
_NO_SYSTEM = ("/dev/shm",)
_FONTS = (".ttf", ".otf", ".ttc", ".pfb", ".afm")
# Which files of the book may be read, and a module that then stands among the callers.
_READERS = {"results": "latebook.records", "book/claims.yml": "latebook.claims"}
_IMPORTING = ("importlib", "_frozen_importlib_external", "pkgutil")
_LIBRARY = ("latephase", "experiments")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "ctypes.dlopen")
# Modules that start a Python beside this one, without a word to the hooks.
_SPAWNING = ("multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver")


class Watch:
    """An audit hook for the kernel of a book at `root`, that writes what it sees into `log`.

    `connection` is the file by which Jupyter tells the kernel its ports.
    """

    def __init__(self, root: Path, log: Path, connection: str):
        self.root = os.path.realpath(root)
        packages = Path(__file__).resolve().parents[1]
        self.packages = tuple(f"{packages}/{name}" for name in (*_LIBRARY, "latebook"))
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
        prefixes = {os.path.realpath(prefix) for prefix in prefixes}
        # The environment may stand within the book; then it alone of what is there is free.
        self.within = [p for p in prefixes if _below(p, self.root) and p != self.root]
        self.around = [*prefixes, *_SYSTEM, *(os.path.realpath(p) for p in sys.path if p)]
        self.own = {os.path.realpath(os.environ[name]) for name in ("HOME", "MPLCONFIGDIR")}
        self.own |= {os.path.realpath(log.parent), os.path.realpath(connection)}
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.told, self.at_work = set(), threading.local()
        self.handlers = {
            "open": self.on_open,
            "os.listdir": self.on_list,
            "os.scandir": self.on_list,
            "os.mkdir": self.on_mkdir,
            "os.rename": self.on_rename,
            "os.link": self.on_rename,
            "os.remove": self.on_write,
            "os.rmdir": self.on_write,
            "sqlite3.connect": self.on_database,
            "import": self.on_import,
            "subprocess.Popen": self.on_program,
            **dict.fromkeys(_PROGRAMS, self.on_other_program),
            **dict.fromkeys(_NETWORK, self.on_network),
        }
        self.tell({"environment": provenance.environment()})

    def __call__(self, event: str, args: tuple) -> None:
        handler = self.handlers.get(event)
        if handler is None or getattr(self.at_work, "now", False):
            return
        self.at_work.now, self.at_work.event = True, event
        try:
            handler(*args)
        finally:
            self.at_work.now = False

    def tell(self, what: dict) -> None:
        line = json.dumps(what) + "\n"
        if line not in self.told:
            self.told.add(line)
            os.write(self.log, line.encode())

    def refuse(self, what: str) -> None:
        self.tell({"refused": what})
        raise BookError(what)

    def on_open(self, path, mode, flags):
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor, opened before
        path = self.resolved(path)
        if (flags or 0) & os.O_ACCMODE != os.O_RDONLY:
            self.on_write(path)
            if flags & (os.O_TRUNC | os.O_EXCL) or not os.path.exists(path):
                self.own.add(path)
            if flags & os.O_ACCMODE == os.O_WRONLY:
                return
        self.on_read(path)

    def on_read(self, path: str) -> None:
        if self.is_free(path) or not os.path.exists(path):
            return
        if _below(path, self.root) or _any_below(path, self.packages):
            if self.is_declared(path):
                return self.opened(path)
        elif path.endswith(_FONTS) or (
            _any_below(path, self.around) and not _any_below(path, _NO_SYSTEM)
        ):
            return
        self.refuse(
            f"{self.named(path)}: read past the declared readers; a chapter reads recorded runs "
            "(latebook.records.recorded), the library's own data, and files that it wrote itself"
        )

    def is_declared(self, path: str) -> bool:
        """Whether the library or a declared reader is reading what it is there to read."""
        if _any_below(path, self.packages):
            return path.endswith((".py", ".pyc")) or self.called_by(_LIBRARY)
        name = os.path.relpath(path, self.root)
        return any(_below(name, p) and self.called_by((by,)) for p, by in _READERS.items())

    def on_write(self, path, *rest) -> None:
        if rest and rest[-1] != -1:
            return  # relative to a folder that is open, and was so for writing
        path = self.resolved(path)
        if _below(path, self.root) and not self.is_free(path) and "__pycache__" not in path:
            self.refuse(f"{self.named(path)}: a chapter writes nothing into the book")

    def on_list(self, path=None) -> None:
        path = self.resolved("." if path is None else path)
        free = self.is_free(path) or _any_below(path, self.packages)
        if _below(path, self.root) and not free and not self.called_by(_IMPORTING):
            self.refuse(f"{self.named(path)}: listed; what a chapter reads it has to name")

    def on_mkdir(self, path, mode, folder) -> None:
        if folder != -1:
            return
        path = self.resolved(path)
        self.on_write(path)
        if not os.path.exists(path):
            self.own.add(path)

    def on_rename(self, source, target, *rest) -> None:
        source, target = self.resolved(source), self.resolved(target)
        self.on_write(target)
        if self.is_own(source):
            self.own.add(target)
        else:
            self.refuse(f"{self.named(source)}: renamed or linked, and not the chapter's own")

    def on_database(self, path, *rest) -> None:
        if os.fsdecode(path) != ":memory:":
            self.on_read(self.resolved(path))

    def on_import(self, module, *rest) -> None:
        if module in _SPAWNING:
            self.refuse(f"{module}: a chapter starts no other Python, it would not be watched")

    def on_program(self, program, words, cwd, environment) -> None:
        # A cell may show the library's own command; on files that it has written.
        words = [] if isinstance(words, str | bytes) else [os.fsdecode(w) for w in words]
        if words[:2] == [sys.executable, "-m"] and words[2:3] in (["latephase"], ["latephase.cli"]):
            for word in words[3:]:
                if os.path.exists(place := os.path.join(cwd or ".", word)):
                    self.on_read(self.resolved(place))
            return
        self.on_other_program(program)

    def on_other_program(self, program=None, *rest) -> None:
        # Packages of the environment ask the system for fonts and libraries.
        if self.caller() in ("__main__", "IPython", "ipykernel", *_LIBRARY, "latebook"):
            self.refuse(f"{program!r}: a chapter starts no other program, it would not be watched")

    def on_network(self, *args) -> None:
        if getattr(args[0], "family", None) != socket.AF_UNIX:
            self.refuse(f"{self.at_work.event}: a chapter uses no network")

    def opened(self, path: str) -> None:
        # The science's modules and the chapter's claims are parts of their own, see `inputs`.
        module = _any_below(path, self.packages[:2]) and path.endswith((".py", ".pyc"))
        part = module or self.named(path) == "book/claims.yml"
        if _below(path, self.root) and os.path.isfile(path) and not part:
            self.tell({"opened": os.path.relpath(path, self.root), "sha256": file_sha256(path)})

    def is_own(self, path: str) -> bool:
        return _any_below(path, [*self.own])

    def is_free(self, path: str) -> bool:
        return self.is_own(path) or _any_below(path, self.within)

    def resolved(self, path) -> str:
        if isinstance(path, int):
            return os.path.realpath(f"/dev/fd/{path}")
        return os.path.realpath(os.fsdecode(path))

    def named(self, path: str) -> str:
        return os.path.relpath(path, self.root) if _below(path, self.root) else path

    def called_by(self, modules: tuple[str, ...]) -> bool:
        return any(f"{name}.".startswith(f"{m}.") for name in self.callers() for m in modules)

    def caller(self) -> str:
        """The package that asks, Python's own ones aside."""
        packages = (name.partition(".")[0] for name in self.callers())
        return next((p for p in packages if p not in sys.stdlib_module_names), "")

    def callers(self) -> Iterator[str]:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals is not globals():
                yield str(frame.f_globals.get("__name__", ""))
            frame = frame.f_back


def _below(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def _any_below(path: str, places: Iterable[str]) -> bool:
    return any(_below(path, place) for place in places)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Compiles a module from its source: bytecode is taken for current by its clock alone."""

    def path_stats(self, path):
        raise OSError


def _compile_from_source(folder: str) -> None:
    loaders = (_FromSource, importlib.machinery.SOURCE_SUFFIXES)

    def finder(path: str):
        if not _below(os.path.realpath(path), folder):
            raise ImportError
        return importlib.machinery.FileFinder(path, loaders)

    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.clear()


def main() -> None:
    root, log = sys.argv[1:3]
    del sys.argv[1:3]
    _compile_from_source(os.path.realpath(Path(__file__).parents[1]))
    # What opens a notebook's cells is imported first: its own files are not the chapter's.
    from ipykernel import kernelapp

    sys.addaudithook(Watch(Path(root), Path(log), sys.argv[sys.argv.index("-f") + 1]))
    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()
