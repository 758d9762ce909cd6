"""The last hand on the pages that Jupyter Book made: lighter, and right for every reader.

The theme loads an icon set in two forms of which it needs one, and scripts for features that no
page has; some of its attributes hide from a screen reader what the eye sees; and it tells a page
that is shared nothing of what is on it. All that is mended here, in the finished HTML, because the
theme has no setting for it. Here too code and answers are folded, terms and symbols explained,
numbers set, and the words of figures laid over their pictures.
"""

import re
from html import escape, unescape
from pathlib import Path
from urllib.parse import urljoin

from fontTools import subset
from fontTools.ttLib import TTFont

from latebook import BookError, folds, lettering, numerals, symbols, terms
from latebook.files import write_whole

# What a page loads, and the mark in it without which that is loaded in vain.
_LOADED = (
    (r'<script src="[^"]*fontawesome[^"]*"></script>\n?', None),
    (r'<link rel="preload" as="font"[^>]*/>\n?', None),  # from a file, browsers refuse them
    (r"<script>window\.MathJax = [^<]*</script>\n?", r'class="[^"]*\bmath\b'),
    (r"<script[^>]*/mathjax/[^>]*></script>\n?", r'class="[^"]*\bmath\b'),
    (r"<script>const THEBE_JS_URL = [^<]*</script>\n?", None),
    (r"<script[^>]*sphinx-thebe\.js[^>]*></script>\n?", None),
    (r"<link[^>]*sphinx-thebe\.css[^>]*/>\n?", None),
    (r"<link[^>]*sphinx-design[^>]*/>\n?", r'class="[^"]*\bsd-'),
    (r"<script[^>]*design-tabs\.js[^>]*></script>\n?", r'class="[^"]*\bsd-tab-'),
    # Answers fold without a script, see `folds`.
    (r"<link[^>]*togglebutton\.css[^>]*/>\n?", None),
    (r"<script>(?:let toggle|var togglebutton)[^<]*</script>\n?", None),
    (r"<script[^>]*togglebutton\.js[^>]*></script>\n?", None),
    (r"<link[^>]*mystnb\.[^>]*/>\n?", r'class="[^"]*\bcell\b'),
    (r"<script[^>]*_static/claims\.js[^>]*></script>\n?", 'id="claims-filter"'),
    (r"<script[^>]*_static/explore/[^>]*></script>\n?", 'class="explorable'),
    (r"<link[^>]*proof\.css[^>]*/>\n?", r'class="[^"]*\bproof\b'),
)
# What stands in a page, and what should.
_SAID = (
    # What opens a part of the contents has only a picture.
    (
        '<summary><span class="toctree-toggle"',
        '<summary aria-label="Its pages"><span class="toctree-toggle"',
    ),
    ('title="Search" aria-label="Search"', 'title="Search"'),
    # An entry of a bibliography is an item of its list; the older role is deprecated.
    ('role="doc-biblioentry"', 'role="listitem"'),
    # A corner without words heads nothing.
    ("<th></th>", "<td></td>"),
    ('<th class="head"><p></p></th>', "<td></td>"),
    # An index is a list, in a table for its looks.
    ('<table class="indextable', '<table role="presentation" class="indextable'),
    ('100%" class="indextable', '100%" role="presentation" class="indextable'),
)
# What a slider's script shows beside it, a word for each frame.
_FRAMES = re.compile(r"(document\.getElementById\(\"[^\"]*\"\), values = )(\[.*?\]);")
_ICON_RULE = re.compile(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')


_DESCRIBED = 200  # letters, of which search engines and messengers show most


def finish(html: Path, home: str = "") -> None:
    """Mend every page below `html` and cut the icon set down to the icons that are shown.

    home: the address at which the site will stand, as https://OWNER.github.io/NAME/, if known.
    """
    glossary, shown = html / "book" / "notation.html", ""
    notation = glossary.read_text(encoding="utf8") if glossary.exists() else ""
    said, table = terms.first_sentences(notation), symbols.of_table(notation)
    for path in sorted(html.rglob("*.html")):
        if "_static" in path.relative_to(html).parts:
            continue
        page = path.read_text(encoding="utf8")
        address = urljoin(home, path.relative_to(html).as_posix()) if home else ""
        shared = _shared(page, address)
        page = lettering.letter(page, path.parent)
        page = symbols.explain(page, table if path != glossary else [])
        page = numerals.on_page(folds.fold(terms.explain(page, said)))
        page = _FRAMES.sub(lambda found: f"{found[1]}{numerals.in_text(found[2])};", page)
        for loaded, needed_by in _LOADED:
            if needed_by is None or not re.search(needed_by, page):
                page = re.sub(loaded, "", page)
        for had, better in _SAID:
            page = page.replace(had, better)
        page = page.replace("</head>", f"{shared}</head>", 1)
        write_whole(path, page)
        shown += page
    for folder in (html / "_static" / "vendor" / "fontawesome").glob("*"):
        _cut_icons(folder, shown, html / "_static")


def _shared(page: str, address: str) -> str:
    """What a page says of itself where its address is passed on: title, first words, picture."""
    body = page.partition("<article")[2]
    paragraphs = (_words(found) for found in re.findall(r"<p>(.*?)</p>", body, re.DOTALL))
    about = next((words for words in paragraphs if len(words) > 60 and "\\" not in words), "")
    about = numerals.in_text(about)
    if len(about) > _DESCRIBED:
        about = about[:_DESCRIBED].rpartition(" ")[0] + " …"
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    if not (about and title):
        return ""
    title = _words(title[1]).partition(" — ")[0]
    said = {"og:type": "article", "og:title": title, "og:description": about}
    picture = re.search(r'href="([^"]*_downloads/[^"]*\.png)"', body)
    if address:
        said["og:url"] = address
    if address and picture:
        said["og:image"] = urljoin(address, picture[1])
    tags = [f'<meta property="{key}" content="{escape(words)}" />' for key, words in said.items()]
    return "\n".join([f'<meta name="description" content="{escape(about)}" />', *tags, ""])


def _words(html: str) -> str:
    """The text of a piece of HTML."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html)).split())


def _cut_icons(folder: Path, shown: str, static: Path) -> None:
    """Keep, of the icon set in `folder`, what pages, theme scripts and theme styles name."""
    sheet = folder / "css" / "all.min.css"
    rules = sheet.read_text(encoding="utf8")
    scripts = [path.read_text(encoding="utf8") for path in static.glob("scripts/*.js")]
    names = set(re.findall(r"\bfa-[a-z0-9-]+", "".join([shown, *scripts])))
    styles = "".join(path.read_text(encoding="utf8") for path in static.glob("styles/*.css"))
    codes = {ord(letter) for letter in re.findall("[\ue000-\uf8ff]", styles)}
    codes |= {int(code, 16) for code in re.findall(r'content:"\\(f[0-9a-f]{3})"', styles)}

    def kept(rule: re.Match) -> str:
        if names.isdisjoint(re.findall(r"fa-[\w-]+", rule[1])):
            return ""
        codes.add(int(rule[2], 16))
        return rule[0]

    rules, found = _ICON_RULE.subn(kept, rules)
    if not found:
        raise BookError(f"{sheet}: expected rules of icons, found none; has the theme changed?")
    for font in (folder / "webfonts").glob("*.ttf"):
        _cut_font(font, codes)
        both = rf"url\(\.\./webfonts/{font.stem}\.woff2\)[^,]*,url\([^)]*\.ttf\)[^,;}}]*"
        rules = re.sub(both, f'url(../webfonts/{font.stem}.woff) format("woff")', rules)
        font.unlink()
        font.with_suffix(".woff2").unlink()
    write_whole(sheet, rules)
    for script in (folder / "js").glob("*"):
        script.unlink()


def _cut_font(path: Path, codes: set[int]) -> None:
    options = subset.Options(flavor="woff", layout_features=[], notdef_outline=True)
    with TTFont(path, recalcTimestamp=False) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=codes)
        cutter.subset(font)
        subset.save_font(font, str(path.with_suffix(".woff")), options)
