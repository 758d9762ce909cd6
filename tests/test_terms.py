"""What the glossary says first of a term stands on each page that links to it."""

from latebook import pages
from latebook.terms import explain, first_sentences

GLOSSARY = r"""<dl class="simple glossary">
<dt id="term-KKT">KKT<a class="headerlink" href="#term-KKT">#</a></dt><dt id="term-KKT-point">KKT
point<a class="headerlink" href="#term-KKT-point">#</a></dt><dd><p>A point, e.g. where
<span class="math">\(a. b\)</span> holds, of <a href="x"><span>the margin</span></a>; see. More.</p>
<p>Still more.</p></dd>
<dt id="term-hat">hat<a class="headerlink" href="#term-hat">#</a></dt><dd><p>No end</p></dd>
</dl>"""
LINK = '<a class="reference internal" href="{}#term-{}"><span class="xref std-term">it</span></a>'
FIRST = 'A point, e.g. where\n<span class="math">\\(a. b\\)</span> holds, of the margin; see.'


def test_an_entry_is_told_by_its_first_sentence():
    assert first_sentences(GLOSSARY) == {
        "term-KKT": f"<b>KKT</b> {FIRST}",
        "term-KKT-point": f"<b>KKT\npoint</b> {FIRST}",
        "term-hat": "<b>hat</b> No end",
    }
    assert first_sentences("<p>none</p>") == {}


def test_links_in_the_text_are_explained_once():
    link = LINK.format("notation.html", "KKT")
    text = f"<article>{link} {link} {LINK.format('notation.html', 'other')}</article>"
    page = explain(f"{link}{text}<p></p>", first_sentences(GLOSSARY))
    assert page.startswith(link)  # of a menu
    assert page.count(' aria-describedby="tip-term-KKT"') == 2
    assert page.count(f'<div role="tooltip" id="tip-term-KKT"><b>KKT</b> {FIRST}</div>') == 1
    assert "tip-term-other" not in page
    assert page.index("tooltip") < page.index("</article>")
    for without in ("<article>nothing</article>", "nothing"):
        assert explain(without, first_sentences(GLOSSARY)) == without


def test_a_page_of_a_site_has_them(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "notation.html").write_text(GLOSSARY)
    (tmp_path / "index.html").write_text(
        f"<article>{LINK.format('book/notation.html', 'hat')} 1e-7</article>"
    )
    pages.finish(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert '<div role="tooltip" id="tip-term-hat"><b>hat</b> No end</div>' in page
    assert "10<sup>−7</sup>" in page
