"""The pipeline's commands: `python -m latebook build` and the steps the Snakefile calls."""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path

import psutil

from latebook import (
    BookError,
    compare,
    evidence,
    gate,
    inputs,
    ledger,
    preloaded,
    registration,
    surroundings,
)
from latebook.claims import PROFILES, load, of_chapter
from latebook.files import broken_seal, held, read_yaml, require_room, write_sealed, write_whole
from latebook.layout import Book
from latebook.notebooks import read_executed
from latebook.records import lacking, runs

# How lines of standard error begin that are for the reader: the steps' own, and SLURM's.
_STEPS_SAY = ("book: ", "record: ", "slurmstepd: error: ")
_LOG_OF_A_FAILED_JOB = re.compile(r"log: (.+) \(check log file\(s\) for error details\)")


class Terminated(BaseException):
    """SIGTERM, as `timeout`, a batch system or a shutdown sends it."""

    @classmethod
    def upon(cls, number: int, frame: object) -> None:
        """Raise it, once: what follows is the way out."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise cls


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when green, 1 with what is wrong on the standard error otherwise."""
    parser = argparse.ArgumentParser(prog="python -m latebook", description=__doc__)
    parser.add_argument("step", choices=[*_STEPS])
    parser.add_argument("--chapter", help="which one, for the step `chapter`")
    parser.add_argument("--profile", default=PROFILES[0], help=", ".join(PROFILES))
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1, help="of a chapter (1)")
    parser.add_argument("--cluster", help="where jobs run: a folder of profiles/, as slurm")
    parser.add_argument("--runs", default="recordings/runs.yml", help="for the step `record`")
    parser.add_argument("--ledger", help="for the step `compare`: another's, not this build's")
    parser.add_argument("--why", default="", help="for the step `reference`: what changed it")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the same: runs to make anew")
    words = sys.argv[1:] if words is None else words
    options = parser.parse_args(words)
    if options.names and options.step != "record":
        parser.error(f"only the step record takes names, got {' '.join(options.names)}")
    if options.threads < 1:
        parser.error(f"--threads: expected 1 or more, got {options.threads}")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal may lack the sign ≤
    signal.signal(signal.SIGTERM, Terminated.upon)
    try:
        book = Book(Path.cwd(), options.profile)
        step = _STEPS[options.step]
        if step is not _reference:  # a commit has its author's name, and perhaps a signature
            surroundings.settle(book.build, options.threads)
        if step is _chapter and (code := preloaded.asked(book, words)) is not None:
            return code
        makes = [options.step, *filter(None, [options.chapter])]
        with _alone(book, *makes) if step in _MAKERS else contextlib.nullcontext():
            if step not in _NOTING:
                return step(book, options) or 0
            made_from = inputs.of_step(book, options.step)
            step(book, options)
            inputs.note(book, options.step, made_from)
            return 0
    except BookError as error:
        print("\n".join(f"book: {line}" for line in str(error).splitlines()), file=sys.stderr)
    except OSError as error:
        print(f"book: {_refused(error, book)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("book: interrupted; the same command goes on from here", file=sys.stderr)
    except Terminated:
        print("book: terminated; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 1


def _refused(error: OSError, book: Book) -> str:
    """Which path the system refused, and why, in a line; of a copy the one written to."""
    if isinstance(error, shutil.Error):  # of many files: (from, to, why) for each
        return "{1}: {2}".format(*error.args[0][0])
    where = error.filename2 or error.filename or f"{book.build} or {tempfile.gettempdir()}"
    return f"{where}: {error.strerror or error}"


def _build(book: Book, options) -> int:
    """Everything, by Snakemake: only what is out of date runs."""
    began = time.monotonic()
    _preflight(book)
    _place(book, options)
    for folder in (book.build, book.root / ".snakemake", Path(tempfile.gettempdir())):
        require_room(folder)
    with held(book.lock("build"), f"the book with the profile {book.profile}"):
        _discard_damaged(book)
        _make(book, options)
    entries = ledger.read(book.ledger)
    print(f"\nClaims, profile {book.profile}:\n{evidence.lines(entries)}\n")
    print(f"{time.monotonic() - began:.0f} s. The site: {book.html / 'book' / 'index.html'}")
    return 0


def _make(book: Book, options) -> None:
    """Have Snakemake make what is not as its inputs have it now; BookError if some is left."""
    stale = _mark(book)
    for name, why in stale.items():
        print(f"{name}: {why}", flush=True)
    while stale:
        code, said = _snakemake(book, options)
        left = _mark(book)
        # Snakemake stops where a clock goes back, and files change under a build: what is done is
        # done, the rest is taken up again.
        if said or len(left) >= len(stale):
            if code != 0 and not said:
                _show_end(book)
            wrong = [f"{name}: {why}" for name, why in left.items() if code == 0]
            raise BookError(
                "\n".join([*wrong, "the build is red; earlier results are as they were"])
            )
        stale = left


def _mark(book: Book) -> dict[str, str]:
    """Leave the marks of the products that are as they would be made now; why others are not."""
    steps = [("chapter", chapter) for chapter in book.chapters()]
    steps += [("library",)] * book.shows_library + [("ledger",), ("verdict",), ("site",)]
    stale = {}
    for step in steps:
        mark = book.mark(*step)
        why = inputs.why_stale(book, *step)
        if not why and stale and step[0] not in ("chapter", "library"):
            why = "what it is made from is made again"
        if why:
            stale[step[-1]] = why
            mark.unlink(missing_ok=True)
        else:
            write_whole(mark, "")
    return stale


def _record(book: Book, options) -> None:
    """The recorded runs that are missing, or the named ones anew, each a job of its own."""
    known, results = runs(Path(options.runs)), book.root / "results"
    if unknown := sorted(set(options.names) - set(known)):
        raise BookError(f"{options.runs}: no run {', '.join(unknown)}; known: {', '.join(known)}")
    missing = {} if options.names else lacking(known, results)
    for name, why in missing.items():
        if (results / f"{name}.json").exists():
            print(f"book: {why}", file=sys.stderr, flush=True)
    if not (names := options.names or [*missing]):
        print("Every run has its record; RUN=NAME makes one anew.")
        return
    code, said = _snakemake(book, options, names)
    if code != 0 and not said:
        _show_end(book)
    if code != 0:
        raise BookError(
            "a run was not recorded; the same command goes on where it stopped, earlier records "
            "are as they were"
        )


def _snakemake(book: Book, options, names: list[str] = ()) -> tuple[int, bool]:
    """Snakemake on the book, or on the recorded runs of these names.

    Returns its exit code, and whether what is wrong was said. Marks start its jobs, and changes
    of nothing that it knows itself.
    """
    command = [sys.executable, "-m", "snakemake", "--profile", "none"]
    config = {"profile": book.profile, "threads": options.threads}
    if names:
        command += ["records", "--forcerun", "record"]
        config |= {"records": names, "runs": options.runs}
    command += ["--rerun-triggers", "software-env", *_place(book, options)]
    command += ["--keep-going", "--rerun-incomplete", "--nocolor"]
    # Its own lock a kill would leave behind; each step holds one that it cannot.
    command += ["--nolock", "--config", *(f"{k}={json.dumps(v)}" for k, v in config.items())]
    made = all(book.mark("chapter", chapter).exists() for chapter in book.chapters())
    by_themselves = names or made or options.cluster
    with contextlib.nullcontext() if by_themselves else preloaded.at_hand(book, options.threads):
        return _run(command, book, names, bool(options.cluster))


def _place(book: Book, options) -> list[str]:
    """Where Snakemake runs the jobs: here, where one at a time has the GPU, or on the cluster.

    Raises BookError if there is no such cluster in `profiles/`, or if its plugin is missing.
    """
    if not options.cluster:
        here = ["--cores", str(options.cores), "--resources", "gpu=1"]
        return [*here, "--workflow-profile", "none"]
    known = sorted(path.parent.name for path in book.root.glob("profiles/*/config.yaml"))
    if options.cluster not in known:
        raise BookError(
            f"unknown CLUSTER {options.cluster!r}: expected one of {', '.join(known) or 'none'}"
        )
    folder = book.root / "profiles" / options.cluster
    executor = read_yaml(folder / "config.yaml").get("executor")
    plugin = f"snakemake-executor-plugin-{executor}"
    if importlib.util.find_spec(plugin.replace("-", "_")) is None:
        raise BookError(
            f"CLUSTER={options.cluster}: {plugin} is not installed; to install what pyproject.toml "
            f"pins: {sys.executable} -m uv pip install --editable '.[cluster]'"
        )
    return ["--workflow-profile", str(folder), "--local-cores", str(options.cores)]


def _log(book: Book) -> Path:
    return book.product("snakemake", ".log")


def _end(pid: int) -> None:
    """End Snakemake and all that it has started: told to end, it waits for its jobs.

    Nothing is lost, as what steps write is whole or not there.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).children(recursive=True)
        for process in (psutil.Process(pid), *started):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _run(command: list[str], book: Book, names: list[str], on_cluster: bool) -> tuple[int, bool]:
    """Run Snakemake: progress and what steps say is wrong are shown, the rest is logged."""
    log = _log(book)
    log.parent.mkdir(exist_ok=True)
    progress = re.compile("|".join([r"Job \d+ has been submitted", *(f"{n}: " for n in names)]))
    said = False
    with (
        open(log, "wb", buffering=0) as file,
        subprocess.Popen(
            command, cwd=book.root, stderr=subprocess.PIPE, encoding="utf8", close_fds=False
        ) as process,
    ):
        try:
            for line in process.stderr:
                _to_log(file, line)
                if progress.match(line):
                    print(line, end="", flush=True)
                for wrong in _faults(line):
                    print(wrong, file=sys.stderr, flush=True)
                    said = True
        except BaseException as error:
            # Snakemake ends its jobs, on a cluster too, if it is let: leaving this block would
            # close the pipe into which it writes. An interrupt it has had as well.
            if isinstance(error, Terminated) and not on_cluster:
                _end(process.pid)
            elif not isinstance(error, KeyboardInterrupt):
                process.terminate()
            with contextlib.suppress(BookError):
                _to_log(file, process.stderr.read())
            raise
    return process.returncode, said


def _show_end(book: Book) -> None:
    """The last that Snakemake said, where no step has said what is wrong."""
    log = _log(book)
    last = log.read_text(encoding="utf8").splitlines()[-12:]
    print(*(line[:300] for line in last), f"(log: {log})", sep="\n", file=sys.stderr)


def _to_log(file: FileIO, text: str) -> None:
    try:
        file.write(text.encode())
    except OSError as error:
        raise BookError(f"cannot write {file.name}: {error.strerror}") from error


def _faults(line: str) -> list[str]:
    """What a line of Snakemake's says is wrong: itself, or the lines of the job's log it names."""
    if line.startswith(_STEPS_SAY):
        return [line.rstrip()]
    if not (named := _LOG_OF_A_FAILED_JOB.fullmatch(line.strip())):
        return []
    try:
        lines = Path(named[1]).read_text(encoding="utf8").splitlines()
    except OSError as error:
        return [f"book: a job failed and left no log: {error}"]
    told = [line for line in lines if line.startswith(_STEPS_SAY)]
    return list(dict.fromkeys(told)) or [f"book: a job failed, see {named[1]}"]


def _preflight(book: Book) -> None:
    """What can be known to be wrong before anything is computed, all of it at once."""
    wrong = gate.check_config(book.root / "_config.yml")
    if (device := surroundings.device()) != "cpu":
        wrong.append(f"LATEPHASE_DEVICE={device}: chapters compute on the cpu alone, unlike runs")
    chapters = book.chapters()
    wrong += [
        f"claims.yml: {claim.id!r} names the chapter {claim.chapter!r}, not in _toc.yml"
        for claim in load(book.claims).values()
        if claim.chapter not in chapters
    ]
    for chapter in chapters:
        book.parameters(chapter)
        wrong += gate.check_source(book.source(chapter))
    if wrong:
        raise BookError("\n".join(wrong))


def _discard_damaged(book: Book) -> None:
    """Delete earlier products that are no longer as they were written: they are made again."""
    products = [(book.executed(chapter), "chapter", chapter) for chapter in book.chapters()]
    for path, *step in [*products, (book.ledger, "ledger"), (book.library, "library")]:
        with _alone(book, *step):
            if path.exists() and (wrong := broken_seal(path)):
                print(f"book: {wrong}; it is made again", file=sys.stderr, flush=True)
                path.unlink()


def _alone(book: Book, *step: str) -> AbstractContextManager:
    """The lock of a step's product, as ("chapter", NAME), waited for where another makes it."""
    return held(book.lock(*step), " ".join(["the", *step]), wait=True)


def _chapter(book: Book, options) -> None:
    from latebook.execute import execute

    execute(book, options.chapter, options.threads)


def _ledger(book: Book, options) -> None:
    """Gate every executed notebook again, then merge what they recorded."""
    inputs.require_fresh(book)
    claims, records, wrong = load(book.claims), {}, []
    for chapter in book.chapters():
        notebook, source = read_executed(book.executed(chapter)), book.source(chapter)
        expected, parameters = of_chapter(claims, chapter), book.parameters(chapter)
        wrong += gate.check_executed(notebook, source, expected, book.profile, parameters)
        if not wrong:
            claimed = gate.recorded(notebook)
            records[chapter] = {"made_by": notebook.made_by, "claims": claimed}
    if wrong:
        raise BookError("\n".join(wrong))
    registered = registration.dates(book, claims, compare.known(book))
    write_whole(book.product("ledger", ".schema.json"), ledger.SCHEMA.read_text(encoding="utf8"))
    ledger.write(book.ledger, ledger.entries(claims, records, book.profile, registered))


def _verdict(book: Book, options) -> None:
    """Red if any entry of the ledger is."""
    entries = ledger.read(book.ledger)
    if wrong := ledger.problems(entries):
        raise BookError("\n".join(["red claims:", evidence.lines(entries), *wrong]))
    write_whole(book.product_of("verdict"), "")


def _compare(book: Book, options) -> int:
    """The ledger, or another, beside the committed reference: 1 if a claim differs."""
    reference = compare.reference(book)
    other = Path(options.ledger) if options.ledger else book.ledger
    rows = ledger.read(other, own=not options.ledger)
    if not options.ledger:
        _require_current(book, rows)
    found = compare.compare(reference, rows)
    print(f"{other} beside {book.reference}:\n{compare.table(found)}\n{compare.counted(found)}")
    return int(any(comparison.status in compare.RED for comparison in found))


def _require_current(book: Book, rows: list[dict]) -> None:
    """Raise BookError where the ledger is of other files than there are now, or of an older run."""
    threads = {str(row["measured"]["threads"]) for row in rows if row["measured"]}
    os.environ["LATEPHASE_THREADS"] = min(threads, default="1")
    measured = {row["chapter"]: row["measured"] for row in rows if row["measured"]}
    for chapter, of in measured.items():
        if chapter in book.chapters() and book.executed(chapter).exists():
            why = inputs.why_stale(book, "chapter", chapter)
            if why or read_executed(book.executed(chapter)).made_by["inputs"] != of["inputs"]:
                raise BookError(
                    f"{chapter}: the ledger is not of what is here now ({why or 'another run'}); "
                    "`make book` makes it again"
                )


def _reference(book: Book, options) -> None:
    compare.renew(book, options.why)


def _library(book: Book, options) -> None:
    from latebook import library

    pages = library.pages("latephase", "experiments")
    write_sealed(book.library, json.dumps(pages, indent=1) + "\n")


def _site(book: Book, options) -> None:
    from latebook import site

    site.build(book)


# Of these, one process at a time makes the product.
_MAKERS = (_chapter, _ledger, _library, _site)
# Of these, what the product was made from is noted beside it.
_NOTING = (_ledger, _verdict, _library, _site)
_STEPS = {
    step.__name__.removeprefix("_"): step
    for step in (
        *(_build, _record, _compare, _reference),
        *(_chapter, _ledger, _verdict, _library, _site),
    )
}

if __name__ == "__main__":
    sys.exit(main())
