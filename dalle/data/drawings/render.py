"""Render all drawings of a built folder once, and read them from a cache of PNG images.

    rendered-160.png-pack   the PNG files of all drawings, one after the other
    rendered-160.json       where each begins; what it was made from

Drawings are squares on white. A drawing is centred, and keeps its proportions.
"""

import json
import logging
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dalle.data.drawings.build import FORMAT, INDEX, SOURCES, SUBJECTS
from dalle.data.drawings.sets import BY_NAME, DrawingSet
from dalle.data.drawings.subjects import Subject
from dalle.data.index import digest_of
from dalle.optional_dependencies import check_installed
from dalle.progress import progress_bar

log = logging.getLogger(__name__)

RENDER_FORMAT = 1
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

    key: str  # "twemoji/1F34E"
    drawing_set: DrawingSet
    subject: Subject
    tone: str  # skin tone, "" for none


class Drawings:
    """All drawings of a built folder, as RGB images with sides of `side` pixels.

    They are rendered when the folder is opened with a side for the first time, by all cores: about 3 minutes on two.
    Raises ValueError if the folder was not built by `make drawings`, and if they cannot be rendered without resvg-py.
    """

    def __init__(self, folder: Path, side: int):
        self.folder = folder
        self.side = side
        self.sources = read_sources(folder)
        subjects = [Subject(**each) for each in json.loads((folder / SUBJECTS).read_text(encoding="utf-8"))]
        self.subjects = {subject.id: subject for subject in subjects}
        pack, index = folder / f"rendered-{side}.png-pack", folder / f"rendered-{side}.json"
        made_from = {"format": RENDER_FORMAT, "sources": digest_of(json.dumps(self.sources["sets"]).encode())}
        if not index.is_file() or json.loads(index.read_text())["made_from"] != made_from:
            render_all(folder, side, self.sources["sets"], pack, index, made_from)
        rendered = json.loads(index.read_text())
        self.pictures = [
            Picture(f"{name}/{Path(file).stem}", BY_NAME[name], self.subjects[subject], tone)
            for name, file, subject, tone in rendered["pictures"]
        ]
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


def render_all(
    folder: Path, side: int, sets: dict[str, Any], pack: Path, index: Path, made_from: dict[str, Any]
) -> None:
    """Render the drawings in `folder`, of the `sets` in sources.json, and write the cache: `pack` and `index`."""
    check_installed("data", "rendering drawings", "resvg_py")
    drawings = sum(entry["pictures"] for entry in sets.values())
    log.info("rendering the drawings in %s at %d pixels, once", folder, side)
    starts, pictures = [0], []
    temporary = pack.with_name(f".{pack.name}.{os.getpid()}")  # processes that open the folder at once do not collide
    try:
        with temporary.open("wb") as file, progress_bar(drawings, "rendering", "drawings") as bar:
            for name in sets:
                for member, subject, tone, data in rendered_set(folder / f"{name}.tar.xz", side, BY_NAME[name]):
                    file.write(data)
                    starts.append(starts[-1] + len(data))
                    pictures.append([name, member, subject, tone])
                    bar.update()
        os.replace(temporary, pack)
    finally:
        temporary.unlink(missing_ok=True)
    content = json.dumps({"made_from": made_from, "pictures": pictures, "starts": starts})
    partial = index.with_name(f".{index.name}.{os.getpid()}")
    partial.write_text(content)
    partial.replace(index)


def rendered_set(archive: Path, side: int, drawing_set: DrawingSet) -> Iterator[tuple[str, str, str, bytes]]:
    """Render the drawings of an archive and yield, for each, (file name, subject, skin tone, PNG data)."""
    with tarfile.open(archive) as file, ProcessPoolExecutor(os.cpu_count()) as pool:
        contents = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
        pictures = json.loads(contents.pop(INDEX))["pictures"]
        work = [(name, contents[name], side) for name, _, _ in pictures]
        for (name, subject, tone), data in zip(pictures, pool.map(_render, work, chunksize=32), strict=True):
            yield name, subject, tone, data


def _render(work: tuple[str, bytes, int]) -> bytes:
    """Return the drawing of (file name, content, side) as a PNG of side x side pixels on white."""
    name, content, side = work
    if name.endswith(".svg"):
        return render_svg(content.decode(), side)
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
