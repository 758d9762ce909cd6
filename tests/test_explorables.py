"""What pages compute in a browser agrees with the library: the same flows, program and descent.

The scripts run in Node, or else in Chromium; where there is neither, nothing can run them.
"""

import html
import json
import re
import shutil
import subprocess
from functools import cache

import numpy as np
import pytest
import torch

import latephase
from experiments import explorables, other_losses
from experiments.margin_maximization import variation_margin
from experiments.where_it_fails import Hat, follow
from latephase.problem.vectors import angle
from latephase.training import together
from tests.conftest import ROOT
from tests.site.visits import chromium

FOLDER = ROOT / "book" / "_static" / "explore"
SCRIPTS = [FOLDER / "solve.js", FOLDER / "given.js"]
ROWS = np.array([[0.5, 1.5], [1.6, 0.4], [0.9, 1.9], [0.1, 0.9], [1.3, 1.0], [1.0, 0.15]])


given = cache(explorables.given)


def in_node(code: str) -> str:
    """What Node prints of the value of `code`."""
    scripts = "\n".join(path.read_text(encoding="utf8") for path in SCRIPTS)
    program = f"{scripts}\nconsole.log(JSON.stringify({code}))"
    done = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_chromium(code: str, folder) -> str:
    """What a page in Chromium shows of the value of `code`."""
    tags = "".join(f'<script src="{path.as_uri()}"></script>' for path in SCRIPTS)
    show = f"document.getElementById('out').textContent = JSON.stringify({code})"
    page = folder / "page.html"
    page.write_text(f'<pre id="out"></pre>{tags}<script>{show}</script>', encoding="utf8")
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    return html.unescape(re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)[1])


@pytest.fixture
def computed(tmp_path):
    """The value of an expression of JavaScript in which S are the functions and G the states."""

    def value(code: str, **given):
        names = {"S": "latephase.solve", "G": "latephase.given"}
        names |= {name: json.dumps(np.asarray(of).tolist()) for name, of in given.items()}
        code = f"(({', '.join(names)}) => {code})({', '.join(names.values())})"
        return json.loads(in_node(code) if shutil.which("node") else in_chromium(code, tmp_path))

    if not (shutil.which("node") or chromium()):
        pytest.skip("neither Node nor Chromium is here to run what pages run")
    return value


def test_the_margin_of_a_linear_model_is_the_support_vector_machine_s(computed):
    found = computed("S.maxMargin(z)", z=ROWS)
    direction, margin = latephase.hard_margin(ROWS, np.ones(len(ROWS)))
    assert found["margin"] == pytest.approx(margin, rel=1e-9)
    np.testing.assert_allclose(found["u"], direction, atol=1e-9)
    assert computed("S.maxMargin(z)", z=[*ROWS, [-1.0, -1.0]]) is None


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1] * [[1.0, 0.2]], ROWS[2:4]])
def test_a_linear_flow_is_the_library_s(computed, rows):
    start, levels = [0.7, -0.4], [3.0, 10.0, 100.0, 1e4, 1e12]
    module = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    module.weight.data = torch.tensor([start], dtype=torch.float64)
    flow = latephase.gradient_flow(module, rows, np.ones(len(rows)), at=levels, tol=1e-6)
    index = [flow.at(level).index for level in levels]
    # The library's records lie within a thousandth above the levels.
    reached = flow.smoothed_margin[index]
    records = computed("S.linearFlow(z, w, levels).records", z=rows, w=start, levels=reached)
    for record, k in zip(records, index, strict=True):
        assert angle(np.array(record["direction"]), flow.direction[k]) < 3e-5
        np.testing.assert_allclose(record["dual"], flow.dual[k], atol=1e-3)


def test_a_linear_flow_goes_on_to_where_the_library_s_ends(computed):
    levels = [3.0, 1e4, 1e6, 1e15, 1e30]
    records = computed("S.linearFlow(z, [0, 0], levels).records", z=ROWS, levels=levels)
    direction, _ = latephase.hard_margin(ROWS, np.ones(len(ROWS)))
    assert angle(np.array(records[-1]["direction"]), direction) < 1e-9
    # What is across the limit stays as it is: the angle falls like 1/α.
    left = [record["angle"] * record["level"] for record in records[1:]]
    np.testing.assert_allclose(left, left[-1], rtol=1e-2)


