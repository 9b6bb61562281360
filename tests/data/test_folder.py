"""The folder source: any tree of pictures and text files, the broken ones included."""

import warnings
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle.data import folder
from dalle.data.folder import FolderConfig, FolderSource, relative_paths
from dalle.data.loader import batches
from dalle.data.source import UnreadableRecord
from dalle.data.transforms import inference_crop


def add(root: Path, name: str, captions: str | None = "a picture", image: Image.Image | None = None, **options) -> Path:
    """A picture at root/name, and its captions beside it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (6, 4), "red")).save(path, **options)
    if captions is not None:
        path.with_suffix(".txt").write_text(captions, encoding="utf-8")
    return path


def opened(root: Path, split: str = "train", **options) -> FolderSource:
    return FolderSource(FolderConfig(path=str(root), image_size=4, **options), split)


def record_of(root: Path, key: str, **options):
    """The record of this key, whatever its split."""
    for split in ("train", "val"):
        source = opened(root, split, **options)
        for index, path in enumerate(source._paths):
            if path.decode() == key:
                return source[index]
    raise AssertionError(f"{key} is in no split")


def test_pictures_are_found_in_any_depth_and_listed_in_order(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b/c.webp", "d.bmp", "e.gif", "f.jpeg"):
        add(tmp_path, name)
    add(tmp_path, ".hidden.png")
    add(tmp_path, ".cache/x.png")
    (tmp_path / "notes.md").write_text("no picture")
    assert relative_paths(tmp_path) == [b"a/b/c.webp", b"a/z.JPG", b"b.png", b"d.bmp", b"e.gif", b"f.jpeg"]


def test_record_has_an_rgb_picture_its_captions_and_its_path(tmp_path):
    add(tmp_path, "sub/one.png", "\ufeffa red picture\n\n  all of it red  \r\n")
    add(tmp_path, "two.png")
    record = record_of(tmp_path, "sub/one.png")
    assert record.captions == ("a red picture", "all of it red")
    assert record.key == "sub/one.png"
    assert record.image.mode == "RGB" and record.image.getpixel((0, 0)) == (255, 0, 0)


def test_splits_share_no_picture_and_leave_none_out(tmp_path):
    for number in range(60):
        add(tmp_path, f"{number}.png")
    train, val = (
        {record.key for record in opened(tmp_path, split, validation_share=0.2)} for split in ("train", "val")
    )
    assert not train & val and len(train | val) == 60
    assert 4 <= len(val) <= 20


def test_a_picture_keeps_its_split_when_others_are_added(tmp_path):
    for number in range(40):
        add(tmp_path, f"{number}.png")
    before = {record.key for record in opened(tmp_path, "val", validation_share=0.2)}
    for number in range(40, 80):
        add(tmp_path, f"{number}.png")
    after = {record.key for record in opened(tmp_path, "val", validation_share=0.2)}
    assert {key for key in after if int(Path(key).stem) < 40} == before


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_two_pictures_are_enough_for_both_splits(tmp_path, share):
    add(tmp_path, "one.png")
    add(tmp_path, "two.png")
    assert len(opened(tmp_path, "train", validation_share=share)) == 1
    assert len(opened(tmp_path, "val", validation_share=share)) == 1


def test_one_picture_is_for_training_and_validation_says_so(tmp_path):
    add(tmp_path, "one.png")
    assert len(opened(tmp_path, "train", validation_share=0.999)) == 1
    with pytest.raises(ValueError, match="one picture is not enough"):
        opened(tmp_path, "val")


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    add(tmp_path, "turned.jpg", image=image, exif=exif)
    add(tmp_path, "other.png")
    assert record_of(tmp_path, "turned.jpg").image.size == (4, 8)


@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
    [
        ("clear.png", "RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("grey.png", "L", 100, (100, 100, 100)),
        ("bits.png", "1", 1, (255, 255, 255)),
        ("deep.png", "I;16", 257 * 100, (100, 100, 100)),
        ("ink.jpg", "CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("table.gif", "P", 0, None),
        ("clear.webp", "RGBA", (0, 0, 255, 0), (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb_on_white(tmp_path, name, mode, colour, expected):
    add(tmp_path, name, image=Image.new(mode, (6, 4), colour))
    add(tmp_path, "other.png")
    image = record_of(tmp_path, name).image
    assert image.mode == "RGB" and image.size == (6, 4)
    assert expected is None or image.getpixel((0, 0)) == expected


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    add(tmp_path, "moving.gif", image=frames[0], save_all=True, append_images=frames[1:])
    add(tmp_path, "other.png")
    assert record_of(tmp_path, "moving.gif").image.getpixel((0, 0)) == (255, 0, 0)


def png_that_claims(width: int, height: int) -> bytes:
    """The first bytes of a PNG of this size: enough to be believed, and a tiny file."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [len(each[4:]).to_bytes(4, "big") + each + zlib.crc32(each).to_bytes(4, "big") for each in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def break_picture(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    broken = {
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "text": b"this is no picture",
        "noise": np.random.default_rng(0).bytes(400),
        "bomb": png_that_claims(60_000, 60_000),
        "huge": png_that_claims(10_000, 10_000),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n",
    }
    path.write_bytes(broken[damage])


