"""Subjects of icons: found by labels, objects and aliases, not by shortcodes."""

import json

import pytest

from dalle.data.drawings.icon_names import ALIASES, NOT_DRAWN, OBJECTS
from dalle.data.drawings.subjects import Catalogue, build_catalogue, icon_key, parse_table

EMOJIS = {
    "1F319": "crescent moon",
    "1F314": "waxing gibbous moon",
    "1F401": "mouse",
    "1F5B1": "computer mouse",
    "1F4D6": "open book",
    "1F34E": "red apple",
    "1F9B4": "bone",
    "1F41F": "fish",
    "1F511": "key",
    "1F3F9": "bow and arrow",
}


@pytest.fixture(scope="module")
def known() -> Catalogue:
    data = [{"label": label, "hexcode": code, "group": 3} for code, label in EMOJIS.items()]
    return build_catalogue(
        {
            "en/data.json": json.dumps(data).encode(),
            "en/messages.json": json.dumps({"groups": [{"key": "animals-nature", "order": 3}]}).encode(),
            "en/shortcodes/github.json": json.dumps({"1F314": ["moon"], "1F4D6": "book", "1F34E": "apple"}).encode(),
        }
    )


@pytest.mark.parametrize(
    ("name", "family", "label"),
    [
        ("moon", "tabler", "crescent moon"),  # the shortcode "moon" is another one
        ("book", "lucide", "book"),
        ("book", "tabler", "open book"),  # drawn open there
        ("mouse", "phosphor", "computer mouse"),
        ("mouse", "game-icons", "mouse"),
        ("key-2", "mdi", "key"),
        ("bow", "tabler", "bow and arrow"),
        ("bow", "icon-park", None),  # a bow tie
        ("bed-double", "lucide", "double bed"),
        ("food-drink-fish", "streamline-pixel", "fish"),
        ("food-drink-fish-bone", "streamline-pixel", None),
        ("food-drink-fish", "mdi", None),
        ("apple", "tabler", None),  # a brand
        ("log", "icon-park", None),  # of a program
        ("log", "game-icons", "log"),
        ("settings", "lucide", None),
    ],
)
def test_icons_show_what_their_names_mean_in_icon_sets(known, name, family, label):
    found = known.of_icon(name, family)
    assert (found and known.subjects[found.subject].labels["en"]) == label


def test_names_of_emoji_sets_are_still_found_by_shortcodes(known):
    assert known.of_name("moon").subject == "1F314"


def test_the_tables_of_names_do_not_contradict_each_other():
    aliases = [icon_key(name) for name, _ in parse_table(ALIASES)]
    objects = [icon_key(name) for name, _ in parse_table(OBJECTS)]
    left_out = {icon_key(name) for name in NOT_DRAWN}
    assert len(set(aliases)) == len(aliases) and len(set(objects)) == len(objects)
    assert not left_out & {*aliases, *objects}
    assert not set(aliases) & set(objects)
