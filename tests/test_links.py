"""External addresses are found where they stand, and those that do not answer are told."""

import runpy
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from latebook import BookError
from tests.conftest import ROOT

links = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / "links.py"), run_name="links"))


class Answering(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404 if "gone" in self.path else 200)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def host(tmp_path):
    """A web server on this machine, and a checkout that points at it."""
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        host = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "README.md").write_text(f"See [here]({host}/here), or {host}/gone.\n")
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "a.py").write_text(f'"""From {host}/gone."""')
        yield host
        server.shutdown()
        thread.join()


def test_every_place_of_the_book_is_read():
    found = links.addresses(ROOT)
    assert found["https://arxiv.org/abs/2006.06657"] == [
        "CITATION.cff",
        "README.md",
        "book/references.bib",
    ]
    assert "https://mybinder.org" in found
    assert not [link for link in found if "OWNER" in link]


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("[a](https://a.org/b_(c)).", "https://a.org/b_(c)"),
        ("<https://a.org/b>", "https://a.org/b"),
        ('"see https://a.org/b.\\n"', "https://a.org/b"),
        ("(https://a.org/b?c=d#e),", "https://a.org/b?c=d#e"),
    ],
)
def test_an_address_ends_where_the_sentence_goes_on(tmp_path, text, link):
    (tmp_path / "README.md").write_text(text)
    assert list(links.addresses(tmp_path)) == [link]


def test_what_does_not_answer_is_told_with_its_places(tmp_path, host, capsys):
    assert links.check(tmp_path) == 1
    told = capsys.readouterr().out
    assert f"{host}/gone\n    404 Client Error" in told
    assert "in README.md, lib/a.py" in told
    assert told.endswith("1 of 2 addresses answer.\n")
    (tmp_path / "README.md").write_text(f"{host}/here")
    (tmp_path / "lib" / "a.py").unlink()
    assert links.check(tmp_path) == 0
    assert capsys.readouterr().out == "1 of 1 addresses answer.\n"


def test_without_a_network_that_is_said(tmp_path, capsys):
    (tmp_path / "README.md").write_text("http://127.0.0.1:9/nothing-listens")
    assert links.check(tmp_path) == 0
    assert capsys.readouterr().out == (
        "None of 1 addresses answers: there is no network, nothing was checked.\n"
    )


def test_what_sphinx_passes_over_is_an_error(tmp_path):
    with pytest.raises(BookError, match="passed over"):
        links.answers(["not an address"])
