"""Results belong to their inputs, by content: what changes a result runs it again, nothing else.

Each plant is a way in which a second build could be green on results of other files.
"""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from latebook import BookError, inputs, provenance, surroundings
from latebook.files import broken_seal, write_sealed
from tests.conftest import ROOT, FixtureBook, chapter

# ---------------------------------------------------------------- stale or not


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> FixtureBook:
    """A two-chapter book after its build, with pages that the site includes."""
    book = FixtureBook(tmp_path_factory.mktemp("inputs") / "book root")
    (book.root / "CHANGELOG.md").write_text("# Changes\n")
    (book.root / "requirements.lock").write_text("numpy==2\n")
    done = book.build()
    assert done.returncode == 0, done.stderr
    return book


STEPS = [("chapter", "first"), ("chapter", "second"), ("ledger",), ("verdict",), ("site",)]


def stale(book: FixtureBook) -> set[str]:
    code = (
        "import json, sys; from pathlib import Path; from latebook import inputs, surroundings;"
        "from latebook.layout import Book; book = Book(Path.cwd(), 'quick');"
        "surroundings.settle(book.build, int(sys.argv[2]));"
        "print(*[s[-1] for s in json.loads(sys.argv[1]) if inputs.why_stale(book, *s)])"
    )
    command = [sys.executable, "-c", code, json.dumps(STEPS), str(getattr(book, "threads", 1))]
    done = subprocess.run(command, cwd=book.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def edited(book, name, text):
    """Another content, the same size where it can be, and the old times, as archives keep them."""
    path = book.root / name
    stat = path.stat() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if stat:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cell(book, monkeypatch):
    path = book.root / "book/second.ipynb"
    edited(book, "book/second.ipynb", path.read_text().replace("# The second", "# That second"))


def cell_metadata(book, monkeypatch):
    path = book.root / "book/second.ipynb"
    edited(book, "book/second.ipynb", path.read_text().replace('"parameters"', '"parameters", "x"'))


def parameter(book, monkeypatch):
    values = {"first": {"number": 0.5}, "second": {"number": 0.6}}
    book.write_yaml("profiles/quick.yml", values)


def bound(book, monkeypatch):
    claims = book.read_yaml("book/claims.yml")
    claims[1]["bound"] = 1.5
    book.write_yaml("book/claims.yml", claims)


def lock(book, monkeypatch):
    edited(book, "requirements.lock", "numpy==3\n")


def page(book, monkeypatch):
    edited(book, "book/index.md", "# A changed page\n")


def changelog(book, monkeypatch):
    edited(book, "CHANGELOG.md", "# Chances\n")


def record(book, monkeypatch):
    edited(book, "results/other.json", "{}")


def repository(book, monkeypatch):
    monkeypatch.setenv("LATEPHASE_REPOSITORY", "https://example.org/other/book")


def device(book, monkeypatch):
    monkeypatch.setenv("LATEPHASE_DEVICE", "cuda")


def threads(book, monkeypatch):
    monkeypatch.setattr(book, "threads", 2, raising=False)


def distribution(book, monkeypatch):
    """A package that was installed beside the others, as `pip install` does."""
    folder = book.root / "packages"
    (folder / "planted-1.0.dist-info").mkdir(parents=True, exist_ok=True)
    (folder / "planted-1.0.dist-info/METADATA").write_text("Name: planted\nVersion: 1.0\n")
    path = [str(folder), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


def ledger_of_another_build(book, monkeypatch):
    path = book.root / "_build/ledger.json"
    write_sealed(path, path.read_text().replace("0.5", "0.4"))


def swapped_hash(book, monkeypatch):
    """The hash of now on a result of before."""
    path = book.root / "_build/executed/quick/second.ipynb"
    notebook = json.loads(path.read_text())
    notebook["metadata"]["latephase"]["inputs"] = "0" * 64
    write_sealed(path, json.dumps(notebook))


def nothing_noted(book, monkeypatch):
    """A product of a release that noted nothing."""
    path = book.root / "_build/executed/quick/second.ipynb"
    notebook = json.loads(path.read_text())
    del notebook["metadata"]["latephase"]["parts"]
    write_sealed(path, json.dumps(notebook))


def page_of_the_site(book, monkeypatch):
    path = book.root / "_build/html/book/first.html"
    edited(book, "_build/html/book/first.html", path.read_text().replace("confirmed", "broken"))


def lost(name):
    def of(book, monkeypatch):
        (book.root / "_build" / name).unlink()

    return of


def future(book, monkeypatch):
    for path in book.root.rglob("*"):
        if path.is_file():
            os.utime(path, (4e9, 4e9))


def past(book, monkeypatch):
    for path in [*book.root.glob("book/*"), *book.root.glob("_build/executed/*/*")]:
        os.utime(path, (1e9, 1e9))


AFTER = {"ledger", "verdict", "site"}


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (cell, {"second", "site"}),
        (cell_metadata, {"second", "site"}),
        (parameter, {"second"}),
        (bound, {"second", "ledger", "site"}),
        (lock, {"first", "second"}),
        (page, {"site"}),
        (changelog, {"site"}),
        (record, {"site"}),
        (repository, {"site"}),
        (device, {"first", "second", "site"}),
        (threads, {"first", "second", "site"}),
        (distribution, {"first", "second", "site"}),
        (ledger_of_another_build, {"ledger", "verdict", "site"}),
        (swapped_hash, {"second", "ledger", "site"}),
        (nothing_noted, {"second", "ledger", "site"}),
        (page_of_the_site, {"site"}),
        (lost("html/book/second.html"), {"site"}),
        (lost("codecheck.yml"), {"site"}),
        (lost("ledger.schema.json"), {"ledger"}),
        (future, set()),
        (past, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_change_of_content_makes_stale(built, plant, expected, monkeypatch):
    kept = {p: (p.read_bytes(), p.stat()) for p in built.root.rglob("*") if p.is_file()}
    assert stale(built) == set()
    try:
        plant(built, monkeypatch)
        assert stale(built) == expected
    finally:
        for path in [p for p in built.root.rglob("*") if p.is_file() and p not in kept]:
            path.unlink()
        for path, (content, stat) in kept.items():
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_ledger_of_other_files_is_not_compared(built):
    reference = built.root / "results/ledger.quick.json"
    reference.parent.mkdir(exist_ok=True)
    reference.write_bytes((built.root / "_build/ledger.json").read_bytes())
    path = built.root / "profiles/quick.yml"
    as_built = path.read_text()
    try:
        assert built.call("compare").returncode == 0
        parameter(built, None)
        done = built.call("compare")
        assert (done.returncode, "not of what is here now (other parameters)" in done.stderr) == (
            1,
            True,
        ), done.stderr
        assert built.call("compare", "--ledger", "_build/ledger.json").returncode == 0
    finally:
        path.write_text(as_built)
        reference.unlink()


def test_chapters_are_not_said_to_compute_elsewhere(built, monkeypatch):
    device(built, monkeypatch)
    done = built.build()
    assert (done.returncode, "LATEPHASE_DEVICE=cuda" in done.stderr) == (1, True), done.stderr


def test_a_chapter_does_not_ask_for_another_ones_bound(tmp_path, monkeypatch):
    from latebook import claims

    book = FixtureBook(tmp_path)
    monkeypatch.chdir(book.root)
    monkeypatch.setenv("LATEPHASE_CHAPTER", "first")
    assert claims.holds("first/small", 0.5)
    with pytest.raises(BookError, match="'second/small' is of second"):
        claims.holds("second/small", 0.5)


@pytest.mark.parametrize("way", ["--assume-unchanged", "--skip-worktree", "exclude", "user"])
def test_provenance_sees_what_git_was_told_not_to(tmp_path, monkeypatch, way):
    def git(*words):
        named = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *named, *words], check=True)

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/one.py").write_text("one = 1\n")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "one"]):
        git(*words)
    assert len(provenance.commit(tmp_path)) == 40
    if way.startswith("--"):
        git("update-index", way, "lib/one.py")
        (tmp_path / "lib/one.py").write_text("one = 2\n")
    else:
        (tmp_path / "lib/two.py").write_text("two = 2\n")
        (tmp_path / (".git/info/exclude" if way == "exclude" else ".git/ignored")).write_text(
            "two*"
        )
        if way == "user":
            git("config", "core.excludesFile", str(tmp_path / ".git/ignored"))
    assert provenance.commit(tmp_path).endswith("+changes")


def test_every_part_of_the_library_counts(monkeypatch, tmp_path):
    packages = {name: tmp_path / name for name in ("latephase", "experiments")}
    for folder in packages.values():
        folder.mkdir()
        (folder / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(inputs, "_package", lambda name: packages.get(name, tmp_path / "latephase"))
    hashes = set()
    for name in ("latephase/__init__.py", "experiments/new.py", "latephase/data.npz"):
        hashes.add(inputs._library.__wrapped__())
        (tmp_path / name).write_text("x = 2\n")
    assert len(hashes | {inputs._library.__wrapped__()}) == 4


def test_what_executes_a_chapter_is_found_by_its_imports():
    names = {path.stem for path in inputs.executing()}
    assert {"execute", "kernel", "gate", "claims", "records", "notebooks", "files"} <= names
    assert names.isdisjoint({"site", "dressing", "library", "pages", "__main__"})


# ---------------------------------------------------------------- whole builds


@pytest.fixture
def one(book) -> FixtureBook:
    book.write_chapters("first")
    return book


def test_metadata_says_by_what_a_result_was_made(built):
    path = built.root / "_build/executed/quick/first.ipynb"
    made_by = json.loads(path.read_text())["metadata"]["latephase"]
    assert list(made_by) == [
        *("profile", "parameters", "seconds", "commit", "date", "inputs", "parts", "opened"),
        "environment",
    ]
    names = {"cells", "library", "pipeline", "parameters", "claims", "lock", "environment"}
    assert set(made_by["parts"]) == names
    assert made_by["inputs"] == inputs.combined(made_by["parts"], made_by["opened"])
    assert made_by["environment"]["versions"]["ipykernel"]


def test_records_that_a_loop_names_are_dependencies(one):
    from recordings.writing import write

    from latebook.records import PROVENANCE

    for k in range(2):
        write(f"run_{k}", one.root / "results", dict.fromkeys(PROVENANCE, 0.5))
    code = (
        "from latebook.records import recorded\n\n"
        "longest = max(recorded(f'run_{k}')['duration'] for k in range(2))"
    )
    one.write_notebook("first", chapter("first", code, value="longest"))
    done = one.build()
    assert done.returncode == 0, done.stderr
    path = one.root / "_build/executed/quick/first.ipynb"
    opened = json.loads(path.read_text())["metadata"]["latephase"]["opened"]
    assert {"results/run_0.json", "results/run_1.json"} <= set(opened)
    changed = dict.fromkeys(PROVENANCE, 0.5) | {"duration": 0.75}
    write("run_1", one.root / "results", changed)
    done = one.build()
    assert done.returncode == 0, done.stderr
    assert "first: other results/run_1.json" in done.stdout
    assert json.loads((one.root / "_build/ledger.json").read_text())[0]["value"] == 0.75


def test_a_notebook_dated_in_the_future_keeps_results_and_builds(one):
    assert one.build().returncode == 0
    one.write_notebook("first", chapter("first", value="number / 2"))
    os.utime(one.root / "book/first.ipynb", (4e9, 4e9))
    done = one.build()
    assert done.returncode == 0, done.stderr
    assert json.loads((one.root / "_build/ledger.json").read_text())[0]["value"] == 0.25


def test_a_newer_notebook_with_older_times_runs_again(one):
    """A release unpacked over an older build: archives keep the times of what they hold."""
    assert one.build().returncode == 0
    one.write_notebook("first", chapter("first", value="number / 2"))
    os.utime(one.root / "book/first.ipynb", (1e9, 1e9))
    done = one.build()
    assert done.returncode == 0, done.stderr
    assert "first: other cells" in done.stdout
    assert json.loads((one.root / "_build/ledger.json").read_text())[0]["value"] == 0.25


def test_the_surroundings_decide_nothing(one, tmp_path, monkeypatch):
    """A foreign kernel named python3, a Snakemake profile, start-up files, no home, LC_ALL=C."""
    false = tmp_path / "kernels/python3/kernel.json"
    false.parent.mkdir(parents=True)
    false.write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text("dry-run: true\n")
    rc = tmp_path / "matplotlibrc"
    rc.write_text("figure.dpi: 3\n")
    for name, value in {
        "JUPYTER_PATH": tmp_path,
        "JUPYTER_DATA_DIR": tmp_path,
        "SNAKEMAKE_PROFILE": profile,
        "MATPLOTLIBRC": rc,
        "HOME": "/nowhere",
        "XDG_CACHE_HOME": "/nowhere/cache",
        "PYTHONIOENCODING": "ascii",
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "3",
        "PAPERMILL_OUTPUT": "x",
        "GIT_DIR": "/nowhere",
    }.items():
        monkeypatch.setenv(name, str(value))
    code = "import torch\n\nassert torch.get_num_threads() == 1"
    plot = (
        "import matplotlib\n\nassert matplotlib.rcParams['figure.dpi'] != 3\n"
        "assert 'nowhere' not in matplotlib.get_configdir()"
    )
    one.write_notebook("first", chapter("first", code, plot))
    there = one.root.with_name("bücher")
    one.root = one.root.rename(there)
    done = one.build()
    assert done.returncode == 0, done.stderr
    assert (there / "_build/html/index.html").exists()


# ---------------------------------------------------------------- what a kernel opens


WATCHED = """
import sys
from pathlib import Path
from latebook import BookError, kernel
connection = sys.argv[2]
sys.addaudithook(kernel.Watch(Path.cwd().parent, Path(sys.argv[1]), connection))
"""


@pytest.fixture
def watched(tmp_path):
    """Run lines as the cells of a chapter would be: returns what was written down, and stderr."""
    root = tmp_path / "root"
    (root / "book").mkdir(parents=True)
    (root / "results").mkdir()
    (root / "results/one.json").write_text("{}")
    (root / "book/data.csv").write_text("1\n")
    (root / "book/matplotlibrc").write_text("figure.dpi: 3\n")
    (root / "book/helper.py").write_text("x = 1\n")
    (tmp_path / "outside.csv").write_text("1\n")
    (tmp_path / "kernel").mkdir()

    def run(lines: str) -> tuple[list[dict], str]:
        log = tmp_path / "kernel/log.jsonl"
        home = {"HOME": str(tmp_path / "kernel"), "MPLCONFIGDIR": str(tmp_path / "kernel/mpl")}
        command = [sys.executable, "-c", WATCHED + textwrap.dedent(lines), str(log), "x"]
        done = subprocess.run(
            command, cwd=root / "book", capture_output=True, text=True, env=os.environ | home
        )
        return [json.loads(line) for line in log.read_text().splitlines()[1:]], done.stderr

    return run


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("open('data.csv').read()", "book/data.csv: read past the declared readers"),
        ("open('../results/one.json')", "results/one.json: read past"),
        ("open('../../outside.csv')", "outside.csv: read past"),
        ("import os; os.open('data.csv', os.O_RDONLY)", "book/data.csv: read past"),
        ("import numpy; numpy.loadtxt('data.csv')", "book/data.csv: read past"),
        ("import pandas; pandas.read_csv('data.csv')", "book/data.csv: read past"),
        ("import helper", "book/helper.py: read past"),
        ("import os; os.listdir('../results')", "results: listed"),
        ("list(Path('../results').glob('*.json'))", "results: listed"),
        ("import os; os.symlink('/etc/..' + str(Path('data.csv').resolve()), "
         "sys.argv[1] + 'l'); open(sys.argv[1] + 'l', 'rb')", "book/data.csv: read past"),
        ("import os; os.link('data.csv', sys.argv[1] + 'x')", "book/data.csv: renamed or linked"),
        ("import shutil; shutil.move('data.csv', sys.argv[1] + 'x')", "data.csv: renamed or link"),
        ("open('../results/two.json', 'w')", "results/two.json: a chapter writes nothing"),
        ("import sqlite3; sqlite3.connect('data.csv')", "book/data.csv: read past"),
        ("import subprocess; subprocess.run(['cat', 'data.csv'])", "'cat': a chapter starts no"),
        ("import os; os.system('cat data.csv')", "a chapter starts no other program"),
        ("import os; os.popen('cat data.csv').read()", "a chapter starts no other program"),
        ("import os; os.posix_spawn('/bin/cat', ['cat', 'data.csv'], {})", "'/bin/cat': a chapter"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-m', 'latephase.cli', 'x', "
         "'data.csv'])", "book/data.csv: read past"),
        ("import multiprocessing as m; p = m.get_context('spawn').Process(); p.start()",
         "multiprocessing.popen_spawn_posix: a chapter starts no other Python"),
        ("import ctypes; ctypes.CDLL('libc.so.6')", "a chapter starts no other program"),
        ("from urllib.request import urlopen; urlopen('http://localhost:9')",
         "a chapter uses no network"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "a chapter uses no network"),
        ("import matplotlib", "book/matplotlibrc: read past"),
    ],
)  # fmt: skip
def test_what_would_be_an_undeclared_input_is_refused(watched, lines, named):
    seen, error = watched(lines)
    assert named in error
    assert any(named in line.get("refused", "") for line in seen)


