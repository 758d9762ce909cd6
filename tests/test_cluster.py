"""The same Snakefile here and on a cluster: chapters and recorded runs as its jobs.

The cluster is a real SLURM of one node on the loopback address (tests/slurm_node.py).
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from latebook.records import content_sha256, recorded
from tests import slurm_node
from tests.conftest import ROOT, FixtureBook, chapter

PLUGIN = "snakemake_executor_plugin_slurm"
PROFILE = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# ---------------------------------------------------------------- what is asked for


def test_an_unknown_cluster_is_one_clear_line(book):
    shutil.copytree(ROOT / "profiles" / "slurm", book.root / "profiles" / "slurm")
    red = book.build("--cluster", "full")
    assert red.returncode == 1
    assert red.stderr == "book: unknown CLUSTER 'full': expected one of slurm\n"


def test_a_cluster_whose_plugin_is_absent_says_how_to_install_it(book):
    (book.root / "profiles" / "other").mkdir()
    book.write_yaml("profiles/other/config.yaml", {"executor": "no-such-thing"})
    red = book.build("--cluster", "other")
    assert red.returncode == 1
    assert "CLUSTER=other: snakemake-executor-plugin-no-such-thing is not installed" in red.stderr
    assert "uv pip install --editable '.[cluster]'" in red.stderr
    assert not (book.root / "_build").exists()


def test_every_rule_that_runs_on_the_cluster_has_its_resources():
    snakefile = (ROOT / "Snakefile").read_text()
    (local,) = re.findall(r"^localrules: (.*)$", snakefile, re.M)
    rules = set(re.findall(r"^ *rule (\w+):", snakefile, re.M)) - set(local.split(", "))
    assert rules == {"chapter", "record"} == set(PROFILE["set-resources"])
    for resources in (PROFILE["default-resources"], *PROFILE["set-resources"].values()):
        assert resources.keys() == {"mem_mb", "runtime"}


def test_the_plugin_is_pinned_in_an_extra_of_its_own():
    pins = [Requirement(line) for line in EXTRAS["cluster"]]
    assert pins[0].name == f"snakemake-executor-plugin-{PROFILE['executor']}"
    assert all(re.fullmatch(r"==[\d.]+", str(pin.specifier)) for pin in pins)
    assert "executor-plugin" not in re.sub(
        "snakemake-interface-executor-plugins", "", (ROOT / "requirements.lock").read_text()
    )


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["book"], "build --profile quick --cores 2 --cluster slurm"),
        (["record"], "record --runs recordings/runs.yml --cores 2 --cluster slurm"),
        (["record", "RUN=a b"], "record a b --runs recordings/runs.yml --cores 2 --cluster slurm"),
    ],
)
def test_make_passes_the_cluster_on(words, step):
    command = ["make", "-n", *words, "CORES=2", "CLUSTER=slurm"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"-m latebook {step}" in said.replace("'", "")


# ---------------------------------------------------------------- recorded runs


@pytest.fixture
def with_runs(book, tmp_path, monkeypatch) -> FixtureBook:
    """A book with two runs of a few steps, on forty random images in the place of CIFAR-10."""
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 40), ("test", 20)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 10
    images = tmp_path / "images.npz"
    np.savez(images, **arrays)
    monkeypatch.setenv("LATEPHASE_CIFAR10_NPZ", str(images))
    runs = yaml.safe_load((ROOT / "recordings" / "runs.yml").read_text())
    one = runs["cifar10_alexnet_0"] | {"epochs": 1, "sizes": {"width": 0.03125}}
    one["training"]["batch"] = 8
    one["data"]["content"] = content_sha256(arrays)
    (book.root / "recordings").mkdir()
    for script in ("make.py", "writing.py"):
        shutil.copy(ROOT / "recordings" / script, book.root / "recordings")
    book.write_yaml("recordings/runs.yml", {"zero": one, "one": one | {"seed": 1}})
    return book


def test_missing_runs_are_made_as_jobs_of_their_own(with_runs, monkeypatch):
    done = with_runs.call("record")
    assert done.returncode == 0, done.stderr
    results = with_runs.root / "results"
    assert [recorded(name, results)["seed"] for name in ("zero", "one")] == [0, 1]
    again = with_runs.call("record")
    assert again.returncode == 0
    assert again.stdout == "Every run has its record; RUN=NAME makes one anew.\n"

    # Anew only by name, and a run that cannot be made leaves the record as it was.
    kept = {path: path.read_bytes() for path in results.iterdir()}
    assert len(kept) == 4
    monkeypatch.delenv("LATEPHASE_CIFAR10_NPZ")
    red = with_runs.call("record", "one")
    assert red.returncode == 1
    assert "record: set LATEPHASE_CIFAR10_NPZ to the file of" in red.stderr
    assert "book: a run was not recorded" in red.stderr
    assert {path: path.read_bytes() for path in results.iterdir()} == kept
    red = with_runs.call("record", "two")
    assert red.returncode == 1
    assert red.stderr == "book: recordings/runs.yml: no run two; known: zero, one\n"


# ---------------------------------------------------------------- SLURM


@pytest.fixture(scope="module")
def slurm():
    """The environment of a SLURM that is up; skipped where it is not installed."""
    if missing := slurm_node.missing():
        pytest.skip(f"not installed: {', '.join(missing)} (Debian's slurm-wlm and munge)")
    if importlib.util.find_spec(PLUGIN) is None:
        pytest.skip(f"not installed: {' '.join(EXTRAS['cluster'])} (the extra `cluster`)")
    # A short name: a socket's path has room for a hundred letters.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        environment = slurm_node.up(Path(folder))
        try:
            yield environment
        finally:
            slurm_node.down(Path(folder))


@pytest.fixture
def on_slurm(slurm, monkeypatch):
    """Prepares a book for that SLURM, which is asked earlier and more often than a large one."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    last = max([0, *map(int, _queue("%i"))])

    def prepare(book: FixtureBook):
        shutil.copytree(ROOT / "profiles" / "slurm", book.root / "profiles" / "slurm")
        changed = PROFILE | {"slurm-init-seconds-before-status-checks": 5}
        book.write_yaml("profiles/slurm/config.yaml", changed)

        def jobs(columns: str = "%T %m %l %b") -> dict[str, list[str]]:
            """What squeue says of the jobs since the test began: by default state and resources."""
            lines = (line.split() for line in _queue(f"%i %k {columns}"))
            return {line[1]: line[2:] for line in lines if int(line[0]) > last}

        return jobs

    return prepare


