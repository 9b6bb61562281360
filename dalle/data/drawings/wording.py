"""Captions of drawings: names of a subject, style phrases, colours, two panels and small scenes, in English.

Each function returns all captions of one picture. The data loader draws one of them in each epoch; the first one is
used for validation. A caption that occurs twice is drawn twice as often.
"""

import re
from itertools import product

from dalle.data.drawings.sets import STYLES
from dalle.data.drawings.subjects import Subject
from dalle.data.emoji_words import AFTER_HEAD, flag_phrase, phrase, with_article

MAX_TAGS = 4
COLOUR_WORDS = re.compile(
    r"\b(black|white|red|orange|yellow|green|teal|blue|purple|pink|brown|gray|grey|colou?r|rainbow|blond)",
    re.IGNORECASE,
)
NOT_BLACK = re.compile(r"\b(red|orange|yellow|green|teal|blue|purple|pink|brown|gr[ae]y|blond)\b", re.IGNORECASE)
VAGUE = {
    "face",
    "person",
    "man",
    "woman",
    "symbol",
    "button",
    "hand",
    "people",
    "sign",
    "mark",
    "with",
    "and",
    "of",
    "in",
}
STYLED = ("{name}, {style}", "{a style} of {name}", "{name} as {a style}")
UNCOUNTED_NAMES = (  # endings of names without a plural, or with one that looks like the singular
    "fish", "sheep", "deer", "squid", "shrimp", "wolf", "leaf", "knife", "mouse", "goose", "milk", "wheat", "yoga",
    "grass", "liquid", "leafy green", "usb", "arrival", "departure", "increasing", "decreasing", "done",
)  # fmt: skip
UNCOUNTED_STYLES = re.compile(r".*(design|art)$")


def names_of(subject: Subject, tone: str = "", stated: bool = True, black: bool = False) -> list[str]:
    """Return English names of a subject as noun phrases, the full name first and three times: "a dog face".

    tone: the skin tone that is shown; it is part of each name if `stated`.
    black: the drawing is black, so tags with another colour are left out.
    """
    label = subject.labels["en"]
    if subject.group == "flags" and label.startswith("flag: "):
        return [flag_phrase(label.removeprefix("flag: "))]
    label = label.replace(": ", " ").replace(",", "").replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    tones = [f"{part} skin tone" for part in tone.split(" and ")] if tone and stated else []
    full = phrase(label, tones)
    tags = [tag for tag in subject.tags.get("en", ()) if re.fullmatch(r"[a-z][a-z' -]{2,}", tag)]
    tags = [tag for tag in tags if not (black and NOT_BLACK.search(tag))]
    words = set(label.lower().split())
    head = [word for word in AFTER_HEAD.split(f"{label} ")[0].lower().split() if word not in VAGUE]
    short = [phrase(tag, tones) for tag in tags if head and tag == head[-1] and tag != label]
    further = [f"{full}, {tag}" for tag in tags if tag not in words][:MAX_TAGS]
    return [full, full, full, *short, *further]


