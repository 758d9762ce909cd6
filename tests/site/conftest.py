"""The built site in a real browser: Chromium without a window, driven by Playwright.

`make test-site` installs what these tests need beside the book's environment, whose packages are
part of what decides a result: one more would run every chapter again. Each page is opened
from a static server in the light mode at the width of a desk, and from its file in the dark mode
at the width of a phone. What was seen then is kept, and the tests look at it.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.conftest import ROOT

sys.path.append(str(ROOT / "_build" / "tests-site"))

from tests.site import visits

AXE = "axe-core-4.14.1"
# Of the package that npm's registry holds.
AXE_SHA512 = (
    "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b73"
    "4f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5"
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "site"):
            item.add_marker(pytest.mark.site)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once with npm; refused if it is another than was pinned."""
    package = ROOT / "_build" / "axe" / f"{AXE}.tgz"
    if not package.is_file():
        package.parent.mkdir(parents=True, exist_ok=True)
        if (npm := shutil.which("npm")) is None:
            pytest.fail("npm is not installed; it fetches axe-core, which checks accessibility")
        command = [npm, "pack", "--silent", "@".join(AXE.rsplit("-", 1))]
        done = subprocess.run(command, cwd=package.parent, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"npm could not fetch {AXE}: {done.stderr.strip()}")
    content = package.read_bytes()
    if (found := hashlib.sha512(content).hexdigest()) != AXE_SHA512:
        pytest.fail(f"{package}: expected the SHA-512 {AXE_SHA512}, got {found}; remove the file")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@pytest.fixture(scope="session")
def reader(axe) -> visits.Reader:
    """A browser on the site as it was built from these sources."""
    if not (visits.HTML / "book" / "index.html").is_file():
        pytest.fail(f"there is no site in {visits.HTML}: run `make book` first")
    if stale := visits.what_is_stale():
        pytest.fail(f"the site shows an older {', '.join(stale)}: run `make book` first")
    api = pytest.importorskip("playwright.sync_api", reason="run by `make test-site`")
    if (path := visits.chromium()) is None:
        pytest.fail("no Chromium found: install the package chromium, or set CHROMIUM to its path")
    with (
        visits.served(visits.HTML) as address,
        api.sync_playwright() as playwright,
    ):
        # A graphics processor played by software costs several times what drawing without one does.
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        roots = {"server": address, "file": visits.HTML.as_uri() + "/"}
        yield visits.Reader(browser, roots, axe)
        browser.close()


_WEIGHTS = pytest.StashKey[dict[str, int]]()


@pytest.fixture
def weights(request) -> dict[str, int]:
    """Bytes of each page with all that it loads, for the table at the end."""
    return request.config.stash.setdefault(_WEIGHTS, {})


def pytest_terminal_summary(terminalreporter, config):
    if table := config.stash.get(_WEIGHTS, {}):
        terminalreporter.section("page weights: kB with all that a page loads, not compressed")
        for page, size in sorted(table.items(), key=lambda row: -row[1]):
            terminalreporter.write_line(f"{size / 1e3:8.0f}  {page}")
