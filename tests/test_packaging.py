"""The lock, the conda file, the library alone, and what make does before the book begins.

Installations are played by a stub that stands for Python: it notes the steps and does none.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = [Requirement(line.removesuffix(" \\")) for line in re.findall(r"^[a-z].*", LOCK, re.M)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ["3.11", "3.12", "3.13"]
PLATFORMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def everything() -> list[str]:
    """What book and tests ask for, the extras that `book` names among it."""
    asked = [*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["dev"]]
    own = [Requirement(r) for r in asked if Requirement(r).name == PROJECT["name"]]
    extras = [r for requirement in own for name in requirement.extras for r in EXTRAS[name]]
    return [r for r in asked if Requirement(r).name != PROJECT["name"]] + extras


def active_pins(python: str, platform: str, machine: str) -> list[Requirement]:
    """The pins that are installed with this Python on this platform."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": platform,
        "platform_system": platform.capitalize(),
        "platform_machine": machine,
    }
    return [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]


# The lock.


def test_every_line_of_the_lock_is_a_pin_a_hash_or_a_reason():
    pin = r"[a-z0-9][a-z0-9-]*==[^ ]+( ; [^\\]+)? \\"
    known = re.compile(rf"{pin}|    --hash=sha256:[0-9a-f]{{64}}( \\)?|    # .*")
    assert [line for line in LOCK.splitlines() if not known.fullmatch(line)] == []


def test_every_pin_has_a_hash():
    assert len(PINS) > 200
    assert len(re.findall(r"^[a-z].* \\\n    --hash=sha256:", LOCK, re.M)) == len(PINS)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("platform", "machine"), PLATFORMS)
def test_the_lock_satisfies_the_project(python, platform, machine):
    pins = active_pins(python, platform, machine)
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    for wanted in map(Requirement, everything()):
        version = versions.get(canonicalize_name(wanted.name))
        assert version, f"{wanted} is not in the lock"
        assert wanted.specifier.contains(version), f"the lock has {version} for {wanted}"


def test_the_project_accepts_the_pythons_that_are_tested_and_newer_ones():
    # Newer ones are accepted, too: a cap would make installers look for an older latephase.
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(python in supported for python in [*PYTHONS, "3.14", "3.20"])
    assert f"--python-version {PYTHONS[0]} " in (ROOT / "Makefile").read_text()


def test_the_project_tells_an_index_what_it_is():
    told = [c.rpartition(" :: ")[2] for c in PROJECT["classifiers"] if ":: Python ::" in c]
    assert told == PYTHONS
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert set(citation["keywords"]) <= set(PROJECT["keywords"])
    # No address of the repository is known; the paper's is.
    assert list(PROJECT["urls"].values()) == [citation["references"][0]["url"]]


def test_torch_and_torchvision_are_a_pair():
    import torch
    import torchvision

    pinned = {pin.name: str(pin.specifier).removeprefix("==") for pin in PINS}
    assert torch.__version__.split("+")[0] == pinned["torch"]
    assert torchvision.__version__.split("+")[0] == pinned["torchvision"]
    # The same build: `+cu132`, `+cpu` or nothing.
    assert torch.__version__.partition("+")[2] == torchvision.__version__.partition("+")[2]
    # A compiled operator of torchvision answers: the second box covers most of the first.
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0]


# The conda file.


def test_the_conda_file_installs_the_lock_and_the_checkout():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = conda["dependencies"]
    assert conda["name"] == "latephase"
    assert python == f"python {PROJECT['requires-python']}"
    assert pip == "pip"
    assert packages["pip"] == [
        *(line.removesuffix(" \\") for line in re.findall(r"^[a-z].*", LOCK, re.M)),
        "-e .",
    ]


# The library alone.


def test_the_library_asks_for_nothing_of_the_book():
    plain = [r for r in metadata.requires("latephase") if Requirement(r).marker is None]
    assert names(plain) == names(PROJECT["dependencies"])
    assert not names(plain) & names([r for e in EXTRAS.values() for r in e])


# What brings which packages: none of them is the library's own.
BOOK = {"papermill", "snakemake", "jupyter_book", "IPython", "ipykernel", "nbformat", "yaml"}
PLOT, IMAGES = {"seaborn", "matplotlib", "mpl_toolkits"}, {"torchvision", "PIL"}


