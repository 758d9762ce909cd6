"""External addresses, found in all that a reader may read, asked for by Sphinx: `make links`.

Ends with 1 if one does not answer as it should, and with 0 where there is no network.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from latebook import BookError

_FILES = (
    "_config.yml",
    "*.md",
    "*.cff",
    "book/*.md",
    "book/*.ipynb",
    "book/*.yml",
    "book/*.bib",
    "lib/**/*.py",
    "recordings/*",
)
_ADDRESS = re.compile(r"""https?://(?=[\w-]+\.\w)(?:[^\s<>"'`|{}\\()\]]|\([^\s()]*\))+""")
# Of a bibliography, what becomes an address on the page.
_ENTRY = re.compile(r'^\s*(doi|eprint)\s*=\s*[{"]([^}"]+)', re.MULTILINE | re.IGNORECASE)
_RESOLVER = {"doi": "doi.org", "eprint": "arxiv.org/abs"}
# Written for a reader to replace, or the name of an XML vocabulary.
_NO_LINK = re.compile(r"OWNER|HOST|^https://github\.com/$|^http://www\.w3\.org/")

_CONFIGURATION = """\
extensions = ["myst_parser"]
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False
linkcheck_rate_limit_timeout = 60
"""


def addresses(root: Path) -> dict[str, list[str]]:
    """The external addresses of a checkout, each with the files in which it stands."""
    found: dict[str, list[str]] = {}
    for path in sorted({path for pattern in _FILES for path in root.glob(pattern)}):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf8")
        links = [link.rstrip(".,;:*!?") for link in _ADDRESS.findall(text)]
        if path.suffix == ".bib":
            entries = _ENTRY.findall(text)
            links += [f"https://{_RESOLVER[kind.lower()]}/{name}" for kind, name in entries]
        for link in dict.fromkeys(links):
            if not _NO_LINK.search(link):
                found.setdefault(link, []).append(str(path.relative_to(root)))
    return found


def answers(links: list[str]) -> dict[str, dict]:
    """What Sphinx's linkcheck says of each: `status`, the HTTP `code` (0: no answer), `info`.

    BookError if Sphinx itself fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        source.mkdir()
        (source / "conf.py").write_text(_CONFIGURATION, encoding="utf8")
        page = "# Links\n\n" + "\n\n".join(f"<{link}>" for link in links) + "\n"
        (source / "index.md").write_text(page, encoding="utf8")
        command = [sys.executable, "-m", "sphinx", "-b", "linkcheck", "-q", str(source), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            lines = (out / "output.json").read_text(encoding="utf8").splitlines()
        except OSError as error:
            raise BookError(f"Sphinx checked no link:\n{done.stderr.strip()}") from error
    said = {row["uri"]: row for row in map(json.loads, lines)}
    if missing := set(links) - said.keys():
        raise BookError(f"Sphinx passed over {', '.join(sorted(missing))}")
    return said


def check(root: Path) -> int:
    """Print a table of the addresses that do not answer as they should; 1 if there is one.

    Where none answers at all there is no network: that is said, and nothing counts as broken.
    """
    places = addresses(root)
    said = answers(list(places))
    broken = {link: row for link, row in said.items() if row["status"] in ("broken", "timeout")}
    if broken.keys() == said.keys() and not any(row["code"] for row in said.values()):
        print(f"None of {len(said)} addresses answers: there is no network, nothing was checked.")
        return 0
    for link, row in sorted(broken.items()):
        print(f"{link}\n    {row['info']}\n    in {', '.join(places[link])}")
    print(f"{len(said) - len(broken)} of {len(said)} addresses answer.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(check(Path.cwd()))
