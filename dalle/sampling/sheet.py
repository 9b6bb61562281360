"""A sheet of pictures a person can look over: each caption, its pictures best first, their scores beneath."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dalle.data.tiles import wrap

MARGIN, GAP = 24, 8
CAPTION_SIZE, SCORE_SIZE = 20, 13
INK, FAINT, PAPER = "#1c1c1e", "#77777c", "#ffffff"


class Row(NamedTuple):
    """What one caption got."""

    caption: str
    images: Sequence[Image.Image]  # best first
    scores: Sequence[float] | None  # as many, or None to print none


def sample_sheet(rows: Sequence[Row], columns: int = 8, tile: int = 128, note: str = "") -> Image.Image:
    """One labelled picture of all rows; a row of more than `columns` images goes on in the next line.

    tile: side in pixels at which each image is shown, enlarged or shrunk.
    note: a line at the foot.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("there are no pictures to put on a sheet")
    caption_font = ImageFont.load_default(CAPTION_SIZE)
    score_font = ImageFont.load_default(SCORE_SIZE)
    columns = min(columns, max(len(row.images) for row in rows))
    # a single picture still leaves room for its caption
    width = max(columns * (tile + GAP) - GAP, 3 * tile)
    line = CAPTION_SIZE + GAP
    wrapped = [wrap(row.caption, caption_font, width) for row in rows]
    heights = [
        len(lines) * line + -(-len(row.images) // columns) * _tile_height(row, tile)
        for row, lines in zip(rows, wrapped, strict=True)
    ]
    foot = wrap(note, caption_font, width) if note else []
    total = sum(heights) + len(foot) * line + (len(rows) + 1) * MARGIN
    sheet = Image.new("RGB", (width + 2 * MARGIN, total), PAPER)
    draw = ImageDraw.Draw(sheet)

    top = MARGIN
    for row, lines, height in zip(rows, wrapped, heights, strict=True):
        for number, text in enumerate(lines):
            draw.text((MARGIN, top + number * line), text, INK, caption_font)
        for number, image in enumerate(row.images):
            x = MARGIN + number % columns * (tile + GAP)
            y = top + len(lines) * line + number // columns * _tile_height(row, tile)
            square = ImageOps.pad(image.convert("RGB"), (tile, tile), Image.Resampling.LANCZOS, PAPER)
            sheet.paste(square, (x, y))
            if row.scores is not None:
                centre = (x + tile / 2, y + tile + GAP / 2)
                draw.text(centre, f"{row.scores[number]:.3f}", FAINT, score_font, anchor="ma")
        top += height + MARGIN
    for number, text in enumerate(foot):
        draw.text((MARGIN, top + number * line), text, FAINT, caption_font)
    return sheet


def _tile_height(row: Row, tile: int) -> int:
    return tile + GAP + (0 if row.scores is None else SCORE_SIZE + GAP)