@pytest.mark.parametrize("extras", ["", "plot"])
def test_every_module_of_the_science_is_imported_without_others_packages(extras):
    folder = ROOT / "lib" / "latephase"
    files = [f.relative_to(folder.parent) for f in folder.rglob("*.py") if f.stem[:2] != "__"]
    files = [f for f in files if extras or "figures" not in f.parts]
    modules = [".".join(f.with_suffix("").parts) for f in files]
    # Pillow comes with Matplotlib as well.
    absent = BOOK | ({"torchvision"} if extras else PLOT | IMAGES)
    code = f"""
import importlib, sys

class Absent:
    names = {absent}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_every_file_of_the_library_and_none_of_the_pipeline(tmp_path):
    # Built in a copy, since setuptools leaves folders behind where it builds.
    for file in (ROOT / "pyproject.toml", ROOT / "README.md", *ROOT.glob("LICENSE*")):
        shutil.copy(file, tmp_path)
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=leave)
    files = {f.relative_to(tmp_path / "lib") for f in (tmp_path / "lib").rglob("*")}
    library = {f for f in files if f.parts[0] == "latephase"}
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    target = ["--no-build-isolation", "--target", "out", "--python", sys.executable, "."]
    subprocess.run([*command, *target], cwd=tmp_path, check=True)
    installed = {f.relative_to(tmp_path / "out") for f in (tmp_path / "out").rglob("*")}
    assert library <= installed
    assert not {f for f in installed if f.parts[0] == "latebook"}
    licences = Path(f"latephase-{PROJECT['version']}.dist-info", "licenses")
    assert {licences / name for name in PROJECT["license-files"]} <= installed


# What make does.

STUB = """#!/bin/sh
# {log} gets a line for each step; the step that {fail} names fails.
note() {{ echo "$*" >> '{log}'; ! grep -qxF "$1" '{fail}'; }}
case "$*" in
"-c import sys; print"*) cat '{version}' ;;
"-I -c "*) shift; PYTHONPATH=$(cat "${{0%/*}}/checkout")/lib exec '{real}' "$@" ;;
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; note venv ;;
"-m pip "*) note pip "$@" ;;
"-m uv "*--dry-run*) cat '{audit}' ;;
"-m uv "*--editable*) pwd > "${{0%/*}}/checkout"; note editable "$@" ;;
"-m uv "*--default-index* | "-m uv "*--torch-backend*) note torch "$@" ;;
"-m uv "*) note packages "$@" ;;
"-m latebook "*) note book "$@"; env > '{seen}' ;;
*) exec '{real}' "$@" ;;
esac
"""


@dataclass(frozen=True)
class Checkout:
    """A checkout without an environment, and the stub that plays Python for it."""

    root: Path
    stub: Path
    make: Callable[..., subprocess.CompletedProcess]

    def steps(self) -> list[str]:
        """The lines of the steps since the last call."""
        log = self.stub.with_name("log")
        lines = log.read_text().splitlines()
        log.write_text("")
        return lines

    def step_names(self) -> list[str]:
        return [line.split()[0] for line in self.steps()]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    root, bench = tmp_path / "a check out", tmp_path / "bench"
    for name in ("Makefile", "environment.sh", "requirements.lock", "pyproject.toml"):
        root.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root)
    (root / "profiles").mkdir()
    for profile in ("quick", "full", "paper"):
        (root / "profiles" / f"{profile}.yml").write_text("")
    (root / "profiles" / "slurm").mkdir()
    (root / "profiles" / "slurm" / "config.yaml").write_text("")
    (root / "lib" / "latephase").mkdir(parents=True)
    (root / "lib" / "latephase" / "__init__.py").write_text("")
    bench.mkdir()
    files = {name: bench / name for name in ("log", "fail", "version", "audit", "seen")}
    for file in files.values():
        file.write_text("")
    files["version"].write_text("3.12\n")
    files["audit"].write_text("Would make no changes\n")
    stub = bench / "python-stub"
    stub.write_text(STUB.format(real=sys.executable, **files))
    stub.chmod(0o755)

    def make(*words: str, python: Path | None = stub, **variables: str):
        # Nothing of the make that runs these tests, nor of its environment.
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | variables
        if python:
            environment["PYTHON"] = str(python)
        return subprocess.run(
            ["make", *words], cwd=root, env=environment, capture_output=True, text=True, timeout=60
        )

    return Checkout(root, stub, make)


def own_lines(done: subprocess.CompletedProcess) -> list[str]:
    """What was said on the standard error, without make's own last line."""
    return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


