"""The gate before the site: what papermill and Jupyter Book let pass, this module does not.

Papermill returns success for `sys.exit(0)` before a failing cell, for a parameter the notebook
does not declare, for an error in a cell tagged raises-exception; Jupyter Book with execution off
returns success for notebooks that failed or never ran, and says nothing of a misspelt key.
Each function returns the list of what is wrong, in one line each; an empty list opens the gate.
"""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path

from latebook.cells import faults as refused
from latebook.claims import MIME, SEEDS, Claim, line
from latebook.files import read_yaml
from latebook.notebooks import Cell, Notebook, cells_sha256, read

_NAN = re.compile(r"(?<![\w.])nan(?![\w])", re.IGNORECASE)
_RAW_TEX = re.compile(r"\$[^$\s][^$]*\$|\\[a-zA-Z]{3,}")
# What of a page is no HTML, and what shows TeX for itself or for MathJax to render.
_SCRIPT = re.compile(r"<!--.*?-->|(<(script|style)\b[^>]*>).*?</\2>", re.DOTALL | re.IGNORECASE)
_VERBATIM = re.compile(
    r"<(pre|code|title)\b.*?</\1>"
    r'|<(\w+)[^>]*\bclass="(?:[^"]* )?math(?: [^"]*)?".*?</\2>',
    re.DOTALL,
)
_LOADS = re.compile(
    r"""<(script|img|iframe|link|source)\b((?:[^>"']|"[^"]*"|'[^']*')*)>""", re.IGNORECASE
)
_ATTRIBUTE = re.compile(r"""([\w-]+)=("[^"]*"|'[^']*'|[^\s"'>]+)""")
# How a link names a page that the browser does not fetch with this one.
_MERELY_NAMED = ("canonical", "search", "next", "prev", "index")


def check_source(path: Path) -> list[str]:
    """What is wrong with a stored notebook: outputs kept, no single cell tagged parameters, or code
    that does what `cells` refuses."""
    cells = read(path).cells
    wrong = [
        f"{path.name}: cell {index} is stored with outputs; clear them"
        for index, cell in enumerate(cells, start=1)
        if cell.outputs or cell.execution_count is not None
    ]
    wrong += [f"{path.name}: {fault}" for fault in refused(cells)]
    return wrong + _parameters_faults(path.name, cells)


def _parameters_faults(name: str, cells: list[Cell]) -> list[str]:
    if [cell.is_code for cell in cells if "parameters" in cell.tags] == [True]:
        return []
    return [f"{name}: expected one code cell tagged 'parameters'"]


def check_executed(
    executed: Notebook, source: Path, claims: Mapping[str, Claim], profile: str, parameters: Mapping
) -> list[str]:
    """What is wrong with an executed chapter that should have recorded the `claims`, by id.

    It ran with the `parameters` that the profile sets, whose `seeds` a claim is measured on where
    the registry names no number of cases.
    """
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
    wrong += _claim_faults(name, code, set(claims))
    return wrong + [
        f"{name}: the record of {payload['id']!r} {fault}"
        for cell in code
        for payload, text in _payloads(cell)
        if (claim := claims.get(payload["id"]))
        for fault in _measured_faults(claim, payload, text, profile, parameters)
    ]


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
    times = Counter(payload["id"] for cell in code for payload, _ in _payloads(cell))
    faults = [f"never recorded the claim {id!r}" for id in sorted(expected - set(times))]
    faults += [f"recorded {id!r}, not registered for it" for id in sorted(set(times) - expected)]
    faults += [f"recorded {id!r} {times[id]} times" for id in sorted(times) if times[id] > 1]
    if any(_payloads(cell) for cell in code[:-1]):
        faults.append("claims are recorded in the last code cell, not before it")
    return [f"{name}: {fault}" for fault in faults]


def _payloads(cell: Cell) -> list[tuple[dict, str | None]]:
    """What the cell recorded, each with the line that stands below it; of any type of output."""
    shown = [output["data"] for output in cell.outputs if MIME in output.get("data", {})]
    return [(data[MIME], data.get("text/plain")) for data in shown]


