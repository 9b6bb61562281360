"""Catalogue of what can be drawn: emojis with their words in several languages, and further objects of icon sets.

A subject is one thing with words of its own: "woman astronaut". A concept groups the subjects that look alike, here all
astronauts: the splits and the judge go by concepts. A variant adds a skin tone to a subject.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dalle.data.drawings.icon_names import ALIASES, NOT_DRAWN, OBJECTS
from dalle.data.emoji_words import base_name

VARIATION_SELECTOR = "-FE0F"
GENDERS = {0: "female", 1: "male"}
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
ICONS = "icons"  # group of things that icon sets have and emojis have not
GROUPS = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
    "symbols",
    "flags",
    "component",
    ICONS,
)
WITHOUT_ICONS = {"symbols", "flags", "component"}  # groups of emojis whose names mean something else in icon sets
# of streamline-pixel: names of its icons begin with one of these
CATEGORIES = re.compile(
    "(beauty(-body-care)?|building-real-eastate|business-products?|coding-apps-websites|"
    "computers-devices-electronics|content-files|design|ecology|email|entertainment-events-hobbies|"
    "food-drink(-desert|-fruit)?|health|interface-essential|money-payments|music|pet-animals|photography|"
    "real-estate-building|school-science|shopping-shipping|social-rewards|transportation|travel-wayfinding|"
    "vintage|weather)-"
)


@dataclass
class Subject:
    """One thing that can be drawn: its concept, and its names and further words by language."""

    id: str  # code points of an emoji without skin tone, or the name of an object
    concept: str
    labels: dict[str, str]  # language -> name, "woman astronaut"
    tags: dict[str, list[str]] = field(default_factory=dict)  # language -> further words
    gender: str = ""  # "female", "male" or ""
    group: str = ""  # of the emoji, one of `GROUPS`: "animals-nature"; "" for things that are no emoji

    def to_json(self) -> dict[str, Any]:
        """Return the subject as a dict of JSON values, without empty fields."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True)
class Variant:
    """A subject with a skin tone, or without one (""): what one picture shows."""

    subject: str
    tone: str = ""


class Catalogue:
    """All subjects, and the ways to find them: by code points of an emoji, its names, or the name of an icon."""

    def __init__(
        self,
        subjects: list[Subject],
        codes: dict[str, Variant],
        names: dict[str, Variant],
        icons: dict[str, Variant],
    ):
        self.subjects = {subject.id: subject for subject in subjects}
        self.codes = codes
        self.names = names
        self.icons = icons

    def of_code(self, code: str) -> Variant | None:
        """Find the variant with these code points: "1F469-1F3FD-200D-1F680", in any case, FE0F ignored."""
        return self.codes.get(normalise_code(code))

    def of_name(self, name: str) -> Variant | None:
        """Find the variant that a drawing of an emoji set shows by its name: "woman-astronaut-medium-skin-tone"."""
        for spelling in spellings(name):
            if variant := self.names.get(spelling):
                return variant
        return None

    def of_icon(self, name: str, family: str) -> Variant | None:
        """Find the variant that an icon shows, by its name; None for commands, symbols and brands.

        family: of the sets that draw it, `DrawingSet.family`.
        """
        bare = re.sub(r"-\d+$", "", CATEGORIES.sub("", name) if family == "streamline-pixel" else name)
        family_name = f"{family}/{bare}"
        variant = self.icons.get(icon_key(family_name))
        if not variant and bare not in NOT_DRAWN and family_name not in NOT_DRAWN:
            variant = self.icons.get(icon_key(bare))
        if variant and self.subjects[variant.subject].group not in WITHOUT_ICONS and not variant.tone:
            return variant
        return None


