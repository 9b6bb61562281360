"""The studio's web server: its application, its address, and its run until Ctrl-C."""

import ipaddress
import os
import secrets
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer

from dalle.studio.config import StudioConfig
from dalle.studio.errors import add_error_handlers
from dalle.studio.openai_api import openai_routes
from dalle.studio.routes import api_routes
from dalle.studio.security import Security, loopback_hosts
from dalle.studio.session import Session

STATIC = Path(__file__).with_name("static")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
TOKEN_VARIABLE = "DALLE_STUDIO_TOKEN"
SHORTEST_TOKEN = 16  # characters
# no log of requests, no headers about itself, no trust in those of proxies
UVICORN_OPTIONS: dict[str, Any] = {
    "log_level": "error",
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "ws": "none",
    "timeout_graceful_shutdown": 3,
}
TITLE = "DALL-E studio"


def create_app(session: Session) -> FastAPI:
    """Build the application with all routes, without the checks of `Security`."""
    app = FastAPI(
        title=TITLE, docs_url=None, redoc_url=None, redirect_slashes=False, swagger_ui_oauth2_redirect_url=None
    )
    add_error_handlers(app)
    token = [Depends(HTTPBearer(auto_error=False))]  # only for OpenAPI: `Security` checks it
    app.include_router(api_routes(session), dependencies=token)
    app.include_router(openai_routes(session), dependencies=token)
    # only files that are there at the start are served: no path of a request reaches the disk
    app.add_route("/", partial(_serve, STATIC / "index.html"), include_in_schema=False)
    for path in (file for file in STATIC.iterdir() if file.suffix in MEDIA_TYPES):
        app.add_route(f"/static/{path.name}", partial(_serve, path), include_in_schema=False)
    return app


def _serve(path: Path, request: Request) -> FileResponse:
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix])


def run(config: StudioConfig) -> None:
    """Load the model, print the link to the page, and serve until Ctrl-C.

    Raises:
        ValueError: an address that is not free, a token that is missing or too short, or a model that cannot be loaded.
    """
    token = choose_token(config.host)
    with listening_socket(config.host, config.port) as listener:
        session = Session.load(config)
        port = listener.getsockname()[1]
        link = page_link(config.host, port, token)
        print(f"studio    {link}", flush=True)
        print("          Ctrl-C stops it. The link holds the token: whoever has it can draw.", flush=True)
        with opened_page(link) if config.open else nullcontext():
            try:
                build_server(session, port, token).run(sockets=[listener])
            finally:  # also after Ctrl-C: the interpreter must not end while the thread computes
                session.close()
                session.jobs.join(30)


@contextmanager
def opened_page(link: str) -> Iterator[None]:
    """Open a link in the browser, and keep the file that leads there, which only this user can read.

    A browser's arguments, which hold the file's path and not the token, can be read by all users of the computer.
    """
    with TemporaryDirectory(prefix="dalle-studio-") as folder:  # mode 0700
        page = Path(folder, "studio.html")
        page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(link)}">', encoding="utf-8")
        webbrowser.open(page.as_uri())
        yield


def page_link(host: str, port: int, token: str) -> str:
    """Return the link to the page, with the token escaped: the page reads what follows # as a query string."""
    return f"http://{_bracketed(host)}:{port}/#token={quote(token, safe='')}"


def build_server(session: Session, port: int, token: str) -> "StudioServer":
    """Build the server of a session, with the checks of every request. port: the one that it will listen on."""
    config = session.config
    loopback = loopback_hosts(port)
    other_hosts = {f"{name.lower()}:{port}" for name in (_bracketed(config.host), *config.hosts)}
    # without the port: behind a proxy, and as browsers write the usual one
    other_hosts |= {name.lower() for name in (*config.hosts, *([_bracketed(config.host)] if port == 80 else []))}
    app = Security(create_app(session), token, loopback | other_hosts, other_hosts - loopback)
    return StudioServer(session, uvicorn.Config(app, **UVICORN_OPTIONS))


class StudioServer(uvicorn.Server):
    """Server that ends the event streams when it is told to stop, and so does not wait for them."""

    def __init__(self, session: Session, config: uvicorn.Config):
        super().__init__(config)
        self.session = session

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.session.close()
        await super().shutdown(sockets)


def choose_token(host: str) -> str:
    """Return the token in the environment variable DALLE_STUDIO_TOKEN, or on loopback addresses a random one.

    Raises:
        ValueError: no token for an address that others can reach, or a short one.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise ValueError(
            f"{TOKEN_VARIABLE} is no safe token; use {SHORTEST_TOKEN} or more letters, digits and signs without spaces"
        )
    if not token and not is_loopback(host):
        raise ValueError(
            f"host={host} can be reached from other computers, so it needs a token of yours in the environment "
            f"variable {TOKEN_VARIABLE}; or leave host at 127.0.0.1"
        )
    return token or secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Return True if only this computer can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_socket(host: str, port: int) -> socket.socket:
    """Open a socket that listens on an address.

    Raises:
        ValueError: the port is in use, or the address is not of this computer.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0].lower()  # without the address, which is said already
        raise ValueError(
            f"the studio cannot listen on port={port} of host={host}: {reason}; "
            "try another port, or port=0 for a free one"
        ) from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
