"""Shared code of file sources: filters, opt-out, counts, and the example of the docs."""

import hashlib
import os
import re
import shutil
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle.data import open_splits
from dalle.data.captions import MAX_CAPTION_CHARACTERS
from dalle.data.filters import FiltersConfig
from dalle.data.folder import FolderConfig, FolderSource
from dalle.data.loader import image_batches, ordered_batches
from dalle.data.transforms import inference_crop

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


def add(root: Path, name: str, captions: str = "a red picture", size: tuple[int, int] = (6, 4), **options) -> Path:
    path = root / name
    Image.new("RGB", size, "red").save(path, **options)
    path.with_suffix(".txt").write_text(captions)
    return path


def opened(root: Path, split: str = "train", **options) -> FolderSource:
    return FolderSource(FolderConfig(path=str(root), image_size=4, **options), split)


def kept(root: Path, **options) -> dict[str, tuple[str, ...]]:
    sources = [opened(root, split, **options) for split in ("train", "val")]
    return {key: source.captions(index) for source in sources for index, key in enumerate(source.keys())}


def test_every_record_is_in_a_split_or_counted(tmp_path):
    add(tmp_path, "good.png")
    add(tmp_path, "wide.png", size=(9, 4))
    add(tmp_path, "high.png", size=(4, 9))
    add(tmp_path, "square.jpg", size=(90, 45))
    add(tmp_path, "short.png", "red")
    add(tmp_path, "dated.png", "photographed on 3 May 2008")
    add(tmp_path, "mixed.png", "red\nphotographed on 3 May 2008\na red one")
    add(tmp_path, "empty.png", "")
    add(tmp_path, "out.png")
    broken = add(tmp_path, "broken.png")
    broken.write_bytes(b"no picture")  # has no size to be left out for
    (tmp_path / "list").write_text("out.png")
    filters = FiltersConfig(min_words=2, boilerplate=["photographed on <date>"], max_aspect_ratio=2)
    options = {"filters": filters, "opt_out": str(tmp_path / "list")}
    assert kept(tmp_path, **options) == {
        "good.png": ("a red picture",),
        "square.jpg": ("a red picture",),
        "mixed.png": ("a red one",),
        "broken.png": ("a red picture",),
    }
    dropped = opened(tmp_path, **options).dropped
    assert dropped == {
        "with captions too short": 1,
        "with boilerplate captions": 1,
        "without a caption": 1,
        "opted out by key": 1,
        "with an aspect ratio over 2": 2,
    }
    assert opened(tmp_path, "val", **options).dropped == dropped
    assert len(kept(tmp_path)) == 9 and opened(tmp_path).dropped == {"without a caption": 1}


def test_optional_captions_are_still_filtered(tmp_path):
    for name, captions in (("a.png", ""), ("b.png", "red"), ("c.png", "a red one")):
        add(tmp_path, name, captions)
    options = {"allow_missing_captions": True, "filters": FiltersConfig(min_words=2)}
    assert kept(tmp_path, **options) == {"a.png": ("",), "c.png": ("a red one",)}


def test_huge_captions_are_truncated_and_counted(tmp_path):
    add(tmp_path, "long.png", "word " * 200_000)
    add(tmp_path, "lines.png", "word\n" * 500)
    captions = kept(tmp_path)
    assert [len(caption) for caption in captions["long.png"]] == [MAX_CAPTION_CHARACTERS]
    assert len(captions["lines.png"]) == 500
    assert opened(tmp_path).warnings == {"with captions cut to 4,096 characters": 1}


def test_splits_that_are_opened_together_are_listed_once(tmp_path, monkeypatch):
    for number in range(6):
        add(tmp_path, f"{number}.png", f"red {number}")
    add(tmp_path, "empty.png", "")
    listings, list_records = [], FolderSource.list_records
    monkeypatch.setattr(FolderSource, "list_records", lambda self: listings.append(self) or list_records(self))
    config = FolderConfig(path=str(tmp_path), image_size=4, validation_share=0.5)
    together = open_splits(config, ("train", "val"))
    assert len(listings) == 1
    for split, source in together.items():
        alone = opened(tmp_path, split, validation_share=0.5)
        assert list(source.keys()) == list(alone.keys())
        assert source.digest() == alone.digest()
        assert source.dropped == alone.dropped == {"without a caption": 1}
        assert [source[index] for index in range(len(source))] == [alone[index] for index in range(len(alone))]
    add(tmp_path, "new.png")  # no listing is kept for the next time
    assert sum(map(len, open_splits(config, ("train", "val")).values())) == 7
    with pytest.raises(ValueError, match="data=folder has the splits train and val, not 'novel'"):
        open_splits(config, ("train", "novel"))


