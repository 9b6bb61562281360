"""Image grid of attention maps: heat maps of a caption's words over its image."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from dalle.atomic_files import atomic_write
from dalle.image_grid import PAPER, Cell, GridRow, fitted, image_grid
from dalle.sampling.attention_maps import WordMaps, attention_to_text, check_layer, word_maps
from dalle.sampling.pipeline import DALLE
from dalle.sampling.results import Result

HEAT_COLOUR = "#d6300f"
FULL_COLOUR = 3.0  # multiple of a word's mean that gets the full colour
WHITENING = 0.55  # share of white blended into the image below a map


class AttentionGridWriter:
    """Writer of an attention grid beside each image that sample.py keeps.

    Raises:
        ValueError: the model has no such layer.
    """

    def __init__(self, dalle: DALLE, layer: int | None = None):
        check_layer(dalle.transformer, layer)
        self.dalle, self.layer = dalle, layer

    def save(self, result: Result, files: Sequence[Path]) -> None:
        """Write the grids of a result, whose images are in `files`, as <image>-attention.png."""
        for path, grid in zip(files, attention_grids(self.dalle, result, self.layer), strict=True):
            with atomic_write(attention_grid_path(path)) as temporary:
                grid.save(temporary, format="PNG")


def attention_grid_path(image: Path) -> Path:
    """Return the path of an image file's attention grid: <image>-attention.png in the same folder."""
    return image.with_name(f"{image.stem}-attention.png")


def attention_grids(dalle: DALLE, result: Result, layer: int | None = None) -> list[Image.Image]:
    """Build a grid for each image of a result, for one layer (from 1) or the mean over all.

    Raises:
        ValueError: there is no such layer, or the images are larger than the model's grid.
    """
    model, words = dalle.transformer, dalle.tokenizer.words(result.caption)
    check_layer(model, layer)
    (caption,) = dalle.tokenize([result.caption])
    layers = f"mean of {model.config.depth} layers" if layer is None else f"layer {layer}"
    grids = []
    for image, tokens in zip(result.images, result.tokens, strict=True):
        maps = word_maps(attention_to_text(model, caption, tokens), words, layer)
        grids.append(attention_grid(result.caption, image, maps, layers))
    return grids


def attention_grid(
    caption: str, image: Image.Image, maps: WordMaps, layers: str, columns: int = 6, tile: int = 144
) -> Image.Image:
    """Lay out the image and a tile for each word, in reading order, with an explanation of the colours.

    Later image tokens attend less to the text, as there are more image tokens to attend to. So a tile shows the word's
    share of a token's attention to words, and colours the cells above the word's mean.

    layers: name of the layers that the maps are from, such as "layer 3", for the explanation.
    tile: side in pixels.
    """
    shown = fitted(image.convert("RGB"), tile)
    cells = [Cell(shown, "image")]
    cells += [Cell(heat_map, word, f"{share:.0%}") for word, heat_map, share in heat_maps(shown, maps)]
    return image_grid([GridRow(cells, caption)], columns, tile, notes=_notes(maps, layers))


def heat_maps(image: Image.Image, maps: WordMaps) -> list[tuple[str, Image.Image, float]]:
    """Return for each word its heat map over an RGB image, and its mean share of the attention to words."""
    shares = maps.maps / maps.maps.sum(dim=0).clamp(min=1e-12)  # (words, h, w)
    faded = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), WHITENING)
    return [
        (word, _heat_map(faded, share), share.mean().item()) for word, share in zip(maps.words, shares, strict=True)
    ]


def _heat_map(faded: Image.Image, share: Tensor) -> Image.Image:
    """Colour the cells above the mean of (h, w) shares, stronger for higher shares, over the image."""
    strength = (share / share.mean().clamp(min=1e-12) - 1) / (FULL_COLOUR - 1)
    mask = Image.fromarray((strength.clamp(0, 1) * 255).byte().numpy())
    return Image.composite(
        Image.new("RGB", faded.size, HEAT_COLOUR), faded, mask.resize(faded.size, Image.Resampling.NEAREST)
    )


def _notes(maps: WordMaps, layers: str) -> list[str]:
    words = maps.maps.sum(dim=0).mean().item()
    text = words + maps.start + maps.padding
    return [
        f"Attention from the state that predicts each image token to each word ({layers}, mean of all heads), as a "
        "share of its attention to words. No colour: the word's mean share, printed below it, or less. Full colour: "
        f"{FULL_COLOUR:.0f} times the mean or more.",
        f"Of the attention to text, {words / text:.0%} is to words, {maps.start / text:.0%} to the start of text and "
        f"{maps.padding / text:.0%} to the padding after the caption.",
    ]
