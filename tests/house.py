"""Prints the house as the code has it, by folder: lines, modules, and imports: `make house`."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, APPARATUS, PIPELINE = (ROOT / "lib" / n for n in ("latephase", "experiments", "latebook"))
# From the first to the last: a door of the library imports from those before it.
DOORS = ("files", "problem", "flow", "measures", "training", "zoo", "figures")


def imported(path: Path, package: str) -> set[str]:
    """The doors or modules of a package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {(name + ".").split(".")[1] for name in found if name.split(".")[0] == package}


def door(module: Path) -> str:
    """The folder of a module, or its name where it stands in none."""
    return module.parts[0] if len(module.parts) > 1 else module.stem


def house() -> str:
    """A line for each door: its size, and the doors from which its modules import."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        rooms.setdefault(door(path.relative_to(LIBRARY)), []).append(path)
    order = [*DOORS, *sorted(rooms.keys() - set(DOORS))]
    lines = ["latephase/       lines modules  imports from, and how many modules do"]
    lines += [f"  {name:<12} {_row(name, rooms[name], order)}" for name in order]
    lines.append(f"  {'in all':<12} {_size([p for paths in rooms.values() for p in paths])}")
    lines.append(f"{'experiments/':<14} {_row('', [*APPARATUS.glob('*.py')], order)}")
    return "\n".join([*lines, f"{'latebook/':<14} {_size([*PIPELINE.glob('*.py')])}"])


def _row(name: str, paths: list[Path], order: list[str]) -> str:
    arrows = Counter(to for path in paths for to in imported(path, "latephase"))
    told = [f"{to} {arrows[to]}" for to in order if arrows[to] and to != name]
    return f"{_size(paths)}  {', '.join(told) or '-'}"


def _size(paths: list[Path]) -> str:
    modules = [path for path in paths if path.name != "__init__.py"]
    lines = sum(len(path.read_text(encoding="utf8").splitlines()) for path in paths)
    return f"{lines:>6} {len(modules):>7}"


if __name__ == "__main__":
    print(house())
