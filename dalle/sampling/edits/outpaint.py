"""Outpaint: extend an image beyond its edges, with windows that slide by half a grid and overlap existing tokens."""

from dataclasses import dataclass

import torch
from PIL import Image

from dalle.sampling.canvas import Canvas, Original
from dalle.sampling.decode import FREE


@dataclass
class OutpaintConfig:
    """Extend the image beyond its edges by columns and rows of tokens.

    python sample.py checkpoint=outputs/demo caption="a circle" edit=outpaint image=photo.png edit.right=4 edit.down=4
    """

    name: str = "outpaint"
    left: int = 0  # columns of tokens added on the left
    right: int = 0  # columns of tokens added on the right
    up: int = 0  # rows of tokens added above
    down: int = 0  # rows of tokens added below
    sweeps: int = 2  # refinement sweeps over each window's free tokens, to fit later ones; 0: raster order alone
    proposals: int = 8  # proposals compared in each step of a sweep
    paste: bool = True  # show the original pixels of kept tokens; false: show their dVAE reconstruction


def outpaint(original: Original, config: OutpaintConfig) -> Canvas:
    """Build the canvas with `original` on it and free columns and rows of tokens around it.

    The order is: right of the image, left of it, the rows below over the whole width, then the rows above; the windows
    of a row run from the left. Each window overlaps at least half a grid of existing tokens. The caption describes each
    window as if it were the whole image.

    Raises:
        ValueError: negative numbers, or nothing to sample.
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
    across = [0, *_slid(0, left + right, grid)]  # from the left edge to the right edge
    windows = [(up, column) for column in beside] + [(row, column) for row in stacked for column in across]
    pixels = None
    if config.paste:
        side = original.pixels.width // grid  # pixels along one token
        pixels = Image.new("RGB", (width * side, height * side))
        pixels.paste(original.pixels, (left * side, up * side))
    sweeps = config.sweeps if left + right + up else 0  # otherwise all kept tokens come before the sampled ones
    return Canvas(tokens, tuple(windows), sweeps, config.proposals, pixels)


def _slid(start: int, stop: int, grid: int) -> list[int]:
    """Return the positions of windows that slide from `start` (excluded) to `stop` in steps of half a grid."""
    step = max(1, grid // 2)
    places = range(start, stop, step) if stop > start else range(start, stop, -step)
    return [*places[1:], stop] if stop != start else []
