"""Labelled pictures in rows on one sheet: the layout of everything that people are to look over."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, FRAME = 24, 10, 3  # pixels: around the sheet, between pictures, and how thick a coloured frame is
TITLE_SIZE, LABEL_SIZE = 20, 13  # of fonts
LABEL_LINES, NOTE_LINES = 6, 2
LEAST_WIDTH = 420  # pixels without margins: a single small picture still leaves room for its title
INK, FAINT, PAPER, EDGE = "#1c1c1e", "#77777c", "#ffffff", "#d4d4d8"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Cell(NamedTuple):
    """A picture, and what is written beneath it."""

    image: Image.Image | None  # of any size and mode; None leaves the place free
    label: str = ""  # on at most `LABEL_LINES` lines; what is longer ends in an ellipsis
    note: str = ""  # below that in grey, on at most two; of what is longer the end is kept, which tells paths apart
    frame: str | None = None  # its colour; None: a hairline, where white pictures end


class GridRow(NamedTuple):
    """Pictures that belong together."""

    cells: Sequence[Cell]
    title: str = ""  # above them


def image_grid(
    rows: Sequence[GridRow], columns: int = 8, tile: int = 128, title: str = "", notes: Sequence[str] = ()
) -> Image.Image:
    """Lay out all rows on one sheet; a row of more than `columns` cells goes on in the next line.

    Pictures keep their shape and are enlarged or shrunk to touch a square of `tile` pixels from inside. No text is
    wider than what it belongs to.

    title: at the head of the sheet, above the rows' own.
    notes: in grey at the foot, a paragraph each.

    Raises:
        ValueError: there are no cells.
    """
    most = max((len(row.cells) for row in rows), default=0)
    if not most:
        raise ValueError("there are no pictures to put on a sheet")
    columns = min(columns, most)
    width = max(columns * (tile + GAP) - GAP, LEAST_WIDTH)
    bands: list[_Text | _Pictures | _Space] = [_Text(title, TITLE_SIZE, INK, width)] if title else []
    for row in rows:
        if bands:
            bands.append(_Space(MARGIN if row.title else GAP))
        if row.title:
            bands.append(_Text(row.title, TITLE_SIZE, INK, width))
        starts = range(0, len(row.cells), columns)
        bands += [_Pictures(row.cells[start : start + columns], tile) for start in starts]
    for number, note in enumerate(filter(None, notes)):
        bands += [_Space(GAP if number else MARGIN), _Text(note, LABEL_SIZE, FAINT, width)]
    sheet = Image.new("RGB", (width + 2 * MARGIN, sum(band.height for band in bands) + 2 * MARGIN), PAPER)
    top = MARGIN
    for band in bands:
        band.paint(sheet, top)
        top += band.height
    return sheet


class _Space:
    """Nothing, between two bands."""

    def __init__(self, height: int):
        self.height = height

    def paint(self, sheet: Image.Image, top: int) -> None:
        pass


class _Text:
    """A paragraph over the whole width."""

    def __init__(self, text: str, size: int, ink: str, width: int):
        self.font, self.ink, self.step = ImageFont.load_default(size), ink, line_height(size)
        self.lines = wrap(text, self.font, width)
        self.height = len(self.lines) * self.step + GAP // 2

    def paint(self, sheet: Image.Image, top: int) -> None:
        draw = ImageDraw.Draw(sheet)
        for number, line in enumerate(self.lines):
            draw.text((MARGIN, top + number * self.step), line, self.ink, self.font)


class _Pictures:
    """Cells side by side, as high as the highest of them."""

    def __init__(self, cells: Sequence[Cell], tile: int):
        font = ImageFont.load_default(LABEL_SIZE)
        self.cells, self.tile, self.font = cells, tile, font
        self.shown = [None if cell.image is None else fitted(cell.image.convert("RGB"), tile) for cell in cells]
        self.labels = [wrap(cell.label, font, tile, LABEL_LINES) if cell.label else [] for cell in cells]
        self.notes = [_ending(cell.note, font, tile) if cell.note else [] for cell in cells]
        self.highest = max(0 if image is None else image.height for image in self.shown)
        lines = max(len(label) + len(note) for label, note in zip(self.labels, self.notes, strict=True))
        self.height = self.highest + GAP + (lines * line_height(LABEL_SIZE) + GAP // 2 if lines else 0)

    def paint(self, sheet: Image.Image, top: int) -> None:
        draw = ImageDraw.Draw(sheet)
        for column, (cell, image) in enumerate(zip(self.cells, self.shown, strict=True)):
            left = MARGIN + column * (self.tile + GAP)
            if image is not None:
                x, y = left + (self.tile - image.width) // 2, top + (self.highest - image.height) // 2
                thick = 1 if cell.frame is None else FRAME
                outside = (x - thick, y - thick, x + image.width + thick - 1, y + image.height + thick - 1)
                draw.rectangle(outside, outline=cell.frame or EDGE, width=thick)
                sheet.paste(image, (x, y))
            inks = [INK] * len(self.labels[column]) + [FAINT] * len(self.notes[column])
            for number, line in enumerate(self.labels[column] + self.notes[column]):
                place = (left + self.tile / 2, top + self.highest + GAP / 2 + number * line_height(LABEL_SIZE))
                draw.text(place, line, inks[number], self.font, anchor="ma")


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Scale a picture so that its longer side has `side` pixels, and its shorter at least one."""
    scale = side / max(image.size)  # ImageOps.contain fails where the shorter side is rounded to nothing
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def line_height(size: int) -> int:
    """Pixels from one line of a font of this size to the next: a third more than its size holds what hangs below."""
    return size + -(-size // 3)


def wrap(text: str, font: Font, width: int, most: int | None = None) -> list[str]:
    """Break a text into lines no wider than `width` pixels; a word that is wider is broken.

    Of more than `most` lines the last one kept ends in an ellipsis.
    """
    # textwrap counts letters, and Pillow's ImageText.wrap, newer than the Pillow asked for, breaks no long word
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
    if most is None or len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last.rstrip()}..."]


def _ending(text: str, font: Font, width: int) -> list[str]:
    """Break a text into at most `NOTE_LINES` lines; of one that takes more, one line with the end is left."""
    lines = wrap(text, font, width)
    if len(lines) <= NOTE_LINES:
        return lines
    plain = " ".join(text.split())
    ends = (f"...{plain[start:]}" for start in range(len(plain)))
    return [next((end for end in ends if font.getlength(end) <= width), "...")]
