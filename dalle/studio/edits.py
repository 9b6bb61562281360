"""Canvases of the studio's edits, from images in its store. The edits themselves are those of sample.py."""

from dataclasses import replace

from PIL import Image

from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.edits.inpaint import InpaintConfig, inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.variations import VariationsConfig, variations
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig
from dalle.studio.requests import Complete, DrawRequest, Extend, Inpaint, Vary
from dalle.studio.store import DrawnImage, Store, StoredImage


def build_canvas(request: DrawRequest, config: SamplingConfig, dalle: DALLE, store: Store) -> Canvas | None:
    """Build the canvas of a drawing's edit, for all its candidates; None without an edit.

    Raises:
        ApiError: an image or a mask that is not in the store.
        ValueError: a mask without white, or another setting that does not fit the image.
    """
    edit = request.edit
    if edit is None:
        return None
    stored = store.find(edit.image)
    image, original = stored.image, encode_stored(stored, dalle)
    refinement = edit.model_dump(include={"refinement_passes", "proposals"})
    match edit:
        case Inpaint():
            mask = _scale_mask(store.find(edit.mask).image, image)
            return inpaint(original, mask, InpaintConfig(**refinement))
        case Extend():
            extension = {edit.direction: max(1, round(edit.amount * len(original.tokens)))}
            return outpaint(original, OutpaintConfig(**extension, **refinement))
        case Vary():
            options = VariationsConfig(share=1 - edit.strength, **refinement)
            try:
                return variations(original, options, config.candidates, config.seed)
            except ValueError as error:  # it names the share of tokens that are kept
                raise ValueError(f"strength={edit.strength} draws none of the tokens anew, or all of them") from error
        case Complete():
            return complete(original, CompleteConfig(rows=edit.rows))


def encode_stored(stored: StoredImage, dalle: DALLE) -> EncodedImage:
    """Encode an image of the store. A drawn image of the model's own size keeps the tokens that it was drawn with."""
    grid = dalle.transformer.sequence.grid
    if isinstance(stored, DrawnImage) and stored.tokens.shape == (grid, grid):
        return EncodedImage(stored.image.size, stored.image, stored.tokens)
    return dalle.encode_image(stored.image)


def canvas_of_candidates(canvas: Canvas | None, start: int, count: int) -> Canvas | None:
    """Return the part of a canvas for `count` candidates from number `start` on; unchanged if all share its tokens."""
    if canvas is None or canvas.tokens.ndim == 2:
        return canvas
    return replace(canvas, tokens=canvas.tokens[start : start + count])


def _scale_mask(mask: Image.Image, image: Image.Image) -> Image.Image:
    """Scale a mask to an image of the same shape: large ones are scaled down when they are uploaded."""
    same_shape = abs(mask.width * image.height - mask.height * image.width) <= max(mask.size) * 2
    return mask.resize(image.size, Image.Resampling.BOX) if same_shape else mask
