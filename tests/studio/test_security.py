"""Security of the studio: each class of flaw that other studios had, as a test against a real server."""

import asyncio
import io
import os
import re
import socket
import struct
import sys
import time
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image
from running_studio import TOKEN, running

from dalle.studio import server
from dalle.studio.errors import ApiError
from dalle.studio.requests import DrawRequest
from dalle.studio.security import HEADERS, _limited
from dalle.studio.server import STATIC, choose_token
from dalle.studio.session import IMAGE_WORK_LIMIT

ROOT = Path(__file__).parents[2]
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def raw(studio, head: str, body: bytes = b"") -> tuple[int, str]:
    """Send a request as written, which no client library corrects. Returns the status and the whole answer."""
    address = studio.address.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    text = answer.decode("latin-1")
    return int(text.split()[1]), text


def status_of(studio, path="/api/model", method="GET", **headers) -> int:
    fields = {"Host": studio.address.removeprefix("http://"), "Connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value is not None]
    return raw(studio, "\n".join([f"{method} {path} HTTP/1.1", *lines]))[0]


# DNS rebinding, CSRF and Origin: null


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


# the token


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


# paths, enumeration, redirects


@pytest.mark.parametrize(
    "name",
    ["../config.py", "..%2fconfig.py", "%2e%2e/config.py", "..%5cconfig.py", "/etc/passwd", "%2fetc%2fpasswd", "a%00b"],
)
def test_no_path_leads_to_other_files(studio, name):
    for path in (f"/static/{name}", f"/api/images/{name}", f"/api/jobs/{name}/events", f"/{name}"):
        status, answer = raw(
            studio,
            f"GET {path} HTTP/1.1\nHost: {studio.address.removeprefix('http://')}\nConnection: close\n"
            f"Authorization: Bearer {TOKEN}",
        )
        assert status in (400, 404), path
        assert "StudioConfig" not in answer and "root:" not in answer


def test_ids_are_random_and_there_is_no_list_of_them(studio):
    images = [image["id"] for image in studio.drawn(candidates=4)]
    assert len(set(images)) == 4 and all(re.fullmatch(r"[\w-]{22}", key) for key in images)  # 128 bits
    for path in ("/api/images", "/api/images/", "/api/jobs", "/api/uploads"):
        assert studio.client.get(path).status_code in (404, 405)
    for guess in ("0", "1", "latest", images[0][:-1], images[0].lower() + "x"):
        assert studio.client.get(f"/api/images/{guess}").status_code == 404


@pytest.mark.parametrize("path", ["/api/model/", "//evil.example", "/api//model", "/static/", "/?next=//evil.example"])
def test_nothing_redirects(studio, path):
    answer = studio.client.get(studio.address + path)
    assert not answer.is_redirect and "location" not in answer.headers


# uploads: XSS by SVG, sniffing, decompression bombs, too many bytes

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def png_of(width: int, height: int) -> bytes:
    """Return a PNG file whose header claims a size that its few bytes do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def image_file(kind: str, size=(40, 30), **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["image/svg+xml", "image/png", "text/html"])
@pytest.mark.parametrize(
    "data",
    [SVG, b"<!doctype html><script>alert(1)</script>", b"GIF89a<script>", b"", b"\x80\x04K\x01.", image_file("BMP")],
)
def test_uploads_that_are_no_picture_are_refused(studio, data, kind):
    answer = studio.client.post("/api/uploads", content=data, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_uploads_are_encoded_anew_and_lose_what_they_carried(studio, kind):
    data = image_file(kind) + b"<script>alert(1)</script>"
    answer = studio.client.post("/api/uploads", content=data)
    assert answer.json() | {"id": ""} == {"id": "", "width": 40, "height": 30, "settings": None, "left_out": []}
    served = studio.client.get(f"/api/images/{answer.json()['id']}")
    assert served.headers["content-type"] == "image/png"
    assert served.headers["x-content-type-options"] == "nosniff"
    assert b"script" not in served.content and Image.open(io.BytesIO(served.content)).format == "PNG"


def test_a_picture_of_100_megapixels_is_refused_by_its_header(studio):
    answer = studio.client.post("/api/uploads", content=png_of(10_000, 10_000))
    assert answer.status_code == 400
    assert "10,000 x 10,000 pixels, more than 50 million" in answer.json()["error"]["message"]


def test_a_picture_that_pillow_takes_for_an_attack_is_refused_for_its_size(studio):
    answer = studio.client.post("/api/uploads", content=png_of(20_000, 20_000))
    assert answer.status_code == 400
    assert "more than 50 million pixels" in answer.json()["error"]["message"]


def test_a_broken_picture_is_refused(studio):
    answer = studio.client.post("/api/uploads", content=image_file("PNG", (300, 300))[:-60])
    assert "broken or incomplete" in answer.json()["error"]["message"]


def test_bodies_are_limited_whether_they_tell_their_size_or_not(studio):
    large = b"x" * 20_000_001
    chunks = (b"x" * 100_000 for _ in range(201))
    assert studio.client.post("/api/uploads", content=large).status_code == 413
    assert studio.client.post("/api/uploads", content=chunks).status_code == 413
    answer = studio.client.post("/api/jobs", content=b'{"caption": "' + b"x" * 300_000 + b'"}')
    assert answer.status_code == 413 and "256 kB" in answer.json()["error"]["message"]


def test_a_body_that_declares_too_many_bytes_is_not_kept():
    """No part of it reaches the application, which would collect 20 MB first."""
    messages = [{"type": "http.request", "body": b"x" * 10, "more_body": more} for more in (True, True, False)]

    async def receive():
        return messages.pop(0)

    with pytest.raises(ApiError, match="larger than 1 kB"):
        asyncio.run(_limited(receive, 1000, declared=2000)())
    assert not messages


def test_an_upload_is_refused_before_it_is_read_if_too_many_wait(studio, monkeypatch):
    monkeypatch.setattr(studio.session.image_work, "_count", IMAGE_WORK_LIMIT)
    own = studio.address.removeprefix("http://")
    head = f"POST /api/uploads HTTP/1.1\nHost: {own}\nAuthorization: Bearer {TOKEN}\nContent-Length: 1000000"
    status, answer = raw(studio, f"{head}\nConnection: close", b"only the beginning")
    assert status == 429 and "images are being worked on already" in answer


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


# headers on every answer


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/static/nothing.js", 404), ("/nothing", 404), ("/api/model", 200), ("/api/images/x", 404)]
    + [("/openapi.json", 200)]
    + [(f"/static/{path.name}", 200) for path in sorted(STATIC.glob("*.*"))],
)
def test_every_answer_has_the_security_headers(studio, path, status):
    if path == "/" and not (STATIC / "index.html").exists():
        pytest.skip("the page is not in this checkout")
    answer = studio.client.get(path)
    assert answer.status_code == status
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert answer.headers["cache-control"] == (
        "no-store" if path.startswith("/api") else answer.headers["cache-control"]
    )


def test_refusals_have_the_security_headers_too(studio):
    own = studio.address.removeprefix("http://")
    for head in (
        "GET / HTTP/1.1\nHost: evil.example\nConnection: close",
        f"GET /api/model HTTP/1.1\nHost: {own}\nConnection: close",
    ):
        _, answer = raw(studio, head)
        assert "nosniff" in answer and "default-src 'none'" in answer and "no-referrer" in answer


def test_the_policy_allows_no_inline_script_and_no_other_site():
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'none'" in policy and "base-uri 'none'" in policy


def test_a_download_has_a_safe_file_name(studio):
    caption = 'a "red"\r\nX-Evil: 1 ../../circle <ü>'
    (image,) = studio.drawn(caption=caption[:30], candidates=1)
    answer = studio.client.get(f"/api/images/{image['id']}?download=1")
    assert re.fullmatch(r'attachment; filename="[\w-]+\.png"', answer.headers["content-disposition"])
    assert "x-evil" not in answer.headers


# models, addresses and pickles


@pytest.mark.parametrize("name", ["checkpoint", "dvae", "clip", "path", "url", "image", "out", "callback"])
def test_no_request_names_a_model_a_file_or_an_address(studio, name):
    for path in ("/api/jobs", "/v1/images/generations"):
        answer = studio.client.post(path, json={"caption": "x", "prompt": "x", name: "http://evil.example/model"})
        assert answer.status_code == 422 and "there is no setting" in answer.json()["error"]["message"]


@pytest.mark.parametrize("image", ["http://evil.example/a.png", "file:///etc/passwd", "/etc/passwd", "../a.png"])
def test_images_of_edits_are_ids_only(studio, image):
    edit = {"kind": "vary", "image": image}
    answer = studio.client.post("/api/jobs", json={"caption": "a red circle", "edit": edit})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")


def test_drawing_opens_no_connection_and_no_file_for_writing(make_session, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    session = make_session()
    events: list[tuple] = []
    active = True

    def audit(event: str, arguments: tuple) -> None:
        if active and (
            event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "pickle.find_class")
            or (event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        ):
            events.append((event, arguments))

    sys.addaudithook(audit)
    try:
        image = session.upload(image_file("PNG"))["id"]
        for edit in (None, {"kind": "vary", "image": image}):
            request = DrawRequest.model_validate({"caption": "a red circle", "candidates": 2, "edit": edit})
            job, _ = session.submit(request)
            while not job.events.ended:
                time.sleep(0.01)
            session.attention(job.images[0])
    finally:
        active = False
        session.close()
    assert events == []
    assert list(tmp_path.iterdir()) == []


def test_the_studio_has_no_way_to_unpickle_or_fetch_or_tunnel():
    for path in (ROOT / "dalle/studio").glob("*.py"):
        source = path.read_text()
        assert not re.search(
            r"\b(pickle|torch\.load|urllib(?!\.parse)|requests\.get|httpx|aiohttp|subprocess|eval\(|exec\()", source
        ), path


def test_websockets_are_refused(studio):
    status = status_of(
        studio,
        "/api/model",
        Upgrade="websocket",
        Connection="Upgrade, close",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="x" * 22 + "==",
        Origin="null",
    )
    assert status == 403


def test_the_security_policy_says_where_to_report():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "report" in text.lower() and re.search(
        r"security/advisories|private vulnerability report", text, re.IGNORECASE
    )
    assert "studio" in text
