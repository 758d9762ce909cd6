"""What a reader can move, search, switch and step through, by pointer and by keyboard."""

from itertools import combinations

import numpy as np
import pytest

from tests.site.visits import AXE_RULES, AXE_RUN, HTML, PAGES, WAYS, picture, pixels

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
            # By keyboard: to the first, and one on.
            slider.press("Home")
            assert state_of(box, reader.roots[way])[:3] == seen[0][:3]
            slider.press("ArrowRight")
            seen.append(state_of(box, reader.roots[way]))
            assert seen[2][0] == 1
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
def test_points_can_be_dragged_and_moved_by_keys(reader, way):
    with reader.opened("book/explore.html", way) as window:
        box = window.locator("[data-explorable=points]")
        said, handle = box.locator(".said"), box.get_by_role("button", name="Point 12,")
        window.wait_for_function("document.querySelector('.said').textContent.includes('computed')")
        told = [said.inner_text()]
        at = [handle.get_attribute("aria-label")]
        handle.scroll_into_view_if_needed()
        room = handle.bounding_box()
        window.mouse.move(room["x"] + room["width"] / 2, room["y"] + room["height"] / 2)
        window.mouse.down()
        window.mouse.move(room["x"] + room["width"] / 2 + 12, room["y"] + room["height"] / 2 + 4)
        window.mouse.up()
        at.append(handle.get_attribute("aria-label"))
        handle.press("ArrowUp")
        at.append(handle.get_attribute("aria-label"))
        assert len(set(at)) == 3
        handle.press("Enter")
        assert ("label plus" in handle.get_attribute("aria-label")) != ("label plus" in at[2])
        handle.press("Enter")
        window.wait_for_function("(was) => document.querySelector('.said').textContent !== was",
                                 arg=told[0])  # fmt: skip
        # Points of two half-planes have a linear model to the end; of six sectors they have none.
        box.get_by_role("button", name="linear model").press("Enter")
        assert "there is no late phase" in said.inner_text()
        box.get_by_role("button", name="two half-planes").press("Enter")
        box.get_by_role("slider").press("End")
        assert "α = 10³⁰" in said.inner_text()


@each_way
def test_the_groove_is_settled_on_one_axis_and_turns_on_another(reader, way):
    with reader.opened("book/explore.html", way) as window:
        box = window.locator("[data-explorable=groove]")
        said, slider = box.locator(".said"), box.get_by_role("slider")
        assert slider.input_value() == "0"
        assert said.inner_text().startswith("Move on")
        window.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert said.inner_text().startswith("Settled")
        window.evaluate("dispatchEvent(new Event('afterprint'))")
        assert slider.input_value() == "0"
        slider.press("End")
        assert said.inner_text().startswith("Settled")
        box.get_by_role("button", name="ln ln α").press("Enter")
        assert said.inner_text().startswith("Turning")
        box.get_by_role("button", name="definable", exact=True).press("Enter")
        assert said.inner_text().startswith("Settled")


@each_way
def test_losses_and_steps_can_be_chosen(reader, way):
    with reader.opened("book/explore.html", way) as window:
        box = window.locator("[data-explorable=tail]")
        told = set()
        for loss in ("squared", "hinge", "polynomial", "logistic", "exponential"):
            box.get_by_role("button", name=loss).press("Enter")
            told.add(box.locator(".said").inner_text())
            assert loss in box.locator(".said").inner_text()
        box.get_by_role("slider").press("Home")
        assert box.locator(".said").inner_text() not in told


def test_a_figure_opens_at_full_size_on_a_phone(reader):
    with reader.opened("book/alignment.html", "file") as window:
        button = window.get_by_role("button", name="full size").first
        button.press("Enter")
        image = window.locator("dialog img")
        assert image.bounding_box()["width"] >= 900
        window.keyboard.press("Escape")
        assert window.locator("dialog").count() == 0


