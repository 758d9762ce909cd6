"""Opening the site's pages in Chromium, and keeping what was seen."""

import http.server
import io
import os
import shutil
import threading
from base64 import b64decode
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from latebook.files import read_yaml
from latebook.layout import _entries
from latebook.notebooks import cells_sha256, read
from tests.conftest import ROOT

HTML = ROOT / "_build" / "html"
# The pages that the table of contents names, and those that Sphinx adds.
PAGES = [
    *(f"{entry}.html" for entry in _entries(read_yaml(ROOT / "_toc.yml"))),
    *("genindex.html", "prf-prf.html", "search.html"),
]
SEE = Path(__file__).with_name("see.js").read_text(encoding="utf8")
# Resolves when nothing more will be drawn.
AT_REST = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => 0)));
}"""
# Style sheets are not fetched again, which a browser refuses for files. At the second look only
# what colours and width can change is asked for: half of the time goes into these checks.
AXE_RUN = """async (rules) => (await axe.run({
  resultTypes: ["violations"], preload: false, ...(rules && { runOnly: rules }),
})).violations"""
AXE_RULES = {
    "server": None,
    "file": ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"],
}
WAYS = {
    "server": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "file": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
# Pages do not glide to where they are going: a test would look too early.
STILL = {"reduced_motion": "reduce"}


def what_is_stale() -> list[str]:
    """Files of the site that show another text than the sources have now; [] for a fresh one."""
    stale = []
    for entry in _entries(read_yaml(ROOT / "_toc.yml")):
        for source in ROOT.glob(f"{entry}.*"):
            shown = HTML / "_sources" / source.relative_to(ROOT)
            if not shown.is_file() or _text(shown) != _text(source):
                stale.append(str(source.relative_to(ROOT)))
    static = ROOT / "book" / "_static"
    for source in (path for path in static.rglob("*") if path.is_file()):
        shown = HTML / "_static" / source.relative_to(static)
        if not shown.is_file() or shown.read_bytes() != source.read_bytes():
            stale.append(str(source.relative_to(ROOT)))
    return stale


def _text(path: Path) -> str | bytes:
    if path.suffix != ".ipynb":
        return path.read_bytes()
    # Without what the build adds.
    own = [cell for cell in read(path).cells if cell.content.get("id") not in ("colab", "foot")]
    return cells_sha256([cell for cell in own if "injected-parameters" not in cell.tags])


def chromium() -> str | None:
    """The browser that CHROMIUM names, or the first that is found."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def served(folder: Path):
    """A static server of `folder` on a free port of this machine; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _is_foreign(url: str, root: str) -> bool:
    return not url.startswith((root, "data:", "blob:"))


@dataclass
class Visit:
    """What a page did while it was open: its facts (see.js), figures, requests and complaints."""

    facts: dict = field(default_factory=dict)
    figures: list[np.ndarray] = field(default_factory=list)
    violations: list[dict] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def bytes(self) -> int:
        """The size of the page and all that it loaded, as a server without compression sends."""
        paths = {unquote(urlsplit(url).path).lstrip("/") for url in self.asked}
        return sum((HTML / path).stat().st_size for path in paths)

    def foreign(self, root: str) -> list[str]:
        """Requests that left the site."""
        return sorted(url for url in self.asked if _is_foreign(url, root))


class Reader:
    """A browser with one window for each way of reading; `roots` maps ways to addresses."""

    def __init__(self, browser, roots: dict[str, str], axe: str):
        self.roots, self.axe = roots, axe
        # A browser that a finger uses, for who closes it.
        self.phone = partial(browser.new_context, **WAYS["file"], has_touch=True, is_mobile=True)
        self._contexts = {way: browser.new_context(**look, **STILL) for way, look in WAYS.items()}
        for way, context in self._contexts.items():
            context.set_default_timeout(60_000)
            # Nothing passes that is not of the site; the request is noted all the same.
            context.route(partial(_is_foreign, root=roots[way]), lambda route: route.abort())
        # A window is a process of the browser: one for each way, not for each page.
        self._windows = {way: context.new_page() for way, context in self._contexts.items()}
        for window in self._windows.values():
            self._listen(window)
        self._now = Visit()
        self._kept: dict[tuple[str, str], Visit] = {}

    def _listen(self, window) -> None:
        def complain(what):
            self._now.complaints.append(what)

        window.on("request", lambda request: self._now.asked.add(request.url))
        window.on("requestfailed", lambda request: complain(f"failed: {request.url}"))
        window.on("pageerror", lambda error: complain(f"error: {error}"))
        window.on("console", lambda m: m.type == "error" and complain(f"says: {m.text}"))

    @contextmanager
    def opened(self, page: str, way: str, visit: Visit | None = None):
        """The window on a page at rest; what happens meanwhile is noted in `visit`."""
        window, self._now = self._windows[way], visit or Visit()
        window.goto(self.roots[way] + page)
        window.wait_for_selector("main")  # which a page that leads elsewhere has not
        window.wait_for_load_state("load")
        window.evaluate(AT_REST)
        yield window
        window.goto("about:blank")

    def visit(self, page: str, way: str) -> Visit:
        """What is seen when a page is opened and looked at from top to bottom, kept."""
        if (page, way) not in self._kept:
            visit = Visit()
            with self.opened(page, way, visit) as window:
                visit.facts = window.evaluate(SEE)
                for image in window.locator("main img:visible").all():
                    visit.figures.append(pixels(image))
                window.evaluate(self.axe)
                visit.violations = window.evaluate(AXE_RUN, AXE_RULES[way])
            self._kept[page, way] = visit
        return self._kept[page, way]


def picture(url: str, root: str) -> str:
    """The SVG behind an image's address."""
    if url.startswith("data:"):
        kind, content = url.split(",", 1)
        return b64decode(content).decode() if kind.endswith("base64") else unquote(content)
    return (HTML / unquote(urlsplit(url.removeprefix(root)).path)).read_text(encoding="utf8")


def pixels(locator) -> np.ndarray:
    """An element as it is drawn: [h, w, 3], each 0 to 1."""
    shot = Image.open(io.BytesIO(locator.screenshot(animations="disabled")))
    return np.asarray(shot.convert("RGB")) / 255


def luminance(colour: np.ndarray) -> np.ndarray:
    """Relative luminance of sRGB colours [..., 3] in 0 to 1, as WCAG 2 defines it."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Contrast of colours, 1 to 21, as WCAG 2 defines it."""
    a, b = luminance(one), luminance(other)
    return (np.maximum(a, b) + 0.05) / (np.minimum(a, b) + 0.05)
