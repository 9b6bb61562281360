"""Render all drawings of a built folder once, and read them from a cache of PNG images.

    rendered-160.png-pack   the PNG files of all drawings, one after the other
    rendered-160.json       where each begins, a digest of its pixels; what it was made from

Drawings are squares on white. A drawing is centred, and keeps its proportions. Left out are empty drawings, and those
of one set that look alike though they are of different concepts, such as the flags of Norway and of Bouvet Island.
"""

import contextlib
import json
import logging
import lzma
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dalle.atomic_files import atomic_write
from dalle.data.drawings.folder import FORMAT, INDEX, SOURCES, SUBJECTS
from dalle.data.drawings.sets import BY_NAME, DrawingSet
from dalle.data.drawings.subjects import Subject
from dalle.data.index import digest_of
from dalle.optional_dependencies import check_installed
from dalle.progress import progress_bar

log = logging.getLogger(__name__)

RENDER_FORMAT = 2
COLOURS = {  # colour name of captions -> RGB
    "black": (0, 0, 0),
    "red": (214, 40, 40),
    "orange": (240, 130, 20),
    "yellow": (235, 195, 20),
    "green": (40, 150, 60),
    "teal": (20, 150, 160),
    "blue": (35, 90, 210),
    "purple": (130, 60, 180),
    "pink": (235, 100, 165),
    "brown": (125, 75, 40),
    "gray": (130, 130, 130),
}


class Picture(NamedTuple):
    """One drawing of a built folder: its key, set, subject and skin tone, without its pixels."""

    key: str  # "openmoji/1F34E"
    drawing_set: DrawingSet
    subject: Subject
    tone: str  # skin tone, "" for none
    pixels: str = ""  # digest: drawings with the same one look the same


class Drawings:
    """All drawings of a built folder, as RGB images with sides of `side` pixels.

    They are rendered when the folder is opened with a side for the first time, by all cores: about 3 minutes on two.
    Raises ValueError if the folder was not built by `make drawings`, and if they cannot be rendered without resvg-py.
    """

    def __init__(self, folder: Path, side: int):
        self.folder = folder
        self.side = side
        self.sources = read_sources(folder)
        subjects = read_subjects(folder)
        self.subjects = {subject.id: subject for subject in subjects}
        pack, index = folder / f"rendered-{side}.png-pack", folder / f"rendered-{side}.json"
        made_from = {
            "format": RENDER_FORMAT,
            "sources": digest_of(json.dumps(self.sources["sets"]).encode()),
            "subjects": digest_of(json.dumps([subject.to_json() for subject in subjects]).encode()),
        }
        rendered = read_rendered(pack, index, made_from)
        if rendered is None:
            render_all(folder, side, self.sources["sets"], self.subjects, pack, index, made_from)
            rendered = read_rendered(pack, index, made_from)
            if rendered is None:
                raise ValueError(f"{index} cannot be read just after it was written: is the disk full or failing?")
        self.pictures = [
            Picture(f"{name}/{Path(file).stem}", BY_NAME[name], self.subjects[subject], tone, pixels)
            for name, file, subject, tone, pixels in rendered["pictures"]
        ]
        # the cache is of exactly these sets, so what it lacks was left out
        built = sum(entry["pictures"] for entry in self.sources["sets"].values())
        self.left_out = built - len(self.pictures)  # as `distinct` says
        self.digest = digest_of(json.dumps([made_from, rendered["pictures"]]).encode())
        self._starts: list[int] = rendered["starts"]  # one more than pictures
        self._pack = np.memmap(pack, np.uint8, "r")

    def image(self, index: int) -> Image.Image:
        """Return the drawing at `index` of `pictures`."""
        data = self._pack[self._starts[index] : self._starts[index + 1]].tobytes()
        return Image.open(BytesIO(data)).convert("RGB")


def read_sources(folder: Path) -> dict[str, Any]:
    """Return the content of a built folder's sources.json. Raises ValueError if there is none, or of another format."""
    try:
        sources = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"data.path={folder}: no drawings there; build them with `make drawings`") from None
    except (OSError, ValueError) as problem:
        raise ValueError(f"{folder / SOURCES} cannot be read: {problem}; run `make drawings` again") from problem
    if sources.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {sources.get('format')}, this version reads {FORMAT}: `make drawings`")
    return sources


