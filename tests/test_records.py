"""Recorded runs are read whole, with their provenance, or refused."""

import json

import numpy as np
import pytest
from recordings.writing import sealed, write

from latebook import BookError
from latebook.records import PROVENANCE, SCHEMA, content_sha256, recorded, stored
from tests.conftest import ROOT


@pytest.mark.parametrize("name", stored(ROOT / "results"))
def test_every_record_of_the_repository_says_how_it_was_made(name):
    record = recorded(name, ROOT / "results")
    assert record["duration"] > 0
    assert "torch" in record["versions"]


def test_what_is_not_a_whole_record_is_refused(tmp_path):
    record = dict.fromkeys(PROVENANCE, 1)
    whole = write("whole", tmp_path, record).read_text()
    assert recorded("whole", tmp_path) == record
    (tmp_path / "half.json").write_text(whole[:-5])
    (tmp_path / "edited.json").write_text(whole.replace('"duration": 1', '"duration": 2'))
    (tmp_path / "bald.json").write_text(json.dumps(record))
    (tmp_path / "bare.json").write_text('{"seed": 0}')
    for name, message in (
        ("none", "no such recorded run. To make it again: make record RUN=none"),
        ("half", "not a whole JSON file"),
        ("edited", "changed since it was written: its sha256 does not fit. To make it again"),
        ("bald", "changed since it was written"),
        ("bare", "expected a record with machine, device, versions, duration"),
    ):
        with pytest.raises(BookError, match=message):
            recorded(name, tmp_path)


def test_a_reference_ledger_is_no_record(tmp_path):
    write("whole", tmp_path, dict.fromkeys(PROVENANCE, 1))
    (tmp_path / "ledger.quick.json").write_text("[]")
    assert stored(tmp_path) == ["whole"]


RECORD = dict.fromkeys((*PROVENANCE, "settings", "data", "commit"), 1)


def test_arrays_come_back_as_they_were_written(tmp_path):
    arrays = {"margins": np.arange(6.0).reshape(2, 3), "layers": np.array(["a", "b"])}
    path = write("one", tmp_path, RECORD, arrays)
    assert path == tmp_path / "one.json"
    record = recorded("one", tmp_path)
    assert record["schema"] == SCHEMA
    for name, array in arrays.items():
        assert np.array_equal(record["arrays"][name], array)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "one.npz"]
    # Equal arrays are equal files, whenever they are written.
    before = path.with_suffix(".npz").read_bytes()
    write("one", tmp_path, RECORD, arrays)
    assert path.with_suffix(".npz").read_bytes() == before


def test_a_record_has_the_hash_of_each_arrays_content_and_the_first_ones_have_none(tmp_path):
    arrays = {"a": np.arange(3.0), "b": np.arange(4)}
    path = write("one", tmp_path, RECORD, arrays)
    contents = recorded("one", tmp_path)["contents"]
    assert contents == {name: content_sha256({name: array}) for name, array in arrays.items()}
    content = json.loads(path.read_text())
    first = {key: value for key, value in content.items() if key != "contents"}
    path.write_text(json.dumps(sealed(first)))
    assert np.array_equal(recorded("one", tmp_path)["arrays"]["a"], arrays["a"])
    content["contents"]["b"] = contents["a"]
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(BookError, match=r"one\.npz: other arrays than those whose hashes"):
        recorded("one", tmp_path)


def test_a_record_whose_arrays_or_schema_do_not_fit_is_refused(tmp_path):
    path = write("one", tmp_path, RECORD, {"margins": np.arange(3.0)})
    content, npz = json.loads(path.read_text()), path.with_suffix(".npz")
    whole = npz.read_bytes()
    npz.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        BookError, match=r"one\.npz: sha256 .* To make it again: make record RUN=one"
    ):
        recorded("one", tmp_path)
    npz.unlink()
    with pytest.raises(BookError, match=r"one\.npz: No such file"):
        recorded("one", tmp_path)
    npz.write_bytes(whole)
    for changed, message in (
        ({"schema": SCHEMA + 1}, f"schema {SCHEMA + 1}, expected {SCHEMA}. To make it again"),
        ({"schema": None}, "schema None, expected"),
        ({"commit": ...}, "expected a record with commit"),
        ({"arrays": ...}, "expected a record with"),
    ):
        other = {k: v for k, v in (content | changed).items() if v is not ...}
        path.write_text(json.dumps(sealed(other)))
        with pytest.raises(BookError, match=message):
            recorded("one", tmp_path)


def test_a_record_that_does_not_say_how_it_was_made_is_not_written(tmp_path):
    with pytest.raises(BookError, match="expected a record with machine"):
        write("one", tmp_path, {}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(BookError, match="cannot write"):
        write("one", tmp_path / "file", RECORD, {})


@pytest.mark.parametrize("place", ["", "book"])
def test_a_record_is_found_from_the_checkout_and_from_its_chapters(monkeypatch, place):
    monkeypatch.chdir(ROOT / place)
    assert recorded(stored(ROOT / "results")[0])["seed"] is not None
