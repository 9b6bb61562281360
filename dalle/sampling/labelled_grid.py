"""Image grid of samples: each caption with its images, best first, and their scores."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from dalle.image_grid import Cell, GridRow, image_grid


class ImageRow(NamedTuple):
    """Row of a labelled grid: the images of one caption, with their scores."""

    caption: str
    images: Sequence[Image.Image]  # best first
    scores: Sequence[float] | None  # one per image; None: print none


def labelled_grid(rows: Sequence[ImageRow], columns: int = 8, tile: int = 128, note: str = "") -> Image.Image:
    """Lay out all rows on one labelled image grid, an RGB image. A row of more than `columns` images is wrapped.

    tile: side in pixels of the square that each image is scaled to fit.
    note: a paragraph at the bottom.

    Raises:
        ValueError: no rows.
    """
    return image_grid([GridRow(_cells(row), row.caption) for row in rows], columns, tile, notes=[note])


def _cells(row: ImageRow) -> list[Cell]:
    scores = [""] * len(row.images) if row.scores is None else [f"{score:.3f}" for score in row.scores]
    return [Cell(image, note=score) for image, score in zip(row.images, scores, strict=True)]