def in_style(names: list[str], style: str, coloured: bool = False) -> list[str]:
    """Return captions of each of `names` that state the style, and a few that leave it open: "an owl, 3D render".

    coloured: leave out phrases that say that the drawing is black.
    """
    phrases = [style_phrase for style_phrase in STYLES[style] if not (coloured and "black" in style_phrase)]
    captions = [
        template.format(**{"name": name, "style": style_phrase, "a style": a_style(style_phrase)})
        for name, style_phrase, template in product(names, phrases, STYLED)
    ]
    return [*captions, *names[: 1 + len(names) // 2]]


def a_style(style: str) -> str:
    """Return a style phrase with its article, where it takes one: "a line drawing", "pixel art"."""
    return style if UNCOUNTED_STYLES.fullmatch(style) else with_article(style)


def has_colour(subject: Subject) -> bool:
    """Return True if the subject's name has a colour, or if it is a flag: it cannot be described in another colour."""
    return subject.group == "flags" or bool(COLOUR_WORDS.search(subject.labels["en"]))


def named_by_colour(subject: Subject) -> bool:
    """Return True if the subject's name has a colour other than black, which a black drawing does not show."""
    return bool(NOT_BLACK.search(subject.labels["en"]))


def in_colour(subject: Subject, colour: str, style: str) -> list[str]:
    """Return captions of a drawing in a single colour: "a green umbrella, line icon"."""
    return in_style([with_article(f"{colour} {subject_label(subject)}")] * 2, style, coloured=True)


def same_below(subject: Subject, bottom: str) -> list[str]:
    """Return captions of two panels with the same drawing in two styles, the lower one in the style `bottom`.

    "the exact same owl on the top as a line drawing on the bottom"
    """
    name = bare_name(subject)
    style_phrases = STYLES[bottom]
    captions = [
        f"the exact same {name} on the top as {a_style(style_phrase)} on the bottom" for style_phrase in style_phrases
    ]
    unnamed_captions = [
        f"the exact same picture on the top as {a_style(style_phrase)} on the bottom"
        for style_phrase in style_phrases[:1]
    ]
    return [*captions, *captions, *unnamed_captions]


def bare_name(subject: Subject) -> str:
    """Return the English name of a subject without an article: "owl", "flag of France"."""
    return re.sub(r"^(an?|the) ", "", names_of(subject)[0])


def subject_label(subject: Subject) -> str:
    """Return the English name of a subject without colons and commas."""
    return subject.labels["en"].replace(": ", " ").replace(",", "").replace("\u2019", "'")


def countable(subject: Subject) -> bool:
    """Return True for one thing with a short name and a regular plural, which scenes can show: "an owl"."""
    label = subject_label(subject)
    return (
        subject.group in ("", "animals-nature", "food-drink", "travel-places", "activities", "objects")
        and re.fullmatch(r"[a-z]+( [a-z]+)?", label) is not None
        and with_article(label) != label
        and not AFTER_HEAD.search(f"{label} ")
        and not label.endswith(UNCOUNTED_NAMES)
    )


PLURALS = {
    "man": "men",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mosquito": "mosquitoes",
    "volcano": "volcanoes",
    "tornado": "tornadoes",
    "mango": "mangoes",
    "buffalo": "buffaloes",
    "shelf": "shelves",
    "scarf": "scarves",
    "stomach": "stomachs",
    "ox": "oxen",
    "die": "dice",
    "dice": "dice",
    "moose": "moose",
    "bison": "bison",
    "bacteria": "bacteria",
}
IRREGULAR = re.compile(rf"({'|'.join(singular for singular in PLURALS if singular != 'ox')}|\box)$")  # no box or fox


def plural(label: str) -> str:
    """Return the plural of a name: "owls", "foxes", "cherries", "snowmen"."""
    if irregular := IRREGULAR.search(label):
        return label[: irregular.start()] + PLURALS[irregular[0]]
    if re.search(r"(s|x|z|ch|sh)$", label):
        return f"{label}es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", label) + "s"


def two_alike(subject: Subject, style: str) -> list[str]:
    """Return captions of two equal drawings of a subject side by side: "two owls"."""
    return in_style([f"two {plural(subject_label(subject))}"] * 2, style)


def placed(first: Subject, relation: str, second: Subject, style: str) -> list[str]:
    """Return captions of a scene of two drawings: "a rocket above a house". relation: key of `OPPOSITE`."""
    first_phrase, second_phrase = with_article(subject_label(first)), with_article(subject_label(second))
    return in_style(
        [f"{first_phrase} {relation} {second_phrase}", f"{second_phrase} {OPPOSITE[relation]} {first_phrase}"], style
    )


OPPOSITE = {"above": "below", "to the left of": "to the right of"}
