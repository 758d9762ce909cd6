"""Sabotage: each line of `mutants.yml` is changed in a copy of the library, and a test must see it.

A copy that nobody changed passes all those tests; so what turns them red is the change.
"""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

LIBRARY = ROOT / "lib"
MUTANTS = [
    (file, mutant)
    for file, mutants in yaml.safe_load((ROOT / "tests" / "mutants.yml").read_text("utf8")).items()
    for mutant in mutants
]
each_mutant = pytest.mark.parametrize(
    ("file", "mutant"), MUTANTS, ids=[f"{file}: {mutant['breaks']}" for file, mutant in MUTANTS]
)


@each_mutant
def test_a_mutant_changes_one_line_of_the_library(file, mutant):
    old, new = mutant["old"], mutant["new"]
    assert (LIBRARY / file).read_text("utf8").count(old) == 1, f"{file} holds not one {old!r}"
    assert old != new
    assert "\n" not in old + new


# One process per worker imports what takes long, and forks for each mutant.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["nbformat", "pandas", "pytest", "scipy.optimize", "torch._dynamo"])
SECONDS = 300


def run_tests(copy: Path, tests: list[str]) -> None:
    """Exit as pytest does from the quick ones of these tests, with the library in `copy`."""
    log = os.open(copy / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    sys.path.insert(0, str(copy))
    os.chdir(ROOT / "tests")
    options = ["-x", "-q", "-s", "--tb=line", "-m", "not slow", "-p", "no:xdist"]
    sys.exit(pytest.main([*options, "-p", "no:cacheprovider", *tests]))


def outcome(copy: Path, tests: set[str]) -> tuple[int | None, str]:
    """Return the exit status of pytest, None where it takes too long, and what it wrote."""
    process = FORKS.Process(target=run_tests, args=(copy, sorted(tests)))
    process.start()
    process.join(SECONDS)
    status = process.exitcode
    process.kill()
    process.join()
    return status, (copy / "log").read_text("utf8")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder with a copy of the library, to be put before the library itself."""
    shutil.copytree(
        LIBRARY, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


@pytest.mark.slow
@each_mutant
def test_a_mutant_is_killed(copy, file, mutant):
    path = copy / file
    path.write_text(path.read_text("utf8").replace(mutant["old"], mutant["new"]), "utf8")
    status, log = outcome(copy, {mutant["test"]})
    # 1: tests ran and failed. Others: nothing ran, or the mutant cannot even be imported.
    assert status == 1, log


@pytest.mark.slow
def test_without_a_mutant_the_same_tests_pass(copy):
    path = copy / "latephase" / "__init__.py"
    path.write_text(path.read_text("utf8") + '\nprint("the copy")\n', "utf8")
    status, log = outcome(copy, {mutant["test"] for _, mutant in MUTANTS})
    assert status == 0, log
    assert "the copy" in log