def test_a_refusal_that_is_swallowed_is_written_down(watched):
    seen, error = watched(
        """
        try:
            open('data.csv')
        except BookError:
            pass
        """
    )
    assert error == ""
    assert "book/data.csv" in seen[0]["refused"]


def test_a_chapters_own_files_and_the_systems_are_free(watched):
    lines = """
        import tempfile, shutil, json, os
        import numpy as np, torch
        folder = Path(tempfile.mkdtemp())
        np.savez(folder / "a.npz", x=np.zeros(3))
        np.load(folder / "a.npz")["x"]
        torch.save({}, folder / "t.pt"); torch.load(folder / "t.pt")
        (folder / "b").mkdir(); (folder / "b" / "c.txt").write_text("x")
        os.rename(folder / "b" / "c.txt", folder / "d.txt"); (folder / "d.txt").read_text()
        shutil.rmtree(folder)
        open("/proc/self/status").read()
        tempfile.TemporaryFile().write(b"x")
        with tempfile.NamedTemporaryFile("w+") as file:
            file.write("x"); file.flush(); open(file.name).read()
        open("absent.txt") if os.path.exists("absent.txt") else None
        """
    assert watched(lines) == ([], "")


def test_what_the_readers_open_is_written_down_with_its_content(watched, tmp_path):
    lines = """
        from latebook.records import recorded
        try:
            recorded("one", Path("../results").resolve())
        except BookError:
            pass
        """
    seen, error = watched(lines)
    assert error == ""
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert seen == [{"opened": "results/one.json", "sha256": sha256}]


