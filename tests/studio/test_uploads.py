"""Uploads: files that are no pictures, too large or broken are refused, others are encoded anew."""

import asyncio
import io
import struct
import zlib

import pytest
from PIL import Image
from running_studio import TOKEN, image_file, raw

from dalle.studio.errors import ApiError
from dalle.studio.security import _limited
from dalle.studio.session import IMAGE_WORK_LIMIT

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def png_of(width: int, height: int) -> bytes:
    """Return a PNG file whose header claims a size that its few bytes do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


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
