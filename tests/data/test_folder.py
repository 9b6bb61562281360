"""Folder source: nested images with text files or a table, including broken ones."""

import json
import os
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from dalle.data.folder import FolderConfig, FolderSource, list_images
from dalle.data.loader import image_batches
from dalle.data.skip_counter import SkipCounter
from dalle.data.source import UnreadableRecord
from dalle.data.transforms import inference_crop


def add(root: Path, name: str, captions: str | None = "a picture", image: Image.Image | None = None, **options) -> Path:
    """Save an image at root/name, and its captions beside it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (6, 4), "red")).save(path, **options)
    if captions is not None:
        path.with_suffix(".txt").write_text(captions, encoding="utf-8")
    return path


def opened(root: Path, split: str = "train", **options) -> FolderSource:
    return FolderSource(FolderConfig(path=str(root), image_size=4, **options), split)


def records(root: Path, **options):
    """Return all records of both splits, by key."""
    return {record.key: record for split in ("train", "val") for record in opened(root, split, **options)}


def test_images_are_found_recursively_in_sorted_order(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b/c.webp", "d.bmp", "e.gif", "f.jpeg"):
        add(tmp_path, name)
    add(tmp_path, ".hidden.png")
    add(tmp_path, ".cache/x.png")
    (tmp_path / "notes.md").write_text("no picture")
    assert list_images(tmp_path, SkipCounter()) == ["a/b/c.webp", "a/z.JPG", "b.png", "d.bmp", "e.gif", "f.jpeg"]


def test_record_has_rgb_image_captions_and_path(tmp_path):
    add(tmp_path, "sub/one.png", "\ufeffa red picture\n\n  all of it red  \r\n")
    add(tmp_path, "two.png")
    record = records(tmp_path)["sub/one.png"]
    assert record.captions == ("a red picture", "all of it red")
    assert record.key == "sub/one.png"
    assert record.image.mode == "RGB" and record.image.getpixel((0, 0)) == (255, 0, 0)


def test_file_names_of_any_bytes_are_read(tmp_path):
    add(tmp_path, os.fsdecode(b"caf\xe9.png"), "a café")
    add(tmp_path, "日本/猫 \n.png", "a cat")
    assert {key: record.captions for key, record in records(tmp_path).items()} == {
        os.fsdecode(b"caf\xe9.png"): ("a café",),
        "日本/猫 \n.png": ("a cat",),
    }


def test_splits_are_disjoint_and_complete(tmp_path):
    for number in range(60):
        add(tmp_path, f"{number}.png")
    train, val = (
        {record.key for record in opened(tmp_path, split, validation_share=0.2)} for split in ("train", "val")
    )
    assert not train & val and len(train | val) == 60
    assert 4 <= len(val) <= 20


def test_image_keeps_its_split_when_others_are_added(tmp_path):
    for number in range(40):
        add(tmp_path, f"{number}.png")
    before = set(opened(tmp_path, "val", validation_share=0.2).keys())
    for number in range(40, 80):
        add(tmp_path, f"{number}.png")
    after = set(opened(tmp_path, "val", validation_share=0.2).keys())
    assert {key for key in after if int(Path(key).stem) < 40} == before


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_two_images_fill_both_splits(tmp_path, share):
    add(tmp_path, "one.png")
    add(tmp_path, "two.png")
    assert len(opened(tmp_path, "train", validation_share=share)) == 1
    assert len(opened(tmp_path, "val", validation_share=share)) == 1


def test_one_image_is_for_training_and_validation_raises(tmp_path):
    add(tmp_path, "one.png")
    assert len(opened(tmp_path, "train", validation_share=0.999)) == 1
    with pytest.raises(ValueError, match="one image is not enough"):
        opened(tmp_path, "val")


def test_deleted_image_is_an_unreadable_record(tmp_path):
    paths = [add(tmp_path, f"{number}.png") for number in range(3)]
    source = opened(tmp_path)
    for path in paths:
        path.unlink()
    with pytest.raises(UnreadableRecord, match="No such file"):
        source[0]


@pytest.mark.parametrize("captions", [None, "", "\n  \n", "\x00\x01 \x1b\n"])
def test_image_without_captions_is_skipped_unless_allowed(tmp_path, captions, caplog):
    add(tmp_path, "plain.png", captions)
    add(tmp_path, "other.png")
    assert list(opened(tmp_path).keys()) == ["other.png"]
    assert opened(tmp_path).dropped == {"without a caption": 1}
    (sentence,) = caplog.messages
    assert "1 of 2 records are used; left out: 1 without a caption (first: plain.png)" in sentence
    assert "data.allow_missing_captions=true keeps images without a caption in all stages but stage=clip" in sentence
    assert records(tmp_path, allow_missing_captions=True)["plain.png"].captions == ("",)


def test_unreadable_captions_skip_their_image(tmp_path):
    add(tmp_path, "latin.png").with_suffix(".txt").write_bytes("été".encode("latin-1"))
    add(tmp_path, "folder.png", None).with_suffix(".txt").mkdir()
    for number in range(3):
        add(tmp_path, f"{number}.png")
    source = opened(tmp_path, allow_missing_captions=True)
    assert source.dropped == {"with captions that cannot be read": 2}
    assert set(records(tmp_path)) == {"0.png", "1.png", "2.png"}


def test_non_files_are_skipped_and_counted(tmp_path):
    add(tmp_path, "one.png")
    add(tmp_path, "two.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "one.png")
    (tmp_path / "link.txt").write_text("a link to a picture is a picture")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "sub.png").mkdir()
    source = opened(tmp_path)
    assert source.warnings == {"names that lead to no file": 2}
    assert set(records(tmp_path)) == {"one.png", "two.png", "link.png"}


def test_unreadable_subfolder_is_counted(tmp_path, monkeypatch):
    for name in ("open/1.png", "open/2.png", "shut/3.png"):
        add(tmp_path, name)
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert opened(tmp_path).warnings == {"folders that cannot be opened": 1}
    assert set(records(tmp_path)) == {"open/1.png", "open/2.png"}


def test_file_without_permission_is_an_unreadable_record(tmp_path, monkeypatch):
    for number in range(3):
        add(tmp_path, f"{number}.png")
    source = opened(tmp_path)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dalle.data.folder.read_bytes", refused)
    with pytest.raises(UnreadableRecord, match="PermissionError"):
        source[0]


def test_training_skips_broken_images(tmp_path):
    for number in range(12):
        add(tmp_path, f"{number}.png")
    for number in (3, 5, 7):
        (tmp_path / f"{number}.png").write_bytes(b"")
    stream = image_batches(opened(tmp_path), inference_crop, batch_size=4, seed=0)
    keys = {key for batch in islice(stream, 6) for key in batch.keys}
    assert keys and not keys & {"3.png", "5.png", "7.png"}


def test_missing_and_empty_folders_raise(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path=.*nowhere: there is no such folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data\.path=.*no image \(\.jpg, \.jpeg, \.png, \.webp, \.bmp, \.gif\)"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"data\.path is empty"):
        FolderSource(FolderConfig(), "train")
    add(tmp_path, "one.png", None)
    with pytest.raises(ValueError, match=r"0 of 1 records are used; left out: 1 without a caption"):
        opened(tmp_path)


def test_invalid_splits_and_shares_raise(tmp_path):
    add(tmp_path, "one.png")
    with pytest.raises(ValueError, match="not 'novel'"):
        opened(tmp_path, "novel")
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="validation_share must be between 0 and 1"):
            opened(tmp_path, validation_share=share)


def test_table_replaces_text_files(tmp_path):
    for name in ("a.png", "sub/b.png", "c.png"):
        add(tmp_path, name, "not this")
    rows = ["file_name,caption", "a.png,first", "sub/b.png,other", "a.png,second", "gone.png,lost"]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    found = records(tmp_path)
    assert {key: record.captions for key, record in found.items()} == {
        "a.png": ("first", "second"),
        "sub/b.png": ("other",),
    }
    assert opened(tmp_path).dropped == {"without a caption": 1}
    assert opened(tmp_path).warnings == {"rows whose image does not exist": 1}
    (tmp_path / "captions.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"holds captions\.csv and captions\.jsonl: keep one"):
        opened(tmp_path)


def test_digest_depends_on_content_and_not_on_location(tmp_path):
    for number in range(4):
        add(tmp_path / "one", f"{number}.png", image=Image.new("RGB", (6, 4), (number, 0, 0)))
    source = opened(tmp_path / "one")
    first = source.digest()
    assert opened(tmp_path / "one").digest() == first
    assert opened(tmp_path / "one", "val").digest() != first
    (tmp_path / "one").rename(tmp_path / "other")
    assert opened(tmp_path / "other").digest() == first
    digests = {first}
    for change in (
        lambda: (tmp_path / "other" / f"{Path(source.keys()[0]).stem}.txt").write_text("another"),
        lambda: os.utime(tmp_path / "other" / source.keys()[0], ns=(5, 5)),
        lambda: add(tmp_path / "other", "zzz.png"),
        lambda: (tmp_path / "other" / source.keys()[0]).unlink(),
    ):
        change()
        digests.add(opened(tmp_path / "other").digest())
    assert len(digests) == 5


def test_keys_and_captions_do_not_open_images(tmp_path):
    for number in range(4):
        add(tmp_path, f"{number}.png", f"number {number}").write_bytes(b"no picture")
    source = opened(tmp_path)
    for index, key in enumerate(source.keys()):
        assert source.captions(index) == (f"number {key[0]}",)
        with pytest.raises(UnreadableRecord):
            source[index]


def test_metadata_files_are_used_for_the_opt_out_list(tmp_path, caplog):
    for number in range(4):
        add(tmp_path, f"{number}.png").with_suffix(".json").write_text(
            json.dumps({"url": f"https://host{number}.example/a.png"})
        )
    (tmp_path / "1.json").write_text("{")
    (tmp_path / "list.txt").write_text("host1.example\nhost2.example")
    source = opened(tmp_path, opt_out=str(tmp_path / "list.txt"))
    assert source.dropped == {"opted out by domain": 1}
    assert source.warnings["metadata that cannot be read"] == 1
    assert "1 entries of data.opt_out match no record, such as host1.example" in caplog.text
    assert set(records(tmp_path, opt_out=str(tmp_path / "list.txt"))) == {"0.png", "1.png", "3.png"}


def test_text_without_image_and_unsupported_formats_are_counted(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "seen.png")
    (tmp_path / "sub").mkdir()
    for name in (
        "seen.txt",
        "seen.json",
        "lone.txt",
        "sub/lone.TXT",
        "a.svg",
        "sub/b.SVG",
        "c.tiff",
        "notes.doc",
        ".hidden",
    ):
        (tmp_path / name).write_text("words")
    assert opened(tmp_path).warnings == {
        ".svg files, a type that is not supported": 2,
        ".tiff files, a type that is not supported": 1,
        "files of other types": 1,
        "text files without an image of the same name": 2,
    }


def test_a_text_file_in_capitals_is_reported_if_it_is_not_read(tmp_path):
    for name in "ab":
        add(tmp_path, f"{name}.png")
    add(tmp_path, "BIG.JPG", None)
    (tmp_path / "BIG.TXT").write_text("a large picture")
    source = opened(tmp_path)
    if (tmp_path / "BIG.txt").exists():
        assert not source.dropped and not source.warnings
    else:
        assert source.dropped == {"without a caption": 1}
        assert source.warnings == {"text files that are not read, because .txt is not in lower case": 1}


def test_folder_of_unsupported_formats_raises(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    with pytest.raises(ValueError, match="no image .* skipped: 1 .svg files, a type that is not supported"):
        opened(tmp_path)
