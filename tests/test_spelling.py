"""Spelling of everything that a reader may read: British with -ize, as in the Oxford dictionary.

A word stands in pyspellchecker's dictionary or in words.txt; names in code, which stand in
neither, are American where NumPy's and matplotlib's are. codespell looks for slips in them.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from latebook.notebooks import read
from tests.conftest import ROOT

LIST = ROOT / "tests" / "words.txt"
WORDS = LIST.read_text(encoding="utf8").split()
# The American form of these is also the British one of another meaning.
BOTH = {"biased", "meter", "practice", "program"}
NO_PROSE = re.compile(
    r"""
      ^[ ]*(?P<fence>`{3,})(?!\{(?!code|math))[^\n]*\n.*?^[ ]*(?P=fence)[ ]*$  # code in a fence
    | ^[ ]*`{3,}[^\n]* | ^[ ]*:\w+:[^\n]*                     # a directive's first line and options
    | \$\$.*?\$\$ | (?<![\\`])\$[^$`]+\$                      # mathematics
    | \{[\w:]+\}`[^`<]*` | (?P<ticks>`+)[^`]+(?P=ticks)       # roles that name something, code
    | \]\([^)\s]*\) | https?://\S+ | </?\w[^>]*>              # links and HTML
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
WORD = re.compile(r"(?<![\w\\@#=./])[A-Za-z]+(?:['’][a-z]+)?(?![\w=(/@]|[.:]\w)")


def words(text: str) -> Iterator[str]:
    """The words of a text in Markdown, without code, mathematics and abbreviations."""
    for word in WORD.findall(NO_PROSE.sub(" ", text)):
        if len(word) > 2 and word[1:].islower():
            yield re.sub(r"['’]s?$", "", word).lower()


def said_by_code(source: str) -> Iterator[str]:
    """Comments, and strings of three words or more: docstrings, messages, labels."""
    nodes = list(ast.walk(ast.parse(source)))
    # matplotlib speaks American.
    places = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "loc"]
    strings = [node for node in nodes if isinstance(node, ast.Constant) and node not in places]
    sentences = [node.value for node in strings if isinstance(node.value, str)]
    yield from (sentence for sentence in sentences if len(sentence.split()) > 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def said_by_notebook(path: Path) -> Iterator[str]:
    for cell in read(path).cells:
        if cell.is_code:
            yield from said_by_code(cell.source)
            shown = cell.content["metadata"].get("mystnb", {})
            yield shown.get("figure", {}).get("caption", "")
            yield shown.get("image", {}).get("alt", "")
        else:
            yield cell.source


def said(path: Path) -> Iterator[str]:
    if path.suffix == ".ipynb":
        yield from said_by_notebook(path)
    elif path.suffix == ".py":
        yield from said_by_code(path.read_text(encoding="utf8"))
    else:
        yield path.read_text(encoding="utf8")


FILES = sorted(
    path
    for pattern in ("*.md", "book/*.md", "book/*.ipynb", "book/claims.yml", "*/**/*.py")
    for path in ROOT.glob(pattern)
    if path.relative_to(ROOT).parts[0] in (path.name, "book", "lib", "recordings")
)


@pytest.fixture(scope="module")
def unknown():
    """Which of some words no dictionary has; in British spelling, those that are American."""
    import codespell_lib
    from spellchecker import SpellChecker

    dictionary = SpellChecker(distance=1)
    dictionary.word_frequency.load_words(WORDS)
    table = Path(codespell_lib.__file__).with_name("data") / "dictionary_en-GB_to_en-US.txt"
    american = set()
    for line in table.read_text(encoding="utf8").splitlines():
        british, _, forms = line.partition("->")
        american |= {
            form for form in forms.strip(",").split(", ") if form.replace("iz", "is") != british
        }
    return lambda found: dictionary.unknown(found) | (set(found) & american - BOTH)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_word_is_in_the_dictionary_or_the_list(path, unknown):
    found = {word for text in said(path) for word in words(text)}
    assert sorted(unknown(found)) == [], "misspelt, American, or missing in tests/words.txt"


def test_the_list_is_sorted():
    assert sorted(set(WORDS)) == WORDS


def test_what_is_read_is_the_prose():
    text = "A *wrod* `cdoe` $\\alhpa$ {ref}`lable` [txet](adress) loss-normalised isn’t\n"
    fence = "```{prf:theorem} Titel\n:label: lable\nBodi\n```\n```python\ncdoe\n```\n"
    assert list(words(text)) == ["wrod", "txet", "loss", "normalised", "isn’t"]
    assert list(words(fence)) == ["bodi"]
    assert list(said_by_code("x = 'a sentence is prose', 'key'  # so is this")) == [
        "a sentence is prose",
        "# so is this",
    ]


@pytest.mark.parametrize("word", ["convergance", "teh", "alignement", "normalised", "color"])
def test_a_misspelt_or_american_word_is_seen(word, unknown):
    assert unknown({word, "colour", "normalized", "neighbouring", "telgarsky"}) >= {word}
    assert unknown({"colour", "normalized", "neighbouring", "telgarsky"}) == set()


def test_codespell_finds_no_slip_in_the_code(tmp_path):
    command = [sys.executable, "-m", "codespell_lib", "--builtin", "clear", "--check-filenames"]
    code = [ROOT / name for name in ("lib", "recordings", "Snakefile", "Makefile", "_config.yml")]
    for places, slips in ((map(str, [*code, *FILES]), ""), (["slip.py"], "recieved ==> received")):
        (tmp_path / "slip.py").write_text("recieved = 1\n")
        done = subprocess.run([*command, *places], cwd=tmp_path, capture_output=True, text=True)
        assert (slips in done.stdout) if slips else (done.stdout == ""), done.stdout
