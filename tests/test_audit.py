"""The audit of the pinned packages: what is known, and what is not, is told apart."""

import json
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit.py"), run_name="audit")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
CLUSTER = EXTRAS["cluster"]
SOUND = {"name": "numpy", "version": "2.4", "vulns": []}
UNSOUND = {
    "name": "jinja2",
    "version": "3.1.2",
    "vulns": [{"id": "CVE-2024-22195", "fix_versions": ["3.1.3"], "aliases": []}],
}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "lines"),
    [
        ([SOUND], 0, ["1 of 1 packages audited, 0 advisories"]),
        ([SOUND, UNSOUND], 1, ["jinja2 3.1.2: CVE-2024-22195, mended in 3.1.3", "1 advisories"]),
        ([UNKNOWN], 0, ["0 of 1 packages audited", "not audited, since no advisories", "torch"]),
        ([UNSOUND, UNKNOWN], 1, ["1 of 2 packages audited", "not audited"]),
    ],
)
def test_the_verdict(packages, code, lines, capsys):
    assert AUDIT["verdict"](packages) == code
    said = capsys.readouterr().out
    assert all(line in said for line in lines), said


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the audit with a stand-in for pip-audit, which writes this report, or none."""

    def with_report(report, said=""):
        def stand_in(command, **settings):
            assert "--no-deps" in command
            pins = Path(command[command.index("--requirement") + 1]).read_text().splitlines()
            assert pins == ["numpy==2.4.6", *CLUSTER]
            if report is not None:
                Path(command[-1]).write_text(json.dumps({"dependencies": report}))
            return subprocess.CompletedProcess(command, 1, "", said)

        monkeypatch.setattr(subprocess, "run", stand_in)
        (tmp_path / "_build").mkdir(exist_ok=True)
        (tmp_path / "_build" / "audit.json").write_text('{"dependencies": []}')  # of an earlier day
        (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
        (tmp_path / "requirements.lock").write_text("numpy==2.4.6 \\\n    --hash=sha256:0\n")
        monkeypatch.setitem(AUDIT["main"].__globals__, "ROOT", tmp_path)
        return AUDIT["main"]()

    return with_report


def test_without_a_network_nothing_is_claimed_and_nobody_blocked(run, capsys):
    assert run(None, "error: Could not connect,\nare you offline?") == 0
    said = capsys.readouterr().out
    assert said == "audit: nothing was audited; pip-audit ended with: are you offline?\n"
    assert run(None, "error: no such option") == 2


def test_an_advisory_ends_with_one(run):
    assert run([SOUND, UNSOUND]) == 1
    assert run([SOUND]) == 0
