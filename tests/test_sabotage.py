"""The sabotages of the benchmark, which runs for an hour: the lines that they falsify exist."""

import pytest
from benchmarks.sabotage import SABOTAGES

from tests.conftest import ROOT


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_sabotage_changes_one_line_of_the_library(name):
    file, right, wrong = SABOTAGES[name]
    assert (ROOT / "lib" / "latephase" / file).read_text("utf8").count(right) == 1
    assert right != wrong
