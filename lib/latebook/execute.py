"""Executing one chapter with papermill, through the gate, into a file that appears whole."""

import os
import sys
import time

from latebook import BookError, gate, provenance
from latebook.claims import load, of_chapter
from latebook.files import write_sealed
from latebook.layout import Book
from latebook.notebooks import read


def execute(book: Book, chapter: str) -> None:
    """Execute a chapter with the profile's parameters and write the executed notebook.

    It is written only when it passes the gate. One that does not is kept under `_build/failed/`
    for reading, and the result of an earlier run stays as it is.
    """
    source, parameters = book.source(chapter), book.parameters(chapter)
    _require(gate.check_source(source))
    _require(gate.check_parameters(source, parameters, f"profiles/{book.profile}.yml"))
    expected = of_chapter(load(book.claims), chapter)
    failed = book.build / "failed" / book.profile / f"{chapter}.ipynb"
    failed.parent.mkdir(parents=True, exist_ok=True)

    began = time.monotonic()
    os.environ |= {
        "LATEPHASE_PROFILE": book.profile,
        "OMP_NUM_THREADS": "1",  # one thread a chapter: chapters run in parallel, sums in one order
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the user's
        "IPYTHONDIR": str(book.build / "ipython"),  # no start-up files of the user's
    }
    _papermill(chapter, source, failed, parameters)
    seconds = time.monotonic() - began
    notebook = read(failed)
    _require(gate.check_executed(notebook, source, expected), f" (see {failed})")
    notebook.content["metadata"]["latephase"] = {
        "profile": book.profile,
        "parameters": parameters,
        "commit": provenance.commit(book.root),
        "environment": provenance.environment(),
        "seconds": round(seconds, 2),
    }
    write_sealed(book.executed(chapter), notebook.text())
    failed.unlink()
    print(f"{chapter}: done in {seconds:.1f} s", flush=True)


def _require(wrong: list[str], hint: str = "") -> None:
    if wrong:
        raise BookError("\n".join(wrong) + hint)


def _papermill(chapter, source, output, parameters):
    import papermill
    from nbclient.exceptions import DeadKernelError
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
    except DeadKernelError as error:
        raise BookError(f"{chapter}: the kernel died (out of memory?); see {output}") from error
    except OSError as error:
        raise BookError(f"{chapter}: cannot write {output}: {error.strerror or error}") from error
    finally:
        sys.stdout.flush()
