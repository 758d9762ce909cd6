"""Where a result comes from: commit, versions, machine, data."""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from latebook import surroundings

# What can change a recorded run's number.
PACKAGES = ("latephase", "torch", "torchvision", "numpy", "scipy", "pandas", "seaborn", "papermill")
# Into this file `git archive` writes the commit and its tree's hash, see .gitattributes.
_ARCHIVED, _AS_COMMITTED = ".commit", b"$Format:%H %T$\n"


def commit(root: Path) -> str:
    """The commit of the checkout or archive at `root`, with "+changes" where its files differ.

    "unknown" where neither git nor the archive says it; a repository around it says nothing.
    """
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() == root.resolve():
            changed = _git(root, "status", "--porcelain", "--untracked-files=normal")
            changed = changed or _unseen(root)
            return _git(root, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    if (root / ".git").exists():  # a checkout that git does not read is not an archive
        return "unknown"
    return _archived(root)


def _unseen(root: Path) -> bool:
    """Whether git was told to look away from files, tracked or new, by more than .gitignore."""
    files = _git(root, "ls-files", "-v").splitlines()
    others = ("ls-files", "--others", "--exclude-per-directory=.gitignore", "--")
    new = _git(root, *others, "book", "lib", "profiles", "results")
    return bool(new) or any(line[0] == "S" or line[0].islower() for line in files)


def short(commit: str) -> str:
    """A commit for a table: ten digits, and "+changes" as ever."""
    sha, plus, changes = commit.partition("+")
    return sha[:10] + plus + changes


def git(root: Path, *words: str, say: str | None = None) -> subprocess.CompletedProcess:
    """Run git in a checkout, which is read as it is: nothing around it says what it holds.

    Settings of the environment may name another repository; a checkout of another user's is read
    like one's own, as what it holds is run anyway; a system without execute bits changes no file.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    settings = ("safe.directory=*", "core.fsmonitor=false", "core.fileMode=false")
    settings += ("core.quotePath=false",)
    return subprocess.run(
        ["git", *(word for one in settings for word in ("-c", one)), "-C", str(root), *words],
        input=say,
        capture_output=True,
        text=True,
        encoding="utf8",
        env=clean | {"GIT_OPTIONAL_LOCKS": "0"},
    )


def _git(root: Path, *words: str) -> str:
    done = git(root, *words)
    done.check_returncode()
    return done.stdout.strip()


def history(root: Path, *paths: str) -> str:
    """The last commit that changed one of the paths; "" where git does not know."""
    if not (root / ".git").exists() or commit(root) == "unknown":
        return ""
    return _git(root, "log", "-1", "--format=%H", "--", *paths)


def _archived(root: Path) -> str:
    try:
        told = re.fullmatch(rb"([0-9a-f]{40}) ([0-9a-f]{40})\n", (root / _ARCHIVED).read_bytes())
    except OSError:
        return "unknown"
    if not told:
        return "unknown"
    # Where an archive lost its execute bits, the repository's rule says what had one.
    trees = (_tree(root, _ignored(root), runs) for runs in (_may_run, _is_script))
    same = told[2].decode() in trees
    return told[1].decode() + ("" if same else "+changes")


def _ignored(root: Path) -> list[str]:
    try:
        lines = (root / ".gitignore").read_text(encoding="utf8").splitlines()
    except OSError:
        return []
    return [line.rstrip("/") for line in lines if line and line[0] != "#"]


def _may_run(path: Path) -> bool:
    return os.access(path, os.X_OK)


def _is_script(path: Path) -> bool:
    return not path.suffix and path.read_bytes()[:2] == b"#!"


def _tree(
    folder: Path, ignored: list[str], runs: Callable[[Path], bool], top: bool = True
) -> str | None:
    """The hash that git gives to a folder's content, None if that is empty."""
    entries = []
    for path in folder.iterdir():
        if any(fnmatch(f"/{path.name}" if top and p[0] == "/" else path.name, p) for p in ignored):
            continue
        if path.is_symlink():
            mode, content = "120000", _object("blob", os.fsencode(os.readlink(path)))
        elif path.is_dir():
            mode, content = "40000", _tree(path, ignored, runs, False)
        else:
            mode = "100755" if runs(path) else "100644"
            archived = top and path.name == _ARCHIVED
            content = _object("blob", _AS_COMMITTED if archived else path.read_bytes())
        if content:
            # Git sorts a folder as if its name ended in a slash.
            name = os.fsencode(path.name)
            entry = mode.encode() + b" " + name + b"\0" + bytes.fromhex(content)
            entries.append((name + b"/" * (mode == "40000"), entry))
    return _object("tree", b"".join(entry for _, entry in sorted(entries))) if entries else None


def _object(kind: str, content: bytes) -> str:
    header = f"{kind} {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@cache
def environment() -> dict:
    """What this process runs in: Python, system, cores, device, threads, installed versions."""
    versions = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": surroundings.device(),
        "threads": int(os.environ.get("LATEPHASE_THREADS", "1")),
        "versions": dict(sorted(versions.items())),
    }


def data(root: Path) -> dict[str, str]:
    """The sha256 of every data file the repository ships, by its path."""
    files = sorted((root / "lib" / "latephase" / "zoo" / "bundled").glob("*.npz"))
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
