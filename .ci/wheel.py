"""Builds the library's wheel and source archive, and checks them as a stranger would: `make wheel`.

They are checked by twine, and the wheel is installed into an environment of its own, in which the
README's example of the library must run and the book's package must be absent. What passed lies in
`_build/wheel`. UV_TORCH_BACKEND=cpu spares the gigabytes of CUDA.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "_build" / "wheel"
UV = [sys.executable, "-m", "uv"]
TWINE = "twine@7.0.0"
HEADING = "## The library alone"
# What the example must leave behind.
MADE = ("out.json", "out.svg")


def main() -> int:
    """Build, check and try the wheel; 0, or 1 with what failed."""
    try:
        shutil.rmtree(BUILT, ignore_errors=True)
        build(ROOT, BUILT)
        files = sorted(map(str, BUILT.glob("latephase-*")))
        subprocess.run([*UV, "tool", "run", TWINE, "check", "--strict", *files], check=True)
        wheel = next(BUILT.glob("*.whl"))
        with tempfile.TemporaryDirectory() as folder:
            alone = Path(folder, "alone")
            subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, alone], check=True)
            install = [*UV, "pip", "install", "--quiet", "--python", alone / "bin" / "python"]
            subprocess.run([*install, f"{wheel}[plot]"], check=True)
            example(alone / "bin", Path(folder))
    except (subprocess.CalledProcessError, RuntimeError) as error:
        print(f"wheel: {error}", file=sys.stderr)
        return 1
    print(f"wheel: {wheel} passed")
    return 0


def build(source: Path, into: Path) -> None:
    """Build the source archive and from it the wheel, with the setuptools of this environment."""
    command = [*UV, "build", "--quiet", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", into, source], check=True)


def readme_example(readme: str) -> str:
    """The shell script of the README's section on the library: its block that makes a network."""
    section = readme.partition(f"{HEADING}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    found = [block for block in blocks if "latephase diagnose" in block]
    if len(found) != 1:
        raise RuntimeError(f"README.md: expected one example with `latephase diagnose`: {found}")
    return found[0]


def example(commands: Path, folder: Path) -> None:
    """Run the README's example in a folder with the commands of an environment, and no others.

    RuntimeError if it fails, leaves no figure and no numbers, or sees the book's package.
    """
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
    if extra := os.environ.get("LD_LIBRARY_PATH"):
        environment["LD_LIBRARY_PATH"] = extra
    script = readme_example((ROOT / "README.md").read_text(encoding="utf8"))
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"the README's example ended with {done.returncode}:\n{done.stderr}")
    if missing := [name for name in MADE if not (folder / name).is_file()]:
        raise RuntimeError(f"the README's example left no {', '.join(missing)}")
    ask = [commands / "python", "-c", "import latebook"]
    there = subprocess.run(ask, cwd=folder, env=environment, capture_output=True)
    if there.returncode == 0:
        raise RuntimeError("the wheel brings latebook, the package of the book")


if __name__ == "__main__":
    sys.exit(main())
