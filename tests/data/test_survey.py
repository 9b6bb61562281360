"""Survey of a folder with an example of every problem."""

import json

import pytest
from PIL import Image

from dalle.data.audit.scan import evenly_spaced, scan
from dalle.data.audit.survey import Survey
from dalle.data.audit.survey_report import DUPLICATES, PAGE, SHEET, STATISTICS, TOKENIZER, write_survey
from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.folder import FolderConfig
from dalle.tokenizer import CaptionTokenizer


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Return a folder of thirty scenes of 64 pixels, and some images with problems."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    scenes = BlocksSource(BlocksConfig(train=30), "train")

    def add(name: str, image: Image.Image, caption: str) -> None:
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(caption)

    for index in range(30):
        add(f"{index:02d}.png", scenes[index].image, "\n".join(scenes[index].captions))
    add("copy.jpg", scenes[3].image, "a copy")
    add("small.png", scenes[4].image.resize((20, 20)), "small")
    add("wide.png", scenes[5].image.resize((300, 100)), "wide")
    add("talkative.png", scenes[6].image.rotate(180), "word " * 300)
    add("wordless.png", scenes[7].image.rotate(180), "")
    add("cut.png", scenes[8].image, "cut short")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:100])
    return folder


def surveyed(pictures, validation_share=0.05, **options) -> Survey:
    data = FolderConfig(
        path=str(pictures), image_size=32, allow_missing_captions=True, validation_share=validation_share
    )
    return Survey.of(data, vocabulary=400, text_positions=256, **options)


def test_every_problem_is_counted_and_named(pictures):
    statistics = surveyed(pictures).statistics()
    splits = statistics["splits"]
    assert sum(split["records"] for split in splits.values()) == 36
    assert [key for split in splits.values() for key in split["unreadable"]] == ["cut.png"]
    assert statistics["images"]["readable"] == 35
    assert statistics["images"]["smaller_than_image_size"] == 1
    assert statistics["images"]["widths"] == {"least": 20, "5%": 64, "median": 64, "95%": 64, "most": 300}
    assert statistics["images"]["aspect_ratios"]["wider than 2:1"] == 1
    assert list(statistics["captions"]["too_long"]) == ["talkative.png"]
    assert statistics["captions"]["too_long"]["talkative.png"] >= 300
    assert statistics["captions"]["empty"] == ["wordless.png"]
    groups = [set(group["train"] + group["val"]) for group in statistics["near_duplicates"]["groups"]]
    assert {"03.png", "copy.jpg"} in groups
    assert {"04.png", "small.png"} in groups
    assert statistics["tokenizer"]["vocabulary"] <= statistics["tokenizer"]["requested"] == 400


def test_portraits_and_landscapes_of_one_to_two_are_inside_as_for_the_filter(tmp_path):
    for name, size in (("portrait", (20, 40)), ("landscape", (40, 20)), ("tall", (20, 41)), ("wide", (41, 20))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    shapes = surveyed(tmp_path).statistics()["images"]["aspect_ratios"]
    assert shapes == {
        "taller than 1:2": 1,
        "1:2 to 3:4": 1,
        "3:4 to 4:3": 0,
        "4:3 to 2:1": 1,
        "wider than 2:1": 1,
    }


def test_near_duplicate_across_splits_is_reported(pictures):
    for number in range(20):
        Image.open(pictures / "03.png").save(pictures / f"again-{number}.png")
    near = surveyed(pictures, validation_share=0.5).statistics()["near_duplicates"]
    (group,) = [group for group in near["groups"] if "03.png" in group["train"] + group["val"]]
    assert len(group["train"]) + len(group["val"]) == 22
    assert group["train"]
    assert group["val"]
    assert near["val_with_duplicate_in_train"] >= len(group["val"])


def test_survey_writes_page_json_grids_and_tokenizer(pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    found = write_survey(surveyed(pictures), out)
    assert {path.name for path in out.iterdir()} == {PAGE, STATISTICS, SHEET, DUPLICATES, TOKENIZER}
    assert "1 images cannot be read; training skips them" in found
    page = (out / PAGE).read_text()
    assert all(line in page for line in found)
    assert "`cut.png`: `" in page
    assert json.loads((out / STATISTICS).read_text())["images"]["readable"] == 35
    assert CaptionTokenizer.load(out / TOKENIZER).vocabulary <= 400
    assert Image.open(out / SHEET).width > 8 * 150


def test_workers_give_the_same_result(pictures):
    assert surveyed(pictures, workers=2).statistics() == surveyed(pictures).statistics()


def test_subset_is_spread_over_all_records_and_labelled(pictures, tmp_path):
    source = BlocksSource(BlocksConfig(train=100), "train")
    partial_scan = scan(source, "train", limit=4)
    keys = [partial_scan.key(position) for position in range(4)]
    assert keys == [
        "train/000000",
        "train/000025",
        "train/000050",
        "train/000075",
    ]
    assert not (tmp_path / "outputs").exists()
    assert list(evenly_spaced(3, 5)) == [0, 1, 2]
    with pytest.raises(ValueError, match="limit=0 leaves nothing"):
        evenly_spaced(3, 0)


def test_sizes_are_those_of_the_rotated_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    for name in "ab":
        Image.new("RGB", (400, 200), "red").save(tmp_path / f"{name}.jpg", exif=turned)
    data = FolderConfig(path=str(tmp_path), image_size=32, allow_missing_captions=True)
    assert Survey.of(data, 256, 8).scans[0].sizes.tolist() == [[200, 400]]
