"""Recorded runs are read whole, with their provenance, or refused."""

import json

import pytest

from latephase.book import BookError
from latephase.book.records import PROVENANCE, recorded
from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.stem)
def test_every_record_of_the_repository_says_how_it_was_made(path):
    record = recorded(path.stem, ROOT / "results")
    assert record["duration"] > 0
    assert "torch" in record["versions"]


def test_what_is_not_a_whole_record_is_refused(tmp_path):
    whole = json.dumps(dict.fromkeys(PROVENANCE, 1))
    (tmp_path / "whole.json").write_text(whole)
    assert set(recorded("whole", tmp_path)) == set(PROVENANCE)
    (tmp_path / "half.json").write_text(whole[:-5])
    (tmp_path / "bare.json").write_text('{"seed": 0}')
    for name, message in (
        ("none", "no such recorded run"),
        ("half", "not a whole JSON file"),
        ("bare", "expected a record with machine, device, versions, duration"),
    ):
        with pytest.raises(BookError, match=message):
            recorded(name, tmp_path)
