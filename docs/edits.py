"""Draw a figure of all edits, including their limits: `make edits`, or `python docs/edits.py [file]`.

Needs outputs/demo. The images are held-out scenes of `blocks`. Results are the first candidates, not ranked unless the
row says so. All images have the same scale, so outpainted images are larger; `dalle.image_grid` would fit each into the
same square.
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dalle import DALLE
from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.decode import MASKED
from dalle.sampling.edits.complete import complete
from dalle.sampling.edits.inpaint import InpaintConfig, inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.remix import RemixConfig, remix
from dalle.sampling.edits.variations import VariationsConfig, variations

DEMO = Path(__file__).parents[1] / "outputs" / "demo"
RESULTS, RANKED = 6, 32  # images in a row; number of candidates if CLIP ranks them
SCALE = 1.25  # of the images
GAP, MARGIN, HEAD = 8, 24, 46  # pixels: between images, around rows, and for a row's title and caption
LEGEND = (
    "Pictures to edit, the canvas (the model draws what is grey), and what it drew: candidates 0 to 5 as they came."
)
INK, FAINT, PAPER, UNDRAWN = "#1c1c1e", "#6b6b70", "#ffffff", (176, 176, 184)


class Panel(NamedTuple):
    """One row of the figure."""

    title: str  # the edit and its options
    caption: str  # of the result
    pictures: tuple[int, ...]  # indices of the held-out scenes to edit
    edit: Callable[..., Canvas]  # of those pictures
    ranked: bool = False


def panels() -> list[Panel]:
    marked = Image.new("L", (64, 64))
    marked.paste(255, (0, 22, 26, 50))
    inside = "a large red square to the right of a large blue circle"
    beside = "a small green cross to the left of a large red square"
    return [
        Panel("complete", "a large red square below a small yellow circle", (30,), complete),
        Panel(
            "inpaint, refinement_passes=0: raster order does not see the square to the right",
            inside,
            (16,),
            lambda one: inpaint(one, marked, InpaintConfig(refinement_passes=0)),
        ),
        Panel("inpaint, two refinement passes (the default)", inside, (16,), lambda one: inpaint(one, marked)),
        Panel(
            f"inpaint, two refinement passes, best of {RANKED} by CLIP",
            inside,
            (16,),
            lambda one: inpaint(one, marked),
            ranked=True,
        ),
        Panel("outpaint, right=4", beside, (54,), lambda one: outpaint(one, OutpaintConfig(right=4))),
        Panel(
            "outpaint, left=4",
            "a large blue circle to the left of a small yellow square",
            (54,),
            lambda one: outpaint(one, OutpaintConfig(left=4)),
        ),
        Panel(
            "outpaint, up=3: all that is new comes before what is kept",
            "a small red circle above a small yellow square",
            (54,),
            lambda one: outpaint(one, OutpaintConfig(up=3)),
        ),
        Panel(
            "outpaint, right=10: windows beyond the picture read the same caption, and draw it again",
            beside,
            (54,),
            lambda one: outpaint(one, OutpaintConfig(right=10)),
        ),
        Panel(
            "variations, share=0.5",
            "a small purple circle to the right of a large red square",
            (46,),
            lambda one: variations(one, candidates=RESULTS),
        ),
        Panel(
            "variations, share=0.5, keep=rows",
            "a small purple circle to the right of a large red square",
            (46,),
            lambda one: variations(one, VariationsConfig(keep="rows"), candidates=RESULTS),
        ),
        Panel("remix, layout=top", "a small red square above a small purple cross", (35, 47), remix),
        Panel(
            "remix, layout=random: two pictures' tokens without a border are a mosaic",
            "a small red square above a small purple cross",
            (35, 47),
            lambda one, other: remix(one, other, RemixConfig(layout="random"), candidates=RESULTS),
        ),
    ]


def draw_figure(dalle: DALLE) -> Image.Image:
    """Draw all panels, one below the other."""
    rows = [draw_panel(dalle, panel) for panel in panels()]
    width = max(row.width for row in rows) + 2 * MARGIN
    figure = Image.new("RGB", (width, sum(row.height + MARGIN for row in rows) + 3 * MARGIN), PAPER)
    ImageDraw.Draw(figure).text((MARGIN, MARGIN), LEGEND, INK, font(15))
    top = 3 * MARGIN
    for row in rows:
        figure.paste(row, (MARGIN, top))
        top += row.height + MARGIN
    return figure


def draw_panel(dalle: DALLE, panel: Panel) -> Image.Image:
    """Draw one row: title and caption; below them the originals, the canvas of candidate 0, and the results."""
    scenes = BlocksSource(BlocksConfig(), "val")
    originals = [dalle.encode_image(scenes[index].image) for index in panel.pictures]
    canvas = panel.edit(*originals)
    result = dalle.generate(panel.caption, candidates=RANKED if panel.ranked else RESULTS, keep=RESULTS, canvas=canvas)
    numbers = range(RESULTS) if panel.ranked else result.candidates
    drawn = [image for _, image in sorted(zip(numbers, result.images, strict=True), key=lambda pair: pair[0])]

    tiles = [*(original.pixels for original in originals), seen(dalle, canvas, originals), *drawn]
    tiles = [ImageOps.scale(tile, SCALE, Image.Resampling.LANCZOS) for tile in tiles]
    before = len(originals) + 1
    spread = sum(tile.width + GAP for tile in tiles) + 3 * GAP
    height = HEAD + max(tile.height for tile in tiles)
    row = Image.new("RGB", (max(spread, 640), height), PAPER)
    draw = ImageDraw.Draw(row)
    draw.text((0, 0), panel.title, INK, font(15))
    draw.text((0, 20), f"“{panel.caption}”", FAINT, font(13))
    left = 0
    for number, tile in enumerate(tiles):
        if number == before:
            left += 3 * GAP
        row.paste(tile, (left, HEAD))
        left += tile.width + GAP
    return row


def seen(dalle: DALLE, canvas: Canvas, originals: list[EncodedImage]) -> Image.Image:
    """Draw the canvas of candidate 0: kept parts of the images, grey where the model samples."""
    tokens = canvas.tokens[0] if canvas.tokens.ndim == 3 else canvas.tokens
    kept = tokens != MASKED
    (shown,) = dalle.decode_images(tokens.where(kept, originals[0].tokens[0, 0])[None])
    if canvas.pixels is not None:
        shown = canvas.pixels
    mask = Image.fromarray(kept.numpy().astype(np.uint8) * 255).resize(shown.size, Image.Resampling.NEAREST)
    return Image.composite(shown, Image.new("RGB", shown.size, UNDRAWN), mask)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png")
    torch.set_grad_enabled(False)
    draw_figure(DALLE.load(DEMO)).quantize(128).save(path, optimize=True)
    print(path)
