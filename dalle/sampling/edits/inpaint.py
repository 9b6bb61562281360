"""Inpaint: sample the masked tokens again. Refinement passes fit them to the tokens after them."""

from dataclasses import dataclass

from PIL import Image

from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.decode import MASKED


@dataclass
class InpaintConfig:
    """Sample the tokens again where a mask is white. The caption describes the whole result.

    python sample.py caption="a red apple" edit=inpaint image=photo.png edit.mask=mask.png
    """

    name: str = "inpaint"
    mask: str = ""  # mask file of the image's size: tokens with a white pixel are sampled, the others are kept
    refinement_passes: int = 2  # refinement passes over the masked tokens; 0: raster order alone
    proposals: int = 8  # proposals compared in each step of a pass
    paste: bool = True  # show the original pixels of kept tokens; false: show their dVAE reconstruction


def inpaint(original: EncodedImage, mask: Image.Image, config: InpaintConfig | None = None) -> Canvas:
    """Build the canvas that masks each token of `original` with a white pixel in `mask`, of the whole image's size.

    Raises:
        ValueError: a mask of another size, or one that has no white pixel.
    """
    config = config or InpaintConfig()
    tokens = original.tokens.masked_fill(original.mask_to_tokens(mask), MASKED)
    pixels = original.pixels if config.paste else None
    return Canvas(tokens, refinement_passes=config.refinement_passes, proposals=config.proposals, pixels=pixels)
