"""Data source `drawings`: splits, composed pictures, captions, bad settings."""

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from dalle import optional_dependencies
from dalle.data import DATA_SETS, open_source
from dalle.data.audit.provenance import data_meta
from dalle.data.drawings import splits
from dalle.data.drawings.build import add
from dalle.data.drawings.config import DrawingsConfig, MixConfig
from dalle.data.drawings.languages import COLOUR_PHRASES, STYLE_PHRASES, names_in
from dalle.data.drawings.packages import PACKAGES
from dalle.data.drawings.records import COPY, NOT_RENDERED, OTHER_GROUP, SKIN_TONE
from dalle.data.drawings.render import COLOURS, Drawings, recoloured
from dalle.data.drawings.sets import STYLES
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.splits import SPLITS
from dalle.data.drawings.subjects import Subject
from dalle.data.drawings.wording import names_of, plural


@pytest.fixture
def config(drawings) -> DrawingsConfig:
    return DrawingsConfig(
        path=str(drawings), image_size=32, skin_tones=1.0, validation_share=0.3, mix=MixConfig(2.0, 2.0, 2.0)
    )


@pytest.fixture
def train(config, monkeypatch) -> DrawingsSource:
    """Return the training split with nothing held out: the whole set is small."""
    monkeypatch.setattr("dalle.data.drawings.records.held_out_concept", lambda concept, share: False)
    monkeypatch.setattr("dalle.data.drawings.records.held_out_style", lambda *_: False)
    monkeypatch.setattr("dalle.data.drawings.records.held_out_colour", lambda *_: False)
    return DrawingsSource(config, "train")


def of_kind(source, kind):
    return [index for index, record in enumerate(source.records) if record.kind == kind]


def concepts(source):
    pictures = source.drawings.pictures
    numbers = [number for record in source.records for number in (record.first, record.second) if number >= 0]
    return {pictures[number].subject.concept for number in numbers}


def test_it_is_registered():
    assert DATA_SETS["drawings"].config is DrawingsConfig
    assert "CC BY-SA 4.0" in DATA_SETS["drawings"].note


def test_concepts_of_val_are_not_in_training(config):
    train, val = open_source(config, "train"), open_source(config, "val")
    assert concepts(val) and concepts(train)
    assert not concepts(val) & concepts(train)


def test_held_out_styles_and_colours_are_not_in_training(config, monkeypatch):
    monkeypatch.setattr(splits, "NOVEL_STYLES", 0.3)
    monkeypatch.setattr(splits, "NOVEL_COLOURS", 0.3)
    monkeypatch.setattr(splits, "MIN_STYLES", 2)
    sources = {split: DrawingsSource(config, split) for split in SPLITS}
    pictures = sources["train"].drawings.pictures

    def styles(source):
        numbers = [number for record in source.records for number in (record.first, record.second) if number >= 0]
        return {(pictures[number].subject.concept, pictures[number].drawing_set.style) for number in numbers}

    def colours(source):
        return {(pictures[record.first].subject.concept, record.colour) for record in source.records if record.colour}

    assert styles(sources["novel"]) and not styles(sources["novel"]) & styles(sources["train"])
    assert {concept for concept, _ in styles(sources["novel"])} <= concepts(sources["train"])
    assert colours(sources["colours"]) and not colours(sources["colours"]) & colours(sources["train"])


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


def test_skin_tones_are_stated_or_left_open(config, monkeypatch):
    def toned(people):
        config.people = people
        source = DrawingsSource(
            config, "train" if "waving hand" in concepts(DrawingsSource(config, "train")) else "val"
        )
        index = next(i for i, r in enumerate(source.records) if source.drawings.pictures[r.first].tone)
        return source.captions(index)

    assert all("dark skin tone" in caption for caption in toned("stated"))
    assert not any("skin tone" in caption for caption in toned("open"))


def test_captions_that_state_a_skin_tone_are_in_english(config, train):
    config.languages = ["fr"]
    for people, french in (("stated", False), ("open", True)):
        config.people = people
        source = DrawingsSource(config, "train")
        (toned,) = {i for i in of_kind(source, "drawing") if source.drawings.pictures[source.records[i].first].tone}
        assert any("signe de la main" in caption for caption in source.captions(toned)) == french


def test_captions_in_another_language(config):
    config.languages, config.people = ["en", "fr"], "open"
    for split in ("train", "val"):
        source = DrawingsSource(config, split)
        for index in of_kind(source, "drawing"):
            subject = source.drawings.pictures[source.records[index].first].subject
            if "fr" in subject.labels:
                assert subject.labels["fr"] in source.captions(index)
    config.languages = ["fr"]
    for index in of_kind(source, "drawing"):
        subject = source.drawings.pictures[source.records[index].first].subject
        if "fr" in subject.labels:
            assert not any("drawing of" in caption for caption in source.captions(index))


def test_style_and_colour_are_stated_in_other_languages(config):
    config.languages = ["fr"]
    source = DrawingsSource(config, "train")
    for kind in ("drawing", "colour"):
        for index in of_kind(source, kind):
            record = source.records[index]
            picture = source.drawings.pictures[record.first]
            if "fr" not in picture.subject.labels:
                continue
            first, captions = source.captions(index)[0], source.captions(index)
            assert first.startswith(picture.subject.labels["fr"])
            phrase = STYLE_PHRASES["fr"][picture.drawing_set.style]
            assert first.endswith(phrase) != (kind == "colour" and "noir" in phrase)
            if kind == "colour":
                assert all(COLOUR_PHRASES["fr"][record.colour] in caption for caption in captions)
    config.languages = ["en", "fr"]
    source = DrawingsSource(config, "train")
    index = next(i for i in of_kind(source, "colour"))
    french = [caption for caption in source.captions(index) if ", en " in caption]
    assert 0 < len(french) <= len(source.captions(index)) / 2 + 1


