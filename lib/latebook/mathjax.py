"""MathJax: found in the package that carries it and copied into the site."""

import importlib.util
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


def _folder() -> Path:
    spec = importlib.util.find_spec("mathjax")
    for package in spec.submodule_search_locations if spec else ():
        if ((source := Path(package) / "static" / "mathjax") / _COMPONENT).is_file():
            return source
    raise BookError("MathJax not found: the package django-static-mathjax is not installed")


def copy_to(target: Path) -> None:
    """Copy it: the site loads nothing from elsewhere. BookError if the package is missing."""
    source = _folder()
    for part in _PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / part).is_dir() else shutil.copy
        copy(source / part, target / part)
