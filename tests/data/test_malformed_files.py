"""Malformed files in every file source: intact records are read unchanged."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle.data.coco import CocoConfig, CocoSource
from dalle.data.files import FileSource
from dalle.data.folder import FolderConfig, FolderSource
from dalle.data.source import UnreadableRecord
from dalle.data.webdataset import WebdatasetConfig, WebdatasetSource

HARD = settings(max_examples=40, deadline=None)


def encoded(number: int, kind: str) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


GOOD = {f"good{number}": encoded(number, "PNG") for number in range(4)}
CAPTIONS = {"good0": "plain", "good1": 'quotes, "like these"', "good2": "naïve 日本", "good3": "the last"}
WHOLE = [encoded(9, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP")]


def damaged(data: bytes, place: float, rest: bytes, how: str) -> bytes:
    """Return `data` truncated, overwritten or extended at a position from 0 to 1."""
    at = int(place * len(data))
    return {"cut": data[:at], "over": data[:at] + rest + data[at + len(rest) :], "in": data[:at] + rest + data[at:]}[
        how
    ]


def mangled(*whole: bytes) -> st.SearchStrategy[bytes]:
    place, how = st.floats(0, 1), st.sampled_from(["cut", "over", "in"])
    return st.binary(max_size=99) | st.builds(damaged, st.sampled_from(whole), place, st.binary(max_size=20), how)


pictures = mangled(*WHOLE)
texts = mangled(b"a caption", b'{"caption": "a", "url": "https://a.b/"}', "é\r\n\x00 日".encode(), b"word " * 2000)


def check(open_split: Callable[[str], FileSource], key_of: Callable[[str], str]) -> None:
    """Check that all intact records are there once and unchanged, and that the others are images or errors."""
    found = {}
    for split in ("train", "val"):
        source = open_split(split)
        assert len(set(source.keys())) == len(source)
        source.digest()
        for index in range(len(source)):
            try:
                record = source[index]
            except UnreadableRecord as problem:
                assert problem.reason and problem.key == source.keys()[index]
                continue
            assert record.image.mode == "RGB" and record.captions
            assert all(isinstance(caption, str) for caption in record.captions)
            found[record.key] = record
    for name, data in GOOD.items():
        record = found[key_of(name)]
        assert record.image.tobytes() == Image.open(io.BytesIO(data)).tobytes()
        assert CAPTIONS[name] in record.captions


def write_good(folder: Path) -> None:
    for name, data in GOOD.items():
        (folder / f"{name}.png").write_bytes(data)


@HARD
@given(st.lists(st.tuples(pictures, texts, st.sampled_from(["jpg", "png", "gif", "webp", "bmp"])), max_size=4))
def test_a_folder_of_files(tmp_path_factory, bad):
    folder = tmp_path_factory.mktemp("folder")
    write_good(folder)
    for name, caption in CAPTIONS.items():
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    for number, (picture, text, suffix) in enumerate(bad):
        (folder / f"bad{number}.{suffix}").write_bytes(picture)
        (folder / f"bad{number}.txt").write_bytes(text)
        (folder / f"bad{number}.json").write_bytes(text)
    (folder / "list").write_bytes(b"\n".join(b"bad" + text for _, text, _ in bad))
    config = FolderConfig(path=str(folder), image_size=8, opt_out=str(folder / "list"))
    check(lambda split: FolderSource(config, split), "{}.png".format)


cells = st.sampled_from(
    ['"', ",", "\t", "\r", "bad.png", "gone.png", "word", '""', " ", "\\", "é", "{", "}", ":", "\n"]
)
rows = st.lists(cells, max_size=8).map("".join).map(str.encode) | st.binary(max_size=30) | mangled(b'good1.png,"a",b')


@HARD
@given(st.sampled_from([",", "\t"]), st.lists(rows, min_size=5, max_size=5))
def test_a_table_of_columns(tmp_path_factory, separator, bad):
    folder = tmp_path_factory.mktemp("table")
    write_good(folder)
    quoted = [caption.replace('"', '""') for caption in CAPTIONS.values()]
    good = [f'{name}.png{separator}"{caption}"' for name, caption in zip(CAPTIONS, quoted, strict=True)]
    good[0] = f"good0.png{separator}plain"
    lines = [f"file{separator}caption".encode(), bad[0]]
    for row, after in zip(good, bad[1:], strict=True):
        lines += [row.encode(), after]
    (folder / ("captions.csv" if separator == "," else "captions.tsv")).write_bytes(b"\n".join(lines))
    check(lambda split: FolderSource(FolderConfig(path=str(folder), image_size=8), split), "{}.png".format)


@HARD
@given(st.lists(rows | texts, min_size=5, max_size=5))
def test_a_table_of_json_lines(tmp_path_factory, bad):
    folder = tmp_path_factory.mktemp("lines")
    write_good(folder)
    lines = [bad[0]]
    for (name, caption), after in zip(CAPTIONS.items(), bad[1:], strict=True):
        lines += [json.dumps({"file": f"{name}.png", "caption": caption}).encode(), after]
    (folder / "captions.jsonl").write_bytes(b"\n".join(lines))
    check(lambda split: FolderSource(FolderConfig(path=str(folder), image_size=8), split), "{}.png".format)


names = st.sampled_from(["id", "image_id", "file_name", "caption", "coco_url"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats() | st.text(max_size=4) | st.just("bad0.png"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@HARD
@given(st.lists(values, max_size=5), st.lists(values, max_size=5), pictures)
def test_coco(tmp_path_factory, images, annotations, picture):
    folder = tmp_path_factory.mktemp("coco")
    write_good(folder)
    (folder / "bad0.png").write_bytes(picture)
    told: dict[str, list[Any]] = {"images": images, "annotations": annotations}
    for number, (name, caption) in enumerate(CAPTIONS.items(), start=1000):
        told["images"].append({"id": number, "file_name": f"{name}.png"})
        told["annotations"].append({"image_id": number, "caption": caption})
    (folder / "captions.json").write_text(json.dumps(told))
    config = CocoConfig(path=str(folder), image_size=8, captions=str(folder / "captions.json"))
    check(lambda split: CocoSource(config, split), "{}.png".format)


kinds = st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
bad_names = st.builds(
    "{}bad{}.{}".format,
    st.sampled_from(["", "/", "../", "./", "a/", "x" * 120 + "/"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3) | st.sampled_from(["0", "1"]),
    st.sampled_from(["png", "jpg", "txt", "json", ""]),
)


@HARD
@given(
    st.lists(st.tuples(bad_names, kinds, pictures | texts), min_size=5, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1), st.binary(min_size=1, max_size=600)), max_size=3),
    mangled(b"\x1f\x8b" + bytes(600)),
)
def test_a_tar(tmp_path_factory, bad, blows, other):
    folder = tmp_path_factory.mktemp("tars")
    tar, bad_places = io.BytesIO(), []
    with tarfile.open(fileobj=tar, mode="w") as writing:

        def add(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(data), kind, "good0.png"
            writing.addfile(entry, io.BytesIO(data))

        for (name, kind, data), (good, caption) in zip(bad, [*CAPTIONS.items(), ("", "")], strict=True):
            begin = writing.offset
            add(name, data, kind)
            bad_places.append((begin, writing.offset))
            if good:
                add(f"{good}.txt", caption.encode())
                add(f"{good}.png", GOOD[good])
    content = bytearray(tar.getvalue())
    for number, place, blow in blows:  # within the bad ones: headers, names, contents
        begin, end = bad_places[number]
        at = begin + int(place * (end - begin))
        content[at : min(end, at + len(blow))] = blow[: end - at]
    (folder / "00000.tar").write_bytes(content)
    (folder / "00001.tar").write_bytes(other)
    config = WebdatasetConfig(path=str(folder), image_size=8)
    check(lambda split: WebdatasetSource(config, split), "00000.tar/{}".format)
