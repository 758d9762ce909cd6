"""The house: imports run strictly downward between the doors, and the packages keep apart."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.house import APPARATUS, DOORS, LIBRARY, PIPELINE, door, imported

# A door imports from itself and from what stands behind its name, nothing else of the library.
BELOW = {
    "problem": {"files"},
    "flow": {"files", "problem"},
    "measures": {"files", "problem", "flow"},
    "training": {"files", "problem", "flow", "measures"},
    "zoo": {"files", "problem"},
    "figures": {"files"},
    "files": set(),
    "weights": set(),
    "cli": {"files", "measures", "figures", "weights"},
    "__main__": {"cli"},
    # For type checkers and on first use.
    "__init__": {"problem", "flow", "measures", "training"},
}
# `plot` methods import how a thing is shown inside the call.
EXCEPTIONS = {
    (name, "figures")
    for name in ("flow/trajectory.py", "measures/diagnosis.py", "training/checkpoints.py")
}
MODULES = sorted(path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_strictly_downward(module):
    here = door(module)
    assert here in BELOW, f"{here}: a door that the house does not have"
    allowed = BELOW[here] | {here} | {to for name, to in EXCEPTIONS if name == module.as_posix()}
    assert imported(LIBRARY / module, "latephase") <= allowed, module


def test_make_house_prints_every_door_with_what_it_imports():
    command = [sys.executable, str(ROOT / "tests" / "house.py")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = {line.split()[0]: line for line in said.splitlines()}
    assert {name for name in BELOW if name[0] != "_"} <= rows.keys()
    assert [name for name in rows if name in DOORS] == [*DOORS]
    total = int(rows["in"].split()[2])
    assert total == sum(int(row.split()[1]) for name, row in rows.items() if name in BELOW)
    assert " problem " in rows["flow"]
    assert " flow " not in rows["problem"]


def test_there_are_at_most_seven_doors():
    assert len({m.parts[0] for m in MODULES if len(m.parts) > 1}) <= 7


def needed(path: Path) -> set[str]:
    """The modules of the library that a file imports when it is itself imported."""
    body = ast.parse(path.read_text(encoding="utf8")).body
    # Not what stands under `if TYPE_CHECKING`, nor inside functions.
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = set()
    for node in imports:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_module_imports_another_in_a_circle():
    paths = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts): path
        for package in (LIBRARY, APPARATUS, PIPELINE)
        for path in package.rglob("*.py")
    }
    graph = {name: needed(path) & paths.keys() for name, path in paths.items()}
    assert sum(map(len, graph.values())) > len(graph), "the imports were not found"
    # Raises CycleError, which names the circle.
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_the_library_knows_nothing_of_the_book(module):
    assert not imported(LIBRARY / module, "latebook")
    assert not imported(LIBRARY / module, "experiments")


@pytest.mark.parametrize("path", sorted(APPARATUS.glob("*.py")), ids=lambda path: path.name)
def test_the_apparatus_of_chapters_measures_and_does_not_draw(path):
    assert not imported(path, "latebook")
    assert imported(path, "latephase") <= BELOW.keys() - {"figures", "cli"}


@pytest.mark.parametrize("path", sorted(PIPELINE.glob("*.py")), ids=lambda path: path.name)
def test_the_pipeline_knows_nothing_of_the_science(path):
    assert not imported(path, "latephase")
    assert not imported(path, "experiments")


def test_importing_either_package_imports_no_torch():
    code = "import sys, latephase, latebook.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
