"""The library's pages: what Sphinx's autodoc makes of every door, kept as a product of its own.

Autodoc imports the library and all that it stands on, which takes as long as the whole site does.
It runs when the library changes; the site includes what it wrote, and a changed chapter waits for
neither.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
import tempfile
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace

from sphinx.application import Sphinx
from sphinx.ext.autodoc.directive import DocumenterBridge, process_documenter_options
from sphinx.util.docutils import docutils_namespace

_OPTIONS = {
    "extensions": ["sphinx.ext.autodoc"],
    "autodoc_inherit_docstrings": False,
    "autodoc_typehints_format": "short",
    "autodoc_class_signature": "mixed",
}
# Homes that packages do not mean: classes know where they are defined, readers where they stand.
_PUBLIC = {
    "torch.nn.modules.module.": "torch.nn.",
    "torch.nn.modules.container.": "torch.nn.",
    "numpy.random._generator.": "numpy.random.",
    "torch._C.": "torch.",
    "pandas.core.frame.": "pandas.",
    "matplotlib.axes._axes.": "matplotlib.axes.",
}
# All that autodoc asks of the document into which it writes.
_STATE = SimpleNamespace(document=SimpleNamespace(settings=SimpleNamespace(tab_width=8)))
# A line of a docstring that explains a name or several, and what follows their shape.
_ITEM = re.compile(r"((`?\w+`?)(?:, `?\w+`?)*(?: *\[[^\]]*\](?: or)?)*)(: | {2,})(.+)")


def pages(package: str, *beside: str) -> dict[str, str]:
    """The page of the front door, "front", and one for each door by its name; MyST.

    The front door's are the package's own public names; a door's page has, module by module, its
    public functions and classes, and says of those of the front door where they are. Packages
    beside it are a door each.
    """
    front = importlib.import_module(package)
    names = sorted(set(front.__all__) - {"__version__"}, key=str.lower)
    owned = {name: getattr(front, name) for name in names}
    rooms = [(module, module.__name__.split(".")[1]) for module in _modules(package, 2)]
    rooms += [(module, name) for name in beside for module in _modules(name, 1)]
    rooms = [(module, door, found) for module, door in rooms if (found := _public(module))]
    fields = {name for *_, found in rooms for thing in found.values() for name in _fields(thing)}
    homes = {n: f"{m.__name__}.{n}" for m, _, found in rooms for n in found if n not in fields}
    homes |= {name: f"{package}.{name}" for name in names}
    homes |= {home: home for home in [*homes.values(), *(m.__name__ for m, *_ in rooms)]}
    at_front = {id(thing): homes[name] for name, thing in owned.items()}
    result = {}
    with _documenter(homes) as documented:
        for name, thing in owned.items():
            result.setdefault("front", []).append(_section(name, documented(package, name, thing)))
        for module, door, found in rooms:
            text = _as_rst(inspect.getdoc(module).splitlines(), None, homes)
            block = ["", f".. py:module:: {module.__name__}", "", *text, ""]
            for name, thing in found.items():
                if id(thing) in at_front:
                    block += ["", f":py:obj:`{name} <{at_front[id(thing)]}>`", ""]
                else:
                    block += documented(module.__name__, name, thing)
            result.setdefault(door, []).append(_section(module.__name__, block))
    return {page: "\n".join(sections) for page, sections in result.items()}


def _modules(package: str, depth: int) -> Iterable[ModuleType]:
    """The modules at least so deep in the package, what begins with an underscore aside."""
    path = importlib.import_module(package).__path__
    for entry in pkgutil.walk_packages(path, f"{package}."):
        inner = entry.name.split(".")[1:]
        if len(inner) >= depth and not any(part.startswith("_") for part in inner):
            yield importlib.import_module(entry.name)


def _public(module: ModuleType) -> dict[str, object]:
    """The documented functions and classes that a module defines, in the order of its text."""
    return {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
        and thing.__doc__
    }


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}\n", "````{eval-rst}", *lines, "````", ""])


@contextlib.contextmanager
def _documenter(homes: dict[str, str]):
    """A function that has autodoc write the directive of what a module has by a name."""
    said = io.StringIO()
    with docutils_namespace(), tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out"
        app = Sphinx(folder, None, out, out, "dummy", _OPTIONS, status=None, warning=said)

        def process(app, what, name, thing, options, lines):
            lines[:] = _as_rst(lines, _explained(thing), homes)

        app.connect("autodoc-process-docstring", process)

        def documented(module: str, name: str, thing: object) -> list[str]:
            kind = app.registry.documenters["class" if inspect.isclass(thing) else "function"]
            wanted = {"members": None, "member-order": "bysource"} if inspect.isclass(thing) else {}
            options = process_documenter_options(kind, app.config, wanted)
            bridge = DocumenterBridge(app.env, None, options, 0, _STATE)
            kind(bridge, f"{module}::{name}").generate()
            text = "\n".join(bridge.result)
            for defined, public in _PUBLIC.items():
                text = text.replace(defined, public)
            canonical = f"{thing.__module__}.{thing.__qualname__}"
            if ":canonical:" not in text and canonical != f"{module}.{name}":
                text = text.replace("   :module:", f"   :canonical: {canonical}\n   :module:", 1)
            return text.splitlines()

        yield documented
        if warned := said.getvalue():
            raise ValueError(f"autodoc: {warned}")


def _explained(thing) -> set[str]:
    """The names that a docstring may explain: a function's parameters, a dataclass's fields."""
    with contextlib.suppress(TypeError, ValueError):  # it has no signature
        return _fields(thing) or set(inspect.signature(thing).parameters)
    return set()


def _fields(thing) -> set[str]:
    return {f.name for f in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()


def _as_rst(lines: list[str], explained: set[str] | None, homes: dict[str, str]) -> list[str]:
    """The house's docstrings as reStructuredText.

    A line "name: meaning" or "name [shape]  meaning" of an explained name (None: any, in the second
    form), with the indented lines that follow, becomes an item of a definition list; other indented
    lines, equations mostly, keep their form; a name of the library in backticks becomes a link;
    the rest is plain text.
    """
    result: list[str] = []
    state = "text"
    for line in lines:
        item = _ITEM.fullmatch(line)
        if not line.strip():
            state = "text"
            result.append("")
        elif state == "doctest" or line.startswith(">>>"):
            state = "doctest"
            result.append(line)
        elif item and (item[3] != ": " if explained is None else item[2].strip("`") in explained):
            result += [""] * (state != "item")
            state = "item"
            result += [f"**{_plain(item[1])}**", f"    {_marked(item[4], homes)}"]
        elif state == "item" and (line[0] == " " or not line.startswith(("Raises", "Return"))):
            result.append(f"    {_marked(line.strip(), homes)}")
        elif line[0] == " ":
            result += ["", "::", ""] * (state != "literal")
            state = "literal"
            result.append(line)
        else:
            result += [""] * (state not in ("text", "start"))
            state = "text"
            result.append(_marked(line, homes))
    return result


def _marked(text: str, homes: dict[str, str]) -> str:
    """Text whose marked names are links or code, and nothing else is markup."""
    parts = re.split(r"`([^`]+)`", text)
    for k, part in enumerate(parts):
        if k % 2 == 0:
            # A letter may touch a name, as in a plural, if something invisible stands between.
            before = r"\ " if k and re.match(r"\w", part) else ""
            parts[k] = before + _plain(part)
        else:
            parts[k] = f":py:obj:`{part} <{homes[part]}>`" if part in homes else f"``{part}``"
    return "".join(parts)


def _plain(text: str) -> str:
    return re.sub(r"([\\*|_`])", r"\\\1", text.replace("`", ""))
