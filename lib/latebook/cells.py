"""What the code of a chapter may not do, read from its cells before any of them runs.

A chapter's numbers count because a reader can follow them: they come from the parameters that a
profile sets, by the library, into the one call that records them, and nothing on the way is hidden.
What takes that away is refused by name. The rules bar what happens by haste; whoever wants to cheat
finds a way around any list, and has to write it where everybody can read it.
"""

import ast
import builtins
from collections.abc import Iterator

from latebook.notebooks import Cell

_TAGS = {"parameters", "hide-input"}
_MYSTNB = {"figure", "image"}
# What a chapter that records claims computes with; the library reads its own data.
_IMPORTS = (
    *("latephase", "experiments", "latebook", "numpy", "scipy", "torch", "pandas", "matplotlib"),
    *("seaborn", "myst_nb", "collections", "copy", "dataclasses"),
    *("functools", "itertools", "math", "statistics", "time"),
)
# How the declared readers and the registry are imported.
_OF_LATEBOOK = {"latebook": {"claims", "records"}, "latebook.records": {"recorded"}}
_ROUNDABOUT = {
    *("globals", "locals", "vars", "exec", "eval", "compile", "__import__"),
    *("setattr", "delattr", "get_ipython", "breakpoint", "exit", "quit", "SystemExit"),
}
_HARMLESS = {"__name__", "__version__"}
_READING = {
    *("open", "input", "load", "loadtxt", "genfromtxt", "fromfile", "memmap", "fromregex"),
    *("read_text", "read_bytes", "load_file", "load_dataset", "imread", "urlopen", "urlretrieve"),
    *("load_state_dict_from_url", "download_url_to_file", "loadmat", "mmread", "loadarff"),
    *("readsav", "wavfile", "open_memmap", "from_file", "FileIO", "DataSource", "HDFStore"),
    *("ExcelFile", "rc_file", "get_handle"),
}
_SILENCING = {
    *("warnings", "simplefilter", "filterwarnings", "catch_warnings", "suppress_warnings"),
    *("seterr", "seterrcall", "errstate", "set_warn_always", "redirect_stderr", "redirect_stdout"),
    *("stderr", "stdout", "logging", "disable_warnings", "suppress"),
}
_REPLACING = {
    *("clear_output", "update_display", "display_id", "publish_display_data", "DisplayHandle"),
    *("_repr_mimebundle_", "_ipython_display_"),
}
_PROCESS = {"os", "sys", "environ", "putenv", "_exit", "system", "popen", "builtins"}
_CHANGING = {
    *("append", "extend", "insert", "remove", "pop", "popitem", "clear", "sort", "reverse"),
    *("update", "setdefault", "add", "discard"),
}
_PUT_TOGETHER = "puts the name of an attribute together, behind which anything is hidden"
_TOO_MUCH = {"Exception", "BaseException", "BookError"}
# What no name of a chapter's own may stand for.
_TAKEN = {*dir(builtins), "display"} - {"id", "_"}
_NEW_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def faults(cells: list[Cell]) -> list[str]:
    """What the cells of a stored chapter do that is refused, one line each, by number of cell."""
    trees, wrong = {}, []
    for index, cell in enumerate(cells, start=1):
        wrong += [f"cell {index} {fault}" for fault in _form_faults(cell)]
        if cell.is_code:
            try:
                trees[index] = ast.parse(cell.source)
            except (SyntaxError, ValueError):
                wrong.append(
                    f"cell {index} is not plain Python; magics and shell commands are refused"
                )
    parameters = {
        index: set(_bound(tree)) for index, tree in trees.items() if _sets(cells[index - 1])
    }
    names = set().union(*parameters.values())
    # Only what is measured must not depend on the machine: a tutorial may read and start programs.
    records = any(_is_record(node) for tree in trees.values() for node in ast.walk(tree))
    imported = {name for tree in trees.values() for name in _imported(tree)} if records else set()
    for index, tree in trees.items():
        found = list(_swallowing(tree))
        if index not in parameters:
            found += _assigning(tree, names)
        if records:
            found += [*_importing(tree), *_reaching(tree), *_patching(tree, imported)]
            found += [f"hides {name}" for name in sorted(_TAKEN & set(_bound(tree)))]
            found += _recording(tree)
        wrong += [f"cell {index} {fault}" for fault in dict.fromkeys(found)]
    return wrong


