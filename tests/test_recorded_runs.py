"""The frames of recorded runs, and that the page draws every run there is."""

import ast

import numpy as np
import pytest

from experiments import recorded_runs
from experiments.late_training import euler_defect
from latebook import records
from latebook.layout import Book
from latebook.notebooks import read
from tests.conftest import ROOT

PREFIX = "cifar10_1k_"


def lists() -> dict[str, list[str]]:
    """The literal lists of runs in the chapter."""
    cells = read(Book(ROOT, "quick").source("nonhomogeneous_networks")).cells
    tree = ast.parse(next(cell.source for cell in cells if "unseen = " in cell.source))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            name = node.targets[0].id
            words = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
            found[name] = words
    return found


def test_the_page_draws_every_run_of_its_images():
    found = lists()
    wanted = [n for n in records.runs(ROOT / "recordings" / "runs.yml") if n.startswith(PREFIX)]
    assert {PREFIX + name for name in found["seen"] + found["unseen"]} == set(wanted)
    assert all((ROOT / "results" / f"{name}.json").exists() for name in wanted)


@pytest.fixture(scope="module", params=["small_biased_0", "densenet_0"])
def run(request):
    name = PREFIX + request.param
    return recorded_runs.of_record(request.param, records.recorded(name, ROOT / "results"))


def test_a_run_has_its_frames(run):
    assert run.kind in ("with biases", "DenseNet")
    for frame in (
        recorded_runs.rows([run]),
        recorded_runs.quantiles(run, [10.0, 100.0]),
        recorded_runs.paces(run),
        recorded_runs.of_groups(run),
        recorded_runs.verdicts([run]),
        recorded_runs.exponents([run]),
        recorded_runs.errors(run),
        recorded_runs.ratios(run),
    ):
        assert len(frame)
        assert not frame.isna().any().any()
    assert run.wrong() == 0 < run.wrong(0)


def test_what_is_claimed_of_runs_is_of_those_that_had_not_been_made(run):
    found = recorded_runs.findings([run, run]).assign(run=["seen", "unseen"])
    bounds = {"flow": {0: -2.0}, "margins": {0: -3.0}}
    claims = recorded_runs.claimed(found, ["unseen"], bounds)
    for name in ("recorded-figure", "recorded-direction", "seen-direction"):
        assert len(claims[name][0]) == 1
    assert len(claims["exponents"][0]) == 2


def test_the_exponents_of_the_layers_satisfy_the_measured_system(run):
    given = recorded_runs.foretold(run)
    assert given.max() == 1.0
    assert euler_defect(run.groups, given) < 1e-5


def test_margins_in_a_seminorm_are_those_over_its_power(run):
    groups = run.groups.groups.tolist()
    found = recorded_runs.in_seminorm(run.late, run.groups, (groups[0],), 2.0)
    ratio = found / run.late.margins / (found / run.late.margins)[-1]
    norms = run.groups.norms[:, 0]
    assert np.allclose(ratio, ((norms[-1] / norms) ** 2)[:, None], rtol=1e-4)
    assert np.abs(found[-1]).mean() == pytest.approx(1.0)


def test_a_sentence_has_words_for_all_and_for_none(run):
    said = recorded_runs.sentences(recorded_runs.findings([run]))
    assert said["resolved-count"] == "all 1"
    assert said["separated-sentence"] == "All runs separate their images."
    short = run.late.smoothed_margin[-1] < 1000.0
    assert said["shallow-sentence"].startswith("These ended" if short else "All of them")
    assert said["settled-sentence"] == "By the criterion no margins settle."
