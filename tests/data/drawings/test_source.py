"""Data source `drawings`: composed pictures, omissions, what checkpoints record, bad settings."""

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from drawings_records import of_kind

from dalle import optional_dependencies
from dalle.data import DATA_SETS
from dalle.data.audit.provenance import data_meta
from dalle.data.drawings.build import add_file
from dalle.data.drawings.config import DrawingsConfig, MixConfig
from dalle.data.drawings.packages import PACKAGES
from dalle.data.drawings.records import COPY, NOT_RENDERED, OTHER_GROUP, SKIN_TONE
from dalle.data.drawings.render import COLOURS, Drawings, recoloured
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.splits import SPLITS


def test_it_is_registered():
    assert DATA_SETS["drawings"].config is DrawingsConfig
    assert "CC BY-SA 4.0" in DATA_SETS["drawings"].note


def test_a_recoloured_drawing_has_its_colour_and_its_caption_says_so(train):
    index = of_kind(train, "colour")[0]
    record, picture = train.records[index], train.image(index)
    middle = picture.getpixel((picture.width // 2, picture.height // 2))
    assert middle == COLOURS[record.colour] and picture.getpixel((1, 1)) == (255, 255, 255)
    assert all(record.colour in caption for caption in train.captions(index))


def test_recolouring_black_with_black_changes_nothing(drawings):
    opened = Drawings(drawings, 40)
    index = next(number for number, picture in enumerate(opened.pictures) if picture.drawing_set.name == "lucide")
    assert np.array_equal(recoloured(opened.image(index), "black"), opened.image(index))


def test_panels_show_the_same_subject_of_one_family_in_two_styles(train):
    indices = of_kind(train, "panels")
    assert indices
    for index in indices:
        record, pictures = train.records[index], train.drawings.pictures
        top, bottom = pictures[record.first], pictures[record.second]
        assert top.subject is bottom.subject and top.drawing_set.family == bottom.drawing_set.family
        assert top.drawing_set.style != bottom.drawing_set.style
    caption = train.captions(indices[0])[0]
    assert caption.startswith("the exact same ") and caption.endswith(" on the bottom")


def test_panels_are_the_two_drawings_at_half_size(train):
    index = of_kind(train, "panels")[0]
    whole = np.asarray(train.image(index))
    half = whole.shape[0] // 2
    for number, rows in ((train.records[index].first, whole[:half]), (train.records[index].second, whole[half:])):
        middle = rows[:, half // 2 : half // 2 + half]
        expected = np.asarray(train.drawings.image(number).resize((half, half), 1))
        assert np.array_equal(middle, expected)


def test_scenes_name_both_subjects(train):
    index = of_kind(train, "above")[0]
    record, pictures = train.records[index], train.drawings.pictures
    labels = [pictures[number].subject.labels["en"] for number in (record.first, record.second)]
    assert all(label in caption for caption in train.captions(index) for label in labels)


def test_a_missing_package_is_named_before_drawings_are_rendered(config, monkeypatch):
    monkeypatch.setattr(optional_dependencies, "find_spec", lambda name: None)
    config.image_size = 24  # not rendered by another test
    with pytest.raises(ValueError, match=r"needs resvg_py: install it with pip install 'dalle\[data\]'"):
        DrawingsSource(config, "train")


def test_opened_twice_it_is_the_same(config):
    first, second = DrawingsSource(config, "train"), DrawingsSource(config, "train")
    assert first.digest() == second.digest() and list(first.keys()) == list(second.keys())
    assert len(set(first.keys())) == len(first)
    config.mix = MixConfig(colours=0)
    assert DrawingsSource(config, "train").digest() != first.digest()


def test_the_config_of_a_checkpoint_gives_the_same_config(config):
    from dataclasses import asdict

    from dalle.data import config_from_dict

    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config


def test_opted_out_drawings_are_in_no_record(config, tmp_path):
    listed = tmp_path / "opted-out.txt"
    listed.write_text("lucide/umbrella\n")
    config.opt_out = str(listed)
    for split in SPLITS:
        source = DrawingsSource(config, split)
        keys = source.keys()
        assert not any("lucide/umbrella" in key for key in keys)
        assert source.dropped == {"opted out by key": 1, COPY: 9}


def test_a_checkpoint_records_omissions_authors_and_packages(config):
    sources = {split: DrawingsSource(config, split) for split in ("train", "val")}
    meta = data_meta(config, sources)
    assert {split: record["left_out"] for split, record in meta["records"].items()} == {
        split: source.dropped for split, source in sources.items()
    }
    assert meta["left_out_complete"]
    assert set(meta["attributions"][0]) == {"set", "author", "licence", "url"}
    assert {package["name"]: package["sha256"] for package in meta["packages"]} == {
        str(package): package.sha256 for package in PACKAGES
    }
    assert meta["packages"][1]["url"] == "pkg:npm/%40lobehub/fluent-emoji-3d@1.1.0"
    assert json.loads(json.dumps(meta))["records"] == meta["records"]


def test_drawings_in_no_split_are_counted_by_reason(config):
    """Each drawing of the folder is in a split, or is counted once."""
    for settings in ({}, {"skin_tones": 0.0}, {"groups": ["animals-nature"], "skin_tones": 0.0}):
        sources = [DrawingsSource(replace(config, **settings), split) for split in SPLITS]
        drawn = sum(len(of_kind(source, "drawing")) for source in sources)
        dropped = sources[0].dropped
        assert all(source.dropped == dropped for source in sources)
        built = sum(entry["pictures"] for entry in sources[0].drawings.sources["sets"].values())
        assert drawn + sum(dropped.values()) == built
        assert (SKIN_TONE in dropped) == (settings == {"skin_tones": 0.0})  # those of people are of another group
        assert (OTHER_GROUP in dropped) == ("groups" in settings)
        assert (COPY in dropped) == ("groups" not in settings) and NOT_RENDERED not in dropped


def test_drawings_that_the_cache_lacks_are_counted(config, tmp_path):
    """The file of one drawing becomes empty; a cache that is there already counts it as one just made does."""
    folder = shutil.copytree(config.path, tmp_path / "drawings", ignore=shutil.ignore_patterns("rendered-*"))
    archive = folder / "openmoji.tar.xz"
    with tarfile.open(archive) as file:
        contents = {member.name: file.extractfile(member).read() for member in file}
    contents["1F34E.svg"] = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"/>'
    with tarfile.open(archive, "w:xz") as file:
        for name, content in contents.items():
            add_file(file, name, content)
    for _ in range(2):
        assert DrawingsSource(replace(config, path=str(folder)), "train").dropped[NOT_RENDERED] == 1


def test_entries_of_the_opt_out_list_that_are_no_drawing_are_named(config, tmp_path, caplog):
    listed = tmp_path / "opted-out.txt"
    listed.write_text("lucide/umbrella\nlucide/umbrela\n")
    config.opt_out = str(listed)
    DrawingsSource(config, "train")
    assert "1 entries of data.opt_out are no drawing, such as lucide/umbrela" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": ["en", "xx"]}, "no words in xx; there are words in en, fr"),
        ({"path": "nowhere"}, "no drawings there; build them with `make drawings`"),
    ],
)
def test_settings_that_cannot_work_give_a_sentence(config, change, message):
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        DrawingsSource(config, "train")


@pytest.mark.parametrize(
    "change",
    [
        {"people": "x"},
        {"languages": []},
        {"validation_share": 1.0},
        {"skin_tones": 30},
        {"image_size": 0},
        {"mix": {"panels": -1}},
    ],
)
def test_invalid_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        DrawingsConfig(**change)


def test_groups_choose_what_is_drawn(config, train, monkeypatch):
    def groups(source):
        numbers = [number for record in source.records for number in (record.first, record.second) if number >= 0]
        return {source.drawings.pictures[number].subject.group or "icons" for number in numbers}

    for group in sorted(groups(train)):
        assert groups(DrawingsSource(replace(config, groups=[group]), "train")) == {group}
    assert len(groups(train)) > 1
    assert len(DrawingsSource(replace(config, groups=sorted(groups(train))), "train")) == len(train)
    with pytest.raises(ValueError, match="there is no group animals; the groups are smileys-emotion, people-body"):
        replace(config, groups=["animals"])