def _sets(cell: Cell) -> bool:
    return "parameters" in cell.tags


def _form_faults(cell: Cell) -> Iterator[str]:
    """What hides a cell's code or output, or has an error pass."""
    metadata = cell.content["metadata"]
    if cell.content["cell_type"] not in ("code", "markdown"):
        yield f"is of type {cell.content['cell_type']!r}, which no reader sees run"
    if unknown := sorted(set(cell.tags) - _TAGS):
        yield f"has the tag {', '.join(unknown)}; allowed are {', '.join(sorted(_TAGS))}"
    if hidden := sorted(set(metadata.get("mystnb", {})) - _MYSTNB):
        yield f"sets mystnb: {', '.join(hidden)}; allowed are {', '.join(sorted(_MYSTNB))}"
    if any(key.endswith("_hidden") for key in metadata.get("jupyter", {})):
        yield "is hidden (jupyter: source_hidden or outputs_hidden)"


def _swallowing(tree: ast.AST) -> Iterator[str]:
    """Handlers that catch whatever comes, or do nothing with what they caught."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _TOO_MUCH:
            yield f"names {node.id}, which catches everything under any name"
        if isinstance(node, ast.Try | ast.TryStar):
            if any(isinstance(leaf, ast.Return | ast.Break | ast.Continue)
                   for step in node.finalbody for leaf in ast.walk(step)):  # fmt: skip
                yield "leaves a `finally`, which swallows the error"
            for handler in node.handlers:
                caught = [] if handler.type is None else _names(handler.type)
                if not caught or _TOO_MUCH & set(caught):
                    yield f"catches {', '.join(caught) or 'everything'}: name the errors expected"
                if all(map(_does_nothing, handler.body)):
                    yield "swallows an error: keep which start it lost, and why"


def _names(node: ast.AST) -> list[str]:
    """The last names of the classes in `except a.B` or `except (a.B, C)`."""
    if isinstance(node, ast.Tuple):
        return [name for element in node.elts for name in _names(element)]
    return [node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "an expression")]


def _does_nothing(step: ast.stmt) -> bool:
    return isinstance(step, ast.Pass | ast.Continue | ast.Break) or (
        isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant | ast.Name)
    )


def _bound(tree: ast.AST) -> Iterator[str]:
    """The names that a cell binds or deletes where the whole chapter sees it."""
    rest = list(ast.iter_child_nodes(tree))
    while rest:
        node = rest.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
        if isinstance(node, _NEW_SCOPE):
            declared = [n for n in ast.walk(node) if isinstance(n, ast.Global)]
            yield from (name for statement in declared for name in statement.names)
            # What a definition evaluates outside of itself.
            rest += getattr(node, "decorator_list", [])
            if isinstance(node, ast.ClassDef):
                rest += [*node.bases, *node.keywords]
            else:
                rest += [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif isinstance(node, _COMPREHENSION):
            # Its targets are its own, its `:=` are not.
            yield from (n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
        else:
            rest += ast.iter_child_nodes(node)


def _assigning(tree: ast.AST, parameters: set[str]) -> Iterator[str]:
    """Assignments to a parameter, or changes within it, behind the cell that sets it."""
    for name in sorted(parameters & set(_bound(tree))):
        yield f"assigns the parameter {name!r} again"
    for node in ast.walk(tree):
        changed = None
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            changed = _root(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = _root(node.func.value) if node.func.attr in _CHANGING else None
        if changed in parameters:
            yield f"changes the parameter {changed!r}"
        if isinstance(node, ast.alias) and node.name == "*":
            yield "imports *, which may hide a parameter"


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)


def _importing(tree: ast.AST) -> Iterator[str]:
    """Imports of other packages than a chapter computes with, and of the pipeline's insides."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            within = [name for name in modules if name.split(".")[0] == "latebook"]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
            names = {alias.name if not alias.asname else "as" for alias in node.names}
            own = modules[0].split(".")[0] == "latebook"
            within = modules if own and not names <= _OF_LATEBOOK.get(modules[0], set()) else []
        else:
            continue
        for name in modules:
            if name.split(".")[0] not in _IMPORTS:
                yield f"imports {name}; a chapter that records claims computes with {_LISTED}"
        if within:
            yield "imports of latebook other than `from latebook import claims, records`"


