"""Links to the glossary say what is behind them, where a pointer or the keyboard stops on them.

The first sentence of an entry is put into each page that links to it: a page that is read from a
file may not fetch another one. A script of the site shows it beside the link.
"""

import re
from html import escape

_ENTRY = re.compile(r"((?:<dt id=\"term-[^\"]+\">.*?</dt>)+)<dd>(.*?)</dd>", re.DOTALL)
_NAMED = re.compile(r'<dt id="(term-[^"]+)">(.*?)(?:<a class="headerlink"|</dt>)', re.DOTALL)
_LINK = re.compile(r'<a class="reference internal" href="[^"#]*#(term-[^"]+)"')
_PIECE = re.compile(r'<span class="math[^>]*>.*?</span>|<[^>]*>|[^<]+', re.DOTALL)
_END = re.compile(r"(?<!e\.g)(?<!i\.e)\.(?=\s|$)")


def first_sentences(glossary: str) -> dict[str, str]:
    """What the entries of a page's glossary say first, as HTML, by their anchors."""
    found = {}
    for entry in _ENTRY.finditer(glossary):
        for anchor, name in _NAMED.findall(entry[1]):
            found[anchor] = f"<b>{_bare(name)}</b> {_first(entry[2])}"
    return found


def explain(page: str, said: dict[str, str]) -> str:
    """The page with what is said first of each term that its text links to, at its end."""
    start, end = page.find("<article"), page.find("</article>")
    body, used = page[start:end], {}

    def link(found: re.Match) -> str:
        if found[1] not in said:
            return found[0]
        used[found[1]] = said[found[1]]
        return f'{found[0]} aria-describedby="tip-{escape(found[1])}"'

    body = _LINK.sub(link, body)
    if start < 0 or not used:
        return page
    tips = (f'<div role="tooltip" id="tip-{escape(at)}">{tip}</div>' for at, tip in used.items())
    return f'{page[:start]}{body}<div class="tips">\n{chr(10).join(tips)}\n</div>\n{page[end:]}'


def _bare(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html).strip()


def _first(html: str) -> str:
    """The first sentence of a definition: words and formulas, without its links."""
    said = []
    for piece in _PIECE.findall(html.partition("</p>")[0]):
        if piece.startswith('<span class="math'):
            said.append(piece)
        elif stop := not piece.startswith("<") and _END.search(piece):
            return "".join([*said, piece[: stop.end()]]).strip()
        elif not piece.startswith("<"):
            said.append(piece)
    return "".join(said).strip()
