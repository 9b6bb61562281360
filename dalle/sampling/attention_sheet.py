"""Image grid of attention maps: heat maps of a caption's words over its image."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from dalle.image_grid import PAPER, Cell, GridRow, fitted, image_grid
from dalle.sampling.attention_maps import WordMaps, attention_to_text, check_layer, word_maps
from dalle.sampling.pipeline import DALLE
from dalle.sampling.results import Result

HEAT = "#d6300f"
FULL = 3.0  # multiple of a word's mean that gets the full colour
VEIL = 0.55  # how far the image below a map is blended with white, from 0 to 1


class AttentionSheets:
    """Writer of an attention sheet beside each image that sample.py keeps.

    Raises:
        ValueError: the model has no such layer.
    """

    def __init__(self, dalle: DALLE, layer: int | None = None):
        check_layer(dalle.transformer, layer)
        self.dalle, self.layer = dalle, layer

    def save(self, result: Result, pictures: Sequence[Path]) -> None:
        """Write the sheets of a result, whose images are in the files `pictures`, as <picture>-attention.png."""
        for path, sheet in zip(pictures, attention_sheets(self.dalle, result, self.layer), strict=True):
            sheet.save(sheet_path(path))


def sheet_path(picture: Path) -> Path:
    """Path of the attention sheet of an image file."""
    return picture.with_name(f"{picture.stem}-attention.png")


def attention_sheets(dalle: DALLE, result: Result, layer: int | None = None) -> list[Image.Image]:
    """Build a sheet for each image of a result, for one layer (from 1) or the mean over all.

    Raises:
        ValueError: there is no such layer, or the images are larger than the model's grid.
    """
    model, words = dalle.transformer, dalle.tokenizer.words(result.caption)
    check_layer(model, layer)
    (caption,) = dalle.tokenize([result.caption])
    layers = f"mean of {model.config.depth} layers" if layer is None else f"layer {layer}"
    sheets = []
    for image, tokens in zip(result.images, result.tokens, strict=True):
        found = word_maps(attention_to_text(model, caption, tokens), words, layer)
        sheets.append(attention_sheet(result.caption, image, found, layers))
    return sheets


def attention_sheet(
    caption: str, image: Image.Image, found: WordMaps, layers: str, columns: int = 6, tile: int = 144
) -> Image.Image:
    """Lay out the image and a tile for each word, in reading order, with an explanation of the colours.

    Later image tokens attend less to the text, as there are more image tokens to attend to. So a tile shows the word's
    share of a token's attention to words, and colours the cells above the word's mean.

    layers: name of the layers that the maps are from, such as "layer 3", for the explanation.
    tile: side in pixels.
    """
    shares = found.maps / found.maps.sum(dim=0).clamp(min=1e-12)  # (words, h, w)
    picture = fitted(image.convert("RGB"), tile)
    faded = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, PAPER), VEIL)
    cells = [Cell(picture, "picture")]
    cells += [
        Cell(_heated(faded, share), word, f"{share.mean():.0%}")
        for word, share in zip(found.words, shares, strict=True)
    ]
    return image_grid([GridRow(cells, caption)], columns, tile, notes=_notes(found, layers))


def _heated(faded: Image.Image, share: Tensor) -> Image.Image:
    """Colour the cells above the mean of (h, w) shares, stronger for higher shares, over the image."""
    strength = (share / share.mean().clamp(min=1e-12) - 1) / (FULL - 1)
    mask = Image.fromarray((strength.clamp(0, 1) * 255).byte().numpy())
    return Image.composite(Image.new("RGB", faded.size, HEAT), faded, mask.resize(faded.size, Image.Resampling.NEAREST))


def _notes(found: WordMaps, layers: str) -> list[str]:
    words = found.maps.sum(dim=0).mean().item()
    text = words + found.start + found.pads
    return [
        f"Where each word was attended to by the states that draw the cells ({layers}, mean of all heads): its share "
        "of what a cell gave to words. No colour is the word's mean, which stands beneath it, or less; full colour is "
        f"{FULL:.0f} times the mean.",
        f"Of all that they gave to text, {words / text:.0%} went to words, {found.start / text:.0%} to the start and "
        f"{found.pads / text:.0%} to the pads behind the caption.",
    ]
