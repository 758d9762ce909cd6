"""MathJax: found in the package that carries it, copied into the site, asked what it knows."""

import importlib.util
import re
import shutil
from pathlib import Path

from latebook import BookError

_COMPONENT = "es5/input/tex.js"
# What `_config.yml` has MathJax load, what that loads on demand, and the licence to ship them.
# The combined components are half as large again, for a menu and a second input language.
_PARTS = (
    "es5/startup.js",
    "es5/core.js",
    _COMPONENT,
    "es5/input/tex",
    "es5/output/chtml.js",
    "es5/output/chtml",
    "es5/a11y/assistive-mml.js",
    "LICENSE",
)

# The component's tables of names, and those that make it load an extension.
_TABLE = re.compile(
    r'\.(Character|Delimiter|Command|Environment)Map\("[\w-]+",[^{]*(\{.*?\})(?:,[\w.]+)?\)[,;]',
    re.S,
)
_KEY = re.compile(r'[{,]"?(?:\\\\)?([A-Za-z]+\*?)"?:')
_ON_DEMAND = re.compile(r"autoload:\(0,\w+\.expandable\)\((\{.*?\})\)")


def _folder() -> Path:
    spec = importlib.util.find_spec("mathjax")
    folders = (
        [Path(f) / "static" / "mathjax" for f in spec.submodule_search_locations] if spec else []
    )
    source = next((folder for folder in folders if (folder / _COMPONENT).is_file()), None)
    if source is None:
        raise BookError("MathJax not found: the package django-static-mathjax is not installed")
    return source


def copy_to(target: Path) -> None:
    """Copy it: the site loads nothing from elsewhere. BookError if the package is missing."""
    source = _folder()
    for part in _PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / part).is_dir() else shutil.copy
        copy(source / part, target / part)


def names() -> set[str]:
    """The macros it knows, as `lVert`, and the environments, as `begin{cases}`.

    Read off the tables of its script; BookError if they are not where they were.
    """
    script = (_folder() / _COMPONENT).read_text(encoding="utf8")
    known = {"begin", "end"}
    for kind, table in _TABLE.findall(script):
        keys = _KEY.findall(table)
        known |= {f"begin{{{key}}}" for key in keys} if kind == "Environment" else set(keys)
    on_demand = _ON_DEMAND.search(script)
    if not on_demand or not {"alpha", "frac", "lVert", "begin{cases}"} <= known:
        raise BookError(f"the macros that MathJax knows are not readable from {_COMPONENT}")
    return known | set(re.findall(r'"(\w+)"', on_demand[1]))
