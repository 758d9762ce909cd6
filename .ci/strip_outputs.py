"""Takes the outputs out of notebooks before they are committed: a hook of .pre-commit-config.yaml.

    python .ci/strip_outputs.py NOTEBOOK ...

Ends with 1 if it changed one, as hooks that mend do, and with 2 if one is no notebook.
"""

import sys
from pathlib import Path

from latebook import BookError
from latebook.files import write_whole
from latebook.notebooks import read


def main(paths: list[str]) -> int:
    """Strip each notebook in its place, and name those that had outputs or counts."""
    changed = False
    for path in map(Path, paths):
        try:
            notebook = read(path)
        except BookError as error:
            print(f"strip: {error}", file=sys.stderr)
            return 2
        run = [c for c in notebook.cells if c.is_code and (c.outputs or c.execution_count)]
        for cell in run:
            cell.content.update(outputs=[], execution_count=None)
        if run:
            write_whole(path, notebook.text())
            print(f"strip: {path}: outputs of {len(run)} cells removed")
            changed = True
    return int(changed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
