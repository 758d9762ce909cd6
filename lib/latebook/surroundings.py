"""What of a reader's surroundings reaches a build: what is named here, and nothing else.

A variable can lead Jupyter to another kernel, Snakemake to other rules, matplotlib to another
style, a numerical library to other sums. Which ones can is not known, which ones are needed is.
"""

import importlib.util
import os
from pathlib import Path

# What a process needs to run where it is; environment.sh takes PYTHONPATH, a developer's, away.
_KEPT = {"PATH", "TMPDIR", "USER", "LOGNAME", "SHELL", "TERM", "COLUMNS", "NO_COLOR"}
_KEPT |= {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "PYTHONPATH"}
_KEPT |= {"PYTHONDONTWRITEBYTECODE"}
# The book's own settings, and the cluster's, by which its commands find it.
_KEPT_FAMILIES = ("LATEPHASE_", "SLURM", "SBATCH_", "SQUEUE_")
# Of the book's own, those that a chapter may know; they are among what decides its result.
_OF_A_CHAPTER = {"LATEPHASE_DEVICE", "LATEPHASE_PROFILE", "LATEPHASE_THREADS"}


def settle(build: Path, threads: int) -> None:
    """Leave in this process's environment what is kept, and a home under the build folder.

    Caches, settings and start-up files of the user's home are then neither read nor written: it
    need not be there.
    """
    home = build / "home"
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_FAMILIES)}
    kept = _repository() | kept
    os.environ.clear()
    os.environ |= kept | {
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "LATEPHASE_THREADS": str(threads),
        "PYTHONUTF8": "1",
        "PYTHONNOUSERSITE": "1",
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "JUPYTER_CONFIG_DIR": str(home / "jupyter"),
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's, not one of the user's
    }
    if matplotlib := importlib.util.find_spec("matplotlib"):
        style = Path(matplotlib.origin).parent / "mpl-data" / "matplotlibrc"
        os.environ["MATPLOTLIBRC"] = str(style)


def _repository() -> dict[str, str]:
    """LATEPHASE_REPOSITORY where the host of a build tells it: GitHub, GitLab, Read the Docs."""
    name = os.environ.get("GITHUB_REPOSITORY")
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    address = f"{server}/{name}" if name else os.environ.get("CI_PROJECT_URL", "")
    address = address or os.environ.get("READTHEDOCS_GIT_CLONE_URL", "")
    address = address.removesuffix(".git")
    return {"LATEPHASE_REPOSITORY": address} if address.startswith("https://") else {}


def of_a_kernel(build: Path, folder: Path, profile: str, threads: int) -> None:
    """Narrow this process's environment to what a chapter's kernel may know.

    Jupyter finds its kernels and keeps its files in `folder`. The sums of one thread have one
    order: another number of threads is asked for, and is written into the result.
    """
    settle(build, threads)
    for name in [*os.environ]:
        if name.startswith("LATEPHASE_") and name not in _OF_A_CHAPTER:
            del os.environ[name]
    (folder / "home").mkdir(parents=True)
    Path(os.environ["MPLCONFIGDIR"]).mkdir(parents=True, exist_ok=True)
    os.environ |= of_threads(threads) | {
        "LATEPHASE_PROFILE": profile,
        "LATEPHASE_CHAPTER": folder.name,
        "HOME": str(folder / "home"),
        "JUPYTER_PATH": str(folder),
        "JUPYTER_DATA_DIR": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


def of_threads(threads: int) -> dict[str, str]:
    """What tells numerical libraries, when they are loaded, how many threads to take."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def device() -> str:
    """The device that chapters compute on, LATEPHASE_DEVICE."""
    return os.environ.get("LATEPHASE_DEVICE") or "cpu"