def _measured_faults(
    claim: Claim, payload: dict, text: str | None, profile: str, parameters: Mapping
) -> Iterator[str]:
    """What of a record `claims.record` did not make, or what of the registered cases is missing."""
    try:
        numbers = {"": payload, **payload["controls"]}
        values = {name: [float(v) for v in of["values"]] for name, of in numbers.items()}
        seeds = {name: of["seeds"] for name, of in numbers.items()}
        dropped = {int(seed): reason for seed, reason in payload["dropped"].items()}
        paired = all(values.values()) and all(
            len(values[n]) == len(seeds[n]) and set(map(type, seeds[n])) == {int} for n in numbers
        )
        found, written = {*seeds[""], *dropped}, line(claim, values[""], profile)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        yield f"is not as claims.record makes it: {type(error).__name__} {error}"
        return
    if not paired or len(found) != len(seeds[""]) + len(dropped) or text != written:
        yield f"is not as claims.record makes it: {text!r}, expected {written!r}"
    if set(payload["controls"]) != set(claim.controls):
        yield f"has the controls {sorted(payload['controls'])}, expected {sorted(claim.controls)}"
    if absurd := [value for value in values[""] if claim.is_absurd(value, profile)]:
        yield f"has the value {absurd[0]!r}, too good for {claim.relation} {claim.bound[profile]:g}"
    expected = claim.cases[profile]
    if expected is None and "seeds" not in parameters:
        yield "has no registered cases, and the chapter no parameter `seeds`"
    elif expected is None and found != set(parameters["seeds"]):
        yield f"is of the seeds {sorted(found)}, dropped ones with them, not {parameters['seeds']}"
    elif expected is not None and len(found) != expected:
        yield f"has {len(found)} cases, dropped ones with them; registered are {expected}"
    if len(found) < SEEDS and not claim.few:
        yield f"has {len(found)} cases; fewer than {SEEDS} need a registered reason (few: why)"


def recorded(notebook: Notebook) -> list[dict]:
    """The payloads of `claims.record` in an executed notebook, in their order."""
    return [payload for cell in notebook.cells for payload, _ in _payloads(cell)]


def check_parameters(source: Path, parameters: dict, where: str) -> list[str]:
    """Parameters that the notebook does not declare, or declares and the profile does not set."""
    from papermill import inspect_notebook

    name, declared = source.name, inspect_notebook(str(source)).keys()
    only, given = ", ".join(sorted(declared)), parameters.keys()
    wrong = [f"{name} declares no parameter {key!r}, only {only}" for key in given - declared]
    wrong += [f"sets no {key!r}, which {name} declares" for key in declared - given]
    return [f"{where}: {fault}" for fault in sorted(wrong)]


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

    def united(schema, defaults):
        listed = schema.get("properties", {})
        defaults = defaults if isinstance(defaults, dict) else {}
        return {k: united(listed.get(k, {}), defaults.get(k)) for k in {**listed, **defaults}}

    schema = json.loads((package / "config_schema.json").read_text(encoding="utf8"))
    known = united(schema, read_yaml(package / "default_config.yml"))
    # The schema leaves these open: their content is Sphinx's, or names of the user's.
    known["sphinx"] = known["sphinx"] | {"config": {}, "local_extensions": {}}
    return known | {"bibtex_bibfiles": {}, "bibtex_reference_style": {}, "latex": {}}


def check_site(html: Path) -> list[str]:
    """Pages that load from elsewhere, show an image undescribed, or TeX that is not rendered."""
    return [
        f"{path.relative_to(html)}: {fault}"
        for path in sorted(html.rglob("*.html"))
        for fault in _page_faults(path.read_text(encoding="utf8"))
    ]


def _page_faults(page: str) -> Iterator[str]:
    page = _SCRIPT.sub(r"\1", page)
    for tag, words in _LOADS.findall(page):
        tag, found = tag.lower(), _ATTRIBUTE.findall(words)
        attributes = {name.lower(): unescape(value.strip("\"'")) for name, value in found}
        url = attributes.get("href" if tag == "link" else "src", "")
        if re.match(r"(https?:)?//", url) and attributes.get("rel") not in _MERELY_NAMED:
            yield f"<{tag}> loads {url} from elsewhere"
        alt = attributes.get("alt", "")
        if tag == "img" and (not alt.strip() or re.fullmatch(r"\S*[0-9a-f]{16,}\S*", alt)):
            yield f"<img> without a description (alt={alt!r})"
    shown = re.sub(r"<[^>]*>", "\0", _VERBATIM.sub("", page))
    for text in unescape(shown).split("\0"):
        if raw := _RAW_TEX.search(text):
            yield f"shows raw TeX: {raw.group()!r}"
