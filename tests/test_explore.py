"""A slider over frames: whole, offline, and safe in a page."""

import gzip
import json
import re
from base64 import b64decode

import matplotlib.pyplot as plt
import pytest

from latephase.figures import slider


def figures(count):
    drawn = []
    for i in range(count):
        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([0, i])
        drawn.append(figure)
    return drawn


def test_every_frame_is_in_the_page_and_nothing_is_loaded():
    page = slider.frames(
        figures(3), ["a", "b", "c</script>"], "smoothed margin", "fig-x", 'say "x"'
    )._repr_mimebundle_()["text/html"]
    packed = b64decode(re.search(r'atob\("([^"]*)"\)', page).group(1))
    frames = json.loads(gzip.decompress(packed))
    assert len(set(frames)) == 3
    assert all("<svg" in frame for frame in frames)
    assert not re.search(r"(src|href)=\"(http|//)", page)
    # The last frame stands there without scripts, and a value cannot end the script.
    shown = re.search(r'src="data:image/svg\+xml;base64,([^"]*)"', page.split("<script>")[0])
    assert b64decode(shown.group(1)).decode() == frames[-1]
    assert page.count("</script>") == 1
    assert 'alt="say &quot;x&quot;"' in page
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        (
            ["α = 1", "α = 10", "α = 1e+03", "α = 1e+30"],
            {1: "training usually stops here", 2: "float64 ends here", 3: "the limit"},
        ),
        (["α = 2", "α = 12", "α = 1e+02"], {1: "training usually stops here"}),
        (["α = 1", "step 3"], {}),
    ],
)
def test_levels_of_alpha_get_the_stops_that_readers_know(values, stops):
    page = slider.frames(figures(len(values)), values, "α", "fig-x", "a picture").page
    found = re.findall(r'<button type="button" value="(\d+)" disabled>([^<]*)<', page)
    assert {int(frame): words for frame, words in found} == stops


@pytest.mark.parametrize(("count", "values"), [(1, ["a"]), (2, ["a"])])
def test_frames_without_their_values_are_refused(count, values):
    with pytest.raises(ValueError, match=f"got {count} figures and {len(values)} values"):
        slider.frames(figures(count), values, "x", "fig-x", "a picture")
    plt.close("all")
