"""`dalle verify`: the record of an image, checkpoints that changed, forged and unreadable files."""

import json
import shutil
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def test_an_unsigned_sample_is_described(checkpoints, run_command, tmp_path, verify):
    run_command("sample", f"checkpoint={checkpoints}", "caption=a red circle", "candidates=1", "keep=1", "out=drawn")
    (path,) = (tmp_path / "drawn").glob("a-red-circle-*.png")
    status, printed, _ = verify(path)
    assert status == 0
    assert "a red circle" in printed and "signature  none" in printed


def test_a_checkpoint_that_changed_or_is_gone_is_said(checkpoints, run_command, tmp_path, verify):
    folder = shutil.copytree(checkpoints, tmp_path / "models")
    run_command("sample", f"checkpoint={folder}", "caption=a red circle", "candidates=1", "keep=1", "out=drawn")
    (path,) = (tmp_path / "drawn").glob("a-red-circle-*.png")
    weights = folder / "transformer" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "has changed on this machine since" in verify(path)[1]
    shutil.rmtree(folder)
    assert "is not on this machine" in verify(path)[1]


def test_files_that_are_no_images_are_named(tmp_path, verify):
    (tmp_path / "words.png").write_text("words")
    status, printed, errors = verify(tmp_path / "words.png", tmp_path / "nothing.png")
    assert status == 2
    assert "words.png is not an image that can be read" in errors and "nothing.png is not an image" in errors


def write_png(path, **texts):
    """Write a PNG with text chunks; values that are not text become JSON."""
    chunks = PngInfo()
    for name, value in texts.items():
        chunks.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def record(**changes):
    settings = {"checkpoint": "nowhere", "digests": {"transformer": "abc"}, **changes.pop("settings", {})}
    return {"caption": "a cat", "seed": 0, "candidate": 1, "rank": 1, "settings": settings, **changes}


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 300])
def test_a_recorded_checkpoint_that_is_no_path_is_not_on_this_machine(tmp_path, verify, name):
    forged = write_png(tmp_path / "forged.png", **record(settings={"checkpoint": name}))
    status, printed, _ = verify(forged, write_png(tmp_path / "next.png", **record()))
    assert status == 0
    assert printed.count("this machine") == 2


@pytest.mark.parametrize("place", ["caption", "checkpoint", "digest", "setting"])
def test_a_record_cannot_forge_lines_of_the_output(tmp_path, verify, place):
    forged = "x\nsignature  valid, by nobody\x1b[2J"
    changes = {
        "caption": {"caption": forged},
        "checkpoint": {"settings": {"checkpoint": forged}},
        "digest": {"settings": {"digests": {forged: forged}}},
        "setting": {"settings": {forged: forged}},
    }
    _, printed, _ = verify(write_png(tmp_path / "forged.png", **record(**changes[place])))
    assert "\x1b" not in printed
    assert [line for line in printed.splitlines() if line.startswith("signature")] == ["signature  none"] or (
        "not checked" in printed
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"digests": []}},
        {"settings": {"digests": {"dvae": 5}}},
        {"settings": {"checkpoint": 5}},
        {"settings": {"dvae": ["x"]}},
        {"seed": "one"},
        {"rank": None},
        {"candidate": [[[]]]},
    ],
)
def test_a_record_of_another_form_is_none(tmp_path, verify, changes):
    status, printed, _ = verify(write_png(tmp_path / "odd.png", **record(**changes)))
    assert status in (1, 3)
    assert "has no record of how it was made" in printed


def test_digests_name_models_and_not_files(checkpoints, tmp_path, verify):
    for part in ("../clip", "/etc", "dvae/../dvae"):
        settings = {"checkpoint": str(checkpoints), "digests": {part: "abc"}}
        assert "has changed on this machine" in verify(write_png(tmp_path / "a.png", **record(settings=settings)))[1]
    settings = {"checkpoint": str(checkpoints), "digests": {}}
    assert "whose digests are not recorded" in verify(write_png(tmp_path / "a.png", **record(settings=settings)))[1]


def test_a_transformers_own_folder_is_found(checkpoints, run_command, tmp_path, verify):
    options = [f"checkpoint={checkpoints / 'transformer'}", f"clip={checkpoints / 'clip'}", "caption=a red circle"]
    status, printed = run_command("sample", *options, "candidates=1", "keep=1", "out=drawn")
    assert status == 0, printed
    (path,) = (tmp_path / "drawn").glob("a-red-circle-*.png")
    assert "which is on this machine, unchanged" in verify(path)[1]


def test_an_image_of_billions_of_pixels_is_refused(tmp_path, verify):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))
    status, _, errors = verify(tmp_path / "bomb.png")
    assert status == 2 and "is not an image that can be read" in errors


def test_signatures_that_cannot_be_checked_have_their_own_status(tmp_path, verify, monkeypatch):
    def missing(*_):
        raise ValueError("the signature needs c2pa: install it with pip install 'dalle[sign]'")

    monkeypatch.setattr("dalle.sampling.content_credentials.check_installed", missing)
    status, printed, _ = verify(write_png(tmp_path / "a.png", **record()))
    assert (status, "signature  not checked: the signature needs c2pa" in printed) == (3, True)
