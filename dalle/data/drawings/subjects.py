"""Catalogue of what can be drawn: emojis with their words in several languages, and further objects of icon sets.

A subject is one thing with words of its own: "woman astronaut". A concept groups the subjects that look alike, here all
astronauts: the splits and the judge go by concepts. A variant adds a skin tone to a subject.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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

# objects that at least four icon sets draw and that are no emoji
OBJECTS = """
acorn, address book, anvil, aperture, armchair, asteroid, audio cassette=cassette, baby carriage, bacteria,
balcony, bandage, barbell, barcode, barn, barrel, baseball bat, battery charging, beaker, bed double=double bed,
belt, bench, binoculars, blender, blinds, bone fracture, book open=open book, bookshelf, boombox, bottle, bow tie,
bowl, bowling ball, box, brick wall, bread slice, bulldozer, cable car, cactus pot, cake slice, calculator,
campfire, candy cane, cannabis=hemp leaf, car battery, car door, car wash, caravan, carousel, cash register, castle
tower=tower, cctv=security camera, chalkboard, chandelier, charging station, chef hat, cherry, chess bishop, chess
king, chess knight, chess queen, chess rook, chimney, chocolate, clapperboard, closet, coffee bean, coffee mug,
coins, compact disc, compass rose, cooking pot, coronavirus, cpu=processor, crane, crib, cube, cup, curtains,
cylinder, database, desk, desk lamp, diaper, dice, diploma, dishwasher, donut, door open=open door, drill, drone,
dumbbell, earbuds, easel, eiffel tower, engine, envelope open=open envelope, eraser, escalator, eye closed=closed
eye, eyedropper, fan, farm, faucet, fence, filing cabinet, film, fire hydrant, fireplace, first aid kit, flask,
floor lamp, flower, folder open=open folder, forest, fork, forklift, fridge, funnel, galaxy, gallery, game
boy=gameboy, garage, gas pump, gas station, gate, gavel, gift card, glove, golf ball, golf cart, gramophone, grass,
greenhouse, guitar amplifier, hair dryer, handcuffs, hanger, hard drive, hard hat, hat, headset, heater, helmet,
highlighter, horseshoe, hot air balloon, hurricane, ice cream cone, injection=syringe needle, iron, jeep, kettle,
keyhole, kidneys, kiwi, ladle, lamp, landscape, leaf, lectern, library, lightbulb, light switch, lighthouse, liver,
log, magazine, martini, maze, medicine bottle, meteor, metronome, microchip, microwave, milestone, moon stars=moon
with stars, moped, mortar, music note, nail, necklace, needle, noodles, nurse, office chair, outlet, oven, paint
brush, paint bucket, paint roller, palette, paper plane, parking meter, parrot cage=bird cage, passport, paw, pen
nib, perfume, piano, picnic table, pie chart, piggy bank, pill bottle, pillow, pills, pine tree, pinwheel, pipette,
pizza slice, planet, plane, plant, plate, playground, plug, podium, poker chip, polaroid, pot, pumpkin, puzzle,
pyramid, qr code, radar, rake, refrigerator, remote control, road, rocking chair, rolling pin, router, rug, ruler,
safe, satellite dish, sausage, scale, scanner, scarecrow, school bus, sd card, server, ship wheel, shop, shopping
bag, shopping basket, shower head, shredder, sim card, siren, skirt, smartphone, smartwatch, snowmobile, sofa,
solar panel, soup, sphere, spray can, sprout, stairs, stamp, steering wheel, sticky note, stomach, store, stroller,
submarine, suitcase, swimming pool, sword, swords=crossed swords, table, table lamp, tablet, tank, tea cup,
telegraph, tennis ball, test tubes, theater, thunderstorm, tire, toolbox, tow truck, traffic cone, trash can,
treadmill, tree, trolley, trowel, tsunami, tunnel, turntable, ufo, usb, utility pole, vacuum cleaner, van, vault,
vest, video camera=camcorder, vinyl record, virus, wallet, wardrobe, warehouse, washing machine, water bottle,
water glass, waterfall, watering can, webcam, wheat, whisk, whistle, wind turbine, windmill, windsock, wine,
world=globe stand, yoga
"""

# names of icons that mean something else than the emoji of this name, often a brand or a command of a program
NOT_DRAWN = {
    "apple", "windows", "android", "telegram", "twitter", "meta", "amazon", "x", "tag", "pin", "back", "on", "top",
    "end", "soon", "new", "up", "cool", "free", "id", "link", "share", "code", "copy", "wave", "leaves", "slack",
    "opera", "safari", "chrome", "edge", "firefox", "java", "swift", "docker", "gem", "ruby", "rust", "snapchat",
    "wind", "tv-off", "blush",
}  # fmt: skip


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
    """All subjects, and the ways to find them: by code points of an emoji or by the name of a drawing."""

    def __init__(self, subjects: list[Subject], codes: dict[str, Variant], names: dict[str, Variant]):
        self.subjects = {subject.id: subject for subject in subjects}
        self.codes = codes
        self.names = names

    def of_code(self, code: str) -> Variant | None:
        """Find the variant with these code points: "1F469-1F3FD-200D-1F680", in any case, FE0F ignored."""
        return self.codes.get(plain_code(code))

    def of_name(self, name: str) -> Variant | None:
        """Find the variant that a drawing of an emoji set shows by its name: "woman-astronaut-medium-skin-tone"."""
        for spelling in spellings(name):
            if found := self.names.get(spelling):
                return found
        return None

    def of_icon(self, name: str, any_ending: bool = False) -> Variant | None:
        """Find the variant that an icon shows by its name; None for commands, symbols and brands.

        any_ending: names start with categories, as in "pet-animals-cat".
        """
        words = re.sub(r"-\d+$", "", name).split("-")
        for start in range(len(words) if any_ending else 1):
            rest = "-".join(words[start:])
            found = None if rest in NOT_DRAWN else self.names.get(squeezed(rest))
            if found and self.subjects[found.subject].group not in WITHOUT_ICONS and not found.tone:
                return found
        return None


def catalogue(files: Mapping[str, bytes]) -> Catalogue:
    """Build the catalogue from files of emojibase-data: "en/data.json", "en/shortcodes/...", "fr/data.json", ..."""
    subjects, codes, names = [], {}, {}
    groups = {each["order"]: each["key"] for each in json.loads(files["en/messages.json"])["groups"]}
    languages = sorted(name.split("/")[0] for name in files if name.endswith("/data.json"))
    said = {language: _words_by_code(json.loads(files[f"{language}/data.json"])) for language in languages}
    for entry in json.loads(files["en/data.json"]):
        if "group" not in entry:  # regional indicators, which are letters of flags
            continue
        code = plain_code(entry["hexcode"])
        subject = Subject(
            code,
            concept_of(entry["label"], groups[entry["group"]]),
            {language: words[code][0] for language, words in said.items() if code in words},
            {language: words[code][1] for language, words in said.items() if code in words and words[code][1]},
            GENDERS.get(entry.get("gender"), ""),
            groups[entry["group"]],
        )
        subjects.append(subject)
        codes[code] = Variant(code)
        names.setdefault(squeezed(entry["label"]), codes[code])
        for skin in entry.get("skins", ()):
            tone = skin["tone"]
            tones = [TONES[each] for each in (tone if isinstance(tone, list) else [tone])]
            variant = Variant(code, " and ".join(dict.fromkeys(tones)))
            codes[plain_code(skin["hexcode"])] = variant
            names.setdefault(squeezed(skin["label"]), variant)
    for name, content in files.items():
        if name.startswith("en/shortcodes/") and name.endswith(".json"):
            for code, shortcodes in json.loads(content).items():
                variant = codes.get(plain_code(code))
                for shortcode in [shortcodes] if isinstance(shortcodes, str) else shortcodes:
                    if variant and len(shortcode) > 2:
                        names.setdefault(squeezed(shortcode), variant)
    for entry in " ".join(OBJECTS.split()).split(", "):
        name, _, label = (part.strip() for part in entry.partition("="))
        if squeezed(name) not in names:
            subjects.append(Subject(name.replace(" ", "-"), label or name, {"en": label or name}))
            names[squeezed(name)] = Variant(name.replace(" ", "-"))
    return Catalogue(subjects, codes, names)


def _words_by_code(entries: list[dict[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    return {plain_code(entry["hexcode"]): (entry["label"], entry.get("tags", [])) for entry in entries}


def concept_of(label: str, group: str) -> str:
    """Return the concept of an emoji from its name: the name without gender, hair style and walking direction."""
    if group == "flags":
        return label.replace("flag: ", "flag of ")
    return base_name(label.replace(":", "").replace(",", ""))


def plain_code(code: str) -> str:
    """Normalise code points such as "2764-fe0f": upper case, without the variation selector FE0F."""
    return code.upper().replace(VARIATION_SELECTOR, "")


def squeezed(name: str) -> str:
    """Normalise a name for comparison, to lower case letters and digits only: "Red Apple" -> "redapple"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("\u2019", "").replace("&", "and"))


def spellings(name: str) -> list[str]:
    """Convert the name of a drawing in an emoji set to keys of `Catalogue.names`, to be tried in this order.

    They are the name as written, without a number at its end, and as the name of a flag:
    "flag-for-france-2" -> "flagforfrance2", "flagforfrance", "flagfrance".
    """
    bare = re.sub(r"-\d+$", "", name)
    flag = re.sub(r"^flag-for-(flag-)?", "", bare)
    return [squeezed(each) for each in (name, bare, f"flag {flag}") if each]
