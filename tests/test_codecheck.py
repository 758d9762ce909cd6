"""The manifest for a codechecker: what it lists the build makes, and the copy at the root is it."""

import pytest
import yaml

from latebook import BookError, codecheck
from latebook.layout import Book
from tests.conftest import ROOT


def test_the_copy_at_the_root_is_what_the_build_writes():
    made = codecheck.text(Book(ROOT, "quick"))
    assert (ROOT / "codecheck.yml").read_text() == made, "cp _build/codecheck.yml ."


def test_it_has_what_the_specification_asks_of_authors():
    said = yaml.safe_load((ROOT / "codecheck.yml").read_text())
    assert said["version"] == "https://codecheck.org.uk/spec/config/1.0/"
    assert said["paper"]["title"].startswith("Directional convergence")
    assert said["paper"]["authors"] == [{"name": "Ziwei Ji"}, {"name": "Matus Telgarsky"}]
    assert said["paper"]["reference"].endswith("2006.06657")
    files = [one["file"] for one in said["manifest"]]
    assert files[0] == "_build/ledger.json"
    assert len(files) == len(set(files))
    for chapter in Book(ROOT, "quick").chapters():
        assert f"_build/executed/quick/{chapter}.ipynb" in files
    assert sum(file.endswith(".svg") for file in files) > 40
    assert all(one["comment"] for one in said["manifest"])


def test_what_was_not_made_is_named(book):
    with pytest.raises(BookError, match=r"_build/ledger\.json, _build/executed/quick/first\.ipynb"):
        codecheck.write(Book(book.root, "quick"))
    assert not (book.root / "_build/codecheck.yml").exists()
