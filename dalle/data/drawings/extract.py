"""Drawings in the packages: the files and icons of each set that show a known subject, with licence and author."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dalle.data.drawings.packages import FLUENT_3D, ICONIFY, OPENMOJI, Package
from dalle.data.drawings.sets import DrawingSet
from dalle.data.drawings.subjects import Catalogue, Variant
from dalle.data.drawings.wording import named_by_colour

LICENCES = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-4.0"}  # identifiers of SPDX
BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # of icons that state none

# sets with packages of their own: licence and author are not in their files in a form that a program can read
ATTRIBUTIONS = {
    OPENMOJI: {"licence": "CC-BY-SA-4.0", "author": "OpenMoji", "url": "https://openmoji.org"},
    FLUENT_3D: {
        "licence": "MIT",
        "author": "Microsoft Corporation, packaged by LobeHub",
        "url": "https://github.com/lobehub/fluent-emoji",
    },
}


class Drawing(NamedTuple):
    """One drawing of a set: its name, the subject and skin tone that it shows, and the bytes of its file."""

    name: str  # unique in its set, "1F34E" or "red-apple"
    variant: Variant
    content: bytes
    suffix: str  # ".svg" | ".webp"


def package_of(drawing_set: DrawingSet) -> Package:
    """Return the package that contains a set."""
    return ICONIFY if drawing_set.iconify else OPENMOJI if drawing_set.family == "openmoji" else FLUENT_3D


def path_in_package(drawing_set: DrawingSet) -> str:
    """Return the path of a set's only file in its package, or the start of the paths of its files."""
    if drawing_set.iconify:
        return f"json/{drawing_set.iconify}.json"
    return {"openmoji": "color/svg/", "openmoji-black": "black/svg/", "fluent-3d": "assets/"}[drawing_set.name]


def read_set(
    drawing_set: DrawingSet, package: Package, files: Mapping[str, bytes], catalogue: Catalogue
) -> tuple[dict[str, Any], Iterable[Drawing]]:
    """Return (licence, author and URL of a set, its drawings that show a subject of `catalogue`).

    A set of a single colour cannot show what tells subjects apart by their colour: skin tones and red apples.
    """
    attribution, drawings = read_package(drawing_set, package, files, catalogue)
    if drawing_set.recolour:
        drawings = (
            drawing
            for drawing in drawings
            if not drawing.variant.tone and not named_by_colour(catalogue.subjects[drawing.variant.subject])
        )
    return attribution, drawings


def read_package(
    drawing_set: DrawingSet, package: Package, files: Mapping[str, bytes], catalogue: Catalogue
) -> tuple[dict[str, Any], Iterable[Drawing]]:
    """Return (licence, author and URL of a set, its drawings), with what a single colour cannot show."""
    start = path_in_package(drawing_set)
    if package is not ICONIFY:
        set_files = ((name, content) for name, content in files.items() if name.startswith(start))
        return ATTRIBUTIONS[package], coded_drawings(set_files, catalogue, flags=drawing_set.name == "openmoji")
    icons = json.loads(files[start])
    info = icons["info"]
    licence = info["license"]["spdx"]
    if licence not in LICENCES:
        raise ValueError(f"the set {drawing_set.name} has the licence {licence}, which is not one of {LICENCES}")
    attribution = {"licence": licence, "author": info["author"]["name"], "url": info["author"].get("url", "")}
    return attribution, iconify_drawings(drawing_set, icons, catalogue)


def coded_drawings(files: Iterable[tuple[str, bytes]], catalogue: Catalogue, flags: bool) -> Iterator[Drawing]:
    """Yield the drawings of (path, content) named by code points of an emoji. flags: keep flags of countries."""
    for name, content in files:
        path = Path(name)
        variant = catalogue.of_code(path.stem)
        if variant and (flags or catalogue.subjects[variant.subject].group != "flags"):
            yield Drawing(path.stem.upper(), variant, content, path.suffix)


def iconify_drawings(drawing_set: DrawingSet, icons: dict[str, Any], catalogue: Catalogue) -> Iterator[Drawing]:
    """Yield the drawings of a set of @iconify/json that show a known subject.

    Subjects are found by code points where the set has them, else by names.
    """
    codes: dict[str, str] = {name: code for code, name in icons.get("chars", {}).items()}
    names = {name: name for name, icon in icons["icons"].items() if not icon.get("hidden")}
    if drawing_set.kind == "names":  # further names of the same drawing, which may be the known ones
        names |= {alias: entry["parent"] for alias, entry in icons.get("aliases", {}).items() if len(entry) == 1}
    drawn_icons: set[str] = set()
    for name, parent in names.items():
        if drawing_set.kind == "icons":
            if not name.endswith(drawing_set.suffix):
                continue
            variant = catalogue.of_icon(name.removesuffix(drawing_set.suffix), drawing_set.family)
        else:
            variant = (catalogue.of_code(codes[name]) if name in codes else None) or catalogue.of_name(name)
        if variant and parent not in drawn_icons and parent in icons["icons"]:
            drawn_icons.add(parent)
            yield Drawing(parent.removesuffix(drawing_set.suffix), variant, svg_of(icons, parent).encode(), ".svg")


def svg_of(icons: dict[str, Any], name: str) -> str:
    """Return the icon `name` of a set of @iconify/json (parsed file `icons`) as an SVG document."""
    icon = icons["icons"][name]
    box = [icon.get(key, icons.get(key, default)) for key, default in BOX.items()]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )
