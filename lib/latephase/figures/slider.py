"""Pictures that a reader can move through: a slider over frames, in one piece of HTML.

Nothing is loaded from elsewhere, so that it works offline, from a file, and in the notebook.
The frames, much alike, are packed together with gzip, which browsers since 2023 unpack; before
that, without scripts, and in print, the last frame is shown. With them it begins at the first.
"""

from __future__ import annotations

import gzip
import html
import io
import json
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from latephase.figures import tables
from latephase.figures.style import STOPS

_PAGE = """\
<div class="latephase-frames" id="{name}">
<img src="{last}" alt="{alt}" style="width:100%;max-width:{width}px">
<p><button type="button" aria-label="Play" disabled>▶</button>
<label>{label} <input type="range" min="0" max="{top}" value="{top}" step="1" disabled
 aria-label="{label}" style="width:60%"></label> <output>{shown}</output></p>
{stops}<script>(async function () {{
  const box = document.getElementById("{name}"), values = {values};
  const image = box.querySelector("img"), slider = box.querySelector("input");
  const [play, ...stops] = box.querySelectorAll("button");
  const packed = Uint8Array.from(atob("{packed}"), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const frames = await new Response(stream).json();
  let clock = 0, before = 0;
  function show(k) {{
    slider.value = k;
    image.src = "data:image/svg+xml," + encodeURIComponent(frames[k]);
    box.querySelector("output").value = values[k];
    slider.setAttribute("aria-valuetext", values[k]);
    for (const stop of stops) stop.setAttribute("aria-pressed", stop.value === String(k));
  }}
  function rest() {{
    clearInterval(clock);
    clock = 0;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play");
  }}
  function step() {{
    show(Number(slider.value) + 1);
    if (slider.value === slider.max) rest();
  }}
  play.addEventListener("click", function () {{
    if (clock) return rest();
    show(slider.value === slider.max ? 0 : slider.value);
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
    clock = setInterval(step, 900);
  }});
  slider.addEventListener("input", function () {{ rest(); show(slider.value); }});
  for (const stop of stops) {{
    stop.addEventListener("click", function () {{ rest(); show(stop.value); }});
    stop.disabled = false;
  }}
  addEventListener("beforeprint", function () {{
    rest();
    before = slider.value;
    show(slider.max);
  }});
  addEventListener("afterprint", function () {{ show(before); }});
  slider.disabled = play.disabled = false;
  show(0);
}})();</script>
</div>
"""
_STOP = '<button type="button" value="{frame}" disabled>{words}</button>'
# Where readers of "α = 1e+06" would have looked, or have to stop looking.
_LEVEL = re.compile(r"α = ([\d.]+(?:e[+-]?\d+)?)")
_LIMIT = 1e12


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
    Where all values are levels of α, buttons lead to the frames nearest to where training usually
    stops, where float64 can no longer hold the loss, and to the last if it is as good as the limit.
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
        stops=_stops(values),
        packed=_packed(pictures),
        # A value must not end the script.
        values=json.dumps(list(values)).replace("<", "\\u003c"),
    )
    return Frames(page, pictures[-1], numbers)


def _stops(values: Sequence[str]) -> str:
    levels = [_LEVEL.fullmatch(value) for value in values]
    if not all(levels):
        return ""
    logs = [math.log(max(float(level[1]), 1e-9)) for level in levels]
    frames = range(len(logs))
    stops = {min(frames, key=lambda k, at=at: abs(logs[k] - math.log(at))): f"{words} here"
             for at, words in STOPS.items() if at <= math.exp(min(logs[-1], 700))}  # fmt: skip
    if logs[-1] > math.log(_LIMIT):
        stops[len(logs) - 1] = "the limit"
    buttons = (_STOP.format(frame=k, words=words) for k, words in sorted(stops.items()))
    return f"<p>{' '.join(buttons)}</p>\n" if stops else ""


def _packed(pictures: list[str]) -> str:
    return b64encode(gzip.compress(json.dumps(pictures).encode(), mtime=0)).decode()


def _svg(figure: Figure) -> str:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