def _queue(columns: str) -> list[str]:
    command = ["squeue", "--states=all", "--noheader", f"--format={columns}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _verdicts(book: FixtureBook) -> list[dict]:
    ledger = json.loads((book.root / "_build" / "ledger.json").read_text())
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in ledger]


@pytest.mark.slow
def test_a_book_is_built_on_slurm(book, on_slurm):
    jobs = on_slurm(book)
    here = book.build()
    assert here.returncode == 0, here.stderr
    expected = _verdicts(book)
    shutil.rmtree(book.root / "_build")
    shutil.rmtree(book.root / ".snakemake")

    there = book.build("--cluster", "slurm")
    assert there.returncode == 0, there.stderr
    asked = ["COMPLETED", "8000M", "4:00:00", "N/A"]
    assert jobs() == {f"rule_chapter_wildcards_{name}": asked for name in ("first", "second")}
    assert there.stdout.count("has been submitted with SLURM jobid") == 2
    assert _verdicts(book) == expected
    assert (book.root / "_build/html/book/index.html").is_file()


@pytest.mark.slow
def test_what_is_wrong_on_a_node_is_said_here(book, on_slurm):
    jobs = on_slurm(book)
    book.write_notebook("second", chapter("second", "1 / 0"))
    red = book.build("--cluster", "slurm")
    assert red.returncode == 1
    assert "book: second: code cell 4 raised ZeroDivisionError: division by zero" in red.stderr
    assert {name: job[0] for name, job in jobs().items()} == {
        "rule_chapter_wildcards_first": "COMPLETED",
        "rule_chapter_wildcards_second": "FAILED",
    }
    assert not (book.root / "_build" / "ledger.json").exists()


@pytest.mark.slow
def test_an_interrupted_build_leaves_no_job_on_the_cluster(book, on_slurm):
    jobs = on_slurm(book)
    book.write_chapters("first")
    book.write_notebook("first", chapter("first", "import time", "time.sleep(600)"))
    command = [sys.executable, "-m", "latebook", "build", "--cluster", "slurm"]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=book.root, start_new_session=True, **told) as build:
        deadline = time.monotonic() + 120
        while jobs("%T") != {"rule_chapter_wildcards_first": ["RUNNING"]}:
            assert time.monotonic() < deadline, jobs("%T")
            time.sleep(0.5)
        # As Ctrl-C in a terminal: to Snakemake too.
        os.killpg(build.pid, signal.SIGINT)
        said, _ = build.communicate(timeout=120)
    assert build.returncode == 1
    assert said.endswith("book: interrupted; the same command goes on from here\n")
    assert jobs("%T") == {"rule_chapter_wildcards_first": ["CANCELLED"]}


@pytest.mark.slow
def test_recorded_runs_are_parallel_jobs_of_slurm(with_runs, on_slurm):
    jobs = on_slurm(with_runs)
    done = with_runs.call("record", "--cluster", "slurm")
    assert done.returncode == 0, done.stderr
    assert jobs() == {
        f"rule_record_wildcards_{name}": ["COMPLETED", "16000M", "1-00:00:00", "N/A"]
        for name in ("zero", "one")
    }
    begins, ends = zip(*jobs("%S %e").values(), strict=True)
    assert max(begins) < min(ends)
    results = with_runs.root / "results"
    assert [recorded(name, results)["seed"] for name in ("zero", "one")] == [0, 1]


@pytest.mark.slow
def test_a_recorded_run_on_a_gpu_asks_for_one(with_runs, on_slurm, monkeypatch):
    jobs = on_slurm(with_runs)
    monkeypatch.setenv("LATEPHASE_DEVICE", "cuda")
    # The node's GPU is a name only: this maker writes down what it was given, and trains nothing.
    maker = """
import json, os, sys
name = sys.argv[1]
with open(f"results/{name}.json", "w") as file:
    json.dump({"device": os.environ.get("CUDA_VISIBLE_DEVICES")}, file)
open(f"results/{name}.npz", "w").close()
"""
    (with_runs.root / "recordings" / "make.py").write_text(maker)
    done = with_runs.call("record", "one", "--cluster", "slurm")
    assert done.returncode == 0, done.stderr
    assert list(jobs()) == ["rule_record_wildcards_one"]
    assert json.loads((with_runs.root / "results" / "one.json").read_text()) == {"device": "0"}


@pytest.mark.slow
def test_the_cluster_comes_up_and_goes_down(tmp_path):
    if slurm_node.missing():
        pytest.skip("not installed: Debian's slurm-wlm and munge")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        environment = os.environ | slurm_node.up(folder)
        processes = [int(path.read_text()) for path in folder.glob("*.pid")]
        assert len(processes) == len(slurm_node.DAEMONS)
        job = ["srun", "--gpus=1", "hostname"]
        assert subprocess.run(job, env=environment, capture_output=True).returncode == 0
        slurm_node.down(folder)
        for process in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)
