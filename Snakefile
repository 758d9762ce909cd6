"""The graph: chapters (papermill) -> ledger -> verdict -> site. `make book` runs it.

`make record` runs another one, of recorded runs, each for itself. On a cluster the chapters and
the runs are its jobs; what they need is said in the folder of `profiles/` that describes it.

What has to be made `latebook build` decides, by content (lib/latebook/inputs.py): it leaves the
marks of what is as it would be. Snakemake orders the rest. It knows nothing but the marks, so that
its clocks start nothing, and what it deletes of a failed job is never a result.
"""

import os
import sys
from pathlib import Path

from latebook.layout import Book

BOOK = Book(Path.cwd(), config.get("profile", "quick"))
THREADS = int(config.get("threads", 1))


def mark(*step):
    return str(BOOK.mark(*step).relative_to(BOOK.root))


# The longest first; what was never timed before all others.
SECONDS = BOOK.seconds()
EXECUTED = [mark("chapter", chapter) for chapter in BOOK.chapters()]
SHOWN = [mark("library")] if BOOK.shows_library else []
PYTHON = sys.executable
STEP = "{PYTHON:q} -m latebook {rule} --profile {BOOK.profile} --threads {THREADS}"
# What `make record` asks for. Without it no rule makes a record: a book never starts a long run.
RUNS, RECORDS = config.get("runs"), config.get("records", [])


localrules: book, site, library, verdict, ledger, records

rule book:
    input: mark("site"), SHOWN, mark("verdict"), mark("ledger"), EXECUTED

rule site:
    input: mark("verdict"), SHOWN
    output: touch(mark("site"))
    shell: STEP

# By itself, as it loads all of the library: a changed chapter does not make it again.
rule library:
    output: touch(mark("library"))
    shell: STEP

rule verdict:
    input: mark("ledger")
    output: touch(mark("verdict"))
    shell: STEP

rule ledger:
    input: EXECUTED
    output: touch(mark("ledger"))
    shell: STEP

rule chapter:
    output: touch(mark("chapter", "{chapter}"))
    priority: lambda wildcards: round(SECONDS.get(wildcards.chapter, 1e6))
    threads: THREADS
    shell: STEP + " --chapter {wildcards.chapter}"

rule records:
    input: expand("results/{run}.json", run=RECORDS)

if RECORDS:
    rule record:
        output: update("results/{run}.json"), update("results/{run}.npz")
        resources: gpu=int(os.environ.get("LATEPHASE_DEVICE", "cpu").startswith("cuda"))
        threads: 1
        shell: "TQDM_MININTERVAL=20 TQDM_DESC={wildcards.run} "
               "{PYTHON:q} recordings/make.py {wildcards.run} --runs {RUNS:q} --progress"
