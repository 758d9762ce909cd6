"""The words of a figure, for those who search a page for them or hear it read.

A picture is closed to both. Over each one lies its own text, which is not seen: the browser marks
what it finds in its place, a screen reader reads it after the description, and a picture stays a
file of its own, with names that cannot meet those of another one. Numbers on axes are left out.
"""

import base64
import gzip
import json
import re
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

# A figure's picture, and the one that a slider shows first, with all that it can show.
_PICTURE = re.compile(
    r'(?P<before><figure[^>]*>\s*)(?P<image><img [^>]*src="(?P<path>[^"]+\.svg)"[^>]*>)'
    r'|(?P<slider><div class="latephase-frames"[^>]*>\s*)(?P<still><img [^>]*>)'
    r'(?P<rest>.*?atob\("(?P<packed>[^"]*)")',
    re.DOTALL,
)
_SVG = "{http://www.w3.org/2000/svg}"


def letter(page: str, folder: Path) -> str:
    """The page, which stands in `folder`, with the words of its figures over their pictures."""

    def lettered(found: re.Match) -> str:
        if not found["packed"]:
            picture = (folder / unquote(unescape(found["path"]))).read_text(encoding="utf8")
            return found["before"] + _over(found["image"], [picture])
        frames = json.loads(gzip.decompress(base64.b64decode(found["packed"])))
        return found["slider"] + _over(found["still"], frames) + found["rest"]

    return _PICTURE.sub(lettered, page)


def _over(image: str, frames: list[str]) -> str:
    """The image, and over it what is written in all of the frames, where the last one has it."""
    last = ElementTree.fromstring(frames[-1])
    told = [{said for _, said in _written(ElementTree.fromstring(f), "")} for f in frames[:-1]]
    written = [(at, said) for at, said in _written(last, "") if all(said in f for f in told)]
    if not written:
        return image
    texts = "".join(f"<text{at}>{escape(said)}</text>" for at, said in written)
    room = escape(last.get("viewBox", ""))
    over = f'<svg class="words" viewBox="{room}" role="group" aria-label="Words in the figure">'
    return f'<span class="lettered">{image}{over}{texts}</svg></span>'


def _written(node: ElementTree.Element, moved: str) -> list[tuple[str, str]]:
    """The words below a node: attributes that place them, and what they say.

    A formula has a part for each of its letters, not in their order.
    """
    moved = f"{moved} {node.get('transform', '')}".strip()
    if node.tag != f"{_SVG}text":
        return [word for child in node for word in _written(child, moved)]
    letters = sorted(node, key=lambda part: float(part.get("x"))) or [node]
    said = " ".join("".join(part.text or "" for part in letters).split())
    if not any(sign.isalpha() for sign in said):
        return []
    first = letters[0]
    style = dict(re.findall(r"([\w-]+): ([^;]+)", first.get("style", "")))
    placed = {"x": first.get("x"), "y": first.get("y"), "transform": moved}
    placed |= {name: style.get(name) for name in ("font-size", "text-anchor")}
    return [("".join(f' {k}="{escape(_short(v))}"' for k, v in placed.items() if v), said)]


def _short(value: str) -> str:
    """An attribute with a tenth of a point where a picture has a millionth."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", value)
