"""A small folder of drawings, built from packages made here: five subjects in three sets, without a network."""

import io
import json
import tarfile
from pathlib import Path

from dalle.data.drawings.packages import EMOJIBASE, FLUENT_3D, ICONIFY, OPENMOJI, Package

EMOJIS = {
    "1F34E": ("red apple", ["apple", "fruit", "red"], "pomme rouge", 3),
    "1F989": ("owl", ["bird", "wise"], "hibou", 3),
    "1F680": ("rocket", ["launch", "space"], "fusée", 3),
    "2602-FE0F": ("umbrella", ["rain", "clothing"], "parapluie", 3),
    "1F44B": ("waving hand", ["hello", "wave"], "signe de la main", 1),
    "1F1EB-1F1F7": ("flag: France", ["FR"], "drapeau : France", 9),
}
GROUPS = {1: "people-body", 3: "animals-nature", 9: "flags"}
ICONS = ("umbrella", "owl", "rocket", "dumbbell", "apple", "settings")


def square(colour: str, number: int = 0) -> str:
    """Return the SVG body of a square in the middle of 16 x 16 units, with a mark below it for each number."""
    return f'<path fill="{colour}" d="M4 4h8v8H4z"/><path fill="{colour}" d="M{number} 14h1v1H{number}z"/>'


def svg(colour: str, number: int) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{square(colour, number)}</svg>'.encode()


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """Write a package of the npm registry with these files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def entries(emojis: dict, language: int) -> bytes:
    told = []
    for code, (label, tags, french, group) in emojis.items():
        entry = {"label": (label, french)[language], "hexcode": code, "tags": tags, "group": group}
        if label == "waving hand":
            entry["skins"] = [{"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF", "tone": 5}]
        told.append(entry)
    return json.dumps(told).encode()


def iconify(names: tuple[str, ...], colour: str = "", licence: str = "MIT", first: int = 0, **more) -> bytes:
    """Return the file of a set of @iconify/json in which each name has a drawing of its own, marked from `first` on."""
    info = {"license": {"spdx": licence}, "author": {"name": "Some One", "url": "https://example.org"}}
    icons = {name: {"body": square(colour, number)} for number, name in enumerate(names, first)}
    return json.dumps({"info": info, "icons": icons, **more}).encode()


def package_files(emojis: dict = EMOJIS) -> dict[Package, dict[str, bytes]]:
    """Return the files of each package, by name."""
    codes = [code.replace("-FE0F", "") for code in emojis]
    sets = {
        name: iconify(ICONS, "currentColor")
        for name in (
            "icon-park",
            "icon-park-outline",
            "icon-park-solid",
            "icon-park-twotone",
            "lucide",
            "tabler",
            "mdi",
        )
    }
    for name in (
        "game-icons",
        "fa7-solid",
        "streamline-pixel",
        "emojione-v1",
        "fxemoji",
        "streamline-emojis",
        "noto-v1",
    ):
        sets[name] = iconify(())
    sets["ph"] = iconify(("umbrella", "umbrella-fill", "umbrella-duotone"), "currentColor", first=10)
    chars = {code.lower(): f"drawing-{number}" for number, code in enumerate(codes)}
    for name in ("twemoji", "noto", "fluent-emoji-flat", "fluent-emoji-high-contrast"):
        sets[name] = iconify(tuple(chars.values()), "#00f", chars=chars)
    for name in ("emojione", "emojione-monotone"):
        sets[name] = iconify(("red-apple", "flag-for-france"), "currentColor")
    return {
        EMOJIBASE: {
            "en/data.json": entries(emojis, 0),
            "fr/data.json": entries(emojis, 1),
            "en/messages.json": json.dumps(
                {"groups": [{"key": key, "order": order} for order, key in GROUPS.items()]}
            ).encode(),
            "en/shortcodes/github.json": json.dumps({"1F34E": ["apple"], "1F989": "owl"}).encode(),
            "en/shortcodes/github.json.d.ts": b"declare",
        },
        OPENMOJI: {
            f"{kind}/svg/{code}.svg": svg(colour, number)
            for kind, colour in (("color", "#f00"), ("black", "#000"))
            for number, code in enumerate((*codes, "1F44B-1F3FF"))
        },
        FLUENT_3D: {},
        ICONIFY: {f"json/{name}.json": content for name, content in sets.items()},
    }


class Registry:
    """Stand-in for the npm registry: writes packages, and counts how often each is asked for."""

    def __init__(self, files: dict[Package, dict[str, bytes]]):
        self.files = files
        self.asked: list[str] = []

    def fetch(self, package: Package, folder: Path) -> Path:
        self.asked.append(package.name)
        folder.mkdir(parents=True, exist_ok=True)
        return packed(folder / package.file, self.files[package])
