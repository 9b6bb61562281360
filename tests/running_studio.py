"""A studio behind a real server on a free port, its client, and requests as written, for the tests in tests/studio."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra studio")
httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra dev")

from dalle.studio.server import build_server, listening_socket  # noqa: E402
from dalle.studio.session import Session  # noqa: E402

TOKEN = "a-token-for-the-tests-of-the-studio"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Studio:
    """A running studio and a client with its token."""

    session: Session
    address: str
    client: httpx.Client

    def draw(self, **settings: Any) -> str:
        """Start a drawing and return its job."""
        answer = self.client.post("/api/jobs", json={"caption": "a red circle", "seed": 0, **settings})
        assert answer.status_code == 202, answer.text
        return answer.json()["job"]

    def events(self, job: str) -> list[tuple[str, Any]]:
        """Return all events of a job, once it has ended."""
        with self.client.stream("GET", f"/api/jobs/{job}/events") as stream:
            return list(parse_events(stream.iter_text()))

    def drawn(self, **settings: Any) -> list[dict[str, Any]]:
        """Draw, and return the ranked images: id, candidate, score."""
        events = dict(self.events(self.draw(**settings)))
        assert "done" in events, events
        return events["ranked"]["images"]


def parse_events(chunks: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, data) for each server-sent event; comments are skipped."""
    text = ""
    for chunk in chunks:
        text += chunk
        while "\n\n" in text:
            block, _, text = text.partition("\n\n")
            if not block.startswith(":"):
                name, data = block.split("\n", 1)
                yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@contextmanager
def running(session: Session) -> Iterator[Studio]:
    """Context with a session behind a server in a thread, at the session's `host` and a free port."""
    host = session.config.host
    with listening_socket(host, 0) as listener:
        port = listener.getsockname()[1]
        server = build_server(session, port, TOKEN)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
            yield Studio(session, address, client)
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def raw(studio: Studio, head: str, body: bytes = b"") -> tuple[int, str]:
    """Send a request as written, which no client library corrects. Returns the status and the whole answer."""
    address = studio.address.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    text = answer.decode("latin-1")
    return int(text.split()[1]), text


def status_of(studio: Studio, path="/api/model", method="GET", **headers) -> int:
    """Return the status of the answer to a request; a header of None is left out."""
    fields = {"Host": studio.address.removeprefix("http://"), "Connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value is not None]
    return raw(studio, "\n".join([f"{method} {path} HTTP/1.1", *lines]))[0]


def image_file(kind: str, size=(40, 30), **options) -> bytes:
    """Return the bytes of a red image of (width, height) `size`, in a format of Pillow."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind, **options)
    return file.getvalue()
