"""Numbers are set as a book sets them, and nothing else is taken for a number."""

import pytest

from latebook.numerals import in_text, on_page


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("2.1e-07", "2.1 × 10<sup>−7</sup>"),
        ("1e-30 and 1.0e-30", "10<sup>−30</sup> and 1.0 × 10<sup>−30</sup>"),
        ("α = 1e+30", "α = 10<sup>30</sup>"),
        ("2.1e−07, as 2.1E7", "2.1 × 10<sup>−7</sup>, as 2.1 × 10<sup>7</sup>"),
        ("exponent -1.9e-05, (-1e-5)", "exponent −1.9 × 10<sup>−5</sup>, (−10<sup>−5</sup>)"),
        ("1e-3–1e3", "10<sup>−3</sup>–10<sup>3</sup>"),
        ("by 1e-9. It", "by 10<sup>−9</sup>. It"),
        ("0.0e+00 of 4.66e+00", "0 of 4.66"),
        ("<td>-1.28e+03</td><td>-0.53</td>", "<td>−1280</td><td>−0.53</td>"),
        ("9.9e+02, 1.3e+04", "990, 1.3 × 10<sup>4</sup>"),
        ("4.5e-02, 4.5e-03, 1e-2", "0.045, 4.5 × 10<sup>−3</sup>, 10<sup>−2</sup>"),
        ("<td>inf</td><b> nan</b>", "<td>infinite</td><b> undefined</b>"),
        ("+inf without, −inf below", "+∞ without, −∞ below"),
    ],
)
def test_a_number_is_set_with_its_power(page, shown):
    shown = shown.replace(" × ", "\u00a0×\u00a0")  # at which no line breaks
    assert on_page(page) == shown
    assert on_page(shown) == shown


@pytest.mark.parametrize(
    "page",
    [
        *("<code>1e-7</code>", "<pre><span>1e-7</span> 2e5</pre>", '<img alt="1e-7 > 1e-8">'),
        *("<script>x = 1e5</script>", "<!-- 1e5 -->", "<title>1e5</title>"),
        '<dt class="sig x"><em>tol=1e-06</em></dt>',
        r'<span class="math">\(10^{1e5}\)</span>',
        *("commit 3e8a12, 1e5f", "commit 1234e56789", "commit 123456e789", "run-3e8", "v1e2"),
        *("#3e8", "file_1e5", "lib/1e5", "1.2e5.3", "an e-fold, NaN, inf F"),
        *("x-1", "a - b", "- an item", "-word"),
    ],
)
def test_what_is_not_a_number_of_the_text_stays(page):
    assert on_page(page) == page


def test_where_no_tag_can_stand_powers_are_letters():
    assert in_text("α = 1e+30, from -2.5e-07") == "α = 10³⁰, from −2.5\u00a0×\u00a010⁻⁷"
