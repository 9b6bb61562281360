"""A sheet of pictures a person can look over: each caption, its pictures best first, their scores beneath."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from dalle.image_grid import Cell, GridRow, image_grid


class Row(NamedTuple):
    """What one caption got."""

    caption: str
    images: Sequence[Image.Image]  # best first
    scores: Sequence[float] | None  # as many, or None to print none


def sample_sheet(rows: Sequence[Row], columns: int = 8, tile: int = 128, note: str = "") -> Image.Image:
    """Lay out all rows on one labelled picture; a row of more than `columns` images goes on in the next line.

    tile: side in pixels of the square in which each image is shown, enlarged or shrunk.
    note: a paragraph at the foot.

    Raises:
        ValueError: no rows.
    """
    return image_grid([GridRow(_cells(row), row.caption) for row in rows], columns, tile, notes=[note])


def _cells(row: Row) -> list[Cell]:
    scores = [""] * len(row.images) if row.scores is None else [f"{score:.3f}" for score in row.scores]
    return [Cell(image, note=score) for image, score in zip(row.images, scores, strict=True)]
