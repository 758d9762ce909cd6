"""Damage, two at once, full disks, read-only folders: named, made again or refused, never drawn.

Checkpoints are tested in test_checkpoints, data files and their cache in test_images, other files
from outside in test_security, kills in test_kills.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recordings.writing import write

from latebook import BookError
from latebook.files import broken_seal, held, require_room, write_sealed
from latebook.notebooks import Notebook, read_executed
from latebook.records import PROVENANCE, lacking
from latephase.cli import main
from tests.conftest import FixtureBook, chapter
from tests.test_cli import files, words  # noqa: F401
from tests.test_cluster import with_runs  # noqa: F401
from tests.test_kills import ledger_of, processes_in, starts
from tests.test_recordings import data, trial  # noqa: F401
from tests.test_trajectory import trajectory

# ---------------------------------------------------------------- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path: Path) -> None:
    """One digit is another one; the file is as old as before, and as readable."""
    stat, content = path.stat(), path.read_bytes()
    place = content.index(b"0.5") + 2
    path.write_bytes(content[:place] + b"4" + content[place + 1 :])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def foreign(path: Path) -> None:
    path.write_bytes(os.urandom(500))


def gone(path: Path) -> None:
    path.unlink()


def in_the_way(path: Path) -> None:
    """What a folder was is a file, and the site has to be made."""
    shutil.rmtree(path)
    path.write_text("")
    (path.parent / "html" / "index.html").unlink()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> FixtureBook:
    """A two-chapter book after its first build."""
    book = FixtureBook(tmp_path_factory.mktemp("built") / "book root")
    assert book.build().returncode == 0
    book.ledger = ledger_of(book)
    return book


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("executed/quick/first.ipynb", cut, True),
        ("executed/quick/first.ipynb", changed, True),
        ("executed/quick/first.ipynb", foreign, True),
        ("executed/quick/first.ipynb", gone, False),
        ("executed/quick/.first.ipynb.sha256", gone, True),
        ("ledger.json", cut, True),
        ("ledger.json", changed, True),
        ("ledger.json", foreign, True),
        ("ledger.json", gone, False),
        ("names.md", cut, True),
        ("names.md", gone, False),
        ("stage", in_the_way, False),
        ("site.log", cut, False),
        ("html/index.html", gone, False),
    ],
)
def test_what_was_built_and_is_damaged_is_made_again(built, name, damage, said):
    path = built.root / "_build" / name
    damage(path)
    done = built.build()
    assert done.returncode == 0, done.stderr
    told = "cut off or changed since it was written" if path.suffix != ".sha256" else "its hash"
    assert (told in done.stderr and "; it is made again" in done.stderr) == said
    assert ledger_of(built) == built.ledger
    for product in (
        "executed/quick/first.ipynb",
        "executed/quick/second.ipynb",
        "ledger.json",
        "names.md",
    ):
        assert broken_seal(built.root / "_build" / product) is None
    again = built.build()
    assert again.returncode == 0
    assert again.stderr == ""
    assert "done in" not in again.stdout


@pytest.mark.slow
def test_snakemakes_own_notes_may_be_damaged(built):
    for note in (built.root / ".snakemake" / "metadata").rglob("*"):
        if note.is_file():
            cut(note)
    done = built.build()
    assert done.returncode == 0, done.stderr
    assert ledger_of(built) == built.ledger


@pytest.mark.parametrize("damage", [cut, changed, foreign])
def test_no_step_reads_a_damaged_notebook(tmp_path, damage):
    path = tmp_path / "first.ipynb"
    content = {"nbformat": 4, "metadata": {}, "cells": chapter("first").cells}
    write_sealed(path, Notebook(content).text())
    assert read_executed(path).content == content
    damage(path)
    message = r"first\.ipynb: cut off or changed since it was written; `make book` makes it again"
    with pytest.raises(BookError, match=message):
        read_executed(path)


RECORD = dict.fromkeys((*PROVENANCE, "settings", "data", "commit"), 0.5)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("one.json", cut, "one.json: not a whole JSON file"),
        ("one.json", foreign, "one.json: not a whole JSON file"),
        ("one.json", gone, "one.json: there is no such recorded run"),
        ("one.npz", cut, "one.npz: sha256"),
        ("one.npz", foreign, "one.npz: sha256"),
        ("one.npz", gone, "one.npz: No such file"),
    ],
)
def test_a_damaged_record_is_named_and_counts_as_missing(tmp_path, name, damage, message):
    for run in ("one", "two"):
        write(run, tmp_path, RECORD, {"margins": np.arange(9.0)})
    assert lacking(["one", "two"], tmp_path) == {}
    damage(tmp_path / name)
    why = lacking(["one", "two"], tmp_path)
    assert list(why) == ["one"]
    assert message in why["one"]
    assert "To make it again: make record RUN=one" in why["one"]


@pytest.mark.slow
def test_a_damaged_record_is_made_again(with_runs):  # noqa: F811
    assert with_runs.call("record").returncode == 0
    before = {p.name: p.read_bytes() for p in (with_runs.root / "results").iterdir()}
    cut(with_runs.root / "results" / "zero.npz")
    done = with_runs.call("record")
    assert done.returncode == 0, done.stderr
    assert "zero.npz: sha256" in done.stderr
    after = {p.name: p.read_bytes() for p in (with_runs.root / "results").iterdir()}
    assert after["zero.npz"] == before["zero.npz"]
    assert {n: c for n, c in after.items() if "one" in n} == {
        n: c for n, c in before.items() if "one" in n
    }


# ---------------------------------------------------------------- two at once

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from latebook.files import held
with held(Path(sys.argv[1]), "it"):
    child = subprocess.Popen(["sleep", "60"], close_fds=False) if "child" in sys.argv else None
    print(child.pid if child else 0, flush=True)
    time.sleep(60)
"""


