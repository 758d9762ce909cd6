"""What GitHub reads fits its schemas; the workflow calls make, and pins what it uses."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT

GITHUB = ROOT / ".github"
WORKFLOW = GITHUB / "workflows" / "book.yml"
JOBS = yaml.safe_load(WORKFLOW.read_text())["jobs"]
# Each file, its schema, and a change that the schema must refuse.
FILES = [
    (WORKFLOW, "github-workflows", ("runs-on:", "run-on:")),
    (GITHUB / "dependabot.yml", "dependabot", ("interval: weekly", "interval: sometimes")),
    (GITHUB / "ISSUE_TEMPLATE" / "claim.yml", "github-issue-forms", ("textarea", "textfield")),
    (GITHUB / "ISSUE_TEMPLATE" / "config.yml", "github-issue-config", ("true", "perhaps")),
    (ROOT / "CITATION.cff", "citation-file-format", ("title:", "titel:")),
]
NIGHTLY = "github.event_name == 'schedule' || github.event_name == 'workflow_dispatch'"


def test_these_are_all():
    found = {path for path in GITHUB.rglob("*") if path.is_file()}
    assert found == {path for path, *_ in FILES if GITHUB in path.parents}


@pytest.mark.parametrize(("path", "schema", "slip"), FILES, ids=[p.name for p, *_ in FILES])
def test_it_fits_the_schema(path, schema, slip, tmp_path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    # The check can fail.
    broken = tmp_path / path.name
    broken.write_text(path.read_text().replace(*slip))
    assert broken.read_text() != path.read_text()
    done = subprocess.run([*command, str(broken)], capture_output=True, text=True)
    assert done.returncode != 0


@pytest.mark.skipif(not shutil.which("actionlint"), reason="actionlint is not installed")
def test_actionlint_has_nothing_to_say():
    done = subprocess.run(["actionlint", str(WORKFLOW)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def steps(*names: str) -> list[dict]:
    return [step for name in names or JOBS for step in JOBS[name]["steps"]]


def test_it_runs_targets_of_the_makefile_and_the_release_nothing_else():
    run = {step["run"] for step in steps(*(set(JOBS) - {"release"})) if "run" in step}
    assert run == {
        *("make test", "make test-slow", "make test-site", "make wheel"),
        *("make book", "make book PROFILE=full", "make audit", "make links"),
        *("make compare", "make compare PROFILE=full"),
    }
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {command.split()[1] for command in run} <= set(targets)
    # Others' addresses cannot break a build.
    assert JOBS["links"]["continue-on-error"] is True
    assert "links" not in JOBS["deploy"]["needs"]
    assert set(JOBS["test"]["strategy"]["matrix"]["python"]) == {"3.11", "3.12", "3.13"}


def test_actions_are_pinned_and_every_job_ends():
    used = re.findall(r"uses: (.*)", WORKFLOW.read_text())
    assert len(used) == len([step for step in steps() if "uses" in step])
    for line in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    versions = {line.split("@")[0]: line.split("@")[1] for line in used}
    assert all(versions[line.split("@")[0]] == line.split("@")[1] for line in used)
    assert all(0 < job["timeout-minutes"] <= 360 for job in JOBS.values())


def test_no_job_caches_wheels_or_installs_cuda():
    assert "cache" not in {step.get("uses", "").split("@")[0].split("/")[-1] for step in steps()}
    assert not any("cache" in step.get("with", {}) for step in steps())
    for name, job in JOBS.items():
        if any(step.get("run", "").startswith("make ") for step in job["steps"]):
            assert "cpu" in job["env"]["TORCH_INDEX"], name


def test_the_ledger_is_kept_of_every_build_and_nights_run_what_takes_long():
    for name, ledger in (("book", "_build/ledger.json"), ("full", "_build/ledger-full.json")):
        [kept] = [s for s in steps(name) if ledger in str(s.get("with", {}).get("path"))]
        assert kept["if"] == "${{ !cancelled() }}"
        assert "_build/executed" in kept["with"]["path"]
    [site] = [s for s in steps("book") if s.get("with", {}).get("name") == "site"]
    assert "if" not in site  # of pull requests as well
    for name in ("slow", "full", "links"):
        assert JOBS[name]["if"] == NIGHTLY
    events = yaml.safe_load(WORKFLOW.read_text())[True]  # YAML takes `on` for true
    assert set(events) == {"push", "pull_request", "schedule", "workflow_dispatch"}


def test_every_book_is_compared_with_the_reference_and_has_the_history_for_its_dates():
    for name, profile in (("book", ""), ("full", " PROFILE=full")):
        run = [step["run"] for step in steps(name) if "run" in step]
        assert run[run.index(f"make book{profile}") + 1] == f"make compare{profile}"
        [checkout] = [s for s in steps(name) if s.get("uses", "").startswith("actions/checkout@")]
        assert checkout["with"]["fetch-depth"] == 0


def test_a_release_is_of_what_was_tested_and_alone_may_write():
    assert set(JOBS["release"]["needs"]) == {"test", "book", "wheel"}
    may = {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job}
    assert may == {
        "deploy": {"pages": "write", "id-token": "write"},
        "release": {"contents": "write"},
    }


def test_the_form_asks_for_the_ledger():
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "claim.yml").read_text())
    [ledger] = [part for part in form["body"] if part.get("id") == "ledger"]
    assert ledger["validations"]["required"] is True
    assert "_build/ledger.json" in ledger["attributes"]["description"]
