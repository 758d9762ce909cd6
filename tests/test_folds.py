"""Code stands at the foot of a page, under one fold, and answers fold without a script."""

import re

import pytest

from latebook import BookError
from latebook.folds import fold

CODE = """\
<div class="cell_input docutils container">
<div class="highlight-ipython3 notranslate"><div class="highlight"><pre><span></span>{}
</pre></div>
</div>
</div>
"""
HIDDEN = """\
<details class="admonition hide above-input">
<summary>
<p class="collapsed admonition-title">Show code cell source</p>
</summary>
{}</details>
"""
OUTPUT = """\
<div class="cell_output docutils container">
<figure class="align-default" id="{0}"><img src="{0}.svg"/><figcaption>
<p>See. <em>Source: code cell 2 of first.ipynb, profile quick.</em></p></figcaption></figure>
</div>
"""
FOOT = "<p><strong>Take this chapter with you:</strong> the notebook</p>\n"


def cell(number: int, body: str) -> str:
    return f'<div class="cell tag_x tag_code-cell-{number} docutils container">\n{body}</div>\n'


def page(*cells: str) -> str:
    return f"<p>Before.</p>\n{''.join(cells)}<p>After.</p>\n{FOOT}"


HIDING = page(
    cell(1, HIDDEN.format(CODE.format("import this"))),
    cell(2, HIDDEN.format(CODE.format("draw(1 &lt; 2)")) + OUTPUT.format("fig-x")),
    cell(3, CODE.format("record()") + '<div class="cell_output"><pre>recorded</pre></div>\n'),
)


def test_code_stands_at_the_foot_in_its_order():
    text, code = fold(HIDING).split('<details class="page-code"')
    assert "highlight-ipython3" not in text
    assert "<details" not in text
    assert '<figure class="align-default" id="fig-x">' in text
    assert text.index("fig-x") < text.index("<pre>recorded</pre>") < text.index("After.")
    shown = re.findall(r"<pre><span></span>(.*)\n", code)
    assert shown == ["import this", "draw(1 &lt; 2)", "record()"]
    assert re.findall(r'id="code-cell-(\d)"', code) == ["1", "2", "3"]
    assert code.rstrip().endswith(FOOT.rstrip())


def test_a_cell_of_which_only_code_was_seen_leaves_nothing():
    assert fold(HIDING).count('class="cell ') == 3 + 2  # all at the foot, two with outputs


def test_captions_and_code_lead_to_each_other():
    folded = fold(HIDING)
    assert 'Source: <a href="#code-cell-2">code cell 2</a> of first.ipynb' in folded
    assert 'Code cell 2: <a href="#fig-x">its figure</a>' in folded


def test_all_divisions_are_closed():
    for text in (HIDING, fold(HIDING)):
        assert text.count("<div") == text.count("</div>")


def test_a_tutorial_keeps_its_code_where_it_is():
    tutorial = page(cell(1, CODE.format("one")), cell(2, CODE.format("two") + OUTPUT.format("f")))
    folded = fold(tutorial)
    assert "page-code" not in folded
    assert 'container" id="code-cell-2">\n<div class="cell_input' in folded
    assert '<a href="#code-cell-2">code cell 2</a>' in folded


def test_code_is_never_lost():
    with pytest.raises(BookError, match="expected a page's foot"):
        fold(HIDING.replace(FOOT, ""))


@pytest.mark.parametrize("names", ["dropdown admonition", "admonition dropdown note"])
def test_an_answer_folds_with_all_that_is_in_it(names):
    said = '<p>Text.</p>\n<div class="math">x</div>\n<div><div>y</div></div>\n'
    title = '\n<p class="admonition-title">Answer</p>\n'
    folded = fold(f'<div class="{names}" id="a">{title}{said}</div>\n<p>Behind.</p>')
    kept = " ".join(name for name in names.split() if name != "dropdown")
    assert folded == (
        f'<details class="{kept} folded" id="a">\n<summary class="admonition-title">Answer'
        f"</summary>\n{said}</details>\n<p>Behind.</p>"
    )


@pytest.mark.parametrize("names", ["note admonition", "answer admonition", "dropdown"])
def test_other_boxes_stay_open(names):
    box = f'<div class="{names}">\n<p class="admonition-title">T</p>\n<p>x</p></div>'
    assert fold(box) == box
