"""Outpaint: go on beyond a picture's edges, by windows that slide half their side at a time, over what is there."""

from dataclasses import dataclass

import torch
from PIL import Image

from dalle.sampling.canvas import Canvas, Original
from dalle.sampling.decode import FREE


@dataclass
class OutpaintConfig:
    """Go on beyond the picture's edges, by so many columns and rows of tokens.

    python sample.py checkpoint=outputs/demo caption="a circle" edit=outpaint image=photo.png edit.right=4 edit.down=4
    """

    name: str = "outpaint"
    left: int = 0  # columns of tokens added on this side
    right: int = 0  # columns on this one
    up: int = 0  # rows of tokens above
    down: int = 0  # rows below
    sweeps: int = 2  # over each window's hole, to fit it to what comes after; 0: raster order alone
    proposals: int = 8  # redrawings that compete in each step of a sweep
    paste: bool = True  # show the picture's own pixels in its place; false: what the dVAE makes of its tokens


def outpaint(original: Original, config: OutpaintConfig) -> Canvas:
    """The canvas with `original` on it and free columns and rows of tokens around it.

    First the strip beside the picture is drawn, to the right and then to the left, then what lies below its whole
    width, from the left, and at last what lies above. Each window sees at least half a grid of what is there already,
    and reads the caption as if it were the whole picture.

    Raises:
        ValueError: negative numbers, or nothing to draw.
    """
    left, right, up, down = config.left, config.right, config.up, config.down
    if min(left, right, up, down) < 0 or not left + right + up + down:
        raise ValueError(
            f"outpaint adds columns and rows of tokens, and left={left}, right={right}, up={up}, down={down} adds "
            "none: try edit.right=4"
        )
    grid = len(original.tokens)
    height, width = up + grid + down, left + grid + right
    tokens = torch.full((height, width), FREE)
    tokens[up : up + grid, left : left + grid] = original.tokens

    beside = [*_slid(left, left + right, grid), *_slid(left, 0, grid)]
    stacked = [*_slid(up, up + down, grid), *_slid(up, 0, grid)]
    across = [0, *_slid(0, left + right, grid)]  # from the left edge to the right one
    windows = [(up, column) for column in beside] + [(row, column) for row in stacked for column in across]
    pixels = None
    if config.paste:
        side = original.pixels.width // grid  # of a token
        pixels = Image.new("RGB", (width * side, height * side))
        pixels.paste(original.pixels, (left * side, up * side))
    sweeps = config.sweeps if left + right + up else 0  # what is kept lies before all that is drawn
    return Canvas(tokens, tuple(windows), sweeps, config.proposals, pixels)


def _slid(start: int, stop: int, grid: int) -> list[int]:
    """Where windows begin that slide from `start`, itself left out, to `stop`, half a grid at a time."""
    step = max(1, grid // 2)
    places = range(start, stop, step) if stop > start else range(start, stop, -step)
    return [*places[1:], stop] if stop != start else []
