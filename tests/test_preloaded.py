"""Chapters as forks of a process that has their packages: the same results, errors and ends."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from latebook import preloaded
from latebook.layout import Book
from tests.conftest import FixtureBook, chapter
from tests.test_kills import processes_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other system has it")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book beside which the process runs."""
    book = FixtureBook(tmp_path_factory.mktemp("preloaded") / "a book")
    (book.root / "_build").mkdir()
    with preloaded.at_hand(Book(book.root, "quick"), 1):
        place = book.root / "_build/.chapters.socket"
        while not place.exists():
            time.sleep(0.05)
        yield book
    assert processes_in(book.root) == []


def job(book: FixtureBook, name: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "latebook", "chapter", "--chapter", name, *options]
    return subprocess.Popen(command, cwd=book.root, stderr=subprocess.PIPE, text=True)


def forked(book: FixtureBook, name: str) -> bool:
    """Whether the last kernel of a chapter was to be a fork."""
    place = book.root / f"_build/kernels/quick/{name}/kernels/python3/kernel.json"
    return "metadata" in json.loads(place.read_text())


def sleeping(book: FixtureBook) -> subprocess.Popen:
    """A job whose chapter, `first`, sleeps."""
    book.write_notebook("first", chapter("first", "import time", "time.sleep(600)"))
    one = job(book, "first")
    failed = book.root / "_build/failed/quick/first.ipynb"
    failed.unlink(missing_ok=True)
    while not (failed.exists() and "time.sleep" in failed.read_text()):
        time.sleep(0.05)
    return one


def test_a_chapter_is_what_it_is_by_itself(book):
    plot = "import matplotlib.pyplot as plt\n\nplt.plot([1.0, 2.0]);"
    book.write_notebook("first", chapter("first", plot))
    found = []
    for threads in ("1", "2"):  # the process has one thread: a job with two takes its own step
        done = job(book, "first", "--threads", threads)
        said = done.communicate()[1]
        assert done.returncode == 0, said
        assert forked(book, "first") == (threads == "1")
        notebook = json.loads((book.root / "_build/executed/quick/first.ipynb").read_text())
        found.append([cell.get("outputs") for cell in notebook["cells"]])
    assert found[0] == found[1]


def test_an_error_is_the_same_line(book):
    book.write_notebook("second", chapter("second", "1 / 0"))
    done = job(book, "second")
    said = done.communicate()[1]
    assert forked(book, "second")
    assert done.returncode == 1
    assert "book: second: code cell 4 raised ZeroDivisionError: division by zero" in said


def test_what_is_not_declared_is_refused(book):
    notebook = chapter("second", "from pathlib import Path\n\nlist(Path('..').glob('*'))")
    del notebook.cells[-1], notebook.cells[1]  # what records no claim may import what it likes
    book.write_notebook("second", notebook)
    book.write_yaml("book/claims.yml", book.read_yaml("book/claims.yml")[:1])
    done = job(book, "second")
    assert "listed; what a chapter reads it has to name" in done.communicate()[1]
    assert forked(book, "second")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_fork_ends_with_its_job(book, number):
    one = sleeping(book)
    one.send_signal(number)
    one.communicate()
    deadline = time.monotonic() + 20
    while len(left := processes_in(book.root)) > 1:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_killed_fork_is_an_error(book):
    one = sleeping(book)
    servers = [p for p in psutil.Process().children() if "latebook.preloaded" in p.cmdline()]
    servers[0].children()[0].kill()
    assert "chapter --chapter first: killed by signal 9" in one.communicate()[1]
    assert one.returncode == 128 + 9


def test_nobody_there_is_no_error(tmp_path):
    book = FixtureBook(tmp_path / "book")
    done = job(book, "first")
    said = done.communicate()[1]
    assert done.returncode == 0, said
    assert not forked(book, "first")


def test_the_packages_start_no_thread_and_load_nothing_that_is_refused():
    code = (
        "import importlib, os, sys; from latebook import kernel, preloaded;"
        "[importlib.import_module(p) for p in preloaded.PACKAGES];"
        "assert len(os.listdir('/proc/self/task')) == 1;"
        "assert not {*kernel._SPAWNING, 'matplotlib_inline.backend_inline'} & {*sys.modules}"
    )
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    threads["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | threads)
