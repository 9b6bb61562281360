"""Records of the data source `drawings`: drawings of a split, and pictures composed of them."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

from dalle.data.drawings import wording
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.render import COLOURS, Picture
from dalle.data.drawings.sets import STYLE_COLOURS
from dalle.data.drawings.splits import held_out_colour, held_out_concept, held_out_style
from dalle.data.drawings.subjects import ICONS
from dalle.data.emoji import hash_fraction
from dalle.data.opt_out import OptOut
from dalle.seeds import numpy_generator

log = logging.getLogger(__name__)

# reasons to leave out drawings, besides the opt-out list
NOT_RENDERED = "that are empty, or look the same as one of another concept or skin tone in their set"
OTHER_GROUP = "of groups that data.groups does not name"
SKIN_TONE = "with a skin tone, beyond the share that data.skin_tones uses"
COPY = "held out, but with the pixels of a training drawing"


class Composed(NamedTuple):
    """One record of the data source: a drawing, or a picture composed of two drawings."""

    kind: str  # "drawing" | "colour" | "panels" | "alike" | relation of two drawings: "above", "to the left of"
    first: int  # numbers of drawings
    second: int = -1
    colour: str = ""


def records_of(
    pictures: list[Picture], config: DrawingsConfig, split: str, dropped: Counter[str]
) -> Iterator[Composed]:
    """Yield the records of a split: its drawings, then the pictures composed of them.

    The drawings that are in no split are counted in `dropped`, by reason.
    """
    styles: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        styles[picture.subject.concept].add(picture.drawing_set.style)
    splits = [
        split_of(picture.subject.concept, picture.drawing_set.style, len(styles[picture.subject.concept]), config)
        for picture in pictures
    ]
    training_pixels = {
        picture.pixels for picture, home_split in zip(pictures, splits, strict=True) if home_split == "train"
    }
    drawings_split = "train" if split == "colours" else split
    drawing_numbers = []
    for number in allowed_numbers(pictures, config, dropped):
        if splits[number] != "train" and pictures[number].pixels in training_pixels:
            dropped[COPY] += 1
        elif splits[number] == drawings_split:
            drawing_numbers.append(number)
    if split != "colours":
        yield from (Composed("drawing", number) for number in drawing_numbers)
    yield from recoloured_records(pictures, drawing_numbers, config, split)
    if split in ("train", "val"):
        yield from panel_records(pictures, drawing_numbers, config)
    if split == "train":
        yield from scene_records(pictures, drawing_numbers, config)


def allowed_numbers(pictures: list[Picture], config: DrawingsConfig, dropped: Counter[str]) -> Iterator[int]:
    """Yield the numbers of the drawings that the settings use: their groups, skin tones and opt-out list.

    The others are counted in `dropped`, each by one reason.
    """
    opt_out = OptOut.read(config.opt_out)
    for number, picture in enumerate(pictures):
        reason = opt_out.reason(picture.key)
        if config.groups and (picture.subject.group or ICONS) not in config.groups:
            dropped[OTHER_GROUP] += 1
        elif reason:
            dropped[reason] += 1
        elif picture.tone and hash_fraction(f"tone {picture.key}") >= config.skin_tones:
            dropped[SKIN_TONE] += 1
        else:
            yield number
    if unmatched := opt_out.unmatched():
        log.warning("%d entries of data.opt_out are no drawing, such as %s", len(unmatched), unmatched[0])


def split_of(concept: str, style: str, styles: int, config: DrawingsConfig) -> str:
    """Return the split of a drawing: "train", "val" or "novel". styles: number of styles that show the concept."""
    if held_out_concept(concept, config.validation_share):
        return "val"
    return "novel" if held_out_style(concept, style, styles) else "train"


def recoloured_records(
    pictures: list[Picture], drawing_numbers: list[int], config: DrawingsConfig, split: str
) -> Iterator[Composed]:
    """Yield records of drawings in another colour. drawing_numbers: positions in `pictures`.

    In the split colours, they are one drawing for each held-out combination of concept and colour. A combination that
    a set's style shows, such as a concept drawn as a blue icon, is not held out.
    """
    painted_combinations = {
        (picture.subject.concept, STYLE_COLOURS[picture.drawing_set.style])
        for picture in pictures
        if picture.drawing_set.style in STYLE_COLOURS
    }

    def is_held_out(concept: str, colour: str) -> bool:
        return (concept, colour) not in painted_combinations and held_out_colour(concept, colour)

    options = [
        (number, colour)
        for number in drawing_numbers
        if pictures[number].drawing_set.recolour
        and not pictures[number].tone
        and not wording.has_colour(pictures[number].subject)
        for colour in COLOURS
        if colour != "black" and is_held_out(pictures[number].subject.concept, colour) == (split == "colours")
    ]
    if split == "colours":
        first_drawing = {(pictures[number].subject.concept, colour): number for number, colour in reversed(options)}
        yield from (Composed("colour", number, colour=colour) for (_, colour), number in sorted(first_drawing.items()))
    elif split in ("train", "val"):
        for index in draw_numbers(len(options), config.mix.colours * len(drawing_numbers), "colours", config.seed):
            yield Composed("colour", options[index][0], colour=options[index][1])


def panel_records(pictures: list[Picture], drawing_numbers: list[int], config: DrawingsConfig) -> Iterator[Composed]:
    """Yield records of two panels: the same drawing in two styles. drawing_numbers: positions in `pictures`."""
    same_drawings: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number in drawing_numbers:
        picture = pictures[number]
        if not picture.tone:
            same_drawings[picture.drawing_set.family, picture.subject.id, identity(picture)].append(number)
    options = [
        (top, bottom)
        for numbers in same_drawings.values()
        for top, bottom in permutations(numbers, 2)
        if pictures[top].drawing_set.style != pictures[bottom].drawing_set.style
    ]
    for index in draw_numbers(len(options), config.mix.panels * len(drawing_numbers), "panels", config.seed):
        yield Composed("panels", *options[index])


def identity(picture: Picture) -> str:
    """Return the string that is equal for the same drawing in two sets of a family: its name in icon sets, else ""."""
    return picture.key.partition("/")[2] if picture.drawing_set.kind == "icons" else ""


def scene_records(pictures: list[Picture], drawing_numbers: list[int], config: DrawingsConfig) -> Iterator[Composed]:
    """Yield different scenes of two drawings of the same set. drawing_numbers: positions in `pictures`."""
    by_set: dict[str, list[int]] = defaultdict(list)
    for number in drawing_numbers:
        if not pictures[number].tone and wording.countable(pictures[number].subject):
            by_set[pictures[number].drawing_set.name].append(number)
    usable = [number for numbers in by_set.values() for number in numbers if len(numbers) > 1]
    kinds = ("alike", *wording.OPPOSITE)
    yielded: set[Composed] = set()
    for index in range(round(config.mix.scenes * len(drawing_numbers)) if usable else 0):
        generator = numpy_generator("scene of drawings", config.seed, index)
        first = usable[int(generator.integers(len(usable)))]
        kind = kinds[int(generator.integers(len(kinds)))]
        numbers_of_set = by_set[pictures[first].drawing_set.name]
        second = numbers_of_set[int(generator.integers(len(numbers_of_set)))]
        scene = Composed(kind, first) if kind == "alike" else Composed(kind, first, second)
        is_same_subject = kind != "alike" and pictures[second].subject.id == pictures[first].subject.id
        if not is_same_subject and scene not in yielded:
            yielded.add(scene)
            yield scene


def draw_numbers(options: int, count: float, kind: str, seed: int) -> list[int]:
    """Draw `count` of the numbers from 0 to `options` - 1, or all if there are fewer. Returns them in order."""
    count = min(options, round(count))
    numbers = numpy_generator(f"{kind} of drawings", seed).choice(options, count, replace=False) if count else []
    return sorted(int(number) for number in numbers)