INSTALLATION = ["venv", "pip", "packages", "editable"]


def test_help_needs_nothing(checkout):
    done = checkout.make("help", python=None, PYTHON="no-such-python")
    assert done.returncode == 0
    targets = re.findall(r"^make ([a-z-]+)", done.stdout, re.M)
    assert {
        "help",
        "book",
        "test",
        "lab",
        "clean",
        "lock",
        "test-slow",
        "test-site",
        "lint",
    } <= set(targets)
    assert checkout.make(python=None).stdout == done.stdout
    assert not (checkout.root / ".venv").exists()


def test_the_readme_names_targets_that_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M)
    assert named
    assert set(named) <= set(targets)


@pytest.mark.parametrize("profile", ["fast", "", "full paper", "../profiles/quick", "*"])
def test_an_unknown_profile_is_refused_before_anything_is_installed(checkout, profile):
    done = checkout.make("book", f"PROFILE={profile}")
    assert done.returncode != 0
    assert own_lines(done) == [f"latephase: unknown PROFILE={profile}; known: full paper quick"]
    assert checkout.steps() == []
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("cores", ["0", "-1", "two", "1.5"])
def test_a_count_of_cores_that_is_none_is_refused(checkout, cores):
    done = checkout.make("book", f"CORES={cores}")
    assert done.returncode != 0
    assert own_lines(done) == [f"latephase: CORES={cores} is not a positive number"]
    assert checkout.steps() == []


@pytest.mark.parametrize("version", ["3.11", "3.13", "3.14", "3.20"])
def test_a_python_from_3_11_on_is_accepted(checkout, version):
    checkout.stub.with_name("version").write_text(version)
    assert checkout.make("environment").returncode == 0
    assert checkout.step_names() == INSTALLATION


@pytest.mark.parametrize("version", ["2.7", "3.1", "3.9", "3.10"])
def test_an_older_python_is_refused_before_anything_is_made(checkout, version):
    checkout.stub.with_name("version").write_text(version)
    done = checkout.make("test")
    assert done.returncode != 0
    assert own_lines(done) == [
        f"latephase: PYTHON={checkout.stub} is Python {version}; "
        "name a Python 3.11 or newer, such as PYTHON=python3.12"
    ]
    assert not (checkout.root / ".venv").exists()


def test_a_python_that_does_not_run_is_refused(checkout):
    done = checkout.make("test", python=None, PYTHON="no-such-python")
    assert done.returncode != 0
    assert "PYTHON=no-such-python does not run; name a Python 3.11" in own_lines(done)[0]


def test_the_environment_is_made_once_from_hashed_pins(checkout):
    done = checkout.make("book")
    assert done.returncode == 0, done.stderr
    _, pip, packages, editable, book = checkout.steps()
    assert re.fullmatch(r"book -m latebook build --profile quick --cores [1-9]\d*", book)
    assert "--require-hashes" in pip
    assert "--require-hashes --requirement requirements.lock" in packages
    assert "--no-deps --editable ." in editable
    bootstrap = (checkout.root / ".venv" / "bootstrap.txt").read_text()
    assert re.findall(r"^[a-z]+(?===)", bootstrap, re.M) == ["setuptools", "uv"]
    assert "--hash=sha256:" in bootstrap
    assert checkout.make("book", python=None).returncode == 0
    assert checkout.step_names() == ["book"]


def test_a_changed_lock_makes_the_environment_anew(checkout):
    checkout.make("environment")
    left_over = checkout.root / ".venv" / "left-over"
    left_over.touch()
    with open(checkout.root / "requirements.lock", "a") as lock:
        lock.write("    # changed\n")
    checkout.steps()
    # PYTHON is remembered, so that this make need not name it.
    assert checkout.make("environment", python=None).returncode == 0
    assert checkout.step_names() == INSTALLATION
    assert not left_over.exists()


