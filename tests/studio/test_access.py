"""Access to the studio: foreign hosts and origins are refused, and every route needs the token."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from running_studio import BEARER, TOKEN, raw, running, status_of

from dalle.studio import server
from dalle.studio.server import choose_token

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", ["/", "/api/model", "/openapi.json", "/static/main.js", "/nothing"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", ""]
)
def test_a_foreign_host_is_refused_on_every_route(studio, path, host):
    host = host.format(port=studio.address.rsplit(":")[-1])
    assert status_of(studio, path, Host=host, **BEARER) == 403


def test_two_hosts_or_none_are_refused(studio):
    own = studio.address.removeprefix("http://")
    bearer = f"Authorization: Bearer {TOKEN}\nConnection: close"
    assert raw(studio, f"GET /api/model HTTP/1.1\nHost: {own}\nHost: evil.example\n{bearer}")[0] in (400, 403)
    assert raw(studio, f"GET /api/model HTTP/1.0\n{bearer}")[0] in (400, 403)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_names_of_this_computer_are_accepted(studio, name):
    host = f"{name}:{studio.address.rsplit(':')[-1]}"
    assert status_of(studio, Host=host, **BEARER) == 200
    assert status_of(studio, Host=host, Origin=f"http://{host}", **BEARER) == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        "http://localhost:1",
        "http://127.0.0.1",
        "",
        "https://{own}",
        "http://{own}.evil",
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/model"), ("POST", "/api/jobs"), ("OPTIONS", "/api/jobs")])
def test_a_foreign_origin_is_refused_even_with_the_token(studio, origin, method, path):
    origin = origin.format(own=studio.address.removeprefix("http://"))
    assert status_of(studio, path, method, Origin=origin, **BEARER) == 403


def test_no_answer_invites_other_sites_or_sets_cookies(studio):
    for path in ("/", "/api/model", "/openapi.json", "/nothing"):
        answer = studio.client.get(path)
        assert not [name for name in answer.headers if name.startswith("access-control-") or name == "set-cookie"]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
    ],
)
def test_every_route_of_the_api_needs_the_token(studio, authorization):
    paths = studio.client.get("/openapi.json").json()["paths"]
    assert len(paths) >= 9
    for path, methods in paths.items():
        for method in methods:
            given = {"Authorization": authorization} if authorization is not None else {}
            assert status_of(studio, re.sub(r"\{\w+\}", "x", path), method.upper(), **given) == 401, path


def test_a_token_elsewhere_than_in_its_header_does_not_count(studio):
    assert status_of(studio, f"/api/model?token={TOKEN}") == 401
    assert status_of(studio, Cookie=f"token={TOKEN}") == 401


def test_tokens_are_compared_in_constant_time():
    assert "hmac.compare_digest" in (ROOT / "dalle/studio/security.py").read_text()


def test_a_path_that_is_no_route_needs_the_token_too(studio):
    for path in ("/nothing", "//api/model", "/API/model", "/api", "/docs", "/redoc", "/static"):
        assert status_of(studio, path) == 401
        assert status_of(studio, path, **BEARER) == 404


def test_random_tokens_are_long_and_new_each_time(monkeypatch):
    monkeypatch.delenv(server.TOKEN_VARIABLE, raising=False)
    tokens = {choose_token("127.0.0.1") for _ in range(5)}
    assert len(tokens) == 5 and min(map(len, tokens)) >= 43  # 256 bits in base64


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_address_that_others_reach_needs_a_token_of_the_user(monkeypatch, host):
    monkeypatch.delenv(server.TOKEN_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="needs a token of yours in the environment variable DALLE_STUDIO_TOKEN"):
        choose_token(host)
    monkeypatch.setenv(server.TOKEN_VARIABLE, TOKEN)
    assert choose_token(host) == TOKEN


@pytest.mark.parametrize("token", ["short", "sixteen letters and spaces", "sécrèt-sécrèt-sécrèt"])
def test_an_unsafe_token_is_refused(monkeypatch, token):
    monkeypatch.setenv(server.TOKEN_VARIABLE, token)
    with pytest.raises(ValueError, match="no safe token"):
        choose_token("127.0.0.1")


def test_further_names_of_the_server_are_accepted_once_they_are_set(make_session):
    with running(make_session(hosts=["studio.example"])) as studio:
        port = studio.address.rsplit(":")[-1]
        assert status_of(studio, Host=f"studio.example:{port}", Origin=f"http://studio.example:{port}", **BEARER) == 200
        assert status_of(studio, Host="studio.example", Origin="https://studio.example", **BEARER) == 200
        assert status_of(studio, Host="studio.example", Origin="https://evil.example", **BEARER) == 403
        assert status_of(studio, Host="other.example", **BEARER) == 403


def test_the_browser_is_opened_without_the_token_among_its_arguments(monkeypatch):
    opened = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    link = server.page_link("127.0.0.1", 7860, TOKEN)
    with server.opened_page(link):
        (address,) = opened
        assert TOKEN not in address
        page = Path(unquote(urlsplit(address).path))
        assert link in page.read_text()
        assert page.parent.stat().st_mode & 0o077 == 0  # closed to other users
    assert not page.parent.exists()
