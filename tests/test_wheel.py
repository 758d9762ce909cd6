"""The wheel alone, in an environment of its own: what a user of the library has, and sees."""

import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

USER = """\
import torch

import latephase as lp

model = torch.nn.Linear(2, 1, bias=False)
task = lp.Task(x=torch.eye(2), y=torch.tensor([1, 1]))
reveal_type(lp.gradient_flow)
flow = lp.gradient_flow(model, task, until=1e3)
reveal_type(flow)
reveal_type(lp.diagnose(model, task).alignment)
lp.gradient_flow(model, task, untill=1e3)
lp.hard_margn(task.x, task.y)
"""


def closure(extras: set[str]) -> set[str]:
    """The distributions that `pip install latephase[extras]` installs, besides latephase."""
    found: set[str] = set()
    waiting = [("latephase", extras)]
    while waiting:
        name, wanted = waiting.pop()
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            asked = [{"extra": extra} for extra in wanted or {""}]
            if requirement.marker and not any(requirement.marker.evaluate(e) for e in asked):
                continue
            if (key := canonicalize_name(requirement.name)) not in found:
                found.add(key)
                waiting.append((key, set(requirement.extras)))
    return found


def environment(folder: Path, wheel: Path, extras: set[str]) -> Path:
    """An environment with the wheel and what it depends on, linked from the one that tests."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    for name in closure(extras):
        here = Path(metadata.distribution(name).locate_file(""))
        for file in metadata.distribution(name).files:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(here / top)
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*command, "--python", str(folder / "bin" / "python"), str(wheel)], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in (ROOT / "pyproject.toml", ROOT / "README.md", *ROOT.glob("LICENSE*")):
        shutil.copy(file, source)
    shutil.copytree(ROOT / "lib", source / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "uv", "build", "--wheel", "--quiet", "--offline"]
    subprocess.run(
        [*command, "--no-build-isolation", "--out-dir", str(out), str(source)], check=True
    )
    (made,) = out.glob("latephase-*.whl")
    return made


@pytest.fixture(scope="module")
def plain(wheel, tmp_path_factory) -> Path:
    """`pip install latephase`: the folder of its commands."""
    return environment(tmp_path_factory.mktemp("plain") / "venv", wheel, set())


def readme_block() -> tuple[set[str], str]:
    """What the README's part on the library alone installs, and the commands that follow."""
    text = (ROOT / "README.md").read_text(encoding="utf8")
    part = text[text.index("## The library alone") :].partition("\n## ")[0]
    install, commands = re.findall(r"```bash\n(.*?)```", part, re.S)
    extras = re.fullmatch(r"pip install '\.\[([\w,]+)\]'\n", install)
    return set(extras[1].split(",")), commands


def test_the_readmes_block_runs_with_the_extras_that_it_names(wheel, tmp_path):
    extras, commands = readme_block()
    commands_of = environment(tmp_path / "venv", wheel, extras)
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=tmp_path,
        env={"PATH": f"{commands_of}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "smoothed margin" in done.stdout
    assert (tmp_path / "out.json").stat().st_size > 100
    assert "<svg" in (tmp_path / "out.svg").read_text()


def test_without_the_extra_a_figure_is_refused_before_anything_is_written(plain, tmp_path):
    commands = readme_block()[1]
    done = subprocess.run(
        ["bash", "-uc", commands],
        cwd=tmp_path,
        env={"PATH": f"{plain}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "latephase: --figure: needs seaborn, which is not installed: "
        "pip install 'latephase[plot]'\n"
    )
    assert not list(tmp_path.glob("out.*"))


def test_a_type_checker_sees_the_signatures_and_a_misspelt_argument(plain, tmp_path):
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", str(plain / "python")]
    done = subprocess.run([*command, "user.py"], cwd=tmp_path, capture_output=True, text=True)
    said = dict(re.findall(r"user\.py:(\d+):\d+ - (.*)", done.stdout))
    # What the line numbers of the file above hold.
    assert "(module: Module, x: Tensor | " in said["7"], done.stdout
    assert said["7"].endswith(' = None) -> Trajectory"')
    assert said["9"].endswith('is "Trajectory"')
    assert said["10"].endswith('is "float | None"')
    assert 'error: No parameter named "untill"' in said["11"]
    assert '"hard_margn" is not a known attribute' in said["12"]
