"""Every figure is drawn on the page's own ground, and can be read in the light and in the dark."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.site.visits import PAGES, WAYS, contrast, picture

pytestmark = [pytest.mark.parametrize("page", PAGES), pytest.mark.parametrize("way", WAYS)]


BOXES = Path(__file__).with_name("boxes.js").read_text(encoding="utf8")


def ground(facts) -> np.ndarray:
    """The colour of the page itself."""
    return np.array([int(part) for part in re.findall(r"\d+", facts["ground"])[:3]]) / 255


def colours_of_words(node, fill: str = "black") -> set[str]:
    """Colours of the words in an SVG; what is not coloured inherits."""
    style = re.search(r"(?<![\w-])fill: *([^;]+)", node.get("style", ""))
    fill = style.group(1) if style else node.get("fill", fill)
    own = {fill} if (node.text or "").strip() and node.tag.endswith(("}text", "}tspan")) else set()
    return own.union(*(colours_of_words(child, fill) for child in node))


def shown(colour: np.ndarray, filter_: str) -> np.ndarray:
    """A colour after the style sheet's filter."""
    factor = re.fullmatch(r"brightness\(([\d.]+)\)", filter_)
    return np.clip(colour * float(factor.group(1)), 0, 1) if factor else colour


def test_it_is_drawn(reader, page, way):
    visit = reader.visit(page, way)
    here = ground(visit.facts)
    assert len(visit.figures) == len(visit.facts["images"])
    for image, drawn in zip(visit.facts["images"], visit.figures, strict=True):
        what = image["alt"][:60]
        assert image["drawn"], what
        against = contrast(drawn, here)
        assert (against > 3).mean() > 0.002, f"{what}: hardly anything stands out"
        # The page shows through: no box of the other mode's colour lies behind.
        corners = against[[1, 1, -2, -2], [1, -2, 1, -2]]
        assert corners.max() < 1.1, f"{what}: a ground of its own"


def test_its_words_are_whole_and_apart(reader, page, way):
    if way != "server":
        pytest.skip("a page in a file may not read its pictures; they are the same")
    with reader.opened(page, way) as window:
        assert window.evaluate(BOXES) == {}


def test_its_words_stand_out(reader, page, way):
    visit = reader.visit(page, way)
    here = ground(visit.facts)
    for image in visit.facts["images"]:
        svg = picture(image["url"], reader.roots[way])
        for word in sorted(colours_of_words(ElementTree.fromstring(svg))):
            assert re.fullmatch("#[0-9a-f]{6}", word), f"words in {word}"
            colour = np.array([int(word[k : k + 2], 16) for k in (1, 3, 5)]) / 255
            ratio = contrast(shown(colour, image["filter"]), here)
            assert ratio >= 4.5, f"{image['alt'][:60]}: {word} has a contrast of {ratio:.2f}"
