"""The claims under sabotage: one line of the library is falsified, and the ledger must notice.

    python -m benchmarks.sabotage [name ...]

Each sabotage is made in a copy of the repository, never here. The theory chapters run in the copy
in the quick profile; a chapter that stops is red as a whole, and of one that ends the claims are
listed whose row turns the build red. Takes some minutes for each sabotage, on two cores.
Saves results/sabotage.json after each; named ones replace their rows in it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.problems import RESULTS, save

from latebook.claims import load
from latebook.gate import recorded
from latebook.layout import Book
from latebook.ledger import entries, problems
from latebook.notebooks import read_executed

ROOT = Path(__file__).parents[1]
# Seconds for a chapter, some ten times what the slowest needs.
LIMIT = 900
CHAPTERS = ("directional_convergence", "where_it_fails", "alignment", "margin_maximization")
# name: (file of the library, the line as it is, the line as it must not be)
SABOTAGES = {
    "sign of the gradient": (
        "measures/alignment.py",
        "        problem.weighted_gradient(w, q)[1] for w, q in",
        "        -problem.weighted_gradient(w, q)[1] for w, q in",
    ),
    "degree off by one": (
        "flow/trajectory.py",
        "log_dual=states[-1].log_dual, degree=degree,",
        "log_dual=states[-1].log_dual, degree=degree + 1.0,",
    ),
    "duals recomputed from margins": (
        "flow/trajectory.py",
        "        q = np.exp(state.log_dual)\n",
        "        z = state.p * np.exp(min(degree * state.log_norm, 700.0))\n"
        "        q = np.exp(z.min() - z) / np.exp(z.min() - z).sum()\n",
    ),
    "wrong power of the norm": (
        "flow/trajectory.py",
        '"normalized_smoothed_margin": state.normalized_smoothed_margin,',
        '"normalized_smoothed_margin": state.normalized_smoothed_margin * np.exp(-state.log_norm),',
    ),
    "error of a step not seen": (
        "flow/runge_kutta.py",
        "        return Step(arrived, trial.turned(error), jump,",
        "        return Step(arrived, 1e-3 * trial.turned(error), 1e-3 * jump,",
    ),
    "gates of sliding kinks at one half": (
        "flow/newton.py",
        "        sliding, point = Sliding(self.gates, self.active, share), self.point\n",
        "        share = 0.5 + 0.0 * share\n"
        "        sliding, point = Sliding(self.gates, self.active, share), self.point\n",
    ),
}


def sabotaged(copy: Path, file: str, right: str, wrong: str) -> None:
    path = copy / "lib" / "latephase" / file
    text = path.read_text(encoding="utf8")
    if text.count(right) != 1:
        raise SystemExit(f"{file}: expected the line once, found {text.count(right)}: {right!r}")
    path.write_text(text.replace(right, wrong), encoding="utf8")


def outcome(copy: Path, chapter: str) -> dict:
    """Return what became of a chapter in the copy: why it stopped, or which rows are red."""
    environment = os.environ | {"PYTHONPATH": str(copy / "lib"), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "latebook", "chapter", "--chapter", chapter],
        cwd=copy,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stderr = run.communicate(timeout=LIMIT)[1]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        return {"stopped": f"not done within {LIMIT} s"}
    if run.returncode:
        said = [line for line in stderr.splitlines() if line.startswith("book:")]
        return {"stopped": said[-1].split(" (see")[0] if said else stderr[-200:]}
    book = Book(copy, "quick")
    claims = {id: c for id, c in load(book.claims).items() if c.chapter == chapter}
    notebook = read_executed(book.executed(chapter))
    found = {chapter: {"made_by": notebook.made_by, "claims": recorded(notebook)}}
    return {"red": problems(entries(claims, found, "quick"))}


def main() -> None:
    path = RESULTS / "sabotage.json"
    rows = json.loads(path.read_text(encoding="utf8"))["rows"] if path.exists() else {}
    for name in sys.argv[1:] or SABOTAGES:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
            copy = Path(folder) / "copy"
            shutil.copytree(
                ROOT, copy, ignore=shutil.ignore_patterns("_build", ".venv", ".snakemake")
            )
            sabotaged(copy, *SABOTAGES[name])
            results = pool.map(lambda chapter, copy=copy: outcome(copy, chapter), CHAPTERS)
            rows[name] = dict(zip(CHAPTERS, results, strict=True))
        print(f"{name}:")
        for chapter, result in rows[name].items():
            lines = [result["stopped"]] if "stopped" in result else result["red"] or ["green"]
            print(*(f"  {chapter}: {line}" for line in lines), sep="\n", flush=True)
        rows[name]["seconds"] = time.perf_counter() - begin
        save("sabotage", {"rows": rows, "duration": sum(row["seconds"] for row in rows.values())})


if __name__ == "__main__":
    main()
