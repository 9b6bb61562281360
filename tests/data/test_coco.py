"""COCO source: a JSON file lists images of a folder and their captions."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle.data.coco import UNREADABLE, CocoConfig, CocoSource


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "train2017"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (6, 4), (40 * number, 0, 0)).save(folder / f"{number:012d}.jpg")
    return folder


def written(folder: Path, told: Any) -> str:
    path = folder.parent / "captions.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return str(path)


def image(number: int, **more: Any) -> dict[str, Any]:
    return {"id": 100 + number, "file_name": f"{number:012d}.jpg", "height": 4, "width": 6} | more


def annotation(number: int, caption: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 100 + number, "caption": caption} | more


def opened(folder: Path, told: Any, split: str = "train", **options) -> CocoSource:
    return CocoSource(CocoConfig(path=str(folder), image_size=4, captions=written(folder, told), **options), split)


def captions(folder: Path, told: Any, **options) -> dict[int, tuple[str, ...]]:
    sources = [opened(folder, told, split, **options) for split in ("train", "val")]
    return {int(Path(record.key).stem): record.captions for source in sources for record in source}


def test_image_has_all_its_captions_and_unlisted_images_are_ignored(pictures):
    told = {
        "images": [image(2), image(0), image(1)],
        "annotations": [annotation(0, "a dog\n"), annotation(1, "a cat"), annotation(2, "a cow"), annotation(0, "two")],
    }
    assert captions(pictures, told) == {0: ("a dog", "two"), 1: ("a cat",), 2: ("a cow",)}
    assert opened(pictures, told).dropped == {} and not opened(pictures, told).warnings


def test_invalid_entries_are_counted_and_skipped(pictures):
    told = {
        "images": [
            image(0),
            image(1),
            image(2),
            image(3),
            image(4, file_name="../secret.jpg"),
            image(5, file_name="gone.jpg"),
            image(5, file_name=["a.jpg"]),
            image(5, id=[1]),
            {"id": 7},
            "text",
            None,
        ],
        "annotations": [
            annotation(0, "good"),
            annotation(1, "good"),
            annotation(2, "\x00 \n"),
            annotation(3, 5),
            annotation(99, "of no picture"),
            annotation(1, "of no picture", image_id={}),
            {},
            None,
        ],
    }
    assert captions(pictures, told) == {0: ("good",), 1: ("good",)}
    source = opened(pictures, told)
    assert source.dropped == {"without a caption": 2}
    assert source.warnings == {"rows whose image does not exist": 2, UNREADABLE: 10}


def test_urls_are_used_for_the_opt_out_list(pictures, tmp_path):
    told = {
        "images": [image(0, flickr_url="http://farm1.flickr.com/0.jpg"), image(1, coco_url=3), image(2)],
        "annotations": [annotation(number, "good") for number in range(3)],
    }
    (tmp_path / "list.txt").write_text("flickr.com\n000000000002.jpg")
    assert opened(pictures, told, opt_out=str(tmp_path / "list.txt")).dropped == {
        "opted out by domain": 1,
        "opted out by key": 1,
    }


@pytest.mark.parametrize("told", ["", "{", "[]", '{"images": []}', '{"images": {}, "annotations": []}', "[" * 99_999])
def test_other_json_file_raises(pictures, told):
    with pytest.raises(ValueError, match=r"data\.captions=.*captions\.json (cannot be read|is not in COCO's format)"):
        opened(pictures, told)


def test_missing_file_raises(pictures):
    with pytest.raises(ValueError, match=r"data\.captions is empty"):
        CocoSource(CocoConfig(path=str(pictures)), "train")
    with pytest.raises(ValueError, match=r"data\.captions=nowhere\.json cannot be read"):
        CocoSource(CocoConfig(path=str(pictures), captions="nowhere.json"), "train")
    with pytest.raises(ValueError, match="there is no such folder"):
        opened(pictures.parent / "nowhere", {})
    with pytest.raises(ValueError, match="0 of 0 records are used"):
        opened(pictures, {"images": [], "annotations": []})
