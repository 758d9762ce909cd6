"""A formula says what its symbols mean where they first stand, in the words of the table."""

import re

import pytest

from latebook.symbols import explain, of_table

TABLE = r"""<tr class="row-even"><td><p><span class="math x">\(W\)</span>,
<span class="math x">\(\norm{W}\)</span></p></td>
<td><p>weights; <a href="y">length</a></p></td><td></td></tr>
<tr><td><p><span class="math x">\(\gamma\)</span></p></td><td><p>margin</p></td></tr>
<tr><td><p><span class="math x">\(\tilde\gamma\)</span></p></td><td><p>tilde</p></td></tr>
<tr><td><p><span class="math x">\(p_i(W)\)</span></p></td><td><p>of one</p></td></tr>
<tr><td><p><span class="math x">\(H(q)\)</span></p></td><td><p>entropy</p></td></tr>
<tr><td><p><span class="math x">\(n\)</span></p></td><td><p>number</p></td></tr>
<tr><td><p><span class="math x">\(a\)</span></p></td><td><p>limit</p></td></tr>
<tr><td><p>tol</p></td><td><p>error</p></td></tr>"""
WEIGHTS = r"""<b><span class="math x">\(W\)</span>,
<span class="math x">\(\norm{W}\)</span></b> weights; length"""


def page(*formulas: str) -> str:
    shown = " ".join(rf'<span class="math x">\({tex}\)</span>' for tex in formulas)
    return f"<p></p><article>{shown}</article>"


def told(*formulas: str) -> list[tuple[str, list[str]]]:
    """The formulas that became stops, and what their tips say after the symbol."""
    done = explain(page(*formulas), of_table(TABLE))
    stops = re.findall(
        r'<span tabindex="0" role="group" aria-describedby="(tip-symbol-\d+)" '
        r'class="symbol math x">\\\((.*?)\\\)</span>',
        done,
    )
    tips = dict(re.findall(r'<div role="tooltip" id="(.*?)">(.*?)</div>', done, re.DOTALL))
    return [(tex, re.findall(r"</b> (\w+)", tips[tip])) for tip, tex in stops]


def test_each_symbol_is_told_once_where_it_stands_first():
    assert told("W", "W", r"\lVert W\rVert p_i = \tilde\gamma", r"\tilde{\gamma}", "p_j") == [
        ("W", ["weights"]),
        (r"\lVert W\rVert p_i = \tilde\gamma", ["tilde", "of"]),
    ]
    done = explain(page("W"), of_table(TABLE))
    assert f'<div class="tips">\n<div role="tooltip" id="tip-symbol-1">{WEIGHTS}</div>' in done
    assert done.endswith("</article>")


@pytest.mark.parametrize(
    ("tex", "found"),
    [
        (r"\hat\gamma", []),
        (r"\gamma_1", []),
        (r"2 + \gamma", ["margin"]),
        ("n", ["number"]),
        ("n + 1", []),
        ("a", []),
        ("H", []),
        (r"\alpha + H(q)", ["entropy"]),
        ("1/p_i", ["of"]),
        ("W_1", []),
        (r"\norm W", ["weights"]),
    ],
)
def test_another_letter_is_not_taken_for_it(tex, found):
    assert [words for _, words in told(tex)] == [found] * bool(found)


def test_a_margin_that_a_page_quantifies_over_is_another_one():
    assert told(r"\gamma &gt; 0", r"\gamma") == []


def test_links_and_headings_are_left_alone():
    link = page("W").replace("<span", '<a href="x"><span').replace("</span>", "</span></a>")
    heading = (
        page("W").replace("<article>", "<article><h2>").replace("</article>", "</h2></article>")
    )
    for without in (link, heading, page(), "no article"):
        assert explain(without, of_table(TABLE)) == without
    assert of_table("no table") == []
