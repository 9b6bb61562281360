"""Security of the studio: paths, headers and what requests may name, as tests against a real server."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
from running_studio import TOKEN, image_file, raw, status_of

from dalle.studio.requests import DrawRequest
from dalle.studio.security import HEADERS
from dalle.studio.server import STATIC

ROOT = Path(__file__).parents[2]


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
