"""The page of the library's public names, made from their signatures and docstrings."""

import importlib
import inspect


def page(package: str) -> str:
    """Markdown: for each public name its signature, its docstring as it is, and its methods."""
    module = importlib.import_module(package)
    lines = []
    for name in sorted(set(module.__all__) - {"__version__"}, key=str.lower):
        thing = getattr(module, name)
        lines += [f"## {name}", "", *_entry(f"{package}.{name}", thing)]
        if inspect.isclass(thing):
            for method, value in vars(thing).items():
                function = value.__func__ if isinstance(value, classmethod) else value
                if inspect.isfunction(function) and not method.startswith("_"):
                    lines += _entry(f"{name}.{method}", function)
    return "\n".join(lines) + "\n"


def _entry(title: str, thing) -> list[str]:
    try:
        # Annotations are kept as text, and shown without its quotation marks.
        signature = str(inspect.signature(thing)).replace("'", "")
    except ValueError:
        signature = ""
    if len(signature) > 90:
        signature = signature.replace("(", "(\n    ", 1).replace(", ", ",\n    ")
    text = inspect.getdoc(thing) or ""
    return ["```python", f"{title}{signature}", "```", "", "```text", text, "```", ""]