def read_subjects(folder: Path) -> list[Subject]:
    """Return the subjects of a built folder. Raises ValueError if its subjects.json cannot be read."""
    try:
        return [Subject(**entry) for entry in json.loads((folder / SUBJECTS).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as problem:
        raise ValueError(f"{folder / SUBJECTS} cannot be read: {problem}; run `make drawings` again") from problem


def read_rendered(pack: Path, index: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of a cache's index, or None if there is no complete cache made from `made_from`."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        rendered = json.loads(index.read_text(encoding="utf-8"))
        if rendered["made_from"] == made_from and pack.stat().st_size == rendered["starts"][-1]:
            return rendered
    return None


class Rendered(NamedTuple):
    """One rendered drawing of a set: file name, subject, skin tone, PNG data, and what its pixels are."""

    name: str
    subject: str
    tone: str
    png: bytes
    pixels: str  # digest
    empty: bool  # all pixels have the same colour


def render_all(
    folder: Path,
    side: int,
    sets: dict[str, Any],
    subjects: dict[str, Subject],
    pack: Path,
    index: Path,
    made_from: dict[str, Any],
) -> None:
    """Render the drawings in `folder`, of the `sets` in sources.json, and write the cache: `pack` and `index`."""
    check_installed("data", "rendering drawings", "resvg_py")
    drawings = sum(entry["pictures"] for entry in sets.values())
    log.info("rendering the drawings in %s at %d pixels, once", folder, side)
    starts, pictures, left_out = [0], [], 0
    with (
        atomic_write(pack) as temporary,
        temporary.open("wb") as file,
        progress_bar(drawings, "rendering", "drawings") as bar,
    ):
        for name in sets:
            rendered = []
            for drawing in rendered_set(folder / f"{name}.tar.xz", side):
                rendered.append(drawing)
                bar.update()
            usable = distinct(rendered, subjects)
            left_out += len(rendered) - len(usable)
            for drawing in usable:
                file.write(drawing.png)
                starts.append(starts[-1] + len(drawing.png))
                pictures.append([name, drawing.name, drawing.subject, drawing.tone, drawing.pixels])
    log.info("left out %d drawings that are empty, or look like one of another concept in the same set", left_out)
    with atomic_write(index) as partial:
        content = {"made_from": made_from, "pictures": pictures, "starts": starts}
        partial.write_text(json.dumps(content), encoding="utf-8")


def distinct(drawings: list[Rendered], subjects: dict[str, Subject]) -> list[Rendered]:
    """Leave out empty drawings of a set, and those that look the same but have different concepts.

    Of those that look the same with and without a skin tone, the ones without stay.
    """
    concepts_by_pixels: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for drawing in drawings:
        concepts_by_pixels[drawing.pixels].add((subjects[drawing.subject].concept, drawing.tone))
    return [
        drawing
        for drawing in drawings
        if not drawing.empty
        and len({concept for concept, _ in concepts_by_pixels[drawing.pixels]}) == 1
        and (drawing.tone == "" or len(concepts_by_pixels[drawing.pixels]) == 1)
    ]


def rendered_set(archive: Path, side: int) -> Iterator[Rendered]:
    """Render the drawings of an archive. Raises ValueError if the archive is damaged or missing."""
    try:
        with tarfile.open(archive, "r:xz") as file:
            contents = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
        pictures = json.loads(contents.pop(INDEX))["pictures"]
    except (OSError, EOFError, ValueError, KeyError, tarfile.TarError, lzma.LZMAError) as problem:
        raise ValueError(f"{archive} cannot be read: {problem}; run `make drawings` again") from problem
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        work = [(name, contents[name], side) for name, _, _ in pictures]
        for (name, subject, tone), rendered in zip(pictures, pool.map(_render, work, chunksize=32), strict=True):
            yield Rendered(name, subject, tone, *rendered)


def _render(work: tuple[str, bytes, int]) -> tuple[bytes, str, bool]:
    """Render the drawing of (file name, content, side) on white: (PNG, digest of its pixels, all of one colour)."""
    name, content, side = work
    png = render_svg(content.decode(), side) if name.endswith(".svg") else render_bitmap(content, side)
    with Image.open(BytesIO(png)) as image:
        rgb = image.convert("RGB")
        return png, digest_of(rgb.tobytes())[:16], all(low == high for low, high in rgb.getextrema())


def render_bitmap(content: bytes, side: int) -> bytes:
    """Resize an image file with transparency to side x side pixels on white, and return it as a PNG."""
    with Image.open(BytesIO(content)) as image:
        image = image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    out = BytesIO()
    Image.alpha_composite(white, image).convert("RGB").save(out, "png", compress_level=4)
    return out.getvalue()


def render_svg(svg: str, side: int) -> bytes:
    """Render an SVG document on white and return a PNG of side x side pixels. `currentColor` is black."""
    import resvg_py

    black = svg.replace("currentColor", "#000")
    return resvg_py.svg_to_bytes(svg_string=black, width=side, height=side, background="white", skip_system_fonts=True)


def recoloured(image: Image.Image, colour: str) -> Image.Image:
    """Return a drawing of a single colour on white with its black replaced by a colour of `COLOURS`."""
    amount = 255 - np.asarray(image.convert("L"), np.float32)[..., None]  # 0 white, 255 black
    pixels = 255 - amount * (255 - np.array(COLOURS[colour], np.float32)) / 255
    return Image.fromarray(pixels.round().astype(np.uint8))
