"""A formula says what its letters mean where they first stand on a page.

The table of the page on notation is the one source. Each of its symbols is looked for in the
formulas between the words of a page, in its order; the first formula with it becomes a stop for
pointer, finger and keyboard, at which a script of the site shows the table's row. Letters that
pages use for several things count only in a formula that no other meaning has.
"""

import re
from dataclasses import dataclass
from html import unescape

_ROW = re.compile(r"<tr[^>]*><td>(.*?)</td>\s*<td>(.*?)</td>", re.DOTALL)
_MATH = re.compile(r'<span class="math[^"]*">\\\((.*?)\\\)</span>', re.DOTALL)
# A formula, or where one may not become a stop: in links and headings.
_PLACE = re.compile(rf"<(a|summary|button|h[1-6])\b.*?</\1>|{_MATH.pattern}", re.DOTALL)
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[^\s{}]")
# What makes another letter of the next one, or an index.
_CHANGED = {r"\tilde", r"\bar", r"\hat", r"\dot", r"\mathcal", r"\mathbb", r"\mathrm", "_"}
_SEVERAL = {"a", "t", "J", r"\rho", r"\varepsilon"}


@dataclass(frozen=True)
class Symbol:
    """A symbol as TeX in tokens, and its row of the table as HTML."""

    tokens: tuple[str, ...]
    row: str

    def stands_in(self, formula: tuple[str, ...]) -> bool:
        """Whether a formula has it; a bare letter of the alphabet only where it stands alone."""
        size = len(self.tokens)
        if size == 1 and self.tokens[0] not in ("L", "W") and self.tokens[0].isalpha():
            return formula == self.tokens
        return any(
            formula[k : k + size] == self.tokens
            and not {*formula[max(k - 1, 0) : k]} & _CHANGED
            and formula[k + size : k + size + 1] != ("_",)
            for k in range(len(formula) - size + 1)
        )


def of_table(notation: str) -> list[Symbol]:
    """The symbols of the first column of the page's table."""
    return [
        Symbol(tokens, f"<b>{_bare(named)}</b> {_bare(meaning)}")
        for named, meaning in _ROW.findall(notation)
        for tex in _MATH.findall(named)
        if (tokens := _symbol(tex))[1:] or tokens[0] not in _SEVERAL
    ]


def explain(page: str, symbols: list[Symbol]) -> str:
    """The page with a stop at each formula in which a symbol stands first, and its tip."""
    start, end = page.find("<article"), page.find("</article>")
    told, tips = set(), []
    # A page that speaks of every γ > 0 means no margin of a machine by it.
    if any(_tokens(tex) == (r"\gamma", ">", "0") for tex in _MATH.findall(page[start:end])):
        symbols = [symbol for symbol in symbols if symbol.tokens != (r"\gamma",)]

    def stop(found: re.Match) -> str:
        if found[1]:
            return found[0]
        formula = _tokens(found[2])
        rows = dict.fromkeys(s.row for s in symbols if s.row not in told and s.stands_in(formula))
        if not rows:
            return found[0]
        told.update(rows)
        tips.append("<br>".join(rows))
        about = f'tabindex="0" role="group" aria-describedby="tip-symbol-{len(tips)}"'
        return found[0].replace('class="', f'{about} class="symbol ', 1)

    body = _PLACE.sub(stop, page[start:end])
    if start < 0 or not tips:
        return page
    shown = (
        f'<div role="tooltip" id="tip-symbol-{number}">{tip}</div>'
        for number, tip in enumerate(tips, 1)
    )
    return f'{page[:start]}{body}<div class="tips">\n{chr(10).join(shown)}\n</div>\n{page[end:]}'


def _symbol(tex: str) -> tuple[str, ...]:
    """The tokens of a symbol without its argument: p_i of p_i(W), but all of H(q) or cos(W, v)."""
    tokens = _tokens(tex)
    at = tokens.index("(") if tokens[-1] == ")" else 0
    return tokens[:at] if at and tokens[at - 1] not in ("H", r"\cos") else tokens


def _tokens(tex: str) -> tuple[str, ...]:
    """TeX without its spaces and braces, with one way to write a norm."""
    tex = re.sub(r"\\norm\s*(?:\{(\w+)\}|(\w))", r"\\lVert \1\2\\rVert ", unescape(tex))
    return tuple(_TOKEN.findall(re.sub(r"\\[,;!]", "", tex)))


def _bare(html: str) -> str:
    """A cell of the table, its formulas and words, without its paragraph and links."""
    return re.sub(r"</?(?:p|a)\b[^>]*>", "", html).strip()
