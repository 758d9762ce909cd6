"""Sabotage: each line of `mutants.yml` is changed in a copy of the library, and a test must see it.

A copy that nobody changed passes all those tests; so what turns them red is the change.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

LIBRARY = ROOT / "lib" / "latephase"
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


def outcome(copy: Path, tests: set[str]) -> subprocess.CompletedProcess:
    """The quick ones of these tests, up to the first that fails, run with the library in `copy`."""
    options = ["-x", "-q", "-s", "--tb=line", "-m", "not slow", "-p", "no:xdist"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *sorted(tests)],
        cwd=ROOT / "tests",
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def copy(tmp_path) -> Path:
    """A folder with a copy of the library, to be put before the library itself."""
    shutil.copytree(LIBRARY, tmp_path / "latephase", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.slow
@each_mutant
def test_a_mutant_is_killed(copy, file, mutant):
    path = copy / "latephase" / file
    path.write_text(path.read_text("utf8").replace(mutant["old"], mutant["new"]), "utf8")
    run = outcome(copy, {mutant["test"]})
    # 1: tests ran and failed. Others: nothing ran, or the mutant cannot even be imported.
    assert run.returncode == 1, run.stdout + run.stderr


@pytest.mark.slow
def test_without_a_mutant_the_same_tests_pass(copy):
    path = copy / "latephase" / "__init__.py"
    path.write_text(path.read_text("utf8") + '\nprint("the copy")\n', "utf8")
    run = outcome(copy, {mutant["test"] for _, mutant in MUTANTS})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the copy" in run.stdout
