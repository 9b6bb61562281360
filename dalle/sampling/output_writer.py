"""Output writer of sample.py: an image grid, one PNG file per image, and the metadata of all images in samples.json.

Images are written as they are sampled, so ten thousand captions need no more memory than the grid.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any

from dalle.atomic_files import atomic_write, check_writable
from dalle.sampling.content_credentials import ContentSigner
from dalle.sampling.image_record import encode_png
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.results import Result

GRID_FILE, METADATA_FILE = "grid.png", "samples.json"
REMAINING_FILE = "remaining.txt"  # captions that an interrupted run did not finish, one per line
MAX_GRID_ROWS = 40  # captions on the grid, the first ones; a longer grid would be hard to read


class OutputWriter:
    """Output folder for results. On exit, also after an exception, it writes the image grid and samples.json.

    Of several captions, those that are not finished are written to remaining.txt too. Nothing is written before the
    first result.
    """

    def __init__(
        self,
        folder: str | Path,
        captions: Sequence[str],
        candidates: int,
        seed: int,
        settings: Mapping[str, Any],
        signer: ContentSigner | None = None,
    ):
        """Prepare the folder for the results of `captions`, in their order, with `candidates` samples each.

        settings: what else is needed to sample the same images again; must be serialisable as JSON.
        signer: signs the file of each image.
        """
        self.folder = Path(folder)
        self.captions, self.candidates, self.seed, self.settings = captions, candidates, seed, dict(settings)
        self.signer = signer
        self.files: list[Path] = []  # image files, in the order of the results and best first
        self.rows: list[ImageRow] = []  # rows of the grid
        self.entries: list[dict[str, Any]] = []  # metadata of each caption with its images

    def __enter__(self) -> "OutputWriter":
        return self

    @property
    def finished(self) -> int:
        """Number of captions with all candidates sampled."""
        return len(self.captions) - len(self.unfinished)

    @property
    def unfinished(self) -> list[str]:
        """Captions without all candidates sampled, in order."""
        begun = [entry["caption"] for entry in self.entries if entry["drawn"] != self.candidates]
        return [*begun, *self.captions[len(self.entries) :]]

    def add(self, result: Result, extra: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write the images of the next caption, with their metadata and items of `extra` as PNG text chunks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # the files of one caption need no number; those of several must not share a name
        digits = max(3, len(str(len(self.captions))))
        prefix = f"{len(self.entries) + 1:0{digits}d}-" if len(self.captions) > 1 else ""
        images = image_metadata(result, self.seed)
        for entry, more in zip(images, extra or [], strict=extra is not None):
            entry |= more
        for image, entry in zip(result.images, images, strict=True):
            path = self.folder / f"{prefix}{slug(result.caption)}-{entry['rank']:03d}.png"
            record = {"caption": result.caption, **entry, "settings": self.settings}
            png = encode_png(image, record)
            if self.signer is not None:
                png = self.signer.sign(png, result.caption, record)
            with atomic_write(path) as temporary:
                temporary.write_bytes(png)
            entry["file"] = path.name
            self.files.append(path)
        self.entries.append({"caption": result.caption, "drawn": result.num_sampled, "images": images})
        if len(self.rows) < MAX_GRID_ROWS:
            self.rows.append(ImageRow(result.caption, result.images, result.scores))

    def __exit__(self, *_: object) -> None:
        if not self.entries:
            return
        pending = [{"caption": caption, "drawn": 0, "images": []} for caption in self.captions[len(self.entries) :]]
        unfinished = self.unfinished
        metadata = {"settings": self.settings, "interrupted": bool(unfinished), "captions": self.entries + pending}
        text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
        with atomic_write(self.folder / METADATA_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
        if unfinished and len(self.captions) > 1:
            lines = [" ".join(caption.splitlines()) for caption in unfinished]
            with atomic_write(self.folder / REMAINING_FILE) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        hidden = len(self.entries) - len(self.rows)
        note = f"and {hidden:,} more captions, whose images are in their own files" if hidden else ""
        with atomic_write(self.folder / GRID_FILE) as temporary:
            labelled_grid(self.rows, note=note).save(temporary, format="PNG")


def image_metadata(result: Result, seed: int) -> list[dict[str, Any]]:
    """Return the metadata of each image, best first: rank (from 1), seed, candidate, and scores."""
    scores = result.scores or [None] * len(result.images)
    entries = [
        {"rank": rank, "seed": seed, "candidate": candidate, "score": score}
        for rank, (candidate, score) in enumerate(zip(result.candidates, scores, strict=True), start=1)
    ]
    if len(result.scores_by_name) > 1:
        for index, entry in enumerate(entries):
            entry["scores"] = {name: values[index] for name, values in result.scores_by_name.items()}
    return entries


def slug(caption: str, length: int = 48) -> str:
    """Convert a caption to a part of a file name: words joined by hyphens, or "caption" if it has none."""
    words = re.sub(r"\W+", "-", caption.lower()).strip("-")
    return words[:length].rstrip("-") or "caption"


def unused_path(folder: Path) -> Path:
    """Return `folder`, or if it exists, the first unused name with the suffix -2, -3, ...."""
    return next(name for name in _numbered_names(folder) if not name.exists())


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Context with a new folder: `folder`, or the first name of `unused_path` that no other process takes meanwhile.

    The folder is removed at the end if it is empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _removed_if_empty(next(name for name in _numbered_names(folder) if _create(name))) as name:
        yield name


@contextmanager
def writable_folder(folder: Path) -> Iterator[Path]:
    """Context with a folder, which is created if there is none, and then removed at the end if it is empty.

    Raises ValueError if no file can be written to it.
    """
    new = not folder.exists()
    check_writable(folder)
    with _removed_if_empty(folder) if new else nullcontext(folder):
        yield folder


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    finally:
        with suppress(OSError):  # it has files
            folder.rmdir()


def _create(folder: Path) -> bool:
    """Create a folder. Returns False if it exists."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _numbered_names(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in count(2))