@each_way
@pytest.mark.parametrize(
    ("page", "figure", "words"),
    [
        ("alignment", "#fig-alignment", "misalignment 1 −"),
        ("margin_maximization", ".latephase-frames", "example, by angle"),
    ],
)
def test_the_browser_finds_the_words_of_a_figure(reader, page, figure, words, way):
    with reader.opened(f"book/{page}.html", way) as window:
        over = window.locator(f"{figure} .words").first
        assert window.evaluate("(words) => find(words)", words)
        found = over.locator(":scope > text", has_text=words).first
        room, picture = found.bounding_box(), over.locator("xpath=../img").bounding_box()
        for at, size in (("x", "width"), ("y", "height")):
            assert picture[at] - 1 <= room[at]
            assert room[at] + room[size] <= picture[at] + picture[size] + 1
        assert found.evaluate("(text) => text.contains(getSelection().anchorNode)")
        assert over.evaluate("(over) => getComputedStyle(over).fill").endswith(" 0)")


@each_way
def test_a_caption_leads_to_its_code_which_stands_under_one_fold(reader, way):
    with reader.opened("book/alignment.html", way) as window:
        fold, link = window.locator(".page-code"), window.get_by_role("link", name="code cell")
        assert window.locator("main .cell_input:visible").count() == 0
        link.first.press("Enter")
        cell = window.locator(link.first.get_attribute("href"))
        assert fold.get_attribute("open") is not None
        room = cell.bounding_box()
        assert 0 < room["y"] < 600
        scrolls = "(all) => all.filter((box) => box.scrollWidth > box.clientWidth).map(tabIndexOf)"
        scrolls = scrolls.replace("tabIndexOf", "(box) => box.tabIndex")
        assert set(window.locator(".page-code pre").evaluate_all(scrolls)) <= {0}
        fold.locator("summary").press("Enter")
        assert fold.get_attribute("open") is None
        link.nth(1).press("Enter")  # it opens again
        assert fold.get_attribute("open") is not None
        window.evaluate(reader.axe)
        found = window.evaluate(AXE_RUN, AXE_RULES["file"])
        assert [fault["id"] for fault in found] == []


def test_a_tutorial_shows_its_code(reader):
    with reader.opened("book/your_network.html", "server") as window:
        assert window.locator("main .cell_input:visible").count() > 5
        assert window.locator(".page-code").count() == 0


@each_way
def test_answers_to_exercises_fold(reader, way):
    pages = [page for page in PAGES if 'folded"' in (HTML / page).read_text(encoding="utf8")]
    assert pages
    with reader.opened(pages[0], way) as window:
        answer = window.locator("details.folded").first
        said = answer.locator(":scope > :not(summary)").first
        assert not said.is_visible()
        answer.locator("summary").press("Enter")
        assert said.is_visible()
        window.evaluate(reader.axe)
        found = window.evaluate(AXE_RUN, AXE_RULES["file"])
        assert [fault["id"] for fault in found] == []
        answer.locator("summary").press("Space")
        assert not said.is_visible()
        window.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert said.is_visible()
        window.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not said.is_visible()


def check_shown(reader, window, tip):
    """A tip is within the window, and axe has nothing against the page with it."""
    room, wide = tip.bounding_box(), window.viewport_size["width"]
    assert room["x"] >= 0
    assert room["x"] + room["width"] <= wide
    window.evaluate(reader.axe)
    found = window.evaluate(AXE_RUN, AXE_RULES["file"])
    assert [fault["id"] for fault in found] == []


