"""Every page loads whole, from itself alone, and is in order for eye, phone and screen reader."""

import pytest

from tests.site.visits import HTML, PAGES, SEE, WAYS

pytestmark = pytest.mark.parametrize("page", PAGES)
each_way = pytest.mark.parametrize("way", WAYS)
LANDING = "book/index.html"


@each_way
def test_it_loads_without_complaint(reader, page, way):
    assert reader.visit(page, way).complaints == []


@each_way
def test_nothing_is_asked_of_elsewhere(reader, page, way):
    assert reader.visit(page, way).foreign(reader.roots[way]) == []


@each_way
def test_math_is_rendered(reader, page, way):
    facts = reader.visit(page, way).facts
    source = (HTML / page).read_text(encoding="utf8")
    assert facts["unrendered"] == facts["refused"] == facts["raw"] == []
    if 'class="math' in source:
        assert facts["rendered"] > 0


def test_an_unknown_macro_is_refused(reader, page):
    if page != "book/notation.html":
        pytest.skip("once is enough")
    with reader.opened(page, "server") as window:
        window.evaluate("""async () => {
          document.querySelector("main .math").innerHTML = "\\\\(\\\\fracc{1}{2}\\\\)";
          await MathJax.typesetPromise();
        }""")
        refused = window.evaluate(SEE)["refused"]
        assert refused
        assert all("fracc" in what for what in refused)


def test_the_mode_follows_the_system(reader, page):
    assert reader.visit(page, "server").facts["theme"] == "light"
    assert reader.visit(page, "file").facts["theme"] == "dark"


def test_headings_are_in_order(reader, page):
    headings = reader.visit(page, "server").facts["headings"]
    levels = [level for level, _ in headings]
    assert levels[:1] == [1], headings
    assert levels.count(1) == 1, headings
    skipped = [headings[i + 1] for i, level in enumerate(levels[:-1]) if levels[i + 1] > level + 1]
    assert skipped == []


def test_images_are_described_and_tables_have_headers(reader, page):
    facts = reader.visit(page, "server").facts
    assert [image["url"][:80] for image in facts["images"] if not image["alt"].strip()] == []
    assert facts["unheaded"] == []


@each_way
def test_nothing_is_out_of_the_keyboards_reach(reader, page, way):
    assert reader.visit(page, way).facts["unreachable"] == []


@each_way
def test_it_does_not_scroll_sideways(reader, page, way):
    facts = reader.visit(page, way).facts
    assert facts["out"] == []
    scrolled, wide = facts["width"]
    assert scrolled <= wide


@each_way
def test_axe_finds_nothing_serious(reader, page, way):
    serious = [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in reader.visit(page, way).violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert serious == []


def test_it_is_light(reader, page, weights):
    size = reader.visit(page, "server").bytes()
    weights[page] = size
    assert size < (1e6 if page == LANDING else 3e6)
