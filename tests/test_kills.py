"""Builds and recorded runs killed at random moments: run again, they end as if undisturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from latebook.records import recorded
from latephase.training import checkpoints
from tests.conftest import ROOT, FixtureBook
from tests.test_cluster import with_runs  # noqa: F401

KILLS = 20


def starts(book: FixtureBook, *words: str) -> subprocess.Popen:
    """A command of the pipeline in a process group of its own."""
    command = [sys.executable, "-m", "latebook", *words, "--cores", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=book.root, start_new_session=True, **quiet)


def killed(book: FixtureBook, seconds: float, *words: str) -> bool:
    """Start a command and kill its group so many seconds later; False if it ended before that."""
    process = starts(book, *words)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def processes_in(folder: Path) -> list[str]:
    """The processes whose working folder is below the given one, where the system shows them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def ledger_of(book: FixtureBook) -> list[dict]:
    """The ledger but for the durations."""
    entries = json.loads((book.root / "_build" / "ledger.json").read_text())
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def numbered(book: FixtureBook, number: float) -> None:
    book.write_yaml(
        "profiles/quick.yml", {name: {"number": number} for name in ("first", "second")}
    )


@pytest.mark.slow
def test_a_killed_build_goes_on_and_ends_in_the_same_ledger(tmp_path):
    book = FixtureBook(tmp_path / "undisturbed")
    # Half of the builds begin with what another one has left, whose ledger is another one.
    numbered(book, 0.25)
    assert book.build().returncode == 0
    earlier = ledger_of(book)
    shutil.copytree(book.root, tmp_path / "later")
    shutil.rmtree(book.root / "_build")
    shutil.rmtree(book.root / ".snakemake")
    shutil.copytree(book.root, tmp_path / "fresh")
    numbered(book, 0.5)
    began = time.monotonic()
    assert book.build().returncode == 0
    whole = time.monotonic() - began
    expected = ledger_of(book)
    assert expected != earlier

    rng, kills, scale = random.Random(0), 0, 1.0
    while kills < KILLS:
        start = ("fresh", "later")[kills % 2]
        again = FixtureBook.__new__(FixtureBook)
        again.root = tmp_path / "again"
        shutil.copytree(tmp_path / start, again.root)
        numbered(again, 0.5)
        moment = scale * whole * (kills + rng.random()) / KILLS
        if not killed(again, moment, "build"):
            scale *= 0.8
            shutil.rmtree(again.root)
            continue
        kills += 1
        # Whatever is there is whole.
        build = again.root / "_build"
        for notebook in build.glob("executed/quick/*.ipynb"):
            json.loads(notebook.read_text())
        if (build / "ledger.json").exists():
            assert ledger_of(again) in (earlier, expected)
        page = build / ("html" if (build / "html").exists() else ".html.old") / "book/index.html"
        assert start == "fresh" or page.read_text().rstrip().endswith("</html>")
        stage = sorted(path.name for path in build.glob("*"))

        done = again.build()
        assert done.returncode == 0, f"kill {kills} at {moment:.1f} s: {done.stderr}"
        assert ledger_of(again) == expected
        for page in ("index", "first", "second"):
            assert (build / f"html/book/{page}.html").read_text().rstrip().endswith("</html>")
        assert list(build.rglob("*.partial")) == []
        # Kernels have a session of their own, and end when they find themselves alone.
        deadline = time.monotonic() + 30
        while (left := processes_in(again.root)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == []
        print(f"kill {kills} of a {start} build at {moment:.1f} of {whole:.1f} s: found {stage}")
        shutil.rmtree(again.root)


@pytest.mark.slow
def test_the_whole_book_killed_goes_on_and_ends_in_the_same_ledger(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: git does not say which files are the book's")
    book = FixtureBook.__new__(FixtureBook)
    book.root = tmp_path / "book"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split("\0")[:-1]:
        (book.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, book.root / name)
    began = time.monotonic()
    assert starts(book, "build").wait() == 0
    whole = time.monotonic() - began
    expected = ledger_of(book)
    shutil.rmtree(book.root / "_build")
    shutil.rmtree(book.root / ".snakemake")
    assert killed(book, whole * random.Random(1).uniform(0.2, 0.6), "build")
    done = {path.name for path in (book.root / "_build/executed/quick").glob("*.ipynb")}
    print(f"killed after {sorted(done)}")
    assert starts(book, "build").wait() == 0
    assert ledger_of(book) == expected


@pytest.mark.slow
def test_a_killed_recorded_run_goes_on_and_ends_in_the_same_record(with_runs, tmp_path):  # noqa: F811
    runs = with_runs.read_yaml("recordings/runs.yml")
    with_runs.write_yaml("recordings/runs.yml", {"one": runs["one"] | {"epochs": 150}})
    results, folder = with_runs.root / "results", with_runs.root / "_build/recordings/one"

    def reached() -> int:
        states = [*folder.glob("step-*.json"), *folder.glob("latest-*.json")]
        return max((int(path.stem.split("-")[1]) for path in states), default=-1)

    began = time.monotonic()
    assert with_runs.call("record").returncode == 0
    whole = time.monotonic() - began
    expected = recorded("one", results)

    def same(record):
        for name, array in expected["arrays"].items():
            if name != "seconds":
                np.testing.assert_array_equal(record["arrays"][name], array, err_msg=name)
        return record["run"] == expected["run"] and record["settings"] == expected["settings"]

    rng, kills, resumed = random.Random(0), 0, 0
    shutil.rmtree(results)
    shutil.rmtree(folder)
    while kills < 10:
        before = {path: path.stat().st_mtime_ns for path in folder.glob("step-*.json")}
        step = reached()
        if killed(with_runs, whole * (kills % 5 + rng.random()) / 5, "record"):
            kills += 1
            assert reached() >= step
            assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
            resumed += step > 0 and reached() > step
            if (results / "one.json").exists():
                assert same(recorded("one", results))
            print(f"kill {kills}: from step {step} to {reached()}")
        else:
            assert same(recorded("one", results))
            shutil.rmtree(results)
            shutil.rmtree(folder)
    done = with_runs.call("record")
    assert done.returncode == 0, done.stderr
    assert same(recorded("one", results))
    assert sorted(path.name for path in results.iterdir()) == ["one.json", "one.npz"]
    assert resumed
    assert checkpoints.listed(folder, checkpoints.LATEST) == []
