"""Pictures that a reader can move through: a slider over frames, in one piece of HTML.

Nothing is loaded from elsewhere, so that it works offline, from a file, and in the notebook.
Without scripts the last frame is shown.
"""

from __future__ import annotations

import html
import io
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_PAGE = """\
<div class="latephase-frames" id="{name}">
<img src="{last}" alt="{alt}" style="width:100%;max-width:{width}px">
<p><label>{label} <input type="range" min="0" max="{top}" value="{top}" step="1" disabled
 aria-label="{label}" style="width:60%"></label> <output>{shown}</output></p>
<script>(function () {{
  const box = document.getElementById("{name}"), frames = {frames}, values = {values};
  const image = box.querySelector("img"), slider = box.querySelector("input");
  slider.disabled = false;
  slider.addEventListener("input", function () {{
    image.src = frames[slider.value];
    box.querySelector("output").value = values[slider.value];
    slider.setAttribute("aria-valuetext", values[slider.value]);
  }});
}})();</script>
</div>
"""


@dataclass(frozen=True)
class Frames:
    """A slider over frames, shown as HTML where a notebook's cell ends with it."""

    # Kept out of the text that a notebook stores beside the HTML.
    page: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.page


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
    sources = [_source(figure) for figure in figures]
    for figure in figures:
        plt.close(figure)
    width = round(96 * figures[-1].get_figwidth())
    page = _PAGE.format(
        name=html.escape(name),
        alt=html.escape(alt),
        label=html.escape(label),
        top=len(figures) - 1,
        width=width,
        last=sources[-1],
        shown=html.escape(values[-1]),
        frames=json.dumps(sources),
        # A value must not end the script.
        values=json.dumps(list(values)).replace("<", "\\u003c"),
    )
    return Frames(page)


def _source(figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + b64encode(drawn.getvalue()).decode()
