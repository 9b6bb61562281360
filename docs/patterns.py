"""Draw the attention patterns as in the paper's Figure 11: `make patterns`, or `python docs/patterns.py [file]`.

Uses a toy sequence of 6 text states and 4 x 4 image states, and a 3 x 3 convolution. Rows are queries, columns are
keys. Colours mark text and the rows of the image grid; numbers are the cells of the grid.
"""

import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dalle.models.transformer.patterns import Column, Convolutional, Row, sequence_attend_mask

TEXT, GRID, KERNEL = 6, 4, 3
STATES = TEXT + GRID**2
EXAMPLE = 9  # image cell whose attention is also drawn as a grid

CELL, GAP = 24, 2  # pixels: distance between cells, and gap between them
HEAD, TITLE, MARGIN = 52, 34, 30  # pixels for the axis labels, a panel's title, and between panels
INK, FAINT, PAPER, UNSEEN = "#1c1c1e", "#6b6b70", "#ffffff", "#ededf0"
TEXT_COLOUR = "#5b6472"
LINE_COLOURS = ("#e9a825", "#e8743b", "#cf4457", "#86429a")


class Panel(NamedTuple):
    title: str
    order: str  # order of the image states
    attend_mask: Tensor  # (STATES, STATES) bool: row attends to column
    cells: list[int]  # image cell of each state; -1: text


def panels() -> list[Panel]:
    """Return the panels of Figure 11, a to d."""
    raster = torch.arange(GRID**2)
    transposed = raster.view(GRID, GRID).T.flatten()
    column = sequence_attend_mask(Column(), TEXT, GRID)
    order = torch.cat([torch.arange(TEXT), TEXT + transposed])
    by_row, by_column = ([-1] * TEXT + cells.tolist() for cells in (raster, transposed))
    convolution = sequence_attend_mask(Convolutional(KERNEL), TEXT, GRID)
    return [
        Panel("a   row", "image, row by row", sequence_attend_mask(Row(), TEXT, GRID), by_row),
        Panel("b   column", "image, row by row", column, by_row),
        Panel("c   column, image transposed", "image, column by column", column[order][:, order], by_column),
        Panel(f"d   convolutional, {KERNEL} x {KERNEL}", "image, row by row", convolution, by_row),
    ]


def draw_figure() -> Image.Image:
    """Draw all panels in a 2 x 2 grid."""
    width, height = HEAD + STATES * CELL + MARGIN, TITLE + HEAD + STATES * CELL + MARGIN
    figure = Image.new("RGB", (2 * width + MARGIN, 2 * height + MARGIN), PAPER)
    for number, panel in enumerate(panels()):
        draw_panel(figure, MARGIN + number % 2 * width, MARGIN + number // 2 * height, panel)
    return figure


def draw_panel(figure: Image.Image, x: int, y: int, panel: Panel) -> None:
    """Draw a panel with its top left corner at (x, y): title, states along both axes, and the mask."""
    draw = ImageDraw.Draw(figure)
    draw.text((x + HEAD, y), panel.title, INK, font(20))
    left, top = x + HEAD, y + TITLE + HEAD
    for place, cell in enumerate(panel.cells):
        draw_square(draw, left + place * CELL, top - CELL - 4, colour(cell), cell)
        draw_square(draw, left - CELL - 4, top + place * CELL, colour(cell), cell)
    for query, key in torch.cartesian_prod(torch.arange(STATES), torch.arange(STATES)).tolist():
        seen = panel.attend_mask[query, key]
        draw_square(draw, left + key * CELL, top + query * CELL, colour(panel.cells[key]) if seen else UNSEEN)

    middles = (TEXT / 2 * CELL, (TEXT + GRID**2 / 2) * CELL)  # of the text states, of the image states
    for middle, name in zip(middles, ("text", panel.order), strict=True):
        draw_label(figure, (left + middle, top - HEAD + 10), f"key: {name}")
        draw_label(figure, (x + 10, top + middle), f"query: {name}", upright=True)
    draw_example(figure, left + (STATES - GRID) * CELL, top + CELL, panel)


def draw_example(figure: Image.Image, x: int, y: int, panel: Panel) -> None:
    """Draw the image cells that one state attends to as a grid, in the empty part of the mask."""
    draw = ImageDraw.Draw(figure)
    draw.rectangle((x - CELL, y - CELL, x + GRID * CELL, y + (GRID + 1) * CELL), PAPER)
    seen = {panel.cells[key] for key in panel.attend_mask[panel.cells.index(EXAMPLE)].nonzero().flatten().tolist()}
    for cell in range(GRID**2):
        line, column = divmod(cell, GRID)
        draw_square(draw, x + column * CELL, y + line * CELL, colour(cell) if cell in seen else UNSEEN)
        if cell == EXAMPLE:
            corner = (x + column * CELL, y + line * CELL)
            draw.rectangle((*corner, corner[0] + CELL - GAP - 1, corner[1] + CELL - GAP - 1), outline=INK, width=2)
    draw_label(figure, (x + GRID * CELL / 2, y + GRID * CELL + 8), f"keys of {EXAMPLE}")


def draw_square(draw: ImageDraw.ImageDraw, x: float, y: float, fill: str, number: int = -1) -> None:
    """Draw a square for a state or a mask entry, with the cell's number if it is 0 or more."""
    draw.rectangle((x, y, x + CELL - GAP - 1, y + CELL - GAP - 1), fill)
    if number >= 0:
        centre = (x + (CELL - GAP) / 2, y + (CELL - GAP) / 2)
        draw.text(centre, str(number), PAPER, font(12), anchor="mm")


def draw_label(figure: Image.Image, centre: tuple[float, float], text: str, upright: bool = False) -> None:
    """Draw a small label centred at `centre`, horizontal, or rotated to read from bottom to top."""
    label = Image.new("RGB", (round(font(14).getlength(text)) + 4, 20), PAPER)
    ImageDraw.Draw(label).text((2, 10), text, FAINT, font(14), anchor="lm")
    if upright:
        label = label.transpose(Image.Transpose.ROTATE_90)
    figure.paste(label, (round(centre[0] - label.width / 2), round(centre[1] - label.height / 2)))


def colour(cell: int) -> str:
    """Return the colour of a state: of text, or of the image row of its cell."""
    return TEXT_COLOUR if cell < 0 else LINE_COLOURS[cell // GRID]


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png")
    draw_figure().save(path, optimize=True)
    print(path)
