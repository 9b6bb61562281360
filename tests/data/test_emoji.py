"""Data set `emoji`: English captions of every named emoji, and all variants of one in the same split."""

import importlib.util
import re

import numpy as np
import pytest

pytest.importorskip("resvg_py", reason="the extra `data` is not installed")

from dalle import optional_dependencies
from dalle.data import emoji as module
from dalle.data.emoji import ATTRIBUTION, EmojiConfig, EmojiSource, all_emojis
from dalle.data.emoji_words import base_name, flag_phrase, phrase, split_tones


@pytest.fixture(scope="module")
def captions() -> dict[str, tuple[str, ...]]:
    return {emoji.code: emoji.captions for emoji in all_emojis()}


def split(name: str, **options) -> EmojiSource:
    return EmojiSource(EmojiConfig(**options), name)


def test_every_named_emoji_has_captions():
    emojis = all_emojis()
    assert len(emojis) > 3_900
    assert [emoji.code for emoji in emojis] == sorted({emoji.code for emoji in emojis})
    for emoji in emojis:
        assert emoji.captions and all(caption.strip() == caption != "" for caption in emoji.captions)
        assert len(set(emoji.captions)) == len(emoji.captions)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1F34E", ("a red apple", "red apple", "apple", "a red apple, fruit")),
        ("1F347", ("grapes",)),
        ("1F1EB-1F1F7", ("the flag of France", "flag of France")),
        ("1F1FA-1F1F8", ("the flag of the United States",)),
        ("1F1FA-1F1F3", ("the flag of the United Nations",)),
        ("1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", ("the flag of England",)),
        ("1F3F3-FE0F-200D-1F308", ("a rainbow flag",)),
        ("1F44D-1F3FF", ("a thumbs up with dark skin tone", "thumbs up: dark skin tone")),
        ("1F469-1F3FD-200D-1F680", ("a woman astronaut with medium skin tone",)),
        ("1F468-1F3FB-200D-1F9B0", ("a man with light skin tone and red hair",)),
        ("1F468-200D-1F469-200D-1F467-200D-1F467", ("a family of a man, a woman and two girls",)),
        ("1F55D", ("two-thirty",)),
        ("1F5FD", ("the Statue of Liberty",)),
    ],
)
def test_captions_are_plain_english(captions, code, expected):
    assert set(expected) <= set(captions[code])
    assert captions[code][0] == expected[0]


def test_flags_of_places_are_captioned_the_flag_of(captions):
    places = [code for code in captions if re.fullmatch(r"1F1[EF].-1F1[EF].|1F3F4-E00.*", code)]
    assert len(places) > 255
    assert all(captions[code][0].startswith("the flag of ") for code in places)


def test_skin_tone_is_in_every_caption(captions):
    toned = {code: re.findall(r"1F3F[B-F]", code) for code in captions}
    for code, tones in toned.items():
        for caption in captions[code]:
            assert caption.count("skin tone") >= bool(tones)
    assert sum(map(bool, toned.values())) > 1_800


def variant_group(code: str) -> str:
    """Reference: an emoji's code points without tone, gender, hair, direction and selectors."""
    code = re.sub(r"1F468|1F469", "1F9D1", code)  # man, woman -> person
    code = re.sub(r"(-200D)?-(2640|2642|27A1|1F9B[0-3])(-FE0F)?", "", code)
    return re.sub(r"-(1F3F[B-F]|FE0F)", "", code)


def test_no_variant_of_a_training_emoji_is_held_out():
    train, val = split("train"), split("val")
    assert {emoji.base for emoji in train._emojis}.isdisjoint(emoji.base for emoji in val._emojis)
    groups = [{variant_group(emoji.code) for emoji in source._emojis} for source in (train, val)]
    assert groups[0].isdisjoint(groups[1])
    assert len(train) + len(val) == len(all_emojis())
    assert 150 < len(val) < 800


@pytest.mark.parametrize(
    "names",
    [
        ("man astronaut", "woman astronaut medium skin tone", "astronaut"),
        ("person", "man bald", "woman curly hair", "boy", "girl dark skin tone", "man light skin tone red hair"),
        ("prince", "princess", "person with crown"),
        ("kiss", "kiss woman man", "kiss person person light skin tone dark skin tone"),
        ("women holding hands", "woman and man holding hands", "people holding hands"),
        ("person walking", "man walking facing right"),
        ("mermaid", "merman", "merperson"),
        ("old man", "old woman", "older person"),
        ("Santa Claus", "Mrs. Claus", "Mx Claus"),
        ("pregnant woman", "pregnant man", "pregnant person"),
        ("man dancing", "woman dancing"),
    ],
)
def test_variants_have_one_base(names):
    assert len({base_name(name) for name in names}) == 1


def test_different_emojis_have_different_bases():
    assert (
        len({base_name(name) for name in ("red apple", "green apple", "cook", "cooking", "bed", "person in bed")}) == 6
    )


def test_captions_of_rare_kinds():
    for name, text in (
        ("woman with headscarf dark skin tone", "a woman with headscarf, with dark skin tone"),
        ("handshake light skin tone dark skin tone", "a handshake with light skin tone and dark skin tone"),
        ("light skin tone", "light skin tone"),
        ("person beard", "a person with a beard"),
        ("couple with heart man man", "a couple with heart, two men"),
        ("keycap 5", "the key 5"),
        ("OK hand", "an OK hand"),
        ("octopus", "an octopus"),
        ("unicorn", "a unicorn"),
        ("no smoking", "no smoking"),
    ):
        assert phrase(*split_tones(name)) == text
    assert flag_phrase("Turks & Caicos Islands") == "the flag of the Turks and Caicos Islands"
    assert flag_phrase("St. Vincent & Grenadines") == "the flag of St. Vincent and Grenadines"


def test_images_have_white_background_and_are_deterministic():
    source = split("val", image_size=32)
    record = source[5]
    assert record.image.mode == "RGB" and record.image.size == (48, 48)
    assert record.key.startswith("openmoji/")
    pixels = np.asarray(record.image)
    assert (pixels[0] == 255).all() and (pixels < 128).any()
    assert record.image == source[5].image == split("val", image_size=32)[5].image


def test_red_apple_is_red():
    source = split("train" if "1F34E" in {emoji.code for emoji in split("train")._emojis} else "val")
    index = [emoji.code for emoji in source._emojis].index("1F34E")
    red, green, blue = np.asarray(source[index].image)[60, 48].astype(int)
    assert red > green + 80 and red > blue + 80


def test_attribution_names_the_licence():
    assert "OpenMoji" in ATTRIBUTION and "CC BY-SA 4.0" in ATTRIBUTION


def test_invalid_splits_and_shares_raise():
    with pytest.raises(ValueError, match="got 'novel'"):
        split("novel")
    with pytest.raises(ValueError, match="validation_share must be between 0 and 1, got 0"):
        split("train", validation_share=0.0)


def test_missing_packages_raise_with_install_command(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        optional_dependencies, "find_spec", lambda name: None if name in ("emoji", "resvg_py") else found(name)
    )
    module.svg_folder.cache_clear()
    module.all_emojis.cache_clear()
    with pytest.raises(
        ValueError, match=r"data=emoji needs emoji, resvg_py: install it with pip install 'dalle\[data\]'"
    ):
        split("train")