def holder(lock: Path, *words: str) -> tuple[subprocess.Popen, int]:
    """A process that holds the lock, and its child, which may hold it too."""
    command = [sys.executable, "-c", HOLDER, str(lock), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_a_lock_refuses_or_waits_and_ends_with_its_holder(tmp_path, capsys):
    lock = tmp_path / "there" / ".lock"
    process, _ = holder(lock)
    message = rf"another process \({process.pid}\) is making it; wait for it to end, or stop it"
    with pytest.raises(BookError, match=message), held(lock, "it"):
        pass
    ends = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {process.pid}"])
    began = time.monotonic()
    with held(lock, "it", wait=True):
        assert time.monotonic() - began > 0.5
        assert lock.read_text() == str(os.getpid())
    assert "is making it; waiting for it to end" in capsys.readouterr().err
    assert ends.wait() == 0
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def test_what_a_dead_process_started_goes_on_holding_its_lock(tmp_path):
    process, child = holder(tmp_path / ".lock", "child")
    process.kill()
    process.wait()
    process.stdout.close()
    with pytest.raises(BookError, match="another process"), held(tmp_path / ".lock", "it"):
        pass
    os.kill(child, signal.SIGKILL)
    time.sleep(0.2)
    with held(tmp_path / ".lock", "it"):
        pass


def test_a_terminated_build_ends_soon_with_what_it_started(book):
    """SIGTERM to the one process, as `timeout` and batch systems send it; make passes it on."""
    book.write_chapters("first")
    book.write_notebook("first", chapter("first", "import time", "time.sleep(600)"))
    command = [sys.executable, "-m", "latebook", "build", "--cores", "2"]
    with subprocess.Popen(command, cwd=book.root, stderr=subprocess.PIPE, text=True) as build:
        deadline = time.monotonic() + 60
        while not (book.root / "_build/failed/quick/first.ipynb").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        build.terminate()
        _, said = build.communicate(timeout=20)
    assert build.returncode == 128 + signal.SIGTERM
    assert said == "book: terminated; the same command goes on from here\n"
    while processes_in(book.root):
        assert time.monotonic() < deadline + 20, processes_in(book.root)
        time.sleep(0.2)
    book.write_notebook("first", chapter("first"))
    again = book.build()
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_of_two_builds_at_once_one_wins(book):
    book.write_notebook("first", chapter("first", "import time\n\ntime.sleep(5)"))
    one = starts(book, "build")
    lock = book.root / "_build/.build.lock"
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.05)
    other = book.build()
    assert other.returncode == 1
    assert other.stderr == (
        f"book: another process ({one.pid}) is making the book with the profile quick; "
        "wait for it to end, or stop it\n"
    )
    # A step by hand waits for the one of the build.
    while not (book.root / "_build/failed/quick/first.ipynb").exists():
        time.sleep(0.05)
    by_hand = book.call("chapter", "--chapter", "first")
    assert by_hand.returncode == 0, by_hand.stderr
    assert "is making the chapter first; waiting for it to end" in by_hand.stderr
    assert one.wait() == 0
    assert [entry["verdict"] for entry in ledger_of(book)] == ["holds", "holds"]
    assert book.build().returncode == 0
    assert list(book.root.rglob("*.partial")) == []