@pytest.mark.parametrize("damage", ["empty", "cut short", "text", "noise", "bomb", "huge", "postscript"])
def test_broken_pictures_are_unreadable_records(tmp_path, damage):
    path = add(tmp_path, "broken.png", image=Image.effect_noise((40, 40), 50))
    break_picture(path, damage)
    add(tmp_path, "other.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UnreadableRecord) as caught:
            record_of(tmp_path, "broken.png")
    assert caught.value.key == "broken.png" and caught.value.reason


def test_a_deleted_picture_is_an_unreadable_record(tmp_path):
    paths = [add(tmp_path, f"{number}.png") for number in range(3)]
    source = opened(tmp_path)
    for path in paths:
        path.unlink()
    with pytest.raises(UnreadableRecord, match="No such file"):
        source[0]


@pytest.mark.parametrize("captions", [None, "", "\n  \n"])
def test_a_picture_without_captions_is_unreadable_unless_that_is_allowed(tmp_path, captions):
    add(tmp_path, "plain.png", captions)
    add(tmp_path, "other.png")
    with pytest.raises(UnreadableRecord, match=r"plain\.png: no caption in plain\.txt"):
        record_of(tmp_path, "plain.png")
    assert record_of(tmp_path, "plain.png", allow_missing_captions=True).captions == ("",)


def test_captions_that_are_not_utf8_are_unreadable(tmp_path):
    add(tmp_path, "latin.png").with_suffix(".txt").write_bytes("été".encode("latin-1"))
    add(tmp_path, "other.png")
    with pytest.raises(UnreadableRecord, match=r"captions in latin\.txt cannot be read"):
        record_of(tmp_path, "latin.png", allow_missing_captions=True)


def test_training_goes_on_around_broken_pictures(tmp_path):
    for number in range(12):
        add(tmp_path, f"{number}.png")
    for number in (3, 5, 7):
        break_picture(tmp_path / f"{number}.png", "empty")
    stream = batches(opened(tmp_path), inference_crop, batch_size=4, seed=0)
    keys = {key for batch in islice(stream, 6) for key in batch.keys}
    assert keys and not keys & {"3.png", "5.png", "7.png"}


def test_missing_and_empty_folders_say_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path=.*nowhere: there is no such folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data\.path=.*no picture \(\.jpg, \.jpeg, \.png, \.webp, \.bmp, \.gif\)"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"data\.path is empty"):
        FolderSource(FolderConfig(), "train")


def test_other_splits_and_shares_are_refused(tmp_path):
    add(tmp_path, "one.png")
    with pytest.raises(ValueError, match="not 'novel'"):
        opened(tmp_path, "novel")
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="validation_share must lie between 0 and 1"):
            opened(tmp_path, validation_share=share)


def test_the_size_limit_is_pillows_own():
    assert Image.MAX_IMAGE_PIXELS == folder.LARGEST