@pytest.mark.parametrize("name", explorables.POINTS)
def test_the_given_states_and_the_live_flow_are_the_library_s(computed, name):
    fresh = given(name)
    kept = computed(f"G.sets['{name}']")
    for key in ("x", "y", "start"):
        np.testing.assert_allclose(kept[key], fresh[key], atol=1e-12)
    np.testing.assert_allclose(kept["direction"], fresh["direction"], atol=1e-3)
    assert computed("G.levels") == list(explorables.LEVELS)
    flow = "[...S.networkFlow(s.x, s.y, s.start, [1, 3, 10, 30, 100])].filter(Boolean)"
    live = computed(f"{{ const s = G.sets['{name}']; return {flow} }}")
    assert [record["level"] for record in live] == [1, 3, 10, 30, 100]
    for record, direction in zip(live, fresh["direction"], strict=False):
        assert angle(np.array(record["direction"]), direction) < 2e-3


@pytest.mark.parametrize("name", explorables.POINTS)
def test_the_largest_margin_is_the_linear_program_s(computed, name):
    found = computed(f"{{ const s = G.sets['{name}']; return S.largestMargin(s.x, s.y, 360) }}")
    around = 2 * np.pi * np.arange(360) / 360
    fresh = given(name)
    grid = np.stack([np.cos(around), np.sin(around)], axis=1)
    program = variation_margin(fresh["x"], fresh["y"], grid)
    assert found["margin"] == pytest.approx(program.margin, rel=1e-7)
    assert sum(found["mass"]) == pytest.approx(1.0)
    np.testing.assert_allclose(found["dual"], program.dual, atol=1e-5)


@pytest.mark.parametrize("cap", [np.inf, 8.0])
def test_the_groove_is_the_chapter_s(computed, cap):
    sigmas = np.linspace(0, 50, 251)
    code = f"S.hatFlow(3, 0.5, sigmas, {'Infinity' if np.isinf(cap) else cap})"
    records = computed(code, sigmas=sigmas)
    path = follow(Hat(cap=cap), 3.0, 0.5, sigmas)
    for key, expected in (("x", path.x), ("longitude", path.longitude)):
        np.testing.assert_allclose([r[key] for r in records], expected, rtol=1e-4)
    np.testing.assert_allclose([r["length"] for r in records], path.path_length, atol=1e-2)


FORCES = {
    "exponential": lambda p: np.exp(-p),
    "logistic": lambda p: 1 / (1 + np.exp(p)),
    "polynomial": other_losses.polynomial(2.0),
    "hinge": other_losses.hinge,
    "squared": other_losses.squared,
}


@pytest.mark.parametrize("loss", FORCES)
@pytest.mark.parametrize("share", [0.01, 0.9])
def test_descent_is_the_library_s(computed, loss, share):
    keep = [1, 10, 100, 1000]
    code = "[S.sharpness(z), S.LOSSES[loss].bend]"
    top, bend = computed(code, z=ROWS, loss=loss)
    assert top == pytest.approx(np.linalg.eigvalsh(ROWS.T @ ROWS)[-1])
    rate = share * 2 / (bend * top)
    found = computed("S.descend(z, loss, rate, keep)", z=ROWS, loss=loss, rate=rate, keep=keep)
    family, zero = together.linear_family(ROWS[None]), np.zeros((1, 2))
    run = together.descend(family, zero, rate, force=FORCES[loss], steps=1000, keep=keep)
    np.testing.assert_allclose(found, run.w[:, 0], rtol=1e-9)


def test_both_engines_say_the_same(tmp_path):
    if not (shutil.which("node") and chromium()):
        pytest.skip("one of Node and Chromium is not here")
    code = "latephase.solve.maxMargin([[1, 2], [2, 0.5]])"
    assert json.loads(in_node(code)) == json.loads(in_chromium(code, tmp_path))
