"""Caption and image filters of the paper; all are off by default."""

import sys
from types import ModuleType

import pytest

from dalle.cli.config import compose
from dalle.data import config_from_dict
from dalle.data.filters import CaptionFilter, FiltersConfig, exceeds_aspect_ratio, may_be_in
from dalle.data.folder import FolderConfig

PAPER = compose("train", ["data=folder", "data.path=x", "filters=paper"]).data.filters


@pytest.fixture
def detector(monkeypatch):
    """Fake detector: German if "ein" occurs, English otherwise, and uncertain for one word."""
    module = ModuleType("py3langid")

    def rank(text):
        german = "ein" in text.split()
        lead = 4.0 if len(text.split()) < 3 else 40.0
        return [("de", -50.0 + lead * german), ("en", -50.0 + lead * (not german))]

    vars(module)["rank"] = rank
    module.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "py3langid", module)


def test_filters_are_off_by_default():
    keep = CaptionFilter(FiltersConfig())
    assert not any(map(keep, ["a", "2008", "IMG_0001.jpg", "ein Hund am Strand"]))


def test_short_captions_are_filtered():
    left_out = CaptionFilter(FiltersConfig(min_words=2, min_characters=6))
    assert left_out("red dog") is None
    assert left_out("a dog") == left_out("elephants") == "with captions too short"


@pytest.mark.parametrize(
    "caption",
    [
        "photographed on 3 May 2008",
        "Photographed on May 3rd, 2008.",
        "Photo taken on 2008-05-03",
        "picture taken 03/05/2008",
        "Taken on Sunday, the 3rd of May 2008 at 10:32 pm",
        "uploaded in Sept. 2008",
        "May 2008",
        "1984",
        "IMG_2044",
        "DSC00012.JPG",
        "Untitled",
    ],
)
def test_boilerplate_is_filtered(caption):
    assert CaptionFilter(FiltersConfig(boilerplate=PAPER.boilerplate))(caption) == "with boilerplate captions"


@pytest.mark.parametrize(
    "caption",
    [
        "a dog photographed on 3 May 2008 in Paris",
        "photographed on a beach",
        "march of the penguins",
        "a picture of a dog",
        "an image of 12 dogs",
        "photo of the day",
        "the may pole on 1st avenue",
    ],
)
def test_captions_with_more_than_boilerplate_are_kept(caption):
    assert CaptionFilter(FiltersConfig(boilerplate=PAPER.boilerplate))(caption) is None


def test_other_languages_are_filtered_if_certain(detector):
    left_out = CaptionFilter(FiltersConfig(languages=["en"]))
    assert left_out("a dog on the beach") is left_out("ein Hund") is None
    assert left_out("das ist ein Hund am Strand") == "with captions in other languages"
    both = CaptionFilter(FiltersConfig(languages=["en", "de"]))
    assert both("das ist ein Hund am Strand") is None


def test_language_is_filtered_at_ten_nats():
    assert may_be_in(["en"], {"en": -20.0, "de": -10.0})
    assert not may_be_in(["en"], {"en": -20.1, "de": -10.0})
    assert may_be_in(["en", "fr"], {"en": -99.0, "fr": -10.0, "de": -5.0})


def test_langid_detects_languages():
    pytest.importorskip("py3langid", reason="no language detector is installed")
    left_out = CaptionFilter(FiltersConfig(languages=["en"]))
    for caption in ("a dog on the beach", "a red circle", "grinning face", "sunset over the Grand Canyon, Arizona"):
        assert left_out(caption) is None
    for caption in ("ein Hund am Strand von Sylt", "un chien sur la plage", "собака на пляже", "一只狗在海滩上"):
        assert left_out(caption) == "with captions in other languages"


def test_missing_detector_or_unknown_language_raises(monkeypatch, detector):
    with pytest.raises(ValueError, match=r"py3langid does not know \['xx'\]; it knows de, en"):
        CaptionFilter(FiltersConfig(languages=["en", "xx"]))
    monkeypatch.delitem(sys.modules, "py3langid")
    monkeypatch.setattr("dalle.data.filters.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs a language detector: pip install py3langid"):
        CaptionFilter(FiltersConfig(languages=["en"]))


def test_aspect_ratio_is_longer_side_over_shorter():
    assert not exceeds_aspect_ratio((200, 100), 2) and not exceeds_aspect_ratio((100, 200), 2)
    assert exceeds_aspect_ratio((201, 100), 2) and exceeds_aspect_ratio((100, 201), 2)


def test_invalid_numbers_and_patterns_raise():
    with pytest.raises(ValueError, match="max_aspect_ratio=0.5 would leave out every image"):
        FiltersConfig(max_aspect_ratio=0.5)
    with pytest.raises(ValueError, match=r"'\(photo' is no regular expression"):
        CaptionFilter(FiltersConfig(boilerplate=["(photo"]))


def test_paper_aspect_ratio_is_read_back_from_a_checkpoint():
    assert PAPER.max_aspect_ratio == 2
    assert PAPER.languages == ["en"]
    written = {"name": "folder", "path": "x", "filters": {"min_words": 3, "max_aspect_ratio": 2.0}}
    assert config_from_dict(written) == FolderConfig(path="x", filters=FiltersConfig(min_words=3, max_aspect_ratio=2.0))
    assert config_from_dict({"name": "folder", "path": "x"}) == FolderConfig(path="x")  # as before there were filters
