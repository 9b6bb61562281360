"""Image grid: labelled images in rows on one sheet."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, FRAME = 24, 10, 3  # pixels: around the sheet, between images, and width of a coloured frame
TITLE_SIZE, LABEL_SIZE = 20, 13  # font sizes
LABEL_LINES, NOTE_LINES = 6, 2
MIN_WIDTH = 420  # pixels without margins: space for the title above a single small image
INK, FAINT, PAPER, EDGE = "#1c1c1e", "#77777c", "#ffffff", "#d4d4d8"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Cell(NamedTuple):
    """Cell of an image grid: an image with the text below it."""

    image: Image.Image | None  # any size and mode; None leaves the cell empty
    label: str = ""  # at most `LABEL_LINES` lines; longer text ends in an ellipsis
    note: str = ""  # grey text below the label, at most two lines; longer text keeps its end, where paths differ
    frame: str | None = None  # colour of the frame; None: a thin line, which shows the edge of white images


class GridRow(NamedTuple):
    """Row of an image grid: cells that belong together, and the title above them."""

    cells: Sequence[Cell]
    title: str = ""  # above the cells


def image_grid(
    rows: Sequence[GridRow], columns: int = 8, tile: int = 128, title: str = "", notes: Sequence[str] = ()
) -> Image.Image:
    """Lay out all rows on one sheet, an RGB image. A row of more than `columns` cells is wrapped.

    Images keep their aspect ratio and are scaled to fit a square of `tile` pixels. Text is wrapped to the width of its
    cell or of the sheet.

    title: at the top of the sheet, above the titles of the rows.
    notes: in grey at the bottom, one paragraph each.

    Raises:
        ValueError: there are no cells.
    """
    max_cells = max((len(row.cells) for row in rows), default=0)
    if not max_cells:
        raise ValueError("an image grid needs at least one cell")
    columns = min(columns, max_cells)
    width = max(columns * (tile + GAP) - GAP, MIN_WIDTH)
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
    """Band of an image grid: vertical space of `height` pixels."""

    def __init__(self, height: int):
        self.height = height

    def paint(self, sheet: Image.Image, top: int) -> None:
        pass


class _Text:
    """Band of an image grid: a paragraph over the whole width."""

    def __init__(self, text: str, size: int, ink: str, width: int):
        self.font, self.ink, self.step = ImageFont.load_default(size), ink, line_height(size)
        self.lines = wrap(text, self.font, width)
        self.height = len(self.lines) * self.step + GAP // 2

    def paint(self, sheet: Image.Image, top: int) -> None:
        draw = ImageDraw.Draw(sheet)
        for number, line in enumerate(self.lines):
            draw.text((MARGIN, top + number * self.step), line, self.ink, self.font)


class _Pictures:
    """Band of an image grid: cells side by side; its height is that of the highest cell."""

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
    """Scale an image so that its longer side has `side` pixels, and its shorter side at least one."""
    scale = side / max(image.size)  # ImageOps.contain fails if the shorter side rounds to 0
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def line_height(size: int) -> int:
    """Line spacing in pixels of a font of this size: a third more than the size, for descenders."""
    return size + -(-size // 3)


def wrap(text: str, font: Font, width: int, max_lines: int | None = None) -> list[str]:
    """Break text into a list of lines of at most `width` pixels; a word that is wider is broken.

    Beyond `max_lines` lines the text is cut, and the last line ends in an ellipsis.
    """
    # textwrap counts letters, and Pillow's ImageText.wrap needs a newer Pillow and does not break long words
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
    if max_lines is None or len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], f"{last.rstrip()}..."]


def _ending(text: str, font: Font, width: int) -> list[str]:
    """Break text into at most `NOTE_LINES` lines; longer text is reduced to one line with its end."""
    lines = wrap(text, font, width)
    if len(lines) <= NOTE_LINES:
        return lines
    plain = " ".join(text.split())
    ends = (f"...{plain[start:]}" for start in range(len(plain)))
    return [next((end for end in ends if font.getlength(end) <= width), "...")]
