"""Inpaint: draw anew what a mask marks, to fit what is before it and, by sweeps, what comes after."""

from dataclasses import dataclass

from PIL import Image

from dalle.sampling.canvas import Canvas, Original
from dalle.sampling.decode import FREE


@dataclass
class InpaintConfig:
    """Draw anew, in whole tokens, what is white in a mask of the picture's size. The caption is of the whole result.

    python sample.py checkpoint=outputs/demo caption="a red circle" edit=inpaint image=photo.png edit.mask=mask.png
    """

    name: str = "inpaint"
    mask: str = ""  # picture file, as large as the image: white is drawn anew, in whole tokens; black is kept
    sweeps: int = 2  # over the hole, to fit it to what comes after; 0: raster order alone
    proposals: int = 8  # redrawings that compete in each step of a sweep
    paste: bool = True  # show the picture's own pixels where it is kept; false: what the dVAE makes of its tokens


def inpaint(original: Original, mask: Image.Image, config: InpaintConfig | None = None) -> Canvas:
    """The canvas that frees each token of `original` of which `mask`, of its whole size, has a white pixel.

    Raises:
        ValueError: a mask of another size, or one that marks nothing.
    """
    config = config or InpaintConfig()
    tokens = original.tokens.masked_fill(original.touched(mask), FREE)
    pixels = original.pixels if config.paste else None
    return Canvas(tokens, sweeps=config.sweeps, proposals=config.proposals, pixels=pixels)
