"""Remix: join tokens of two images, and sample the tokens along their border again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.sampling.canvas import Canvas, EncodedImage, dilate
from dalle.sampling.decode import MASKED
from dalle.sampling.edits.variations import check_share, random_mask

LAYOUTS = ("top", "left", "checkerboard", "random")


@dataclass
class RemixConfig:
    """Join the top of one image to the bottom of another, and sample the tokens along the border again.

    Other layouts: edit.layout=...

    python sample.py caption="a red apple" edit=remix image=one.png edit.other=two.png
    """

    name: str = "remix"
    other: str = ""  # image file of the second image
    layout: str = "top"  # tokens taken from the first image: top, left, checkerboard (two opposite quarters), or random
    share: float = 0.5  # share of rows (top), columns (left) or tokens (random) taken from the first image
    seam: int = 1  # rows and columns on each side of a border that are sampled again; not for random
    refinement_passes: int = 2  # refinement passes over the seam; 0: raster order alone
    proposals: int = 8  # proposals compared in each step of a pass


def remix(
    original: EncodedImage,
    other: EncodedImage,
    config: RemixConfig | None = None,
    candidates: int = 64,
    seed: int = 0,
    candidate_offset: int = 0,
) -> Canvas:
    """Build the canvas with tokens of both images.

    With the layout "random", each of the candidates from `candidate_offset` has a canvas of its own.

    Raises:
        ValueError: an unknown layout, a share that leaves only one image, or a seam that is negative or above the grid.
    """
    config, grid = config or RemixConfig(), len(original.tokens)
    if config.layout not in LAYOUTS:
        raise ValueError(f"layout={config.layout} is unknown; choose one of {', '.join(LAYOUTS)}")
    if not 0 < config.share < 1:
        raise ValueError(f"share={config.share} takes all tokens from one image; use more than 0 and less than 1")
    if config.seam < 0:
        raise ValueError(f"seam={config.seam} is below 0; 0 samples no token again")
    if config.seam > grid:
        raise ValueError(f"seam={config.seam} is more than the image's {grid} rows and columns; use at most {grid}")
    if config.layout == "checkerboard":
        if config.share != RemixConfig.share:
            raise ValueError(f"share={config.share} has no effect with layout=checkerboard; leave one of them out")
    else:
        unit = {"top": "rows", "left": "columns", "random": "cells"}[config.layout]
        check_share(config.share, grid * grid if unit == "cells" else grid, unit)
    if config.layout == "random":
        from_first = random_mask((grid, grid), config.share, candidates, seed, candidate_offset)
        return Canvas(torch.where(from_first, original.tokens, other.tokens))
    from_first = _layout_mask(config.layout, config.share, grid)
    border = dilate(from_first, config.seam) & dilate(~from_first, config.seam)
    tokens = torch.where(from_first, original.tokens, other.tokens).masked_fill(border, MASKED)
    return Canvas(tokens, refinement_passes=config.refinement_passes, proposals=config.proposals)


def _layout_mask(layout: str, share: float, grid: int) -> Tensor:
    """Return the mask of the tokens taken from the first image: (grid, grid) bool."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    match layout:
        case "top":
            return row < round(share * grid)
        case "left":
            return column < round(share * grid)
        case _:
            return (row < grid // 2) == (column < grid // 2)
