"""The words of a figure lie over its picture, where the browser's search finds them."""

import gzip
import json
import re
from base64 import b64encode

from latebook.lettering import letter

SVG = """<?xml version="1.0"?>
<svg viewBox="0 0 72 36" xmlns="http://www.w3.org/2000/svg">
 <g transform="translate(1.26 2)">
  <text style="font-size: 11px; text-anchor: middle; fill: #7b7b7b" x="9.96" y="2"
   transform="rotate(-90 9.96 2)">{}</text>
 </g>
 <text x="1" y="1">−0.5</text>
 <g><text>
   <tspan x="4" y="-4" style="font-size: 6px">2</tspan>
   <tspan x="0" y="-1" style="font-size: 9px">α</tspan>
 </text></g>
</svg>"""
OVER = (
    '<svg class="words" viewBox="0 0 72 36" role="group" aria-label="Words in the figure">'
    '<text x="10.0" y="2" transform="translate(1.3 2) rotate(-90 10.0 2)" font-size="11px"'
    ' text-anchor="middle">loss &lt; 1</text><text x="0" y="-1" font-size="9px">α2</text></svg>'
)


def test_words_stand_over_their_figure_and_numbers_do_not(tmp_path):
    (tmp_path / "a.svg").write_text(SVG.format("loss &lt; 1"), encoding="utf8")
    image = '<img alt="A curve" src="a.svg" />'
    page = f'<figure id="f">\n{image}<figcaption/></figure><p>{image}</p>'
    figure = f'<figure id="f">\n<span class="lettered">{image}{OVER}</span>'
    assert letter(page, tmp_path) == page.replace(f'<figure id="f">\n{image}', figure)


def test_a_figure_without_words_stays_as_it_was(tmp_path):
    (tmp_path / "a.svg").write_text(re.sub("α", "1", SVG.format("2")), encoding="utf8")
    page = '<figure><img alt="A curve" src="a.svg"></figure>'
    assert letter(page, tmp_path) == page


def test_a_slider_has_the_words_that_all_of_its_frames_have(tmp_path):
    frames = [SVG.format("loss &lt; 1").replace("α", words) for words in ("α = 1", "β = 2")]
    packed = b64encode(gzip.compress(json.dumps(frames).encode())).decode()
    slider = '<div class="latephase-frames" id="s">\n<img src="data:x" alt="A">'
    page = letter(f'{slider}<script>atob("{packed}")</script></div>', tmp_path)
    only = re.sub("<text[^>]*>α2</text>", "", OVER)
    over = f'<span class="lettered"><img src="data:x" alt="A">{only}</span><script>'
    assert over in page
