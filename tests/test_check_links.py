"""tools/check_links.py: addresses that are gone are found; tested on a server of this computer."""

import runpy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "check_links.py"))


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        status = {"/here": 200, "/moved": 302, "/shy": 403}.get(self.path, 404)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/here")
        self.end_headers()


@pytest.fixture
def site():
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_only_addresses_that_are_gone_are_errors(site, capsys):
    links = [f"{site}/{path}" for path in ("here", "moved", "shy", "old")] + ["http://127.0.0.1:1/"]
    assert TOOL["check"](links) == [f"{site}/old"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["unsure", "gone", "unsure"]


def test_addresses_are_found_once_without_punctuation_and_examples():
    text = (
        "[a](https://hydra.cc), https://hydra.cc. `http://127.0.0.1:7860/v1` <https://example.org/x> https://a.org/b;"
    )
    assert TOOL["addresses"](text) == ["https://a.org/b", "https://hydra.cc"]


def test_every_page_with_links_is_read():
    names = {page.name for page in TOOL["PAGES"]}
    assert {"README.md", "CHANGELOG.md", "faq.md", "paper.md"} <= names
