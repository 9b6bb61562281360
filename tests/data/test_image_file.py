"""Image decoding: every mode becomes upright RGB on white, and other files raise with a reason."""

import os
import signal
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from dalle.data import image_file
from dalle.data.image_file import decode_image, read_bytes, read_image_file, read_image_size
from dalle.data.source import UnreadableRecord


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("kind", "mode", "colour", "expected"),
    [
        ("PNG", "RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("PNG", "RGBA", (255, 0, 0, 127), (255, 128, 128)),
        ("PNG", "LA", (0, 0), (255, 255, 255)),
        ("PNG", "L", 100, (100, 100, 100)),
        ("PNG", "1", 1, (255, 255, 255)),
        ("PNG", "I;16", 257 * 100, (100, 100, 100)),
        ("JPEG", "CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("JPEG", "L", 255, (255, 255, 255)),
        ("GIF", "P", 0, None),
        ("WEBP", "RGBA", (0, 0, 255, 0), (255, 255, 255)),
        ("BMP", "RGB", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_every_mode_becomes_rgb_on_white(kind, mode, colour, expected):
    image = decode_image(encoded(Image.new(mode, (6, 4), colour), kind), "key")
    assert image.mode == "RGB" and image.size == (6, 4)
    assert expected is None or image.getpixel((0, 0)) == expected


def test_transparent_palette_colour_becomes_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert decode_image(encoded(image, "PNG", transparency=1), "key").getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(image, "PNG"), "key").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode_image(moving, "key").getpixel((0, 0)) == (255, 0, 0)


def test_multi_image_jpeg_gives_the_first():
    both = encoded(
        Image.new("RGB", (16, 16), "white"), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))]
    )
    assert decode_image(both, "key", 4).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_applied(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = encoded(Image.new("RGB", (8, 4), "red"), kind, exif=exif)
    assert decode_image(turned, "key").size == (4, 8)
    assert decode_image(turned, "key", 2).size == ((2, 4) if kind == "JPEG" else (4, 8))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_invalid_exif_rotation_is_ignored(exif):
    assert decode_image(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif), "key").size == (8, 4)


def test_file_extension_is_ignored(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(noise(6, 4), "PNG"))
    assert read_image_file(tmp_path / "a.jpg", "a.jpg").tobytes() == noise(6, 4).tobytes()


def test_large_jpegs_are_decoded_at_reduced_scale():
    large = Image.effect_noise((400, 300), 60).convert("RGB").resize((800, 600), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    whole, small = decode_image(data, "key"), decode_image(data, "key", 128)
    assert whole.size == (800, 600)
    assert small.size == (200, 150)  # a quarter: an eighth would be under 128
    shrunk = np.asarray(whole.resize((200, 150), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(small, float) - shrunk).mean() < 2
    assert decode_image(data, "key", 400).size == (800, 600)
    assert decode_image(encoded(large, "PNG"), "key", 128).size == (800, 600)


def png_that_claims(width: int, height: int, depth: int = 8, colours: int = 0, data: bytes = bytes(1000)) -> bytes:
    """Return the first chunks of a PNG that declares this size, with any `data`."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colours, 0, 0, 0])
    data = b"IDAT" + zlib.compress(data)
    chunks = [
        len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_sixteen_bit_colours_are_read():
    deep = png_that_claims(1, 1, depth=16, colours=2, data=b"\0" + bytes([200, 7, 100, 7, 50, 7]))
    assert decode_image(deep, "key").getpixel((0, 0)) == (200, 100, 50)


def png_with_a_text_bomb() -> bytes:
    """Return a small PNG with a text of 20 MB, compressed to 100 KB."""
    whole = encoded(noise(4, 4), "PNG")
    text = b"zTXtComment\0\0" + zlib.compress(bytes(20_000_000), 1)
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    return whole[:33] + chunk + whole[33:]


WHOLE = encoded(noise(40, 40), "PNG")
BROKEN = {
    "empty": b"",
    "cut short": WHOLE[: len(WHOLE) // 2],
    "a JPEG cut short": encoded(noise(40, 40), "JPEG")[:-200],
    "text": b"this is no picture",
    "noise": np.random.default_rng(0).bytes(400),
    "bomb": png_that_claims(60_000, 60_000),
    "huge": png_that_claims(10_000, 10_000),
    "flat": png_that_claims(0, 10),
    "text bomb": png_with_a_text_bomb(),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n",
    "a format that is not read": encoded(noise(4, 4), "TIFF"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_images_raise_without_other_output(damage, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableRecord) as caught:
            decode_image(BROKEN[damage], "broken.png", 8)
        (tmp_path / "broken.png").write_bytes(BROKEN[damage])
        with pytest.raises(UnreadableRecord) as of_file:
            read_image_file(tmp_path / "broken.png", "broken.png")
    assert caught.value.key == "broken.png" and caught.value.reason
    assert " at 0x" not in caught.value.reason  # the same in every run
    assert of_file.value.reason == caught.value.reason


def test_too_many_pixels_raise_before_decoding():
    with pytest.raises(UnreadableRecord, match="10000 x 10000 pixels are more than 89,478,485"):
        decode_image(BROKEN["huge"], "key")


def test_warning_filters_stay_as_they_are_when_threads_decode():
    data, before = encoded(noise(4, 4), "PNG"), list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: (decode_image(data, "key"), read_image_size(data)), range(400)))
        assert list(warnings.filters) == before
    finally:
        sys.setswitchinterval(interval)
        warnings.filters[:] = before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_while_a_thread_decodes_can_decode():
    data = encoded(noise(4, 4), "PNG")
    decoding, forked = Event(), Event()

    def hold():
        with image_file.without_warnings():
            decoding.set()
            forked.wait(0.2)  # the fork waits for the end of this block

    thread = Thread(target=hold)
    thread.start()
    decoding.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            decode_image(data, "key")
            os._exit(0)
        finally:
            os._exit(1)
    forked.set()
    thread.join()
    assert os.waitpid(pid, 0)[1] == 0


def test_huge_file_is_not_read_completely(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "MAX_FILE_BYTES", 1000)
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(10**12)
    assert len(read_bytes(tmp_path / "sparse.png", 1001)) == 1001
    with pytest.raises(UnreadableRecord, match="more than 1,000 bytes"):
        decode_image(bytes(1001), "key")


def test_size_is_read_from_the_header():
    large = encoded(noise(300, 200), "JPEG", quality=95)
    assert len(large) > 20_000
    assert read_image_size(large[:2000]) == (300, 200)
    assert read_image_size(b"nothing") is None
    assert read_image_size(png_that_claims(60_000, 60_000)) is None


def test_size_limit_is_that_of_pillow():
    assert Image.MAX_IMAGE_PIXELS == image_file.MAX_PIXELS


def test_missing_file_is_an_unreadable_record():
    with pytest.raises(UnreadableRecord, match="No such file"):
        read_image_file(Path("nowhere.png"), "nowhere.png")
