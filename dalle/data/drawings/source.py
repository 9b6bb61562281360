"""Data source `drawings`: things named in words, drawn in many styles, from packages that anyone can install.

Besides the drawings themselves it composes pictures from them: drawings in another colour, two panels with exactly the
same drawing in two styles, and small scenes of two drawings. `make drawings` builds the folder.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dalle.data.drawings import wording
from dalle.data.drawings.languages import names_in
from dalle.data.drawings.render import COLOURS, Drawings, Picture, recoloured
from dalle.data.drawings.splits import SPLITS, held_out_colour, held_out_concept, held_out_style
from dalle.data.drawings.subjects import GROUPS, ICONS, Subject
from dalle.data.emoji import hash_fraction
from dalle.data.index import StringArray, digest_of
from dalle.data.opt_out import OptOut
from dalle.data.source import Record
from dalle.seeds import numpy_generator

ATTRIBUTION = (
    "Drawings: OpenMoji (CC BY-SA 4.0), Fluent Emoji (Microsoft, MIT), Twemoji (CC BY 4.0), Noto Emoji (Google, Apache "
    "2.0), EmojiOne (CC BY 4.0, CC BY-SA 4.0) and icon sets: docs/drawings.md"
)
RENDERED = 5 / 4  # side of rendered drawings in units of image_size: crops need not enlarge them
PEOPLE = ("stated", "open")


@dataclass(frozen=True)
class MixConfig:
    """Numbers of composed pictures of each kind, per drawing of a split."""

    colours: float = 0.4  # drawings of a single colour in another one: "a green umbrella"
    panels: float = 0.6  # the same drawing in two styles, one above the other
    scenes: float = 0.3  # two drawings: "two owls", "a rocket above a house"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"data.mix.{name}={value} must be at least 0")


@dataclass
class DrawingsConfig:
    """Emoji and icon sets: about 23,000 drawings of 1,980 concepts in 17 styles, with names and keywords.

    They are built with `make drawings`, and rendered once. Needs extra packages: pip install 'dalle[data]'.

    Splits: train and val by concept; novel has concepts in styles, colours has concepts in colours, in which training
    never shows them.
    Attribution: docs/drawings.md lists the authors and licences of all sets. Show with the images, and with images of
    models trained on them:
    "Drawings: OpenMoji (CC BY-SA 4.0), Fluent Emoji (Microsoft, MIT), Twemoji (CC BY 4.0), Noto Emoji (Google, Apache
    2.0), EmojiOne (CC BY 4.0, CC BY-SA 4.0) and icon sets: docs/drawings.md"
    """

    name: str = "drawings"
    path: str = "outputs/drawings"  # folder built by `make drawings`
    image_size: int = 128  # side in pixels of the square images that models get
    validation_share: float = 0.07  # share of the concepts held out for validation
    languages: list[str] = field(default_factory=lambda: ["en"])  # of the captions; panels and scenes are in English
    people: str = "stated"  # stated: captions name the skin tone that is drawn | open: they leave it open
    skin_tones: float = 0.3  # share of the drawings with a skin tone that are used, besides those without one
    groups: list[str] = field(default_factory=list)  # use these groups of things only, such as [food-drink]; []: all
    mix: MixConfig = field(default_factory=MixConfig)
    opt_out: str = ""  # text file of keys to leave out
    seed: int = 0  # of the choice of composed pictures

    def __post_init__(self) -> None:
        if isinstance(self.mix, dict):  # from the JSON of a checkpoint
            self.mix = MixConfig(**self.mix)
        if not 0 < self.validation_share < 1:
            raise ValueError(f"data.validation_share must lie between 0 and 1, got {self.validation_share}")
        if self.people not in PEOPLE:
            raise ValueError(f"data.people={self.people} is unknown; choose one of {', '.join(PEOPLE)}")
        if unknown := [group for group in self.groups if group not in GROUPS]:
            raise ValueError(f"data.groups: there is no group {', '.join(unknown)}; the groups are {', '.join(GROUPS)}")
        if not self.languages:
            raise ValueError("data.languages is empty; name at least one, such as [en]")


class Composed(NamedTuple):
    """One record of the data source: a drawing, or a picture composed of two drawings."""

    kind: str  # "drawing" | "colour" | "panels" | "alike" | relation of two drawings: "above", "to the left of"
    first: int  # numbers of drawings
    second: int = -1
    colour: str = ""


class DrawingsSource:
    """Data source of one split of `drawings`: drawings and pictures composed of them.

    Held-out records are in random order, so that the first ones represent the split. Raises ValueError for an unknown
    split and a folder without drawings.
    """

    def __init__(self, config: DrawingsConfig, split: str):
        if split not in SPLITS:
            raise ValueError(f"the drawings have the splits {', '.join(SPLITS)}, not {split!r}")
        self.config = config
        self.image_size = config.image_size
        self.drawings = Drawings(Path(config.path).expanduser(), round(config.image_size * RENDERED))
        self.check_languages()
        self.dropped: dict[str, int] = {}
        self.records = list(records_of(self.drawings.pictures, config, split, self.dropped))
        if split != "train":
            order = numpy_generator("order of held-out drawings", config.seed).permutation(len(self.records))
            self.records = [self.records[number] for number in order]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return Record(self.image(index), self.captions(index), self.key(index))

    def image(self, index: int) -> Image.Image:
        """Return the picture at `index`, (5/4 image_size) pixels wide and high."""
        record = self.records[index]
        first = self.drawings.image(record.first)
        if record.kind == "drawing":
            return first
        if record.kind == "colour":
            return recoloured(first, record.colour)
        second = first if record.kind == "alike" else self.drawings.image(record.second)
        return side_by_side(first, second, upright=record.kind in ("panels", "above"))

    def key(self, index: int) -> str:
        record = self.records[index]
        first = self.drawings.pictures[record.first].key
        if record.kind == "drawing":
            return first
        second = record.colour or (self.drawings.pictures[record.second].key if record.second >= 0 else "")
        return "/".join(filter(None, (record.kind.replace(" ", "-"), first, second)))

    def keys(self) -> StringArray:
        """Return the keys of all records: twemoji/1F34E, colour/tabler/umbrella/green, ..."""
        return StringArray.from_strings(map(self.key, range(len(self))))

    def captions(self, index: int) -> tuple[str, ...]:
        """Return all captions of the record at `index`. Panels and scenes have English ones only."""
        return tuple(caption for _, captions in self.captions_by_language(index) for caption in captions)

    def captions_by_language(self, index: int) -> list[tuple[str, list[str]]]:
        """Return the captions of the record at `index` with the language of each group."""
        record = self.records[index]
        picture = self.drawings.pictures[record.first]
        subject, style = picture.subject, picture.drawing_set.style
        match record.kind:
            case "drawing":
                names = wording.names_of(subject, picture.tone, self.config.people == "stated")
                return self.in_languages(wording.in_style(names, style), subject, style)
            case "colour":
                said = wording.in_colour(subject, record.colour, style)
                return self.in_languages(said, subject, style, record.colour)
            case "alike":
                said = wording.two_alike(subject, style)
            case "panels":
                said = wording.same_below(subject, self.drawings.pictures[record.second].drawing_set.style)
            case relation:
                said = wording.placed(subject, relation, self.drawings.pictures[record.second].subject, style)
        return [("en", said)]

    def in_languages(
        self, english: list[str], subject: Subject, style: str, colour: str = ""
    ) -> list[tuple[str, list[str]]]:
        """Return the captions of a drawing in the config's languages, about the same number in each.

        They are the English ones if the subject has no words in these languages.
        """
        said: list[tuple[str, list[str]]] = []
        for language in self.config.languages:
            if language == "en":
                said.append((language, english))
            elif language in subject.labels:
                tags = subject.tags.get(language, [])[: wording.MOST_TAGS]
                names = names_in(language, subject.labels[language], tags, style, colour)
                if names:
                    repeated = names * (1 + len(english) // len(names))
                    said.append((language, repeated[: len(english)]))
        return said or [("en", english)]

    def check_languages(self) -> None:
        """Raise ValueError if a language of the config has no words."""
        known = sorted({language for subject in self.drawings.subjects.values() for language in subject.labels})
        if unknown := [language for language in self.config.languages if language not in known]:
            raise ValueError(f"data.languages: no words in {', '.join(unknown)}; there are words in {', '.join(known)}")

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height of the picture, which is square."""
        return self.drawings.side, self.drawings.side

    def attributions(self) -> list[dict[str, str]]:
        """Return name, author, licence and address of each set of drawings."""
        return [
            {"set": name, **{key: entry[key] for key in ("author", "licence", "url")}}
            for name, entry in self.drawings.sources["sets"].items()
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of records by kind, set, style and language of a caption; a record has several of these."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("kind", "set", "style", "language")}
        english = self.config.languages == ["en"]  # then captions, which take long to word, need not be looked at
        for index, record in enumerate(self.records):
            drawings = [self.drawings.pictures[number] for number in (record.first, record.second) if number >= 0]
            kind = record.kind if record.kind in ("drawing", "colour", "panels") else "scene"
            counts["kind"][kind] += 1
            counts["set"].update({each.drawing_set.name for each in drawings})
            counts["style"].update({each.drawing_set.style for each in drawings})
            groups = [] if english else self.captions_by_language(index)
            counts["language"].update({language for language, _ in groups} or {"en"})
        return {name: dict(counter.most_common()) for name, counter in counts.items()}

    def digest(self) -> str:
        """Return a digest of the packages, the settings, the records and, of some, the captions."""
        settings = asdict(self.config) | {"path": ""}
        if not settings["groups"]:
            del settings["groups"]  # digests in checkpoints are older than the setting
        described = [self.drawings.sources["sets"], settings]
        some = range(0, len(self), max(1, len(self) // 200))
        return digest_of(repr((described, self.records, [self.captions(index) for index in some])).encode())


def side_by_side(first: Image.Image, second: Image.Image, upright: bool) -> Image.Image:
    """Place two squares on a white square of the same size, each with half its side: above each other, or in a row."""
    side = first.width
    half = side // 2
    canvas = Image.new("RGB", (side, side), "white")
    for number, image in enumerate((first, second)):
        small = image.resize((half, half), Image.Resampling.LANCZOS)
        along, across = number * half, (side - half) // 2
        canvas.paste(small, (across, along) if upright else (along, across))
    return canvas


def records_of(
    pictures: list[Picture], config: DrawingsConfig, split: str, dropped: dict[str, int]
) -> Iterator[Composed]:
    """Yield the records of a split: its drawings, then the pictures composed of them."""
    opt_out = OptOut.read(config.opt_out)
    styles: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        styles[picture.subject.concept].add(picture.drawing_set.style)
    wanted = "train" if split == "colours" else split
    used: list[int] = []
    for number, picture in enumerate(pictures):
        concept, style = picture.subject.concept, picture.drawing_set.style
        if config.groups and (picture.subject.group or ICONS) not in config.groups:
            continue
        if reason := opt_out.reason(picture.key):
            dropped[reason] = dropped.get(reason, 0) + 1
        elif picture.tone and hash_fraction(f"tone {picture.key}") >= config.skin_tones:
            continue
        elif wanted == home_of(concept, style, len(styles[concept]), config.validation_share):
            used.append(number)
    if split != "colours":
        yield from (Composed("drawing", number) for number in used)
    yield from coloured(pictures, used, config, split)
    if split in ("train", "val"):
        yield from panels(pictures, used, config)
    if split == "train":
        yield from scenes(pictures, used, config)


def home_of(concept: str, style: str, styles: int, validation_share: float) -> str:
    """Return the split of a drawing: "train", "val" or "novel". styles: number of styles that show the concept."""
    if held_out_concept(concept, validation_share):
        return "val"
    return "novel" if held_out_style(concept, style, styles) else "train"


def coloured(pictures: list[Picture], used: list[int], config: DrawingsConfig, split: str) -> Iterator[Composed]:
    """Yield records of the drawings `used` (positions in `pictures`) in another colour.

    In the split colours, they are one drawing for each held-out combination of concept and colour.
    """
    options = [
        (number, colour)
        for number in used
        if pictures[number].drawing_set.recolour
        and not pictures[number].tone
        and not wording.has_colour(pictures[number].subject)
        for colour in COLOURS
        if colour != "black" and held_out_colour(pictures[number].subject.concept, colour) == (split == "colours")
    ]
    if split == "colours":
        first = {(pictures[number].subject.concept, colour): number for number, colour in reversed(options)}
        yield from (Composed("colour", number, colour=colour) for (_, colour), number in sorted(first.items()))
    elif split in ("train", "val"):
        for place in chosen(len(options), config.mix.colours * len(used), "colours", config.seed):
            yield Composed("colour", options[place][0], colour=options[place][1])


def panels(pictures: list[Picture], used: list[int], config: DrawingsConfig) -> Iterator[Composed]:
    """Yield records of two panels: the same drawing in two styles, both among `used` (positions in `pictures`)."""
    same: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number in used:
        picture = pictures[number]
        if not picture.tone:
            same[picture.drawing_set.family, picture.subject.id, identity(picture)].append(number)
    options = [
        (top, bottom)
        for numbers in same.values()
        for top, bottom in permutations(numbers, 2)
        if pictures[top].drawing_set.style != pictures[bottom].drawing_set.style
    ]
    for place in chosen(len(options), config.mix.panels * len(used), "panels", config.seed):
        yield Composed("panels", *options[place])


def identity(picture: Picture) -> str:
    """Return the string that is equal for the same drawing in two sets of a family: its name in icon sets, else ""."""
    return picture.key.partition("/")[2] if picture.drawing_set.kind == "icons" else ""


def scenes(pictures: list[Picture], used: list[int], config: DrawingsConfig) -> Iterator[Composed]:
    """Yield different scenes: two drawings of the same set, both among `used` (positions in `pictures`)."""
    by_set: dict[str, list[int]] = defaultdict(list)
    for number in used:
        if not pictures[number].tone and wording.countable(pictures[number].subject):
            by_set[pictures[number].drawing_set.name].append(number)
    usable = [number for numbers in by_set.values() for number in numbers if len(numbers) > 1]
    kinds = ("alike", *wording.OPPOSITE)
    seen: set[Composed] = set()
    for place in range(round(config.mix.scenes * len(used)) if usable else 0):
        generator = numpy_generator("scene of drawings", config.seed, place)
        first = usable[int(generator.integers(len(usable)))]
        kind = kinds[int(generator.integers(len(kinds)))]
        others = by_set[pictures[first].drawing_set.name]
        second = others[int(generator.integers(len(others)))]
        scene = Composed(kind, first) if kind == "alike" else Composed(kind, first, second)
        same = kind != "alike" and pictures[second].subject.id == pictures[first].subject.id
        if not same and scene not in seen:
            seen.add(scene)
            yield scene


def chosen(options: int, count: float, kind: str, seed: int) -> list[int]:
    """Draw `count` of the numbers from 0 to `options` - 1, or all if there are fewer. Returns them in order."""
    count = min(options, round(count))
    drawn = numpy_generator(f"{kind} of drawings", seed).choice(options, count, replace=False) if count else []
    return sorted(int(each) for each in drawn)
