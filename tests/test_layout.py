"""The floors of the library: imports run strictly downward, and the two wings do not meet."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LIBRARY = ROOT / "lib" / "latephase"
FLOORS = {
    "arrays": -1, "losses": 0, "kinks": 0, "inputs": 0, "trajectory": 0, "state": 0, "errors": 1,
    "networks": 0, "polynomial": 0, "data": 0, "datafiles": 0, "pathology": 0, "primal_dual": 0,
    "problem": 1, "homogeneity": 1, "clock": 1, "reference": 1, "figures": 1, "images": 1,
    "figure_data": 0, "explore": 1, "image_networks": 0, "checkpoints": 0, "schedules": 0,
    "settings": 1,
    "batches": 1, "stepping": 2,
    "linearization": 2, "diagnostics": 2, "tangent": 2, "early": 2, "recorder": 2,
    "runs": 2, "trainer": 3, "training": 4,
    "stage": 3, "convergence": 3, "diagnosis": 3, "alignment": 3, "descent": 4,
    "onset": 3, "desingularize": 4,
    "late": 4,
    "following": 5,
    "flow": 6,
    "operators": 1, "scale_free": 5,
    "other_tails": 0, "discrete": 1, "bounds": 6, "rates": 4,
    "stations": 7, "cli": 7,
}  # fmt: skip
MODULES = sorted(path.stem for path in LIBRARY.glob("*.py") if path.stem != "__init__")


def imported(path) -> set[str]:
    """The modules of latephase that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("latephase.")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_strictly_downward(module):
    assert module in FLOORS, f"{module}.py has no floor: say on which it stands"
    for below in imported(LIBRARY / f"{module}.py") & set(MODULES):
        assert FLOORS[below] < FLOORS[module], f"{module} imports {below}"


@pytest.mark.parametrize("module", MODULES)
def test_the_science_knows_nothing_of_the_book(module):
    assert "book" not in imported(LIBRARY / f"{module}.py")


def test_the_book_knows_nothing_of_the_science():
    for path in (LIBRARY / "book").glob("*.py"):
        assert imported(path) <= {"book"}, path.name


def test_importing_the_package_or_the_wing_imports_no_torch():
    code = "import sys, latephase, latephase.book.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
