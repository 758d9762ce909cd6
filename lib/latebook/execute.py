"""Executing one chapter with papermill, through the gate, into a file that appears whole."""

import json
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from latebook import BookError, gate, inputs, preloaded, provenance, surroundings
from latebook.claims import load, of_chapter
from latebook.files import write_sealed, write_whole
from latebook.layout import Book
from latebook.notebooks import read


def execute(book: Book, chapter: str, threads: int = 1) -> None:
    """Execute a chapter with the profile's parameters and write the executed notebook.

    It is written only when it passes the gate. One that does not is kept under `_build/failed/`
    for reading, and the result of an earlier run stays as it is. In its metadata, `latephase`
    says by what it was made; `inputs` is the one hash over all that decided it.
    """
    source, parameters = book.source(chapter), book.parameters(chapter)
    _require(gate.check_source(source))
    _require(gate.check_parameters(source, parameters, f"profiles/{book.profile}.yml"))
    expected = of_chapter(load(book.claims), chapter)
    failed = book.build / "failed" / book.profile / f"{chapter}.ipynb"
    failed.parent.mkdir(parents=True, exist_ok=True)

    began = time.monotonic()
    folder = book.build / "kernels" / book.profile / chapter
    log = _lay_kernel(book.root, folder)
    surroundings.of_a_kernel(book.build, folder, book.profile, threads)
    commit, parts = provenance.commit(book.root), inputs.of_chapter(book, chapter)
    _papermill(chapter, source, failed, parameters)
    seconds = time.monotonic() - began
    environment, opened = _seen(book.root, log, chapter)
    _require_unchanged(book, chapter, parts, opened)
    notebook = read(failed)
    wrong = gate.check_executed(notebook, source, expected, book.profile, parameters)
    _require(wrong, f" (see {failed})")
    notebook.content["metadata"]["latephase"] = {
        "profile": book.profile,
        "parameters": parameters,
        "seconds": round(seconds, 2),
        "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "inputs": inputs.combined(parts, opened),
        "parts": parts,
        "opened": opened,
        "environment": environment,
    }
    write_sealed(book.executed(chapter), notebook.text())
    failed.unlink()
    print(f"{chapter}: done in {seconds:.1f} s", flush=True)


def _lay_kernel(root: Path, folder: Path) -> Path:
    """Name this Python, watched, as the kernel python3 of an empty folder; return its log."""
    shutil.rmtree(folder, ignore_errors=True)
    log = folder / "log.jsonl"
    words = [sys.executable, "-m", "latebook.kernel", str(root), str(log)]
    spec = {"argv": [*words, "-f", "{connection_file}"], "display_name": "Python 3"}
    if preloaded.HERE:
        from latebook import forked

        forked.register()
        spec["metadata"] = {"kernel_provisioner": {"provisioner_name": forked.NAME}}
    write_whole(folder / "kernels" / "python3" / "kernel.json", json.dumps(spec))
    return log


def _seen(root: Path, log: Path, chapter: str) -> tuple[dict, dict[str, str]]:
    """What the kernel wrote down: its environment, and the files it opened with their hashes."""
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf8").splitlines()]
        environment = lines[0]["environment"]
    except (OSError, ValueError, LookupError) as error:
        raise BookError(f"{chapter}: the kernel did not say what it opened, in {log}") from error
    _require([f"{chapter}: {line['refused']}" for line in lines if "refused" in line])
    opened = {}
    for line in lines[1:]:
        name, sha256 = line["opened"], line["sha256"]
        if opened.setdefault(name, sha256) != sha256:
            raise BookError(f"{chapter}: {name} changed while the chapter ran; run it again")
    pipeline = [*map(str, inputs.executing())]  # which is a part of its own
    return environment, {
        name: opened[name] for name in sorted(opened) if str(root / name) not in pipeline
    }


def _require_unchanged(book: Book, chapter: str, parts: dict, opened: dict) -> None:
    now = inputs.of_chapter(book, chapter, anew=True)
    changed = inputs.differing(parts, now) + inputs.differing(opened, inputs.contents(book, opened))
    if changed:
        raise BookError(
            f"{chapter}: {', '.join(changed)} changed while the chapter ran; run it again"
        )


def _require(wrong: list[str], hint: str = "") -> None:
    if wrong:
        raise BookError("\n".join(wrong) + hint)


def _papermill(chapter, source, output, parameters):
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    began = time.monotonic()

    class Announcing(NBClientEngine):
        """Papermill's engine, saying which cell runs: a bar a chapter would tangle in parallel."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **settings):
            start, last = nb_man.cell_start, len(nb_man.nb.cells)

            def announced(cell, cell_index=None, **rest):
                if cell.cell_type == "code":
                    at = f"{time.monotonic() - began:5.1f} s, cell {cell_index + 1} of {last}"
                    print(f"{chapter}: {at}", flush=True)
                return start(cell, cell_index, **rest)

            nb_man.cell_start = announced
            return super().execute_managed_notebook(nb_man, kernel_name, **settings)

    papermill_engines.register("announcing", Announcing)
    how = {"kernel_name": "python3", "engine_name": "announcing", "progress_bar": False}
    paths = {"input_path": str(source), "output_path": str(output), "cwd": str(source.parent)}
    try:
        papermill.execute_notebook(**paths, parameters=parameters, **how)
    except papermill.PapermillExecutionError as error:
        what = f"{error.ename}: {str(error.evalue).partition(chr(10))[0]}"
        where = f"{chapter}: code cell {error.exec_count}"
        raise BookError(f"{where} raised {what} (see {output})") from error
    except RuntimeError as error:
        raise BookError(f"{chapter}: the kernel died (out of memory?); see {output}") from error
    except OSError as error:
        raise BookError(f"{chapter}: cannot write {output}: {error.strerror or error}") from error
    finally:
        sys.stdout.flush()
