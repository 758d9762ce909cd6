"""The gate before the site: what papermill and Jupyter Book let pass, this module does not.

Papermill returns success for `sys.exit(0)` before a failing cell, for a parameter the notebook
does not declare, for an error in a cell tagged raises-exception; Jupyter Book with execution off
returns success for notebooks that failed or never ran, and says nothing of a misspelt key.
Each function returns the list of what is wrong, in one line each; an empty list opens the gate.
"""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from latebook.claims import MIME
from latebook.files import read_yaml
from latebook.notebooks import Cell, Notebook, cells_sha256, read

_NAN = re.compile(r"(?<![\w.])nan(?![\w])", re.IGNORECASE)
_RAW_TEX = re.compile(r"\$[^$\s][^$]*\$|\\[a-zA-Z]{3,}")


def check_source(path: Path) -> list[str]:
    """What is wrong with a stored notebook: outputs kept, or no single cell tagged parameters."""
    wrong = []
    cells = read(path).cells
    for index, cell in enumerate(cells, start=1):
        if cell.outputs or cell.execution_count is not None:
            wrong.append(f"{path.name}: cell {index} is stored with outputs; clear them")
    return wrong + _parameters_faults(path.name, cells)


def _parameters_faults(name: str, cells: list[Cell]) -> list[str]:
    if [cell.is_code for cell in cells if "parameters" in cell.tags] == [True]:
        return []
    return [f"{name}: expected one code cell tagged 'parameters'"]


def check_executed(executed: Notebook, source: Path, expected: set[str]) -> list[str]:
    """What is wrong with an executed chapter that should have recorded the `expected` claims."""
    name, cells = source.stem, executed.cells
    wrong = []
    own = [cell for cell in cells if "injected-parameters" not in cell.tags]
    if cells_sha256(own) != cells_sha256(read(source).cells):
        wrong.append(f"{name}: was executed from another source than {source.name} holds now")
    wrong += _parameters_faults(name, cells)
    code = [cell for cell in cells if cell.is_code and cell.source.strip()]
    turns = [cell.execution_count for cell in code]
    if turns != list(range(1, len(code) + 1)):
        wrong.append(
            f"{name}: code cells ran as {turns}, not each once and in order; None did not run"
        )
    for position, cell in enumerate(code, start=1):
        wrong += [f"{name}: code cell {position} {fault}" for fault in _output_faults(cell)]
    return wrong + _claim_faults(name, code, expected)


def _output_faults(cell: Cell) -> list[str]:
    faults = []
    for output in cell.outputs:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        if output["output_type"] == "error":
            faults.append(f"raised {output['ename']}: {output['evalue'].partition(chr(10))[0]}")
        elif output.get("name") == "stderr":
            faults.append(f"wrote to stderr: {text.strip().splitlines()[-1]}")
        elif _NAN.search(text):
            faults.append("printed or glued NaN")
    return faults


def _claim_faults(name: str, code: list[Cell], expected: set[str]) -> list[str]:
    ids = [payload["id"] for cell in code for payload in _payloads(cell)]
    faults = [f"{name}: never recorded the claim {id!r}" for id in sorted(expected - set(ids))]
    faults += [
        f"{name}: recorded {id!r}, not registered for it" for id in sorted(set(ids) - expected)
    ]
    twice = sorted({id for id in ids if ids.count(id) > 1})
    faults += [f"{name}: recorded {id!r} {ids.count(id)} times" for id in twice]
    if any(_payloads(cell) for cell in code[:-1]):
        faults.append(f"{name}: claims are recorded in the last code cell, not before it")
    return faults


def _payloads(cell: Cell) -> list[dict]:
    return [output["data"][MIME] for output in cell.outputs if MIME in output.get("data", {})]


def recorded(notebook: Notebook) -> list[dict]:
    """The payloads of `claims.record` in an executed notebook, in their order."""
    return [payload for cell in notebook.cells for payload in _payloads(cell)]


def check_parameters(source: Path, parameters: dict, where: str) -> list[str]:
    """Parameters that the notebook does not declare, or declares and the profile does not set."""
    from papermill import inspect_notebook

    declared = set(inspect_notebook(str(source)))
    wrong = [
        f"{where}: {source.name} declares no parameter {name!r}, only {', '.join(sorted(declared))}"
        for name in sorted(set(parameters) - declared)
    ]
    return wrong + [
        f"{where}: sets no {name!r}, which {source.name} declares"
        for name in sorted(declared - set(parameters))
    ]


