"""Draw what the model of drawings makes, for the README: `make pictures`, or `python docs/pictures.py [checkpoint]`.

Above: the captions of configs/prompts/drawings.yaml, the best 6 of 64. Below: image prompts, the first panels of the
split val, whose concepts training never shows: the drawing that is given, the lower panel of the best of 16, and the
true partner. Temperature, guidance and ranking are the checkpoint's, and nothing is selected by hand.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from dalle import DALLE
from dalle.cli.config import compose
from dalle.data import attribution
from dalle.data.drawings.config import DrawingsConfig
from dalle.data.drawings.source import DrawingsSource
from dalle.evaluation.held_out import model_image
from dalle.evaluation.metrics.drawing_partners import lower_panel
from dalle.image_grid import Cell, GridRow, image_grid
from dalle.sampling.edits.complete import CompleteConfig, complete

CAPTIONS, PROMPTS = Path(__file__).with_name("drawings-captions.png"), Path(__file__).with_name("drawings-prompts.png")
KEEP, CANDIDATES = 6, 64
IMAGE_PROMPTS, PROMPT_CANDIDATES = 8, 16


def draw_captions(dalle: DALLE, captions: list[str]) -> Image.Image:
    """Draw a row of images for each caption, two captions side by side."""
    results = dalle.generate_many(captions, candidates=CANDIDATES, keep=KEEP)
    rows = [GridRow([Cell(image) for image in result.images], result.caption) for result in results]
    return image_grid(rows, columns=KEEP, tile=112, notes=[attribution(DrawingsConfig.name)])


def draw_prompts(dalle: DALLE, source: DrawingsSource) -> Image.Image:
    """Draw image prompts in a row: the given panel, the sampled one and the true one, below each other."""
    panels = [number for number, record in enumerate(source.records) if record.kind == "panels"][:IMAGE_PROMPTS]
    given, drawn, true = [], [], []
    for record in panels:
        image = model_image(source, record)
        original = dalle.encode_image(image)
        canvas = complete(original, CompleteConfig(rows=len(original.tokens) // 2))
        caption = source.captions(record)[0]
        result = dalle.generate(caption, candidates=PROMPT_CANDIDATES, keep=1, canvas=canvas)
        given.append(Cell(upper_panel(image)))
        drawn.append(Cell(lower_panel(result.images[0])))
        true.append(Cell(lower_panel(image), label=caption.removeprefix("the exact same ")))
    rows = [GridRow(given, "given"), GridRow(drawn, "drawn"), GridRow(true, "true partner")]
    return image_grid(rows, columns=IMAGE_PROMPTS, tile=112, notes=[attribution(DrawingsConfig.name)])


def upper_panel(image: Image.Image) -> Image.Image:
    """Return the square in the middle of an image's upper half."""
    side = image.width // 2
    left = (image.width - side) // 2
    return image.crop((left, 0, left + side, side))


def main(checkpoint: str = "drawings", data: str = DrawingsConfig.path) -> None:
    torch.set_grad_enabled(False)
    dalle = DALLE.load(checkpoint)
    draw_captions(dalle, compose("sample", ["+prompts=drawings"]).captions).quantize(192).save(CAPTIONS, optimize=True)
    draw_prompts(dalle, DrawingsSource(DrawingsConfig(path=data), "val")).quantize(192).save(PROMPTS, optimize=True)
    print(f"{CAPTIONS}\n{PROMPTS}")


if __name__ == "__main__":
    main(*sys.argv[1:])
