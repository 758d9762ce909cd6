"""The last hand on finished pages: nothing loaded in vain, icons cut down, names put right."""

import re
import shutil

import pytest
from fontTools.ttLib import TTFont
from matplotlib import get_data_path

from latebook import BookError, pages

HEAD = """\
<link href="_static/vendor/fontawesome/6/css/all.min.css" rel="stylesheet" />
<link rel="preload" as="font" type="font/woff2" crossorigin href="x.woff2" />
<script src="_static/vendor/fontawesome/6/js/all.min.js?digest=1"></script>
<link rel="stylesheet" type="text/css" href="_static/sphinx-design.min.css?v=1" />
<script>const THEBE_JS_URL = "https://elsewhere/thebe.js"; const x = "pre"</script>
<script async="async" src="_static/sphinx-thebe.js?v=1"></script>
<script>window.MathJax = {"tex": {}}</script>
<script defer="defer" src="_static/../mathjax/es5/startup.js?v=1"></script>
"""
RULES = """\
.fa-lg{font-size:1.25em}.fa-a:before,.fa-alpha:before{content:"\\61"}.fa-b:before{content:"\\62"}\
@font-face{font-family:F;src:url(../webfonts/f.woff2) format("woff2"),\
url(../webfonts/f.ttf) format("truetype")}"""


@pytest.fixture
def html(tmp_path):
    """A page, an icon set of which it shows one icon, and a style of the theme that names one."""
    icons = tmp_path / "_static" / "vendor" / "fontawesome" / "6"
    for folder in ("css", "js", "webfonts"):
        (icons / folder).mkdir(parents=True)
    (icons / "css" / "all.min.css").write_text(RULES)
    (icons / "js" / "all.min.js").write_text("")
    shutil.copy(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", icons / "webfonts" / "f.ttf")
    (icons / "webfonts" / "f.woff2").write_text("")
    (tmp_path / "_static" / "styles").mkdir()
    (tmp_path / "_static" / "styles" / "theme.css").write_text('p{content:"\\f6c5"}')
    (tmp_path / "page.html").write_text(HEAD + '<i class="fa-solid fa-alpha"></i>')
    return tmp_path


def test_what_a_page_does_not_use_is_not_loaded(html):
    pages.finish(html)
    page = (html / "page.html").read_text()
    assert page.splitlines() == [HEAD.splitlines()[0], '<i class="fa-solid fa-alpha"></i>']


@pytest.mark.parametrize(
    ("body", "loaded"),
    [('<span class="math notranslate">', "startup.js"), ('<div class="sd-card">', "sphinx-design")],
)
def test_what_it_uses_stays(html, body, loaded):
    (html / "page.html").write_text(HEAD + body)
    pages.finish(html)
    assert loaded in (html / "page.html").read_text()


def test_names_and_empty_headers_are_put_right(html):
    (html / "page.html").write_text(
        "<th></th>"
        '<div role="doc-biblioentry"><table class="indextable x">'
        '<table style="width: 100%" class="indextable y">'
    )
    pages.finish(html)
    assert (html / "page.html").read_text() == (
        "<td></td>"
        '<div role="listitem"><table role="presentation" class="indextable x">'
        '<table style="width: 100%" role="presentation" class="indextable y">'
    )


def test_what_opens_a_part_of_the_contents_is_named(html):
    (html / "page.html").write_text('<summary><span class="toctree-toggle" role="presentation">')
    pages.finish(html)
    assert (html / "page.html").read_text().startswith('<summary aria-label="Its pages"><span')


def test_icons_are_cut_down_to_those_that_are_shown(html):
    pages.finish(html)
    icons = html / "_static" / "vendor" / "fontawesome" / "6"
    rules = (icons / "css" / "all.min.css").read_text()
    assert ".fa-lg{" in rules
    assert ".fa-alpha:before" in rules
    assert ".fa-b:before" not in rules
    assert 'src:url(../webfonts/f.woff) format("woff")}' in rules
    assert {path.name for path in icons.rglob("*") if path.is_file()} == {"all.min.css", "f.woff"}
    with TTFont(icons / "webfonts" / "f.woff") as font:
        assert set(font.getBestCmap()) == {ord("a"), 0xF6C5}


def test_another_icon_set_is_refused(html):
    (html / "_static" / "vendor" / "fontawesome" / "6" / "css" / "all.min.css").write_text("p{}")
    with pytest.raises(BookError, match=r"all\.min\.css: expected rules of icons, found none"):
        pages.finish(html)


PAGE = """<html><head><title>Alignment &#8212; The book</title></head><body><article class="x">
<p>Short.</p><p>With <span class="math">\\(\\alpha\\)</span>, which messengers do not set, and so
it is passed over.</p><p>The <b>weights</b> point where the gradient points, &quot;in the end&quot;,
after a while%s.</p><a href="../_downloads/0f/fig-x.png"></a></article></body></html>"""


def test_a_page_says_what_is_on_it_where_its_address_is_passed_on(html):
    (html / "book").mkdir()
    (html / "book" / "page.html").write_text(PAGE % (", and so on" * 40))
    pages.finish(html, "https://someone.github.io/latephase/")
    page = (html / "book" / "page.html").read_text()
    said = dict(re.findall(r'<meta (?:name|property)="([^"]*)" content="([^"]*)" />', page))
    assert said["og:title"] == "Alignment"
    assert said["description"] == said["og:description"]
    start = "The weights point where the gradient points, &quot;in the end&quot;, after a while,"
    assert said["description"].startswith(start)
    assert said["description"].endswith(" …")
    assert len(said["description"]) < 220
    address = "https://someone.github.io/latephase/"
    assert said["og:url"] == f"{address}book/page.html"
    assert said["og:image"] == f"{address}_downloads/0f/fig-x.png"
    assert page.index("og:title") < page.index("</head>")


def test_without_an_address_a_page_names_none(html):
    (html / "page.html").write_text(PAGE % "")
    pages.finish(html)
    assert "og:title" in (html / "page.html").read_text()
    assert "og:url" not in (html / "page.html").read_text()


def test_a_slider_and_a_description_have_their_powers_without_tags(html):
    script = 'document.getElementById("x"), values = ["\\u03b1 = 1.3e+06", "1e+02"];'
    (html / "page.html").write_text(PAGE % f", at 1e-30</p><script>{script}</script><p>")
    pages.finish(html)
    page = (html / "page.html").read_text()
    assert 'values = ["\\u03b1 = 1.3\u00a0×\u00a010⁶", "100"];' in page
    assert 'at 10⁻³⁰" />' in page