# ---------------------------------------------------------------- full disks, read-only folders


def test_a_folder_without_room_is_named(tmp_path, limited):
    (tmp_path / "file").write_text("")
    with pytest.raises(BookError, match=r"cannot write in .*file: File exists"):
        require_room(tmp_path / "file")
    limited()
    with pytest.raises(BookError, match=r"cannot write in .*full: File too large"):
        require_room(tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_diagnose_on_a_full_disk_names_the_file(files, limited, capsys):  # noqa: F811
    folder = files[0]
    (folder / "out.json").write_text("earlier")
    for option, name in (("--json", "out.json"), ("--figure", "out.svg")):
        limited()
        assert main(words(folder, "net.safetensors", option, str(folder / name))) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == f"latephase: {folder / name}: cannot be written: File too large"
    assert (folder / "out.json").read_text() == "earlier"
    assert not (folder / "out.svg").exists()
    assert not list(folder.glob(".*"))


def test_a_trajectory_on_a_full_disk_names_the_file(tmp_path, limited):
    path = tmp_path / "flow.npz"
    limited(100)
    with pytest.raises(OSError, match=r"flow\.npz: cannot be written: File too large"):
        trajectory().save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_recording_finds_out_before_the_training(trial, tmp_path, capsys):  # noqa: F811
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "trials").write_text("")
    assert trial("runs", "cifar10_alexnet_0", "--steps", "3") == 1
    said = capsys.readouterr().err
    assert said == f"record: cannot write in {tmp_path}/build/trials: File exists\n"
    assert not (tmp_path / "build" / "recordings").exists()


@pytest.fixture
def mounted(tmp_path):
    """Runs a command in `folder` with a tmpfs there, and returns it with a copy of `_build`.

    Mounting needs a namespace of its own, which not every system allows.
    """
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not allowed here")

    def run(folder: Path, options: str, command: list[str], at: Path):
        copy = tmp_path / "copy"
        script = f"""
        mount -t tmpfs -o {options} none {shlex.quote(str(at))} || exit 99
        cd {shlex.quote(str(folder))}
        {shlex.join(command)}
        code=$?
        cp -a {shlex.quote(str(at))} {shlex.quote(str(copy))}
        exit $code
        """
        shutil.rmtree(copy, ignore_errors=True)
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=300
        )
        return done, copy

    return run


BUILD = [sys.executable, "-m", "latebook", "build", "--cores", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "below", "message"),
    [
        ("ro", "_build", "book: cannot write in {at}: Read-only file system"),
        ("ro", ".snakemake", "book: cannot write in {at}: Read-only file system"),
        ("ro", "results", "record: cannot write in {at}: Read-only file system"),
        (
            "size=4k",
            "_build",
            "book: cannot write {at}/.chapter-first.lock: No space left on device",
        ),
        ("size=20k", "_build", "book: cannot write {at}/snakemake.log: No space left on device"),
        ("size=44k", "_build", "No space left on device"),
        ("size=300k", "_build", "book: {at}/stage/mathjax/mathjax/es5/"),
        ("size=3m", "_build", "No space left on device"),
    ],
)
def test_a_disk_that_refuses_is_named_and_nothing_is_half_written(
    with_runs,  # noqa: F811
    mounted,
    options,
    below,
    message,
):
    at = with_runs.root / below
    at.mkdir()
    step = [*BUILD[:3], "record"] if below == "results" else BUILD
    done, copy = mounted(with_runs.root, options, step, at)
    assert done.returncode == 1, done.stderr
    assert message.format(at=at) in done.stderr
    assert "Traceback" not in done.stderr
    assert not (copy / "html").exists()
    assert not list(copy.rglob("*.partial"))
    for product in (*copy.glob("executed/quick/*.ipynb"), *copy.glob("ledger.json")):
        assert broken_seal(product) is None


def test_diagnose_into_a_read_only_folder_names_the_file(files, mounted):  # noqa: F811
    folder = files[0]
    at = folder / "out"
    at.mkdir()
    out = str(at / "out.json")
    command = [sys.executable, "-m", "latephase.cli", *words(folder, "net.safetensors")]
    root = Path(__file__).resolve().parents[1]
    done, copy = mounted(root, "ro", [*command, "--json", out], at)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said == f"latephase: {out}: cannot be written: Read-only file system"
    assert list(copy.iterdir()) == []
