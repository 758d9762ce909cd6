"""Pictures that a reader can move through: a slider over frames, in one piece of HTML.

Nothing is loaded from elsewhere, so that it works offline, from a file, and in the notebook.
The frames, much alike, are packed together with gzip, which browsers since 2023 unpack; before
that, and without scripts, the last frame is shown.
"""

from __future__ import annotations

import gzip
import html
import io
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from latephase.figures import tables

_PAGE = """\
<div class="latephase-frames" id="{name}">
<img src="{last}" alt="{alt}" style="width:100%;max-width:{width}px">
<p><label>{label} <input type="range" min="0" max="{top}" value="{top}" step="1" disabled
 aria-label="{label}" style="width:60%"></label> <output>{shown}</output></p>
<script>(async function () {{
  const box = document.getElementById("{name}"), values = {values};
  const image = box.querySelector("img"), slider = box.querySelector("input");
  const packed = Uint8Array.from(atob("{packed}"), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const frames = await new Response(stream).json();
  slider.addEventListener("input", function () {{
    image.src = "data:image/svg+xml," + encodeURIComponent(frames[slider.value]);
    box.querySelector("output").value = values[slider.value];
    slider.setAttribute("aria-valuetext", values[slider.value]);
  }});
  slider.setAttribute("aria-valuetext", values[slider.value]);
  slider.disabled = false;
}})();</script>
</div>
"""


@dataclass(frozen=True)
class Frames:
    """A slider over frames, shown as HTML where a notebook's cell ends with it."""

    # Kept out of the text that a notebook stores beside the HTML.
    page: str = field(repr=False)
    # The last frame, and the numbers of all of them.
    picture: str = field(repr=False)
    numbers: str = field(repr=False)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {
            "text/html": self.page,
            "image/svg+xml": self.picture,
            tables.MIME: self.numbers,
            "text/plain": "a slider over frames",
        }


def frames(
    figures: Sequence[Figure], values: Sequence[str], label: str, name: str, alt: str
) -> Frames:
    """Return a slider over figures, which are drawn to SVG and closed.

    values: what the slider shows for each figure, as "α = 1e+06"; label: what it moves, in words;
    name: an identifier of its own within the page; alt: the description of the picture.
    Raises ValueError unless there are two figures or more, with a value each.
    """
    if len(figures) < 2 or len(values) != len(figures):
        raise ValueError(
            "expected two figures or more, with a value each, got "
            f"{len(figures)} figures and {len(values)} values"
        )
    pictures = [_svg(figure) for figure in figures]
    shown = [tables.table(figure) for figure in figures]
    for table, value in zip(shown, values, strict=True):
        table.insert(0, "frame", value)
    numbers = tables.text(pd.concat(shown))
    for figure in figures:
        plt.close(figure)
    width = round(96 * figures[-1].get_figwidth())
    page = _PAGE.format(
        name=html.escape(name),
        alt=html.escape(alt),
        label=html.escape(label),
        top=len(figures) - 1,
        width=width,
        last="data:image/svg+xml;base64," + b64encode(pictures[-1].encode()).decode(),
        shown=html.escape(values[-1]),
        packed=_packed(pictures),
        # A value must not end the script.
        values=json.dumps(list(values)).replace("<", "\\u003c"),
    )
    return Frames(page, pictures[-1], numbers)


def _packed(pictures: list[str]) -> str:
    return b64encode(gzip.compress(json.dumps(pictures).encode(), mtime=0)).decode()


def _svg(figure: Figure) -> str:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