def test_another_python_makes_the_environment_anew(checkout):
    checkout.make("environment")
    newer = checkout.stub.with_name("newer")
    newer.write_text(checkout.stub.read_text().replace("bench/version", "bench/newer-version"))
    newer.chmod(0o755)
    checkout.stub.with_name("newer-version").write_text("3.13\n")
    checkout.steps()
    checkout.make("environment", python=newer)
    assert checkout.step_names() == INSTALLATION
    checkout.make("environment", python=newer)
    assert checkout.steps() == []


def test_a_changed_project_installs_only_the_checkout_again(checkout):
    checkout.make("environment")
    with open(checkout.root / "pyproject.toml", "a") as project:
        project.write("# changed\n")
    checkout.steps()
    checkout.make("environment")
    assert checkout.step_names() == ["editable"]
    checkout.make("environment")
    assert checkout.steps() == []


def test_a_moved_checkout_makes_its_environment_anew(checkout):
    checkout.make("environment")
    checkout.steps()
    elsewhere = checkout.root.rename(checkout.root.with_name("elsewhere"))
    checkout.root.mkdir()
    done = checkout.make("-C", str(elsewhere), "environment")
    assert done.returncode == 0, done.stderr
    assert checkout.step_names() == INSTALLATION


@pytest.mark.parametrize("step", INSTALLATION)
def test_an_installation_that_died_is_never_taken_for_done(checkout, step):
    fail = checkout.stub.with_name("fail")
    fail.write_text(step)
    done = checkout.make("book")
    assert done.returncode != 0
    assert own_lines(done)[-1] == (
        "latephase: installation into .venv did not finish; the next make starts it afresh"
    )
    assert checkout.step_names() == INSTALLATION[: INSTALLATION.index(step) + 1]
    fail.write_text("")
    assert checkout.make("book").returncode == 0
    assert checkout.step_names() == [*INSTALLATION, "book"]


def test_an_environment_in_the_making_is_left_alone(checkout):
    stamp = checkout.root / ".venv" / "latephase.stamp"
    stamp.parent.mkdir()
    with subprocess.Popen(["sleep", "60"]) as at_work:
        stamp.write_text(f"unfinished {at_work.pid}\n")
        done = checkout.make("book")
        at_work.kill()
    assert done.returncode != 0
    assert f"process {at_work.pid} is installing into .venv; wait for it" in done.stderr
    assert checkout.steps() == []


def test_a_folder_of_someone_else_is_not_touched(checkout):
    (checkout.root / "mine").mkdir()
    (checkout.root / "mine" / "thesis.tex").touch()
    done = checkout.make("book", "VENV=mine")
    assert done.returncode != 0
    assert own_lines(done) == [
        "latephase: mine exists and was not made here; "
        "remove it or choose another place with VENV=DIR"
    ]
    assert [f.name for f in (checkout.root / "mine").iterdir()] == ["thesis.tex"]
    assert checkout.steps() == []


def test_another_place_with_a_space_in_its_name(checkout, tmp_path):
    done = checkout.make("book", f"VENV={tmp_path}/my env")
    assert done.returncode == 0, done.stderr
    assert own_lines(done)[-1] == f"latephase: environment {tmp_path}/my env"
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize(
    ("index", "option"),
    [("file:///wheels", "--default-index file:///wheels"), ("cpu", "--torch-backend cpu")],
)
def test_another_index_gives_torch_and_torchvision_alone(checkout, index, option):
    checkout.make("environment")
    checkout.steps()
    checkout.make("environment", f"TORCH_INDEX={index}")
    steps = {step.split()[0]: step for step in checkout.steps()}
    pair = [f"{p.name}{p.specifier}" for p in PINS if p.name in ("torch", "torchvision")]
    assert steps["torch"].endswith(f"--no-deps {option} {' '.join(pair)}")
    rest = (checkout.root / ".venv" / "requirements.txt").read_text()
    kept = set(re.findall(r"^[^ =]+(?===)", rest, re.M))
    left_out = {p.name for p in PINS} - kept
    assert {"torch", "torchvision", "triton", "cuda-bindings", "nvidia-cublas"} <= left_out
    assert all(re.match(r"torch|torchvision|triton|nvidia-|cuda-", name) for name in left_out)
    assert rest.count("--hash") < LOCK.count("--hash")
    # The choice is remembered, also when the lock changes.
    with open(checkout.root / "requirements.lock", "a") as lock:
        lock.write("    # changed\n")
    checkout.make("environment")
    assert "torch" in checkout.step_names()