def test_bytecode_with_the_right_time_is_not_taken_for_the_source(tmp_path):
    """A file edited, of the same length and backdated: Python would run what it was before."""
    module = tmp_path / "edited.py"
    run = (
        "import sys; from latebook import kernel; sys.path.insert(0, sys.argv[1]);"
        "kernel._compile_from_source(sys.argv[1]); import edited; print(edited.x)"
    )
    module.write_text("x = 1\n")
    plain = [sys.executable, "-c", "import edited"]
    subprocess.run(plain, cwd=tmp_path, check=True, env={"PATH": os.environ["PATH"]})
    assert list(tmp_path.glob("__pycache__/edited*.pyc"))
    edited(FixtureRoot(tmp_path), "edited.py", "x = 2\n")
    command = [sys.executable, "-c", run, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


class FixtureRoot:
    def __init__(self, root):
        self.root = root


@pytest.mark.parametrize("content", [None, "", '{"opened": 1}\n', "{"])
def test_a_list_that_never_arrived_is_an_error(tmp_path, content):
    from latebook.execute import _seen

    log = tmp_path / "log.jsonl"
    if content is not None:
        log.write_text(content)
    with pytest.raises(BookError, match="first: the kernel did not say what it opened"):
        _seen(tmp_path, log, "first")


def test_a_file_that_changes_while_a_chapter_runs_is_an_error(tmp_path):
    from latebook.execute import _seen

    log = tmp_path / "log.jsonl"
    lines = [{"environment": {}}, *({"opened": "results/x.json", "sha256": s} for s in "ab")]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BookError, match=r"first: results/x.json changed while the chapter ran"):
        _seen(tmp_path, log, "first")


