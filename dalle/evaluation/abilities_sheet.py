"""The picture sheet of abilities: a line for each, with each picture's caption beneath it, and whether it is right."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dalle.sampling.sheet import FAINT, GAP, INK, MARGIN, PAPER, wrap

TILE, FRAME = 104, 4  # pixels: a picture's side, and the frame around it
COLUMN = 148  # from picture to picture: captions are wider than pictures
TITLE, CAPTION = 16, 11  # font sizes
CAPTION_LINES = 4
RIGHT, WRONG = "#2f9e5b", "#d04a3e"


class Line(NamedTuple):
    """What one ability shows."""

    title: str
    tiles: Sequence[tuple[str, Image.Image, bool]]  # caption, picture, whether every fact is true of it


def abilities_sheet(lines: Sequence[Line], note: str) -> Image.Image:
    """One picture of all `lines`, with `note` at its head."""
    title_font, caption_font = ImageFont.load_default(TITLE), ImageFont.load_default(CAPTION)
    height = TITLE + GAP + TILE + 2 * FRAME + CAPTION_LINES * (CAPTION + 2) + MARGIN
    columns = max(len(line.tiles) for line in lines)
    width = max(columns * COLUMN, 3 * COLUMN)
    head = wrap(note, title_font, width)
    sheet = Image.new("RGB", (width + 2 * MARGIN, 2 * MARGIN + len(head) * (TITLE + GAP) + len(lines) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(head):
        draw.text((MARGIN, MARGIN + number * (TITLE + GAP)), text, FAINT, title_font)
    top = 2 * MARGIN + len(head) * (TITLE + GAP)
    for line in lines:
        draw.text((MARGIN, top), line.title, INK, title_font)
        for number, (caption, image, right) in enumerate(line.tiles):
            left, below = MARGIN + number * COLUMN, top + TITLE + GAP
            square = ImageOps.pad(image.convert("RGB"), (TILE, TILE), Image.Resampling.LANCZOS, PAPER)
            sheet.paste(ImageOps.expand(square, FRAME, RIGHT if right else WRONG), (left, below))
            below += TILE + 2 * FRAME + 2
            for row, text in enumerate(wrap(caption, caption_font, COLUMN - GAP)[:CAPTION_LINES]):
                draw.text((left, below + row * (CAPTION + 2)), text, FAINT, caption_font)
        top += height
    return sheet
