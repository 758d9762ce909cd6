"""Ways to be wrong are planted one by one, and each is caught where `plants.yml` says."""

import re

import pytest
from nbformat.v4 import writes as text_of

from latebook import cells, claims, gate
from latebook.files import read_yaml
from latebook.notebooks import read
from tests.conftest import CLAIM, ROOT, chapter, recorded

PLANTS = read_yaml(ROOT / "tests" / "plants.yml")
OF_SOURCE = [plant for plant in PLANTS if {"code", "last", "cell"} & set(plant)]
OF_RECORD = [plant for plant in PLANTS if "record" in plant or "registry" in plant]
ELSEWHERE = [plant for plant in PLANTS if "test" in plant]


def named(plant) -> str:
    return f"{plant['kind']}: {plant.get('says')}"


def test_every_plant_is_of_one_way():
    assert len(OF_SOURCE) + len(OF_RECORD) + len(ELSEWHERE) == len(PLANTS)
    where = {"gate source", "gate executed", "record", "ledger", "build", "compare"}
    assert {plant["caught"] for plant in PLANTS} <= where


def source(tmp_path, plant):
    notebook = chapter("first", *([plant["code"]] if "code" in plant else []))
    if "last" in plant:
        notebook.cells[-1].source = plant["last"]
    notebook.cells[1].update(plant.get("cell", {}))
    path = tmp_path / "first.ipynb"
    path.write_text(text_of(notebook))
    return path


@pytest.mark.parametrize("plant", OF_SOURCE, ids=named)
def test_a_plant_in_the_source_is_refused_before_it_runs(tmp_path, plant):
    found = gate.check_source(source(tmp_path, plant))
    assert any(plant["says"] in fault for fault in found), found


@pytest.mark.parametrize("plant", OF_RECORD, ids=named)
def test_a_plant_in_a_record_is_refused(tmp_path, plant):
    path = source(tmp_path, {})
    (tmp_path / "claims.yml").write_text(text_of_registry(plant))
    registered = claims.load(tmp_path / "claims.yml")
    run = tmp_path / "run.ipynb"
    run.write_text(text_of(recorded(chapter("first"), **plant.get("record", {}))))
    parameters = plant.get("parameters", {"number": 0.5})
    found = gate.check_executed(read(run), path, registered, "quick", parameters)
    if plant["says"] is None:
        assert found == []
    else:
        assert any(plant["says"] in fault for fault in found), found


def text_of_registry(plant) -> str:
    import yaml

    row = CLAIM | plant.get("registry", {})
    return yaml.safe_dump([{key: value for key, value in row.items() if value not in (None, "")}])


@pytest.mark.parametrize("plant", ELSEWHERE, ids=lambda plant: plant["test"])
def test_a_plant_of_another_test_is_there(plant):
    path, _, name = plant["test"].partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


HONEST = """
lost, ends = [], {}
for number_of in [number]:
    try:
        ends[0] = 1 / number_of
    except ZeroDivisionError as error:
        lost.append(f"start 0: {error}")


def half(number, open_at=number):
    return number / 2


halves = [half(number) for number in ends.values()]
ends.update({1: 2})
sentence = "warnings and os are words, and so is load a word of a sentence"
"""


def test_honest_code_raises_no_alarm(tmp_path):
    last = "for name in ['small']:\n    claims.record(f'first/{name}', [number], seeds=[0],\n"
    last += "                  control={'large': [2.0]})"
    assert gate.check_source(source(tmp_path, {"code": HONEST, "last": last})) == []


def test_a_tutorial_may_read_and_start_programs(tmp_path):
    code = "import subprocess\n\nsubprocess.run(['true'])\nopen('x')"
    tutorial = {"code": code, "last": "half = number / 2"}
    assert gate.check_source(source(tmp_path, tutorial)) == []
    assert cells.faults(read(source(tmp_path, {"code": code})).cells) != []
