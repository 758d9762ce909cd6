"""What a page keeps folded: the code of a chapter at its foot, and answers to its exercises.

Jupyter Book folds the code of each cell above what it shows: grey bars between the sentences.
Here all of a chapter's code stands in one place, in its order, and a caption leads to its cell.
Folds are the browser's own, which need no script.
"""

import re

from latebook import BookError

# A tag that `dressing` puts on the code cells of a chapter, as a class of their HTML.
NUMBERED = "code-cell-"
# How the foot begins that `dressing` adds.
FOOT = "Take this chapter with you:"
_CELL = re.compile(rf'<div class="cell ([^"]*\btag_{NUMBERED}(\d+)\b[^"]*)">\n')
_INPUT = re.compile(
    r'(?:<details class="admonition hide above-input">.*?</summary>\n)?'
    r'(<div class="cell_input[^>]*>.*?</pre></div>\n</div>\n</div>\n)(?:</details>\n)?',
    re.DOTALL,
)
_FIGURE = re.compile(r'<figure [^>]*\bid="([^"]+)"')
_ANSWER = re.compile(
    r'<div class="((?:[^"]* )?(?:admonition|dropdown)(?: [^"]*)?)"([^>]*)>\s*'
    r'<p class="admonition-title">(.*?)</p>',
    re.DOTALL,
)


def fold(page: str) -> str:
    """A finished page with its answers folded, and where it hid its code, with that at its foot."""
    page = _fold_answers(page)
    if not _CELL.search(page):
        return page
    page = re.sub(r"(Source: )(code cell (\d+)) of", rf'\1<a href="#{NUMBERED}\3">\2</a> of', page)
    if "above-input" not in page:  # a tutorial: its code is what it is about
        return _CELL.sub(rf'<div class="cell \1" id="{NUMBERED}\2">\n', page)
    return _gather(page)


def _gather(page: str) -> str:
    """Move the code of all cells to the foot; what they show stays where it is."""
    parts, gathered, at = [], [], 0
    for cell in _CELL.finditer(page):
        end = closing(page, cell.start())
        body = page[cell.end() : end - len("</div>")]
        shown, found = _INPUT.subn("", body, 1)
        code = _INPUT.search(body)[1] if found else ""
        parts.append(page[at : cell.start()])
        if shown.strip():
            parts.append(f'<div class="cell {cell[1]}">\n{shown}</div>')
        gathered.append(_numbered(cell[2], code, _FIGURE.findall(shown)))
        at = end
    page = "".join([*parts, page[at:]])
    code = "\n".join(gathered)
    code = (
        '<details class="page-code" id="page-code">\n<summary>The code of this page</summary>\n'
        f"{code}\n</details>\n"
    )
    if (foot := page.find(f"<p><strong>{FOOT}")) < 0:
        raise BookError(f"expected a page's foot, {FOOT!r}, below which its code stands")
    return page[:foot] + code + page[foot:]


def _numbered(number: str, code: str, figures: list[str]) -> str:
    drawn = "".join(f': <a href="#{figure}">its figure</a>' for figure in figures[:1])
    return (
        f'<div class="cell docutils container" id="{NUMBERED}{number}">\n'
        f'<p class="code-number">Code cell {number}{drawn}</p>\n{code}</div>'
    )


def _fold_answers(page: str) -> str:
    """Boxes of the class `dropdown` as the browser's own folds; the theme's need a script."""
    at = 0
    while box := _ANSWER.search(page, at):
        names = box[1].split()
        if not {"admonition", "dropdown"} <= {*names}:
            at = box.end()
            continue
        end = closing(page, box.start())
        kept = " ".join(name for name in names if name != "dropdown")
        page = (
            f'{page[: box.start()]}<details class="{kept} folded"{box[2]}>\n'
            f'<summary class="admonition-title">{box[3]}</summary>'
            f"{page[box.end() : end - len('</div>')]}</details>{page[end:]}"
        )
        at = box.start() + 1
    return page


def closing(page: str, start: int) -> int:
    """Where the `<div>` ends that begins at `start`."""
    deep = 0
    for tag in re.compile(r"<(/?)div\b").finditer(page, start):
        deep += -1 if tag[1] else 1
        if deep == 0:
            return page.index(">", tag.end()) + 1
    raise ValueError(f"no end of the <div> at {start}")
