"""The public names: their page says all of them, and their examples run."""

import doctest
import importlib
import inspect

import pytest

import latephase
from latebook import api

NAMES = [name for name in latephase.__all__ if name != "__version__"]
HOMES = sorted({getattr(latephase, name).__module__ for name in NAMES})


@pytest.mark.parametrize("module", HOMES)
def test_the_examples_in_docstrings_run(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


@pytest.mark.parametrize("name", ["diagnose", "gradient_flow", "hard_margin", "homogeneity_degree"])
def test_every_function_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(latephase, name))


def test_the_page_has_every_name_and_every_method():
    page = api.page("latephase")
    for name in NAMES:
        assert f"## {name}\n" in page
    assert "Trajectory.extend(self, until: float)" in page
    assert "Trajectory.load(" in page
    assert page.count("```") % 2 == 0
