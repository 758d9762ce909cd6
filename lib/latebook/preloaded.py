"""A process that has imported what chapters import, and forks them: a build pays for it once.

`latebook build` has one beside Snakemake (`at_hand`), whose jobs ask it over a socket to take
their step (`asked`). What it forks does all that the job would have done, in the job's streams and
environment, and forks its kernel in turn (`latebook.forked`). Other people's packages alone come
from it: the pipeline and the science are imported anew. Where it is not there, as on a cluster, or
packages have changed since it began, a job takes its step itself. Linux alone has it: the libraries
of other systems bear no fork.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from latebook import provenance, surroundings
from latebook.layout import Book

PACKAGES = ("papermill", "ipykernel.kernelapp", "torch", "pandas", "scipy.integrate")
PACKAGES += ("scipy.optimize", "matplotlib.pyplot", "seaborn", "myst_nb")
# Whether this process is a fork of the one that has them.
HERE = False
# The exit code of a fork that is not to be taken for the job.
_REFUSED = 75


@contextlib.contextmanager
def at_hand(book: Book, threads: int) -> Iterator[None]:
    """Have the process while the block runs; what it has forked ends with it."""
    if sys.platform != "linux":
        yield
        return
    command = [sys.executable, "-P", "-m", "latebook.preloaded", book.profile, str(threads)]
    server = subprocess.Popen(command, cwd=book.root, stdin=subprocess.PIPE, close_fds=False)
    try:
        yield
    finally:
        server.stdin.close()
        server.wait()


def asked(book: Book, words: list[str]) -> int | None:
    """Have the step of these words taken: its exit code, or None where nobody has taken it."""
    if HERE or sys.platform != "linux":
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(_place(book))
            message = json.dumps([words, dict(os.environ)]).encode()
            socket.send_fds(connection, [message], [1, 2])
            said = connection.recv(16)
        except OSError:
            return None
    if not said:
        return None
    if (code := int(said)) < 0:
        print(f"book: {' '.join(words)}: killed by signal {-code}", file=sys.stderr)
    return code if code >= 0 else 128 - code


def detach(directory: str, environment: dict[str, str], *streams: int) -> None:
    """Leave to a forked process nothing of its parent's but what it has imported."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, into in zip(streams, (1, 2), strict=False):
        os.dup2(stream, into)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = open(number, "w", buffering=1, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ |= environment
    for name in [*sys.modules]:
        if name.partition(".")[0] == "latebook":
            del sys.modules[name]


def _place(book: Book) -> str:
    """Where the process listens: relative to the book, as such a name has to be short."""
    return str(book.product(".chapters", ".socket").relative_to(book.root))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever is interrupted closes the input
    profile, threads = sys.argv[1:]
    book = Book(Path.cwd(), profile)
    surroundings.settle(book.build, int(threads))
    Path(_place(book)).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(_place(book))
        listener.listen()  # who asks from here on waits until the packages are there
        known = provenance.environment()
        os.environ |= surroundings.of_threads(int(threads))
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel's is
        Path(os.environ["MPLCONFIGDIR"]).mkdir(parents=True, exist_ok=True)
        os.chdir(book.build)  # a style of matplotlib in the book would count
        for package in PACKAGES:
            with contextlib.suppress(ImportError):  # a chapter says which one it lacks
                importlib.import_module(package)
        gc.collect()
        gc.freeze()
        _serve(listener, str(book.root), known)


def _serve(listener: socket.socket, root: str, known: dict) -> None:
    """Fork for whoever asks, until its input is closed. A fork is killed when its job has gone."""
    running = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection = listener.accept()[0]
                    if pid := _fork(connection, root, known):
                        running[pid] = connection
                        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                        selector.register(connection, selectors.EVENT_READ, pid)
                elif key.fd == 0:
                    for pid in running:
                        os.kill(pid, signal.SIGKILL)
                    return
                elif key.fileobj is running.get(key.data):
                    selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
                elif connection := running.pop(key.data, None):
                    if connection in selector.get_map():
                        selector.unregister(connection)
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    _answer(connection, os.waitpid(key.data, 0)[1])


def _answer(connection: socket.socket, status: int) -> None:
    with connection, contextlib.suppress(OSError):
        if (code := os.waitstatus_to_exitcode(status)) != _REFUSED:
            connection.send(str(code).encode())


def _fork(connection: socket.socket, root: str, known: dict) -> int:
    """Fork what takes the step that is asked for; 0 where the one who asked has gone."""
    try:
        message, streams, _, _ = socket.recv_fds(connection, 2**20, 2)
        words, environment = json.loads(message)
    except (OSError, ValueError):
        connection.close()
        return 0
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        return pid
    code = 1
    try:
        detach(root, environment, *streams)
        step = importlib.import_module("latebook.__main__").main
        importlib.import_module("latebook.preloaded").HERE = True
        now = importlib.import_module("latebook.provenance").environment()
        code = step(words) if now == known else _REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
