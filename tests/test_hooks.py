"""What runs before a commit, and the check of the wheel: the scripts in .ci/, on small things."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, chapter

HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
WHEEL = runpy.run_path(str(ROOT / ".ci" / "wheel.py"))


def strip(*paths: Path) -> subprocess.CompletedProcess:
    script = ROOT / ".ci" / "strip_outputs.py"
    return subprocess.run([sys.executable, script, *paths], capture_output=True, text=True)


def test_outputs_are_stripped_and_nothing_else_changes(tmp_path):
    path, clean = tmp_path / "some.ipynb", ROOT / "book" / "alignment.ipynb"
    path.write_bytes(clean.read_bytes())
    assert strip(path).returncode == 0
    assert path.read_bytes() == clean.read_bytes()
    notebook = json.loads(clean.read_text())
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    cell["execution_count"] = 3
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["said\n"]}]
    path.write_text(json.dumps(notebook))
    done = strip(clean, path)
    assert done.returncode == 1
    assert done.stdout == f"strip: {path}: outputs of 1 cells removed\n"
    assert path.read_bytes() == clean.read_bytes()
    path.write_text("{")
    assert strip(path).returncode == 2


def test_the_hooks_run_here_and_with_the_versions_of_the_lock(tmp_path):
    assert [repository["repo"] for repository in HOOKS] == ["local"]
    (tmp_path / "good.py").write_text("a = 1\n")
    (tmp_path / "slip.py").write_text("recieved  = 1;import os\n")
    (tmp_path / "some.ipynb").write_text(json.dumps(chapter("first")))
    seen = {}
    for hook in HOOKS[0]["hooks"]:
        assert {"id", "name", "entry", "language"} <= set(hook)
        assert hook["language"] == "system"
        script, environment, *words = shlex.split(hook["entry"])
        assert (script, environment) == ("sh", "environment.sh")
        names = ["some.ipynb"] if hook.get("types") == ["jupyter"] else ["good.py", "slip.py"]
        files = [tmp_path / name for name in names]
        command = [sys.executable, *words, *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seen[hook["id"]] = done.stdout + done.stderr
        if hook["id"] == "codespell":
            assert done.returncode != 0
    assert set(seen) == {"ruff-check", "ruff-format", "codespell", "strip-outputs"}
    assert "recieved ==> received" in seen["codespell"]
    assert "F401" in seen["ruff-check"]
    assert "1 file reformatted, 1 file left unchanged" in seen["ruff-format"]
    assert seen["strip-outputs"] == ""


def test_the_readmes_example_of_the_library_runs(tmp_path):
    """With the wheel alone, `make wheel` runs it; here, where the book's package is there too."""
    with pytest.raises(RuntimeError, match="the wheel brings latebook"):
        WHEEL["example"](Path(sys.executable).parent, tmp_path)
    assert {"out.json", "out.svg"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("wrong", ["", "## The library alone\n\n```bash\npip install .\n```\n"])
def test_a_readme_without_the_example_is_refused(wrong):
    with pytest.raises(RuntimeError, match="expected one example with `latephase diagnose`"):
        WHEEL["readme_example"](wrong)


def test_an_example_that_fails_is_told(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'no such option' >&2; exit 2\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"(?s)ended with 2.*no such option"):
        WHEEL["example"](tmp_path / "bin", tmp_path)
    python.write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "latephase").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "latephase").chmod(0o755)
    with pytest.raises(RuntimeError, match=r"left no out\.json, out\.svg"):
        WHEEL["example"](tmp_path / "bin", tmp_path)
