"""Write book/_static/explore/given.js, the states of the library that its page shows."""

import json
from pathlib import Path

from experiments.explorables import LEVELS, POINTS, given

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Follow the flows and write their states, five digits each: a picture shows three."""
    sets = {}
    for name in POINTS:
        found = given(name)
        digits = {"x": 4, "y": 0, "start": 4, "direction": 5}
        sets[name] = {key: found[key].round(n).tolist() for key, n in digits.items()}
    content = json.dumps({"levels": LEVELS, "sets": sets}, separators=(",", ":"))
    head = "/* Made by .ci/explorables.py: flows of the library, too long for a browser. */\n"
    text = f"{head}(globalThis.latephase ??= {{}}).given = {content};\n"
    (ROOT / "book" / "_static" / "explore" / "given.js").write_text(text, encoding="utf8")


if __name__ == "__main__":
    main()
