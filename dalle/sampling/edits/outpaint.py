"""Outpaint: extend an image beyond its edges, with windows that slide by half a grid."""

from dataclasses import dataclass

import torch
from PIL import Image

from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.decode import MASKED

MAX_TOKENS = 2**20  # of the whole image: 67 million pixels of 8 x 8 a token


@dataclass
class OutpaintConfig:
    """Extend the image beyond its edges by columns and rows of tokens.

    python sample.py caption="a red apple" edit=outpaint image=photo.png edit.right=4 edit.down=4
    """

    name: str = "outpaint"
    left: int = 0  # columns of tokens added on the left
    right: int = 0  # columns of tokens added on the right
    up: int = 0  # rows of tokens added above
    down: int = 0  # rows of tokens added below
    refinement_passes: int = 2  # refinement passes over each window's masked tokens; 0: raster order alone
    proposals: int = 8  # proposals compared in each step of a pass
    paste: bool = True  # show the original pixels of kept tokens; false: show their dVAE reconstruction


def outpaint(original: EncodedImage, config: OutpaintConfig) -> Canvas:
    """Build the canvas with `original` on it and masked columns and rows of tokens around it.

    The order is: right of the image, left of it, the rows below over the whole width, then the rows above; the windows
    of a row run from the left. Each window overlaps at least half a grid of existing tokens. The caption describes each
    window as if it were the whole image.

    Raises:
        ValueError: negative numbers, nothing to sample, or over `MAX_TOKENS`.
    """
    left, right, up, down = config.left, config.right, config.up, config.down
    if min(left, right, up, down) < 0 or not left + right + up + down:
        raise ValueError(
            f"outpaint adds columns and rows of tokens, but left={left}, right={right}, up={up}, down={down} adds "
            "none; try edit.right=4"
        )
    grid = len(original.tokens)
    height, width = up + grid + down, left + grid + right
    if height * width > MAX_TOKENS:
        raise ValueError(f"outpaint makes an image of {height} x {width} tokens; use at most {MAX_TOKENS} in all")
    tokens = torch.full((height, width), MASKED)
    tokens[up : up + grid, left : left + grid] = original.tokens

    horizontal = [*_window_positions(left, left + right, grid), *_window_positions(left, 0, grid)]
    vertical = [*_window_positions(up, up + down, grid), *_window_positions(up, 0, grid)]
    across = [0, *_window_positions(0, left + right, grid)]  # from the left edge to the right edge
    windows = [(up, column) for column in horizontal] + [(row, column) for row in vertical for column in across]
    pixels = None
    if config.paste:
        side = original.pixels.width // grid  # pixels along one token
        pixels = Image.new("RGB", (width * side, height * side))
        pixels.paste(original.pixels, (left * side, up * side))
    # with rows below only, no kept token follows the sampled ones, so that no window is refined
    refinement_passes = config.refinement_passes if left + right + up else 0
    return Canvas(tokens, tuple(windows), refinement_passes, config.proposals, pixels)


def _window_positions(start: int, stop: int, grid: int) -> list[int]:
    """Return the positions of windows that slide from `start` (excluded) to `stop` in steps of half a grid."""
    step = max(1, grid // 2)
    positions = range(start, stop, step) if stop > start else range(start, stop, -step)
    return [*positions[1:], stop] if stop != start else []
