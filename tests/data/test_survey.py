"""A folder with one of everything that is wrong, looked over."""

import json

import pytest
from PIL import Image

from dalle.data.audit.look import evenly_spaced, look_at
from dalle.data.audit.survey import Survey
from dalle.data.audit.survey_page import COPIES, FACTS, PAGE, SHEET, TOKENIZER, write_survey
from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.folder import FolderConfig
from dalle.tokenizer import CaptionTokenizer


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Thirty scenes of 64 pixels, and some that are odd."""
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


def test_everything_that_is_wrong_is_counted_and_named(pictures):
    facts = surveyed(pictures).facts()
    splits = facts["splits"]
    assert sum(split["records"] for split in splits.values()) == 36
    assert [key for split in splits.values() for key in split["unreadable"]] == ["cut.png"]
    assert facts["pictures"]["readable"] == 35
    assert facts["pictures"]["smaller_than_image_size"] == 1
    assert facts["pictures"]["widths"] == {"least": 20, "5%": 64, "median": 64, "95%": 64, "most": 300}
    assert facts["pictures"]["shapes"]["wider than 2:1"] == 1
    assert list(facts["captions"]["over_long"]) == ["talkative.png"]
    assert facts["captions"]["over_long"]["talkative.png"] >= 300
    assert facts["captions"]["empty"] == ["wordless.png"]
    groups = [set(group["train"] + group["val"]) for group in facts["near_copies"]["groups"]]
    assert {"03.png", "copy.jpg"} in groups
    assert {"04.png", "small.png"} in groups
    assert facts["tokenizer"]["vocabulary"] <= facts["tokenizer"]["asked_for"] == 400


def test_a_copy_in_the_other_split_is_told(pictures):
    for number in range(20):
        Image.open(pictures / "03.png").save(pictures / f"again-{number}.png")
    near = surveyed(pictures, validation_share=0.5).facts()["near_copies"]
    (group,) = [group for group in near["groups"] if "03.png" in group["train"] + group["val"]]
    assert len(group["train"]) + len(group["val"]) == 22
    assert group["train"]
    assert group["val"]
    assert near["val_with_copy_in_train"] >= len(group["val"])


def test_the_survey_is_written_as_a_page_facts_sheets_and_a_tokenizer(pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    found = write_survey(surveyed(pictures), out)
    assert {path.name for path in out.iterdir()} == {PAGE, FACTS, SHEET, COPIES, TOKENIZER}
    assert "1 pictures cannot be read, and are skipped in training" in found
    page = (out / PAGE).read_text()
    assert all(line in page for line in found)
    assert "`cut.png`: `" in page
    assert json.loads((out / FACTS).read_text())["pictures"]["readable"] == 35
    assert CaptionTokenizer.load(out / TOKENIZER).vocabulary <= 400
    assert Image.open(out / SHEET).width > 8 * 150


def test_processes_change_nothing(pictures):
    assert surveyed(pictures, workers=2).facts() == surveyed(pictures).facts()


def test_a_part_of_the_records_is_spread_over_all_and_is_not_taken_for_all(pictures, tmp_path):
    source = BlocksSource(BlocksConfig(train=100), "train")
    look = look_at(source, "train", limit=4)
    assert [look.key(place) for place in range(4)] == ["train/000000", "train/000025", "train/000050", "train/000075"]
    assert not (tmp_path / "outputs").exists()
    assert list(evenly_spaced(3, 5)) == [0, 1, 2]
    with pytest.raises(ValueError, match="limit=0 leaves nothing"):
        evenly_spaced(3, 0)


def test_sizes_are_those_of_the_upright_file_not_of_what_was_decoded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    for name in "ab":
        Image.new("RGB", (400, 200), "red").save(tmp_path / f"{name}.jpg", exif=turned)
    data = FolderConfig(path=str(tmp_path), image_size=32, allow_missing_captions=True)
    assert Survey.of(data, 256, 8).looks[0].sizes.tolist() == [[200, 400]]
