"""Splits of drawings: what is held out of training, and what is not."""

from drawings_records import concepts

from dalle.data import open_source
from dalle.data.drawings import splits
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.splits import SPLITS


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


def test_concepts_of_the_documentation_are_never_held_out():
    assert not any(splits.held_out_concept(concept, 0.999) for concept in splits.ALWAYS_TRAINED)
    assert splits.held_out_concept("pear", 0.999)
