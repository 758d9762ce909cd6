"""What a reader can move, search, switch and step through, by pointer and by keyboard."""

from itertools import combinations

import numpy as np
import pytest

from tests.site.visits import HTML, PAGES, WAYS, picture, pixels

each_way = pytest.mark.parametrize("way", WAYS)
EXPLORABLE = [
    page
    for page in PAGES
    if (HTML / page).is_file() and "latephase-frames" in (HTML / page).read_text(encoding="utf8")
]
# Every stop of the keyboard that can be seen, and whether the one it is on can be told.
STOPS = """() => {
  const kinds = "a[href], button, input, select, textarea, summary, [tabindex]";
  const stops = [...document.querySelectorAll(kinds)].filter((node) => node.tabIndex >= 0
    && !node.disabled && node.checkVisibility({visibilityProperty: true, opacityProperty: true}));
  stops.forEach((node, k) => { node.dataset.stop = k; });
  return stops.map((node) => node.outerHTML.replace(/\\s+/g, " ").slice(0, 120));
}"""
ON = """() => {
  document.getAnimations().forEach((animation) => animation.finish());
  const node = document.activeElement, look = getComputedStyle(node);
  const box = node.getBoundingClientRect();
  return {
    stop: node.dataset.stop === undefined ? null : Number(node.dataset.stop),
    what: node.outerHTML.replace(/\\s+/g, " ").slice(0, 120),
    marked: (look.outlineStyle !== "none" && parseFloat(look.outlineWidth) > 0)
      || look.boxShadow !== "none",
    within: box.width > 0 && box.bottom > 0 && box.top < innerHeight
      && box.right > 0 && box.left < innerWidth,
  };
}"""


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two pictures."""
    assert one.shape == other.shape
    return np.abs(one - other).mean()


@each_way
def test_the_first_page_leads_to_the_landing_page(reader, way):
    with reader.opened("index.html", way) as window:
        assert window.url == reader.roots[way] + "book/index.html"


def test_some_pages_can_be_explored():
    assert "book/index.html" in EXPLORABLE
    assert len(EXPLORABLE) >= 8


def state_of(box, root: str) -> tuple[int, str, str, np.ndarray]:
    """Where a slider stands, what it says, and the picture beside it: its source, its pixels."""
    slider, image = box.locator("input[type=range]"), box.locator("img")
    image.evaluate("(image) => image.decode()")
    shown = box.locator("output").inner_text()
    assert slider.get_attribute("aria-valuetext") == shown
    svg = picture(image.get_attribute("src"), root)
    return int(slider.input_value()), shown, svg, pixels(image)


@pytest.mark.parametrize(
    ("page", "way"),
    [*((page, "server") for page in EXPLORABLE[:1]), *((page, "file") for page in EXPLORABLE)],
)
def test_sliders_move_the_picture(reader, page, way):
    with reader.opened(page, way) as window:
        for box in window.locator(".latephase-frames").all():
            slider = box.locator("input[type=range]")
            # It begins at its beginning.
            seen = [state_of(box, reader.roots[way])]
            assert seen[0][0] == 0
            # By pointer, or finger: to the last frame.
            room = slider.bounding_box()
            slider.click(position={"x": room["width"] - 3, "y": room["height"] / 2})
            seen.append(state_of(box, reader.roots[way]))
            assert seen[1][0] == int(slider.get_attribute("max"))
            # By keyboard: one back, and to the first.
            slider.press("ArrowLeft")
            seen.append(state_of(box, reader.roots[way]))
            assert seen[2][0] == seen[1][0] - 1
            slider.press("Home")
            assert state_of(box, reader.roots[way])[:3] == seen[0][:3]
            # The buttons below lead to where readers would have looked.
            for stop in box.locator("button[value]").all():
                stop.press("Enter")
                assert slider.input_value() == stop.get_attribute("value")
                assert stop.get_attribute("aria-pressed") == "true"
            # Played from the end it begins anew, and goes on by itself.
            slider.press("End")
            box.get_by_role("button", name="Play").press("Enter")
            window.wait_for_function("(slider) => slider.value > 1", arg=slider.element_handle())
            box.get_by_role("button", name="Pause").press("Enter")
            assert len({shown for _, shown, *_ in seen}) == 3
            drawn = [pixels for *_, pixels in seen]
            assert min(apart(a, b) for a, b in combinations(drawn, 2)) > 1e-3, "frames alike"


@each_way
def test_search_finds_alignment(reader, way):
    with reader.opened("book/notation.html", way) as window:
        window.keyboard.press("Control+k")
        window.locator("#search-input").fill("alignment")
        window.keyboard.press("Enter")
        window.wait_for_url("**/search.html?q=alignment*")
        window.locator("#search-results .search-summary, #search-results p").first.wait_for()
        found = window.locator("#search-results ul.search a")
        found.first.wait_for()
        window.wait_for_function("!document.querySelector('#search-progress')?.innerText")
        links = found.evaluate_all("(links) => links.map((link) => link.href)")
        assert any("/book/alignment.html" in link for link in links)
        assert len(links) >= 5
    with reader.opened("search.html?q=xylophone", way) as window:
        window.wait_for_function("document.querySelector('#search-results p')?.innerText")
        assert window.locator("#search-results ul.search a").count() == 0


@each_way
def test_claims_can_be_filtered_and_are_opened_by_their_address(reader, way):
    page = "book/all_claims.html"
    rows = "details.claim:not([hidden])"
    with reader.opened(f"{page}?kind=instrument", way) as window:
        shown = window.locator(rows)
        assert set(shown.evaluate_all("(a) => a.map((row) => row.dataset.kind)")) == {"instrument"}
        few = shown.count()
        window.locator("#claims-filter [name=kind]").select_option("")
        assert shown.count() > few
        window.locator("#claims-filter [name=words]").fill("support vector")
        texts = shown.evaluate_all("(a) => a.map((row) => row.textContent.toLowerCase())")
        assert texts
        assert all("support" in text and "vector" in text for text in texts)
        assert f"{len(texts)} of " in window.locator("#claims-filter output").inner_text()
        id = shown.last.get_attribute("id")
    with reader.opened(f"{page}#{id}", way) as window:
        opened = window.locator("details.claim[open]")
        assert opened.count() == 1
        assert opened.get_attribute("id") == id
        link = opened.locator("a", has_text="the figure")
        if link.count():
            to = link.get_attribute("href").partition("#")[2]
            link.click()
            window.wait_for_load_state("load")
            assert window.locator(f"#{to}").count() == 1


@each_way
def test_the_mode_can_be_switched(reader, way):
    with reader.opened("book/notation.html", way) as window:
        seen = set()
        for _ in range(3):
            window.locator(".theme-switch-button:visible").first.press("Enter")
            seen.add(window.evaluate("document.documentElement.dataset.theme"))
        window.evaluate("localStorage.clear()")
        assert seen == {"light", "dark"}


@each_way
@pytest.mark.parametrize(
    "page", ["book/index.html", "book/all_claims.html", "book/where_it_fails.html", "search.html"]
)
def test_the_keyboard_reaches_everything(reader, page, way):
    with reader.opened(page, way) as window:
        stops = window.evaluate(STOPS)
        reached, unmarked, outside = set(), [], []
        for _ in range(2 * len(stops) + 10):
            window.keyboard.press("Tab")
            on = window.evaluate(ON)
            if on["stop"] in reached:
                break
            if on["stop"] is None:
                continue
            reached.add(on["stop"])
            unmarked += [] if on["marked"] else [on["what"]]
            outside += [] if on["within"] else [on["what"]]
        missed = [stops[k] for k in range(len(stops)) if k not in reached]
        assert missed == []
        assert unmarked == []
        assert outside == []
