"""The graph: data -> chapters (papermill) -> ledger -> verdict -> site. `make book` runs it.

`make record` runs another one, of recorded runs, each for itself. On a cluster the chapters and
the runs are its jobs; what they need is said in the folder of `profiles/` that describes it.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import experiments
import latebook
import latephase
from latebook.claims import load
from latebook.layout import Book

BOOK = Book(Path.cwd(), config.get("profile", "quick"))
CLAIMS = load(BOOK.claims)
CHAPTERS = BOOK.chapters()
SCIENCE = [f for package in (latephase, experiments) for f in sorted(Path(package.__file__).parent.rglob("*"))
           if f.suffix in (".py", ".npz")]
PIPELINE = sorted(Path(latebook.__file__).parent.glob("*.py"))
# A chapter runs again when a file that can change its numbers or its gate does.
GATE = [f for f in PIPELINE if f.stem in ("claims", "execute", "gate")]
PAGES = [str(f) for f in sorted(Path("book").rglob("*")) if f.is_file() and f.suffix != ".ipynb"
         and ".ipynb_checkpoints" not in f.parts]
EXECUTED = f"_build/executed/{BOOK.profile}/{{chapter}}.ipynb"
LEDGER, VERDICT, LIBRARY, SITE = (str(f.relative_to(BOOK.root)) for f in (
    BOOK.ledger, BOOK.product("verdict", ".ok"), BOOK.library, BOOK.html / "index.html"))
SHOWN = [LIBRARY] if BOOK.shows_library else []
PYTHON = sys.executable
STEP = "{PYTHON:q} -m latebook {rule} --profile {BOOK.profile}"
# What `make record` asks for. Without it no rule makes a record: a book never starts a long run.
RUNS, RECORDS = config.get("runs"), config.get("records", [])


localrules: book, site, library, verdict, ledger, records


def claims_of(wildcards):
    """The chapter's rows of the registry: a changed bound runs its own chapter again, no other."""
    return [str(asdict(claim)) for claim in CLAIMS.values() if claim.chapter == wildcards.chapter]


def records_of(wildcards):
    """The recorded runs that the chapter names: a new record runs its readers again, no other."""
    source = Path(f"book/{wildcards.chapter}.ipynb").read_text(encoding="utf8")
    return [str(f) for f in sorted(Path("results").glob("*.*")) if f'recorded(\\"{f.stem}\\"' in source]


# All of it: of what the site is made from, Snakemake would not miss what has vanished.
rule book:
    input: SITE, SHOWN, VERDICT, LEDGER, expand(EXECUTED, chapter=CHAPTERS)

rule site:
    input: VERDICT, SHOWN, "_config.yml", "_toc.yml", PAGES, expand(EXECUTED, chapter=CHAPTERS),
           PIPELINE
    output: update(SITE)
    params: profile=BOOK.profile
    shell: STEP

# By itself, as it loads all of the library: a changed chapter does not make it again.
rule library:
    input: SCIENCE, PIPELINE
    output: update(LIBRARY)
    params: profile=BOOK.profile
    shell: STEP

rule verdict:
    input: LEDGER
    output: VERDICT
    params: profile=BOOK.profile
    shell: STEP + " && touch {output}"

rule ledger:
    input: "book/claims.yml", expand(EXECUTED, chapter=CHAPTERS), [f for f in PIPELINE if f.stem == "ledger"]
    output: update(LEDGER)
    params: profile=BOOK.profile
    shell: STEP

rule chapter:
    input: "book/{chapter}.ipynb", SCIENCE, GATE, records_of
    output: update(EXECUTED)
    params: claims=claims_of, parameters=lambda wildcards: BOOK.parameters(wildcards.chapter)
    threads: 1
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