def test_counts_are_logged_once_per_data_set(tmp_path, caplog):
    for number in range(3):
        add(tmp_path, f"{number}.png")
    add(tmp_path, "odd \x1b[31m.png", "")
    for split in ("train", "val", "train"):
        opened(tmp_path, split)
    (sentence,) = caplog.messages
    assert sentence == (
        f"data.path={tmp_path}: 3 of 4 records are used; left out: 1 without a caption (first: 'odd \\x1b[31m.png'); "
        "data.allow_missing_captions=true keeps images without a caption in all stages but stage=clip, which needs "
        "captions, as the evaluation of a transformer does"
    )


def test_image_opted_out_by_hash_is_never_returned(tmp_path, caplog):
    for number in range(4):
        add(tmp_path, f"{number}.png", size=(4 + number, 4))
    digest = hashlib.sha256((tmp_path / "2.png").read_bytes()).hexdigest()
    (tmp_path / "list").write_text(digest)
    seen: set[str] = set()
    for split in ("train", "val"):
        source = opened(tmp_path, split, opt_out=str(tmp_path / "list"), validation_share=0.5)
        seen |= {key for batch in ordered_batches(source, inference_crop, 2) for key in batch.keys}
    assert seen == {"0.png", "1.png", "3.png"}
    assert any("2.png: opted out by hash (1 so far)" in message for message in caplog.messages)


def test_a_copy_has_the_same_digest_if_it_keeps_the_times(tmp_path):
    (tmp_path / "first").mkdir()
    for number in range(3):
        os.utime(add(tmp_path / "first", f"{number}.png"), (10**9, 10**9))
    shutil.copytree(tmp_path / "first", tmp_path / "kept")
    shutil.copytree(tmp_path / "first", tmp_path / "lost", copy_function=shutil.copyfile)
    first, kept, lost = (opened(tmp_path / name).digest() for name in ("first", "kept", "lost"))
    assert first == kept != lost


def test_large_jpegs_are_decoded_to_at_least_twice_the_model_size(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        add(tmp_path, name, size=(100, 70))
    (record,) = opened(tmp_path)
    assert record.image.size == (13, 9)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """Return the names that the example in docs/data.md defines."""
    (text,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    scope: dict[str, Any] = {"__name__": "zip"}
    exec(compile(text, "docs/data.md", "exec"), scope)
    return scope


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            file = BytesIO()
            Image.new("RGB", (6, 4), "red").save(file, "PNG")
            archive.writestr(name, file.getvalue())
        archive.writestr("notes.md", "no picture")
    return path


def test_example_source_of_the_docs_works(tmp_path, example):
    path = zipped(tmp_path / "pictures.zip", "a_dog.png", "b/a_cat.png", "a_cow.png")
    sources = [example["ZipSource"](example["ZipConfig"](path=str(path)), split) for split in ("train", "val")]
    found = {record.key: record.captions for source in sources for record in source}
    assert found == {"a_dog.png": ("a dog",), "b/a_cat.png": ("a cat",), "a_cow.png": ("a cow",)}
    assert sources[0].digest() != sources[1].digest()
    assert "Splits:" in example["ZipConfig"].__doc__ and "Attribution:" in example["ZipConfig"].__doc__


def test_example_source_skips_a_broken_image_in_worker_processes(tmp_path, example):
    names = [f"{number}.png" for number in range(12)]
    path = zipped(tmp_path / "pictures.zip", *names)
    source = example["ZipSource"](example["ZipConfig"](path=str(path), image_size=4), "train")
    key = source.keys()[0]
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(key).header_offset + 30 + len(key)  # of its bytes, after the header and the name
    data = bytearray(path.read_bytes())
    data[start + 20] ^= 255
    path.write_bytes(data)
    stream = image_batches(source, inference_crop, batch_size=len(source), seed=0, workers=2)
    batches = [next(stream) for _ in range(4)]
    assert all(list(batch.unreadable) == [key] for batch in batches)
    assert "BadZipFile: Bad CRC-32" in batches[0].unreadable[key]
