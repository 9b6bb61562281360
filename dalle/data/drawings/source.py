"""Data source `drawings`: things named in words, drawn in many styles, from packages that anyone can install.

Besides the drawings themselves it composes pictures from them: drawings in another colour, two panels with exactly the
same drawing in two styles, and small scenes of two drawings. `make drawings` builds the folder.
"""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from dalle.data.drawings import wording
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.languages import names_in
from dalle.data.drawings.packages import EMOJIBASE, Package
from dalle.data.drawings.records import NOT_RENDERED, records_of
from dalle.data.drawings.render import Drawings, recoloured
from dalle.data.drawings.splits import SPLITS
from dalle.data.drawings.subjects import Subject
from dalle.data.index import StringArray, digest_of
from dalle.data.source import Record
from dalle.seeds import numpy_generator

ATTRIBUTION = (
    "Drawings: OpenMoji (CC BY-SA 4.0), Fluent Emoji (Microsoft, MIT), Twemoji (CC BY 4.0), Noto Emoji (Google, Apache "
    "2.0), EmojiOne (CC BY 4.0, CC BY-SA 4.0) and icon sets: docs/drawings.md"
)
RENDERED = 5 / 4  # side of rendered drawings in units of image_size: crops need not enlarge them


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
        self.dropped = +Counter({NOT_RENDERED: self.drawings.left_out})  # of the whole data set, without zeros
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
        """Return the key of the record at `index`, such as openmoji/1F34E or colour/tabler/umbrella/green."""
        record = self.records[index]
        first = self.drawings.pictures[record.first].key
        if record.kind == "drawing":
            return first
        second = record.colour or (self.drawings.pictures[record.second].key if record.second >= 0 else "")
        return "/".join(filter(None, (record.kind.replace(" ", "-"), first, second)))

    def keys(self) -> StringArray:
        """Return the keys of all records: openmoji/1F34E, colour/tabler/umbrella/green, ..."""
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
                stated = picture.tone != "" and self.config.people == "stated"
                names = wording.names_of(subject, picture.tone, stated, picture.drawing_set.recolour)
                captions = wording.in_style(names, style)
                return [("en", captions)] if stated else self.in_languages(captions, subject, style)
            case "colour":
                captions = wording.in_colour(subject, record.colour, style)
                return self.in_languages(captions, subject, style, record.colour)
            case "alike":
                captions = wording.two_alike(subject, style)
            case "panels":
                captions = wording.same_below(subject, self.drawings.pictures[record.second].drawing_set.style)
            case relation:
                captions = wording.placed(subject, relation, self.drawings.pictures[record.second].subject, style)
        return [("en", captions)]

    def in_languages(
        self, english: list[str], subject: Subject, style: str, colour: str = ""
    ) -> list[tuple[str, list[str]]]:
        """Return the captions of a drawing in the config's languages, about the same number in each.

        They are the English ones if the subject has no words in these languages.
        """
        captions: list[tuple[str, list[str]]] = []
        for language in self.config.languages:
            if language == "en":
                captions.append((language, english))
            elif language in subject.labels:
                tags = subject.tags.get(language, [])[: wording.MAX_TAGS]
                names = names_in(language, subject.labels[language], tags, style, colour)
                if names:
                    repeated = names * (1 + len(english) // len(names))
                    captions.append((language, repeated[: len(english)]))
        return captions or [("en", english)]

    def check_languages(self) -> None:
        """Raise ValueError if a language of the config has no words."""
        available = sorted({language for subject in self.drawings.subjects.values() for language in subject.labels})
        if unknown := [language for language in self.config.languages if language not in available]:
            raise ValueError(
                f"data.languages: no words in {', '.join(unknown)}; there are words in {', '.join(available)}"
            )

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height of the picture, which is square."""
        return self.drawings.side, self.drawings.side

    def attributions(self) -> list[dict[str, str]]:
        """Return name, author, licence and address of each set of drawings."""
        return [
            {"set": name, **{key: entry[key] for key in ("author", "licence", "url")}}
            for name, entry in self.drawings.sources["sets"].items()
        ]

    def packages(self) -> list[dict[str, str]]:
        """Return name, address and SHA-256 of each package that the drawings and their words come from."""
        entries = self.drawings.sources["sets"].values()
        used_packages = {EMOJIBASE for entry in entries if entry["words"] == EMOJIBASE.sha256}
        for entry in entries:
            name, _, version = entry["package"].rpartition("@")
            used_packages.add(Package(name, version, entry["sha256"]))
        return [
            {"name": str(package), "url": package.url, "sha256": package.sha256}
            for package in sorted(used_packages, key=str)
        ]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of records by kind, set, style and language of a caption; a record has several of these."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("kind", "set", "style", "language")}
        english = self.config.languages == ["en"]  # then captions, which take long to word, need not be looked at
        for index, record in enumerate(self.records):
            drawings = [self.drawings.pictures[number] for number in (record.first, record.second) if number >= 0]
            kind = record.kind if record.kind in ("drawing", "colour", "panels") else "scene"
            counts["kind"][kind] += 1
            counts["set"].update({drawing.drawing_set.name for drawing in drawings})
            counts["style"].update({drawing.drawing_set.style for drawing in drawings})
            groups = [] if english else self.captions_by_language(index)
            counts["language"].update({language for language, _ in groups} or {"en"})
        return {name: dict(counter.most_common()) for name, counter in counts.items()}

    def digest(self) -> str:
        """Return a digest of the drawings and their pixels, the settings, the records and, of some, the captions."""
        settings = asdict(self.config) | {"path": ""}
        drawings_and_settings = [self.drawings.digest, settings]
        sampled_indices = range(0, len(self), max(1, len(self) // 200))
        return digest_of(
            repr((drawings_and_settings, self.records, [self.captions(index) for index in sampled_indices])).encode()
        )


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