@each_way
def test_a_term_says_what_it_means(reader, way):
    with reader.opened("book/verdicts.html", way) as window:
        link, tip = window.locator("a[aria-describedby]").first, window.locator(".tips > .shown")
        assert link.get_attribute("aria-describedby") == "tip-term-alignment"
        link.focus()
        window.keyboard.press("Shift+Tab")
        window.keyboard.press("Tab")
        assert "points where" in tip.inner_text()
        assert tip.locator("mjx-container").count() == 2
        check_shown(reader, window, tip)
        window.keyboard.press("Escape")
        assert tip.count() == 0
        window.keyboard.press("Shift+Tab")
        link.hover()
        assert tip.count() == 1
        tip.hover()  # to be read, or copied
        window.wait_for_timeout(400)
        assert tip.count() == 1
        window.mouse.move(1, 1)
        window.wait_for_function("!document.querySelector('.tips > .shown')")


@each_way
def test_a_symbol_says_what_it_means_where_it_first_stands(reader, way):
    with reader.opened("book/margin_maximization.html", way) as window:
        symbol, tip = window.locator(".symbol"), window.locator(".tips > .shown")
        assert 3 < symbol.count() < 20
        symbol.nth(1).focus()
        window.keyboard.press("Shift+Tab")
        window.keyboard.press("Tab")
        assert "smoothed margin" in tip.inner_text()
        check_shown(reader, window, tip)
        window.keyboard.press("Enter")
        assert tip.count() == 0
        window.keyboard.press("Space")
        assert tip.count() == 1
        window.keyboard.press("Escape")
        assert tip.count() == 0
        window.keyboard.press("Tab")
        symbol.nth(1).hover()
        assert tip.count() == 1


def test_a_finger_sees_what_a_symbol_means(reader):
    context = reader.phone()
    window = context.new_page()
    window.goto(reader.roots["file"] + "book/margin_maximization.html")
    window.locator(".symbol mjx-container").first.tap()
    tip = window.locator(".tips > .shown")
    assert "output of the network" in tip.inner_text()
    window.locator("article h1").tap()
    window.wait_for_function("!document.querySelector('.tips > .shown')")
    context.close()


def test_a_finger_goes_where_a_link_leads(reader):
    context = reader.phone()
    window = context.new_page()
    window.goto(reader.roots["file"] + "book/verdicts.html")
    window.locator("a[aria-describedby]").first.tap()
    window.wait_for_url("**/notation.html#term-alignment")
    context.close()


@each_way
def test_on_paper_a_page_is_light_and_has_no_controls(reader, way):
    with reader.opened("book/where_it_fails.html", way) as window:
        window.evaluate("dispatchEvent(new Event('beforeprint'))")
        window.emulate_media(media="print")
        assert window.evaluate("document.documentElement.dataset.theme") == "light"
        for unwanted in (".page-code", ".bibtex", ".latephase-frames input", ".enlarge"):
            assert window.locator(f"{unwanted}:visible").count() == 0, unwanted
        slider = window.locator(".latephase-frames input").first
        assert slider.input_value() == slider.get_attribute("max")
        window.emulate_media(media="screen")
        window.evaluate("dispatchEvent(new Event('afterprint'))")
        theme = "light" if way == "server" else "dark"
        assert window.evaluate("document.documentElement.dataset.theme") == theme
        assert slider.input_value() == "0"


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
@pytest.mark.parametrize("words", ["implicit bias", "o-minimal", "KKT", "max margin", "SVM"])
def test_search_leads_to_what_explains_the_words_that_people_type(reader, words, way):
    with reader.opened(f"search.html?q={words.replace(' ', '+')}", way) as window:
        window.locator("#search-results ul.search a").first.wait_for()
        window.wait_for_function("!document.querySelector('#search-progress')?.innerText")
        links = window.locator("#search-results ul.search > li > a").evaluate_all(
            "(links) => links.map((link) => link.getAttribute('href'))"
        )
        assert "book/notation.html#term-" in links[0]
        assert any(link.partition("?")[0].endswith(".html") for link in links[1:4])
        assert not any("library/" in link for link in links[:4])


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
    "page",
    [
        *("book/index.html", "book/all_claims.html", "book/where_it_fails.html"),
        *("book/explore.html", "search.html"),
    ],
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