def test_tags_of_black_drawings_have_no_other_colour():
    apple = Subject("1F34E", "apple", {"en": "big apple"}, {"en": ["fruit", "red", "dark green"]})
    assert {"a big apple, fruit", "a big apple, red", "a big apple, dark green"} < set(names_of(apple))
    assert set(names_of(apple, black=True)) == {"a big apple", "a big apple, fruit"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owl", "owls"),
        ("fox", "foxes"),
        ("ox", "oxen"),
        ("cardboard box", "cardboard boxes"),
        ("cherry", "cherries"),
        ("snowman", "snowmen"),
        ("hot potato", "hot potatoes"),
        ("bookshelf", "bookshelves"),
        ("game die", "game dice"),
        ("moose", "moose"),
    ],
)
def test_plurals(name, expected):
    assert plural(name) == expected


def test_a_missing_package_is_named_before_drawings_are_rendered(config, monkeypatch):
    monkeypatch.setattr(optional_dependencies, "find_spec", lambda name: None)
    config.image_size = 24  # not rendered by another test
    with pytest.raises(ValueError, match=r"needs resvg_py: install it with pip install 'dalle\[data\]'"):
        DrawingsSource(config, "train")


def test_languages_are_counted_by_the_captions_that_records_have(config, monkeypatch):
    config.languages = ["fr"]
    monkeypatch.delitem(COLOUR_PHRASES, "fr")  # as of Italian: recoloured drawings have English captions
    source = DrawingsSource(config, "train")
    french = [
        i
        for i in of_kind(source, "drawing")
        if "fr" in source.drawings.pictures[source.records[i].first].subject.labels
    ]
    assert french and of_kind(source, "colour")
    assert source.counts()["language"] == {"fr": len(french), "en": len(source) - len(french)}


def test_every_language_with_phrases_has_all_of_them():
    assert STYLE_PHRASES.keys() == COLOUR_PHRASES.keys()
    for language in STYLE_PHRASES:
        assert STYLE_PHRASES[language].keys() == STYLES.keys()
        assert COLOUR_PHRASES[language].keys() == COLOURS.keys()
        assert len(set(STYLE_PHRASES[language].values())) == len(STYLES)


@pytest.mark.parametrize(
    ("language", "label", "expected"),
    [("de", "Regenschirm", "grün"), ("es", "paraguas", "en verde"), ("fr", "parapluie", "en vert")],
)
def test_coloured_drawings_are_not_called_black(language, label, expected):
    assert set(names_in(language, label, [], "stencil", "green")) == {f"{label}, {expected}"}
    assert f"{label}, {STYLE_PHRASES[language]['stencil']}" in names_in(language, label, [], "stencil")
    line = f"{label}, {expected}, {STYLE_PHRASES[language]['line drawing']}"
    assert line in names_in(language, label, [], "line drawing", "green")


def test_languages_without_phrases_state_names_and_tags():
    assert names_in("ja", "傘", ["雨"], "3d") == ["傘", "傘", "傘, 雨"]
    assert names_in("ja", "傘", ["雨"], "3d", "red") == []


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
            add(file, name, content)
    for _ in range(2):
        assert DrawingsSource(replace(config, path=str(folder)), "train").dropped[NOT_RENDERED] == 1


def test_entries_of_the_opt_out_list_that_are_no_drawing_are_named(config, tmp_path, caplog):
    listed = tmp_path / "opted-out.txt"
    listed.write_text("lucide/umbrella\nlucide/umbrela\n")
    config.opt_out = str(listed)
    DrawingsSource(config, "train")
    assert "1 entries of data.opt_out are no drawing, such as lucide/umbrela" in caplog.text


def test_a_held_out_drawing_with_the_pixels_of_a_training_one_is_in_no_split(config, monkeypatch):
    """In the small set all sets of icons draw the same umbrella; here its silhouettes are held out."""
    monkeypatch.setattr("dalle.data.drawings.records.held_out_concept", lambda concept, share: concept == "rocket")
    monkeypatch.setattr("dalle.data.drawings.records.held_out_style", lambda concept, style, _: style == "silhouette")
    train, novel, val = (DrawingsSource(config, split) for split in ("train", "novel", "val"))
    pixels = {train.drawings.pictures[record.first].pixels for record in train.records}
    for source in (novel, val):
        assert not pixels & {source.drawings.pictures[record.first].pixels for record in source.records}
    assert "lucide/umbrella" in list(train.keys()) and "mdi/umbrella" not in list(novel.keys())
    assert "lucide/rocket" in list(val.keys())


def test_colours_that_a_style_paints_are_not_held_out(config, monkeypatch):
    """Two styles of icons paint each thing blue or gray, so training has seen it so."""
    monkeypatch.setattr("dalle.data.drawings.records.held_out_concept", lambda concept, share: False)
    monkeypatch.setattr("dalle.data.drawings.records.held_out_style", lambda *_: False)
    monkeypatch.setattr("dalle.data.drawings.records.held_out_colour", lambda *_: True)
    source = DrawingsSource(config, "colours")
    held_out = {(source.drawings.pictures[record.first].subject.concept, record.colour) for record in source.records}
    assert ("owl", "green") in held_out and ("owl", "blue") not in held_out and ("owl", "gray") not in held_out


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


def test_concepts_of_the_documentation_are_never_held_out():
    assert not any(splits.held_out_concept(concept, 0.999) for concept in splits.ALWAYS_TRAINED)
    assert splits.held_out_concept("pear", 0.999)


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