# ---------------------------------------------------------------- surroundings, provenance


def test_only_what_is_named_is_kept(monkeypatch, tmp_path):
    kept = dict(os.environ)
    try:
        os.environ |= {"PYTHONHASHSEED": "1", "MKL_CBWR": "AVX", "TORCH_LOGS": "x"}
        os.environ |= {"LATEPHASE_OTHER": "1", "SLURM_CONF": "y", "JPY_SESSION_NAME": "z"}
        surroundings.settle(tmp_path, 2)
        assert {"LATEPHASE_OTHER", "SLURM_CONF"} <= {*os.environ}
        names = {"PYTHONHASHSEED", "MKL_CBWR", "TORCH_LOGS", "JPY_SESSION_NAME"}
        assert names.isdisjoint(os.environ)
        surroundings.of_a_kernel(tmp_path, tmp_path / "k", "full", 2)
        assert "LATEPHASE_OTHER" not in os.environ
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "2"
    finally:
        os.environ.clear()
        os.environ.update(kept)


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x", "-c", "init.defaultBranch=main"]
    command = ["git", *who, "-C", str(root), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    root = tmp_path / "checkout"
    (root / "lib/deep").mkdir(parents=True)
    (root / "lib/deep/a.py").write_text("x = 1\n")
    (root / "lib.txt").write_text("a name that sorts before the folder\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("lib.txt")
    (root / ".gitignore").write_text("/_build/\n__pycache__/\n")
    for name in (".gitattributes", ".commit"):
        (root / name).write_text((ROOT / name).read_text())
    git(tmp_path, "init", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-m", "one")
    return root


def test_a_checkout_knows_its_commit_and_its_changes(checkout, monkeypatch, tmp_path):
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.commit(checkout) == head
    (checkout / "_build").mkdir()
    (checkout / "_build/x").write_text("")
    assert provenance.commit(checkout) == head
    (checkout / "new.py").write_text("")
    git(checkout, "config", "status.showUntrackedFiles", "no")
    assert provenance.commit(checkout) == head + "+changes"
    assert provenance.short(provenance.commit(checkout)) == head[:10] + "+changes"


def test_settings_of_git_name_no_other_repository(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.setenv(name, str(ROOT))
    assert provenance.commit(checkout) == head


def archived(checkout: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    tar = subprocess.run(
        ["git", "-C", str(checkout), "archive", "HEAD"], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(to)], input=tar.stdout, check=True)
    return to


def test_an_archive_knows_its_commit_also_in_another_repository(checkout, tmp_path):
    head = git(checkout, "rev-parse", "HEAD")
    git(tmp_path, "init", "other")
    git(tmp_path / "other", "commit", "--allow-empty", "-m", "another")
    for place in (tmp_path / "alone", tmp_path / "other" / "within"):
        archive = archived(checkout, place)
        assert provenance.commit(archive) == head
        (archive / "_build").mkdir()
        (archive / "_build/made").write_text("")
        assert provenance.commit(archive) == head
        (archive / "run").chmod(0o644)  # as a zip is unpacked where there are no execute bits
        assert provenance.commit(archive) == head
        (archive / "lib/deep/a.py").write_text("x = 2\n")
        assert provenance.commit(archive) == head + "+changes"
        (archive / ".commit").unlink()
        assert provenance.commit(archive) == "unknown"


def test_a_copy_without_history_in_another_repository_is_unknown(checkout, tmp_path):
    git(tmp_path, "init", "other")
    git(tmp_path / "other", "commit", "--allow-empty", "-m", "another")
    git(checkout, "worktree", "add", str(tmp_path / "tree"))
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.commit(tmp_path / "tree") == head
    copy = tmp_path / "other" / "copy"
    copy.mkdir()
    for name in ("lib.txt", ".commit"):
        (copy / name).write_text((checkout / name).read_text())
    assert provenance.commit(copy) == "unknown"


def test_a_shallow_clone_knows_its_commit(checkout, tmp_path):
    git(tmp_path, "clone", "--depth=1", f"file://{checkout}", str(tmp_path / "shallow"))
    assert provenance.commit(tmp_path / "shallow") == git(checkout, "rev-parse", "HEAD")


# ---------------------------------------------------------------- interruptions


def test_a_file_killed_before_its_seal_is_known(tmp_path, monkeypatch):
    """Between the writes the seal fits the earlier file and the new one."""
    from latebook import files

    path = tmp_path / "product.json"
    write_sealed(path, "old")
    whole, left = files.write_whole, []

    def dies(to, text):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        whole(to, text)

    for writes, content in ((1, "old"), (2, "new")):
        write_sealed(path, "old")
        left[:] = [None] * writes
        monkeypatch.setattr(files, "write_whole", dies)
        with pytest.raises(KeyboardInterrupt):
            write_sealed(path, "new")
        monkeypatch.undo()
        assert path.read_text() == content
        assert broken_seal(path) is None
    path.write_text("other")
    assert "cut off or changed" in broken_seal(path)


def test_a_site_that_cannot_be_renamed_is_copied_or_the_earlier_one_stays(tmp_path, monkeypatch):
    """As in a container, where a folder of a lower layer cannot be renamed."""
    from latebook.site import _put_in_place

    rename = Path.rename
    made, html = tmp_path / "site", tmp_path / "html"

    def crosses(path, to):
        if path in (made, html):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(path))
        return rename(path, to)

    for folder in (made, html):
        folder.mkdir()
        (folder / "index.html").write_text(folder.name)
    monkeypatch.setattr(Path, "rename", crosses)
    _put_in_place(made, html)
    assert (html / "index.html").read_text() == "site"
    assert [path.name for path in tmp_path.iterdir()] == ["html"]

    def refused(path, to):
        if path == made:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return rename(path, to)

    made.mkdir()
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        _put_in_place(made, html)
    assert (html / "index.html").read_text() == "site"


def test_a_snakemake_that_stops_between_steps_is_taken_up_again(book, monkeypatch, capsys):
    """As where a clock goes back: what is done is done, and the message is not Snakemake's."""
    from latebook import __main__ as main
    from latebook.layout import Book

    runs = iter([{"a": "x", "b": "y"}, {"b": "y"}, {}])
    codes = iter([(1, False), (0, False)])
    monkeypatch.setattr(main, "_mark", lambda book: next(runs))
    monkeypatch.setattr(main, "_snakemake", lambda book, options: next(codes))
    main._make(Book(book.root, "quick"), None)
    assert capsys.readouterr() == ("a: x\nb: y\n", "")

    monkeypatch.setattr(main, "_mark", lambda book: {"b": "y"})
    monkeypatch.setattr(main, "_snakemake", lambda book, options: (0, False))
    with pytest.raises(BookError, match="b: y\nthe build is red; earlier results"):
        main._make(Book(book.root, "quick"), None)