def conda_environment(checkout: Checkout, holds: Path) -> str:
    """A conda environment in which the checkout in `holds` is installed."""
    prefix = checkout.root.with_name("conda")
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(checkout.stub, prefix / "bin" / "python")
    (prefix / "bin" / "checkout").write_text(str(holds))
    return str(prefix)


def test_an_activated_conda_environment_of_this_checkout_is_used(checkout):
    prefix = conda_environment(checkout, checkout.root)
    done = checkout.make("book", CONDA_PREFIX=prefix, CONDA_DEFAULT_ENV="latephase")
    assert done.returncode == 0, done.stderr
    assert own_lines(done) == [f"latephase: environment {prefix}"]
    assert not (checkout.root / ".venv").exists()
    # VENV is the stronger word.
    done = checkout.make("book", "VENV=v", CONDA_PREFIX=prefix, CONDA_DEFAULT_ENV="latephase")
    assert own_lines(done)[-1] == f"latephase: environment {checkout.root}/v"


def test_a_conda_environment_of_an_older_lock_is_named(checkout):
    prefix = conda_environment(checkout, checkout.root)
    checkout.stub.with_name("audit").write_text("Would install 1 package\n")
    done = checkout.make("book", CONDA_PREFIX=prefix, CONDA_DEFAULT_ENV="latephase")
    assert own_lines(done)[0] == (
        "latephase: latephase differs from requirements.lock; "
        "conda env update -f environment.yml renews it"
    )


@pytest.mark.parametrize(("name", "here"), [("base", True), ("other", False)])
def test_a_base_or_foreign_conda_environment_is_not_used(checkout, name, here):
    prefix = conda_environment(checkout, checkout.root if here else Path("/nowhere"))
    done = checkout.make("book", CONDA_PREFIX=prefix, CONDA_DEFAULT_ENV=name)
    assert done.returncode == 0, done.stderr
    assert own_lines(done)[-1] == f"latephase: environment {checkout.root}/.venv"
    reason = f"latephase: the conda environment {name} does not hold this checkout; using .venv"
    assert (reason in own_lines(done)) == (not here)


def test_a_strangers_settings_do_not_reach_the_book(checkout):
    strange = ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "UV_SYSTEM_PYTHON"]
    done = checkout.make("book", "CORES=3", **dict.fromkeys(strange, "/strange"))
    assert done.returncode == 0, done.stderr
    assert checkout.steps()[-1] == "book -m latebook build --profile quick --cores 3"
    seen = dict(
        line.partition("=")[::2]
        for line in checkout.stub.with_name("seen").read_text().splitlines()
    )
    assert not {*strange, "MAKEFLAGS", "MAKELEVEL", "PYTHON"} & seen.keys()
    assert seen["PATH"].split(":")[0] == f"{checkout.root}/.venv/bin"


# What continuous integration runs, and the citation.


@pytest.mark.parametrize("browser", [True, False])
@pytest.mark.parametrize("failing", ["none", "environment", "test", "book", "compare", "test-site"])
def test_the_integration_is_red_when_a_step_is(tmp_path, failing, browser):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text(f'#!/bin/sh\necho "made $1 in $PWD"\n[ "$1" != {failing} ]\n')
    make.chmod(0o755)
    shutil.copy(make, make.with_name("npm"))
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")],
        env={"PATH": f"{make.parent}:/usr/bin:/bin", "CHROMIUM": "make" if browser else "no-such"},
        capture_output=True,
        text=True,
    )
    steps = ["environment", "test", "book", "compare", *(["test-site"] if browser else [])]
    steps = steps[:1] if failing == "environment" else steps
    # What a comparison says is printed; the workflow is red by it.
    assert (done.returncode != 0) == (failing in steps and failing != "compare")
    skipped = len(steps) == 4
    assert ("make test-site skipped" in done.stdout) == skipped
    assert re.findall(r"^made (.*) in (.*)", done.stdout, re.M) == [
        (s, str(tmp_path)) for s in steps
    ]
    for step in steps:
        verdict = r"FAILED \(1\)" if step == failing else "passed"
        assert re.search(rf"^ci: make {step} {verdict} in \d+ s$", done.stdout, re.M)


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Ji", "Telgarsky"]
    assert paper["identifiers"][0]["value"] == "arXiv:2006.06657"
