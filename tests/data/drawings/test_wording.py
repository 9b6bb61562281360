"""Captions of drawings: skin tones, languages, tags and plurals."""

import pytest
from drawings_records import concepts, of_kind

from dalle.data.drawings.languages import COLOUR_PHRASES, STYLE_PHRASES, names_in
from dalle.data.drawings.render import COLOURS
from dalle.data.drawings.sets import STYLES
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.subjects import Subject
from dalle.data.drawings.wording import names_of, plural


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