_LISTED = ", ".join(_IMPORTS)


def _reaching(tree: ast.AST) -> Iterator[str]:
    """Names by which code reads, silences, replaces outputs, or leaves the plain path."""
    for node in ast.walk(tree):
        names = {getattr(node, "id", None), getattr(node, "attr", None)}
        if isinstance(node, ast.alias | ast.keyword):
            names = {node.asname, node.name} if isinstance(node, ast.alias) else {node.arg}
            if names == {"raw"}:
                yield "shows something raw: outputs are not cleared, replaced or forged"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = {node.name}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # As in getattr(np, "load"); a word in a sentence is another matter.
            names = {node.value}
            if "vnd.latephase" in node.value:
                yield "names the type of a claim's output, which claims.record alone makes"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr":
            named = node.args[1:2]
            yield from (_PUT_TOGETHER for n in named if not isinstance(n, ast.Constant | ast.Name))
        for name in names - {None}:
            dunder = name.startswith("__") and name.isidentifier() and name not in _HARMLESS
            if name in _ROUNDABOUT or dunder:
                yield f"uses {name}, behind which code and names are hidden"
            elif name in _READING or name.startswith(("read_", "fetch_")):
                yield f"uses {name}: inputs come through latebook.records and the library alone"
            elif name in _SILENCING:
                yield f"uses {name}: warnings and what is printed are not silenced"
            elif name in _REPLACING:
                yield f"uses {name}: outputs are not cleared, replaced or forged"
            elif name in _PROCESS:
                yield f"uses {name}: a chapter leaves its process and environment as they are"


def _patching(tree: ast.AST, imported: set[str]) -> Iterator[str]:
    """Assignments into what was imported, but for PyTorch's own switches."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Subscript) or isinstance(node.ctx, ast.Load):
            continue
        place = ast.unparse(node)
        if _root(node) in imported and not place.startswith("torch.backends."):
            yield f"changes {place}, which it imported"


def _is_record(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "claims"


def _recording(tree: ast.Module) -> Iterator[str]:
    """Uses of `claims` other than its two calls, and records that a fault could pass by."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    plain = {id(func.value) for func in calls if _is_call(func, "record", "holds", "said")}
    reading = {id(n.value) for n in ast.walk(tree) if getattr(n, "attr", None) == "recorded"}
    bound = [*_bound(tree)]
    own = [n for n in tree.body if getattr(n, "module", "") in _OF_LATEBOOK]
    for name in ("claims", "records"):
        if bound.count(name) > sum(alias.name == name for n in own for alias in n.names):
            yield f"uses {name} for something else than latebook's"
    for node in ast.walk(tree):
        if _is_record(node) and id(node) not in plain:
            yield "uses claims other than to call claims.record, claims.holds or claims.said"
        if getattr(node, "id", None) == "records" and id(node) not in reading:
            yield "uses records other than for records.recorded"
    free = {id(call) for call in _unconditional(tree)}
    if any(_is_call(func, "record") and id(func) not in free for func in calls):
        yield (
            "records under a condition: claims.record stands by itself or right in a `for`, "
            "not in try, if, while, with, a function or an expression"
        )


def _is_call(func: ast.AST, *names: str) -> bool:
    return isinstance(func, ast.Attribute) and func.attr in names and _is_record(func.value)


def _unconditional(tree: ast.Module) -> Iterator[ast.AST]:
    """The functions called by statements that nothing in the cell can pass by."""
    rest = list(tree.body)
    while rest:
        step = rest.pop()
        if isinstance(step, ast.Expr) and isinstance(step.value, ast.Call):
            yield step.value.func
        elif isinstance(step, ast.For):
            leaves = any(
                isinstance(n, ast.Break | ast.Continue | ast.Try | ast.If) for n in ast.walk(step)
            )
            rest += [] if leaves or _filters(step.iter) else step.body


def _filters(iterated: ast.AST) -> bool:
    return any(isinstance(n, ast.comprehension) and n.ifs for n in ast.walk(iterated))
