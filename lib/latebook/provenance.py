"""Where a result comes from: commit, versions, machine, parameters, data, duration."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

# What can change a number; the rest of the lock changes only how a page looks.
PACKAGES = ("latephase", "torch", "torchvision", "numpy", "scipy", "pandas", "seaborn", "papermill")


def commit(root: Path) -> str:
    """The commit of the checkout, with "+changes" when the tree is dirty; "unknown" without git."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def environment() -> dict:
    """Python, operating system, processor count and the versions that can change a number."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": os.environ.get("LATEPHASE_DEVICE", "cpu"),
        "versions": {package: version(package) for package in PACKAGES},
    }


def data(root: Path) -> dict[str, str]:
    """The sha256 of every data file the repository ships, by its path."""
    files = sorted((root / "lib" / "latephase" / "zoo" / "bundled").glob("*.npz"))
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
