"""A sheet of labelled pictures, row by row: what a data set looks like, or which pictures are like which."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dalle.data.tally import shown

MARGIN, GAP, LETTERS, LINE = 20, 10, 12, 15  # pixels
LABEL_LINES = 3
INK, FAINT, PAPER, EDGE = "#1c1c1e", "#77777c", "#ffffff", "#dddddd"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Tile(NamedTuple):
    """A picture of the sheet."""

    image: Image.Image | None  # None leaves the place free
    label: str  # beneath it, on at most `LABEL_LINES` lines
    note: str = ""  # beneath that, on one line, in grey


def tile_sheet(tiles: Sequence[Tile], columns: int = 8, side: int = 152, title: str = "") -> Image.Image:
    """One picture of them all. side: of the square that each is fitted into, in pixels. ValueError for no tiles."""
    if not tiles:
        raise ValueError("there are no pictures to put on a sheet")
    font = ImageFont.load_default(LETTERS)
    labels = [_label(tile.label, font, side) for tile in tiles]
    notes = [_note(tile.note, font, side) for tile in tiles]
    columns = min(columns, len(tiles))
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [side + max(len(labels[at]) + len(notes[at]) for at in row) * LINE + 2 * GAP for row in rows]
    head = 2 * LINE if title else 0
    width = max(columns * (side + GAP) - GAP, round(font.getlength(title))) + 2 * MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + head + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, font)
    top = MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        for column, at in enumerate(row):
            left = MARGIN + column * (side + GAP)
            if (image := tiles[at].image) is not None:
                square = ImageOps.pad(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color=EDGE)
                sheet.paste(square, (left, top))
                draw.rectangle((left - 1, top - 1, left + side, top + side), outline=EDGE)  # white pictures end too
            for number, line in enumerate(labels[at] + notes[at]):
                ink = INK if number < len(labels[at]) else FAINT
                draw.text((left, top + side + 4 + number * LINE), line, ink, font)
        top += height
    return sheet


def _label(text: str, font: Font, width: int) -> list[str]:
    lines = wrap(shown(text), font, width)
    if len(lines) > LABEL_LINES:
        lines[LABEL_LINES - 1] += " ..."
    return lines[:LABEL_LINES]


def _note(text: str, font: Font, width: int) -> list[str]:
    """One line; of what is too long the end, which tells paths apart."""
    text = shown(text)
    kept = next(start for start in range(len(text) + 1) if font.getlength(f"...{text[start:]}") <= width)
    return [text if font.getlength(text) <= width else f"...{text[kept:]}"] if text else []


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than `width` pixels; a word that is wider is broken."""
    lines = [""]
    for word in text.split():
        extended = f"{lines[-1]} {word}".strip()
        if font.getlength(extended) <= width:
            lines[-1] = extended
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
