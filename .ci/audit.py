"""Compares every pinned package with the published advisories: `make audit`.

Ends with 1 if an advisory names a pinned version, and with 2 if pip-audit fails. Where it or the
advisories cannot be reached nothing is known, which is said, and it ends with 0: an audit without
a network blocks nobody.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = "pip-audit@2.10.1"
# How uv and pip-audit say that there is no network.
UNREACHABLE = re.compile(r"connect|fetch|dns|time(d )?out|unreachable|network", re.IGNORECASE)


def main() -> int:
    """Run pip-audit on the lock and on the pins of the extra `cluster`, and print what it found."""
    build = ROOT / "_build"
    build.mkdir(exist_ok=True)
    report, pins = build / "audit.json", build / "audit.txt"
    report.unlink(missing_ok=True)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    # Without the hashes, which the extra has not: nothing is downloaded here.
    locked = re.findall(r"^([a-z0-9].*) \\$", lock, re.M)
    pins.write_text("\n".join([*locked, *project["optional-dependencies"]["cluster"]]) + "\n")
    command = [sys.executable, "-m", "uv", "tool", "run", TOOL, "--disable-pip", "--no-deps"]
    command += ["--requirement", str(pins), "--progress-spinner", "off"]
    command += ["--format", "json", "--output", str(report)]
    done = subprocess.run(command, capture_output=True, text=True)
    if not report.is_file():
        last = (done.stderr.strip().splitlines() or ["no word"])[-1].strip()
        print(f"audit: nothing was audited; pip-audit ended with: {last}")
        return 0 if UNREACHABLE.search(done.stderr) else 2
    return verdict(json.loads(report.read_text(encoding="utf8"))["dependencies"])


def verdict(packages: list[dict]) -> int:
    """Print pip-audit's findings, package by package; 1 if there is an advisory."""
    found = [(p, advisory) for p in packages for advisory in p.get("vulns", [])]
    for package, advisory in found:
        mended = ", ".join(advisory["fix_versions"]) or "no version yet"
        print(
            f"audit: {package['name']} {package['version']}: {advisory['id']}, mended in {mended}"
        )
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    print(
        f"audit: {len(packages) - len(skipped)} of {len(packages)} packages audited, "
        f"{len(found)} advisories"
    )
    if skipped:
        some = ", ".join(skipped[:5]) + (", …" if len(skipped) > 5 else "")
        print(f"audit: not audited, since no advisories could be had for them: {some}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