def build_catalogue(files: Mapping[str, bytes]) -> Catalogue:
    """Build the catalogue from files of emojibase-data: "en/data.json", "en/shortcodes/...", "fr/data.json", ..."""
    subjects, codes, names = [], {}, {}
    groups = {group["order"]: group["key"] for group in json.loads(files["en/messages.json"])["groups"]}
    languages = sorted(name.split("/")[0] for name in files if name.endswith("/data.json"))
    words_by_language = {language: _words_by_code(json.loads(files[f"{language}/data.json"])) for language in languages}
    for entry in json.loads(files["en/data.json"]):
        if "group" not in entry:  # regional indicators, which are letters of flags
            continue
        code = normalise_code(entry["hexcode"])
        subject = Subject(
            code,
            concept_of(entry["label"], groups[entry["group"]]),
            {language: words[code][0] for language, words in words_by_language.items() if code in words},
            {
                language: words[code][1]
                for language, words in words_by_language.items()
                if code in words and words[code][1]
            },
            GENDERS.get(entry.get("gender"), ""),
            groups[entry["group"]],
        )
        subjects.append(subject)
        codes[code] = Variant(code)
        names.setdefault(normalise_name(entry["label"]), codes[code])
        for skin in entry.get("skins", ()):
            tone = skin["tone"]
            tones = [TONES[number] for number in (tone if isinstance(tone, list) else [tone])]
            variant = Variant(code, " and ".join(dict.fromkeys(tones)))
            codes[normalise_code(skin["hexcode"])] = variant
            names.setdefault(normalise_name(skin["label"]), variant)
    for name, content in files.items():
        if name.startswith("en/shortcodes/") and name.endswith(".json"):
            for code, shortcodes in json.loads(content).items():
                variant = codes.get(normalise_code(code))
                for shortcode in [shortcodes] if isinstance(shortcodes, str) else shortcodes:
                    if variant and len(shortcode) > 2:
                        names.setdefault(normalise_name(shortcode), variant)
    icons = {icon_key(subject.labels["en"]): codes[subject.id] for subject in reversed(subjects)}
    for name, label in parse_table(OBJECTS):
        if icon_key(name) not in icons:
            subject = Subject(name.replace(" ", "-"), label or name, {"en": label or name})
            subjects.append(subject)
            icons[icon_key(name)] = Variant(subject.id)
            icons.setdefault(icon_key(subject.labels["en"]), Variant(subject.id))
            names.setdefault(normalise_name(name), Variant(subject.id))
    for name, label in parse_table(ALIASES):
        if icon_key(label) in icons:  # missing if the emojis are others than those of the pinned package
            icons[icon_key(name)] = icons[icon_key(label)]
    return Catalogue(subjects, codes, names, icons)


def parse_table(table: str) -> list[tuple[str, str]]:
    """Split a table of `icon_names`, "name=label, name, ...", into pairs of name and label ("" if it has none)."""
    pairs = (entry.partition("=") for entry in " ".join(table.split()).split(", "))
    return [(name.strip(), label.strip()) for name, _, label in pairs]


def icon_key(name: str) -> str:
    """Normalise the name of an icon or a label for comparison; the family in "tabler/book" is kept apart."""
    family, slash, bare = name.rpartition("/")
    return family + slash + normalise_name(bare)


def _words_by_code(entries: list[dict[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    return {normalise_code(entry["hexcode"]): (entry["label"], entry.get("tags", [])) for entry in entries}


def concept_of(label: str, group: str) -> str:
    """Return the concept of an emoji from its name: the name without gender, hair style and walking direction."""
    if group == "flags":
        return label.replace("flag: ", "flag of ")
    return base_name(label.replace(":", "").replace(",", ""))


def normalise_code(code: str) -> str:
    """Normalise code points such as "2764-fe0f": upper case, without the variation selector FE0F."""
    return code.upper().replace(VARIATION_SELECTOR, "")


def normalise_name(name: str) -> str:
    """Normalise a name for comparison, to lower case letters and digits only: "Red Apple" -> "redapple"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("\u2019", "").replace("&", "and"))


def spellings(name: str) -> list[str]:
    """Convert the name of a drawing in an emoji set to keys of `Catalogue.names`, to be tried in this order.

    They are the name as written, without a number at its end, and as the name of a flag:
    "flag-for-france-2" -> "flagforfrance2", "flagforfrance", "flagfrance".
    """
    bare = re.sub(r"-\d+$", "", name)
    flag = re.sub(r"^flag-for-(flag-)?", "", bare)
    return [normalise_name(spelling) for spelling in (name, bare, f"flag {flag}") if spelling]
