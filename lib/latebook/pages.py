"""The last hand on the pages that Jupyter Book made: lighter, and right for every reader.

The theme loads an icon set in two forms of which it needs one, and scripts for features that no
page has; some of its attributes hide from a screen reader what the eye sees. Both are mended
here, in the finished HTML, because the theme has no setting for them.
"""

import re
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

from latebook import BookError
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
    (r"<link[^>]*mystnb\.[^>]*/>\n?", r'class="[^"]*\bcell\b'),
    (r"<script[^>]*_static/claims\.js[^>]*></script>\n?", 'id="claims-filter"'),
    (r"<script[^>]*_static/explore/[^>]*></script>\n?", 'class="explorable'),
    (r"<link[^>]*proof\.css[^>]*/>\n?", r'class="[^"]*\bproof\b'),
)
# What stands in a page, and what should.
_SAID = (
    # A name that differs from the words that are shown cannot be spoken to the machine.
    ('<summary aria-label="Toggle hidden content">', "<summary>"),
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
_ICON_RULE = re.compile(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')


def finish(html: Path) -> None:
    """Mend every page below `html` and cut the icon set down to the icons that are shown."""
    shown = ""
    for path in sorted(html.rglob("*.html")):
        if "_static" in path.relative_to(html).parts:
            continue
        page = path.read_text(encoding="utf8")
        for loaded, needed_by in _LOADED:
            if needed_by is None or not re.search(needed_by, page):
                page = re.sub(loaded, "", page)
        for said, better in _SAID:
            page = page.replace(said, better)
        write_whole(path, page)
        shown += page
    for folder in (html / "_static" / "vendor" / "fontawesome").glob("*"):
        _cut_icons(folder, shown, html / "_static")


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
