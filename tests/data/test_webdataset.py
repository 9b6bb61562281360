"""WebDataset source: captioned images read from tar files in place."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dalle.data.source import UnreadableRecord
from dalle.data.webdataset import WebdatasetConfig, WebdatasetSource, expand_braces, key_and_kind


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, *files: tuple[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), 1700000000.5
            tar.addfile(entry, io.BytesIO(data))
    return path


def sample(key: str, caption: str = "a picture", **metadata) -> list[tuple[str, bytes | str]]:
    """Return the files of a sample as img2dataset writes them."""
    return [(f"{key}.png", png()), (f"{key}.txt", caption), (f"{key}.json", json.dumps({"key": key} | metadata))]


def opened(path: Path | str, split: str = "train", **options) -> WebdatasetSource:
    return WebdatasetSource(WebdatasetConfig(path=str(path), image_size=4, **options), split)


def records(path: Path | str, **options):
    return {record.key: record for split in ("train", "val") for record in opened(path, split, **options)}


def test_files_with_one_stem_are_one_record(tmp_path):
    shard(
        tmp_path / "s" / "00000.tar",
        ("000.jpg.txt", "no such kind"),
        ("000.png", png("red")),
        ("000.txt", "one\ntwo"),
        ("001.json", json.dumps({"caption": "of json"})),
        ("001.webp", png("blue")),
        ("a/002.PNG", png("lime")),
        ("a/002.txt", " \n"),
        ("a/002.json", json.dumps({"text": ["three", "four"]})),
    )
    found = records(tmp_path / "s" / "00000.tar")
    assert {key: record.captions for key, record in found.items()} == {
        "00000.tar/000": ("one", "two"),
        "00000.tar/001": ("of json",),
        "00000.tar/a/002": ("three", "four"),
    }
    assert [record.image.getpixel((0, 0)) for record in found.values()] != [(255, 0, 0)] * 3
    assert found["00000.tar/001"].image.getpixel((0, 0)) == (0, 0, 255)
    assert records(tmp_path / "s").keys() == found.keys()


def test_image_and_caption_may_be_apart_and_later_duplicates_replace_earlier(tmp_path):
    path = shard(
        tmp_path / "0.tar",
        ("a.png", png("red")),
        ("b.png", png("red")),
        ("c.txt", "of nothing"),
        ("a.txt", "first"),
        ("b.txt", "b"),
        ("a.png", png("blue")),
        ("a.txt", "second"),
    )
    found = records(path)
    assert {key: record.captions for key, record in found.items()} == {"0.tar/a": ("second",), "0.tar/b": ("b",)}
    assert found["0.tar/a"].image.getpixel((0, 0)) == (0, 0, 255)
    source = opened(path)
    assert source.dropped == {"replaced by a later file of the same key": 1}
    assert source.warnings == {"replaced by a later file of the same key": 1, "captions without an image": 1}


def test_shards_are_a_range_a_folder_or_one_file(tmp_path):
    for number in range(8, 12):
        shard(tmp_path / "s" / f"{number:05d}.tar", *sample("x", f"shard {number}"))
    (tmp_path / "s" / "._00008.tar").write_bytes(b"what a Mac leaves behind")
    everything = [f"{number:05d}.tar/x" for number in range(8, 12)]
    assert sorted(records(tmp_path / "s")) == everything
    assert sorted(records(f"{tmp_path}/s/{{00009..00011}}.tar")) == everything[1:]
    assert sorted(records(f"{tmp_path}/{{s}}/{{00008,00011}}.tar")) == [f"s/{everything[0]}", f"s/{everything[3]}"]
    source = opened(f"{tmp_path}/s/{{00008..00011}}.tar")
    for index, key in enumerate(source.keys()):
        assert source.captions(index) == (f"shard {int(key[:5])}",)


def test_braces_are_expanded_like_a_shell():
    assert expand_braces("a/{08..10}.{x,y}") == ["a/08.x", "a/08.y", "a/09.x", "a/09.y", "a/10.x", "a/10.y"]
    assert expand_braces("a.tar") == ["a.tar"]
    for pattern in ("{3..1}.tar", "{0..99999999999}.tar"):
        with pytest.raises(ValueError, match="no range of shards"):
            expand_braces(pattern)
    with pytest.raises(ValueError, match="more than 1,000,000 shards"):
        expand_braces("{0..9999}{0..9999}.tar")


def test_missing_shards_raise(tmp_path):
    shard(tmp_path / "0.tar", *sample("a"))
    with pytest.raises(ValueError, match=r"2 of 3 shards are not there, such as .*1\.tar"):
        opened(f"{tmp_path}/{{0..2}}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.tar in this folder"):
        opened(tmp_path / "empty")
    (tmp_path / "none.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="0 of 0 records are used; warnings: 1 parts of shards that are not tar"):
        opened(tmp_path / "none.tar")


def test_unreadable_files_are_counted_and_skipped(tmp_path, monkeypatch):
    path = shard(
        tmp_path / "0.tar",
        ("bad.png", png()),
        ("bad.txt", b"caf\xe9"),
        ("odd.png", png()),
        ("odd.json", "{"),
        ("bare.png", png()),
        *sample("good"),
        *sample("also"),
    )
    shard(tmp_path / "1.tar", *sample("shut"))
    really_open = open

    def refused(file, *arguments, **options):
        if str(file).endswith("1.tar"):
            raise PermissionError(13, "Permission denied")
        return really_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", refused)
    source = opened(tmp_path)
    assert source.dropped == {"with captions that cannot be read": 1, "without a caption": 2}
    assert source.warnings == {"metadata that cannot be read": 1, "shards that cannot be read (PermissionError)": 1}
    assert set(records(path)) == {"0.tar/good", "0.tar/also"}


def test_deleted_or_truncated_shard_gives_unreadable_records(tmp_path):
    path = shard(tmp_path / "0.tar", *sample("a"), *sample("b"), *sample("c"))
    source = opened(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UnreadableRecord, match="bytes too early"):
        source[len(source) - 1]
    path.unlink()
    with pytest.raises(UnreadableRecord, match="No such file"):
        source[0]


def test_opt_out_list_matches_key_url_and_hash(tmp_path):
    red, other = hashlib.sha256(png()).hexdigest(), hashlib.sha256(png("lime")).hexdigest()
    shard(
        tmp_path / "0.tar",
        *sample("0", url="https://a.org/0.png"),
        *sample("1", url="https://b.org/1.png"),
        *sample("2", sha256="ab" * 32),
        *sample("3"),
        *sample("4"),
        ("5.png", png("lime")),
        ("5.txt", "green"),
    )

    def kept(*lines: str) -> set[str]:
        (tmp_path / "list").write_text("\n".join(lines))
        return {key[-1] for key in records(tmp_path / "0.tar", opt_out=str(tmp_path / "list"))}

    assert kept("a.org", "1", "AB" * 32, "0.tar/3") == {"4", "5"}
    with pytest.raises(UnreadableRecord, match="opted out by hash"):
        kept(red)
    sources = [opened(tmp_path / "0.tar", split, opt_out=str(tmp_path / "list")) for split in ("train", "val")]
    assert sum(map(len, sources)) == 6  # of a picture's bytes one knows when they are read
    (tmp_path / "list").write_text(other)
    assert opened(tmp_path / "0.tar", opt_out=str(tmp_path / "list")).digest() != sources[0].digest()


def test_files_that_belong_to_no_record_are_counted(tmp_path):
    shard(
        tmp_path / "0.tar",
        *sample("1"),
        *sample("2"),
        ("photo.v2.jpg", png()),
        ("3.seg.png", png()),
        ("4.tiff", png()),
        ("5.cls", "7"),
        ("6", "without an extension"),
        ("._1.png", "of a Mac"),
    )
    assert dict(opened(tmp_path / "0.tar").warnings) == {
        "files with several dots in their names: a stem ends at the first dot": 2,
        ".tiff files, a type that is not supported": 1,
        "files of other types": 2,
    }


def test_compressed_shards_are_named(tmp_path):
    shard(tmp_path / "0.tar.gz", *sample("1"))
    for path in (tmp_path, tmp_path / "0.tar.gz"):
        with pytest.raises(ValueError, match="1 of the shards are compressed, such as 0.tar.gz. .* to .tar first"):
            opened(path)
    shard(tmp_path / "0.tar", *sample("1"), *sample("2"))
    source = opened(tmp_path)
    assert dict(source.warnings) == {"compressed shards, which are not read": 1}


def test_the_same_shard_twice_is_refused(tmp_path):
    shard(tmp_path / "0.tar", *sample("1"), *sample("2"))
    with pytest.raises(ValueError, match="0.tar is the same shard as .*0.tar; keep one"):
        opened(tmp_path / "{0,0}.tar")
    (tmp_path / "1.tar").symlink_to(tmp_path / "0.tar")
    with pytest.raises(ValueError, match="1.tar is the same shard as .*0.tar; keep one"):
        opened(tmp_path)


def test_file_kind_is_the_part_after_the_first_dot():
    assert key_and_kind("a.b/c.d.png") == ("a.b/c", None)
    assert key_and_kind("a.b/c.JPEG") == ("a.b/c", "image")
    assert key_and_kind("c.json") == ("c", "json")
    assert key_and_kind("c") == ("c", None)
    assert key_and_kind("a/.png") == ("a/", None)