def check_config(path: Path) -> list[str]:
    """Keys of `_config.yml` that Jupyter Book would pass over in silence, and two that bite.

    Names under `sphinx.config` are left to Sphinx, which warns of those it does not know.
    """
    config = read_yaml(path)
    wrong = [f"{path.name}: unknown key {key!r}" for key in _unknown(config, _known_keys())]
    sphinx = config.get("sphinx") or {}
    overrides = sphinx.get("config") or {}
    if "html_theme_options" in overrides and sphinx.get("recursive_update") is not True:
        wrong.append(
            f"{path.name}: html_theme_options needs sphinx.recursive_update: true, "
            "or it deletes the launch buttons"
        )
    if "bibtex_reference_style" in config:
        wrong.append(f"{path.name}: bibtex_reference_style works only under sphinx.config")
    if (config.get("execute") or {}).get("execute_notebooks") not in ("off", False):
        wrong.append(f"{path.name}: execute.execute_notebooks must be off; papermill executes")
    return wrong


def _unknown(config: dict, known: dict, prefix: str = "") -> list[str]:
    wrong = []
    for key, value in config.items():
        if key not in known:
            wrong.append(prefix + str(key))
        elif isinstance(value, dict) and known[key]:
            wrong += _unknown(value, known[key], f"{prefix}{key}.")
    return wrong


def _known_keys() -> dict:
    """Jupyter Book's own lists of keys, its schema and its defaults, as nested dictionaries."""
    package = Path(importlib.util.find_spec("jupyter_book").origin).parent

    def of_schema(node):
        return {key: of_schema(child) for key, child in node.get("properties", {}).items()}

    def of_defaults(node):
        return (
            {k: of_defaults(child) for k, child in node.items()} if isinstance(node, dict) else {}
        )

    def united(one, other):
        return {key: united(one.get(key, {}), other.get(key, {})) for key in {**one, **other}}

    schema = json.loads((package / "config_schema.json").read_text(encoding="utf8"))
    known = united(of_schema(schema), of_defaults(read_yaml(package / "default_config.yml")))
    # The schema leaves these open: their content is Sphinx's, or names of the user's.
    known["sphinx"] = known["sphinx"] | {"config": {}, "local_extensions": {}}
    return known | {"bibtex_bibfiles": {}, "bibtex_reference_style": {}, "latex": {}}


class _Page(HTMLParser):
    """Collects what is wrong with a page."""

    def __init__(self):
        super().__init__()
        self.faults: list[str] = []
        # The tag of the element in which TeX is no fault (code, or what MathJax renders), repeated.
        self._verbatim: list[str] = []

    def handle_data(self, data):
        if not self._verbatim and (raw := _RAW_TEX.search(data)):
            self.faults.append(f"shows raw TeX: {raw.group()!r}")

    def handle_endtag(self, tag):
        if tag in self._verbatim[:1]:
            self._verbatim.pop()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        begins = tag in ("script", "style", "pre", "code", "title")
        begins = begins or "math" in (attributes.get("class") or "").split()
        if (begins and not self._verbatim) or tag in self._verbatim[:1]:
            self._verbatim.append(tag)
        loads = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
        url = attributes.get(loads.get(tag, ""), "") or ""
        names = ("canonical", "search", "next", "prev", "index")
        stays = tag == "link" and attributes.get("rel") in names
        if re.match(r"(https?:)?//", url) and not stays:
            self.faults.append(f"<{tag}> loads {url} from elsewhere")
        if tag == "img":
            alt = attributes.get("alt") or ""
            if not alt.strip() or re.fullmatch(r"\S*[0-9a-f]{16,}\S*", alt):
                self.faults.append(f"<img> without a description (alt={alt!r})")


def check_site(html: Path) -> list[str]:
    """Pages that load from elsewhere, show an image undescribed, or TeX that is not rendered."""
    wrong = []
    for path in sorted(html.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text(encoding="utf8"))
        wrong += [f"{path.relative_to(html)}: {fault}" for fault in page.faults]
    return wrong
