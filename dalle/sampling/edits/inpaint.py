"""Inpaint: sample the masked tokens again, to fit the tokens before them and, by refinement sweeps, those after."""

from dataclasses import dataclass

from PIL import Image

from dalle.sampling.canvas import Canvas, Original
from dalle.sampling.decode import FREE


@dataclass
class InpaintConfig:
    """Sample the tokens again where a mask is white. The caption describes the whole result.

    python sample.py checkpoint=outputs/demo caption="a red circle" edit=inpaint image=photo.png edit.mask=mask.png
    """

    name: str = "inpaint"
    mask: str = ""  # mask file of the image's size: tokens with a white pixel are sampled, the others are kept
    sweeps: int = 2  # refinement sweeps over the masked tokens, to fit them to later ones; 0: raster order alone
    proposals: int = 8  # proposals compared in each step of a sweep
    paste: bool = True  # show the original pixels of kept tokens; false: show their dVAE reconstruction


def inpaint(original: Original, mask: Image.Image, config: InpaintConfig | None = None) -> Canvas:
    """Build the canvas that frees each token of `original` with a white pixel in `mask`, of the whole image's size.

    Raises:
        ValueError: a mask of another size, or one that marks nothing.
    """
    config = config or InpaintConfig()
    tokens = original.tokens.masked_fill(original.touched(mask), FREE)
    pixels = original.pixels if config.paste else None
    return Canvas(tokens, sweeps=config.sweeps, proposals=config.proposals, pixels=pixels)
