"""Metric `drawing_edits`: edits of held-out drawings; kept tokens, and agreement in style by the judge of drawings."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image

from dalle.data import attribution
from dalle.data.drawings.source import DrawingsSource
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import model_image
from dalle.evaluation.judges.digest import weights_digest
from dalle.evaluation.judges.drawings_classifier import DrawingClassifier, style_agreement
from dalle.evaluation.judges.drawings_classifier_training import load_classifier
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.sampling_settings import decoding_settings
from dalle.progress import with_progress
from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.decode import MASKED
from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.edits.inpaint import InpaintConfig, inpaint
from dalle.sampling.edits.outpaint import OutpaintConfig, outpaint
from dalle.sampling.edits.remix import RemixConfig, remix
from dalle.sampling.edits.variations import VariationsConfig, variations
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.results import Result

DESCRIPTION = (
    "Edits of drawings of concepts that training never shows, with the drawing's own caption, one candidate each. "
    "`kept` is the share of images in which all kept tokens are unchanged, and `style` the share in the style of the "
    "original by the judge of drawings; `original_style` is that share of the originals themselves. outpaint adds a "
    "quarter on the right, and its right-hand square is judged; remix joins two drawings of the same style."
)
MAX_DRAWINGS = 50
GRID_DRAWINGS = 6
PASSES = 1  # refinement passes of the edits that have them


class Drawing(NamedTuple):
    """Held-out drawing to edit, with its caption, its style and another drawing of the same style."""

    caption: str
    style: int  # class number
    image: EncodedImage
    other: EncodedImage


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Apply every edit to the first `config.captions` held-out drawings, at most 50."""
    if context.data.name != "drawings":
        raise ValueError(f"metrics=[drawing_edits] needs data=drawings, and not data={context.data.name}")
    dalle, judge = context.require_pipeline(), load_classifier(context.data)
    source = DrawingsSource(context.data, "val")
    if not any(record.kind == "drawing" for record in source.records):
        raise ValueError("the split val of the drawings is empty: metrics=[drawing_edits] has nothing to edit")
    drawings = held_out_drawings(source, judge, min(config.captions, MAX_DRAWINGS), dalle.encode_image)
    styles = torch.tensor([drawing.style for drawing in drawings])
    originals = [drawing.image.pixels for drawing in drawings]
    numbers = {"drawing_edits_original_style": style_agreement(judge, originals, styles)}
    rows = [ImageRow("originals", originals[:GRID_DRAWINGS], None)]
    for name, edit in edits(config.seed).items():
        canvases = [edit(drawing) for drawing in drawings]
        results = [
            next(dalle.stream([drawing.caption], config.sampling(1), canvas=canvas, truncate=True, progress=False))
            for drawing, canvas in with_progress(zip(drawings, canvases, strict=True), len(drawings), name)
        ]
        keeps_all = [keeps_tokens(result, canvas) for result, canvas in zip(results, canvases, strict=True)]
        images = [result.images[0] for result in results]
        numbers[f"drawing_edits_{name}_kept"] = sum(keeps_all) / len(keeps_all)
        numbers[f"drawing_edits_{name}_style"] = style_agreement(
            judge, [right_square(image) for image in images], styles
        )
        rows.append(ImageRow(name, images[:GRID_DRAWINGS], None))
    # one candidate: nothing is ranked
    settings = {"candidates": 1, **decoding_settings(dalle, dalle.resolve(config.sampling(1)))}
    settings |= {"drawings": len(drawings), "refinement_passes": PASSES, "judge": {"digest": weights_digest(judge)}}
    captions = "; ".join(drawing.caption for drawing in drawings[:GRID_DRAWINGS])
    grid = labelled_grid(rows, GRID_DRAWINGS, note=f"{captions}. {attribution(context.data.name)}")
    return MetricResult(DESCRIPTION, numbers, settings, {"drawing_edits": grid})


def held_out_drawings(
    source: DrawingsSource, judge: DrawingClassifier, count: int, encode: Callable[[Image.Image], EncodedImage]
) -> list[Drawing]:
    """Return the first `count` drawings of a split, each with the next one of the same style."""
    records = [number for number, record in enumerate(source.records) if record.kind == "drawing"]
    styles = [source.drawings.pictures[source.records[record].first].drawing_set.style for record in records]
    drawings = []
    for position, record in enumerate(records[:count]):
        same_style = [
            number for number in range(len(records)) if styles[number] == styles[position] and number != position
        ]
        other = records[min(same_style, key=lambda number: (number < position, number), default=position)]
        images = (encode(model_image(source, number)) for number in (record, other))
        drawings.append(Drawing(source.captions(record)[0], judge.config.styles.index(styles[position]), *images))
    return drawings


def edits(seed: int) -> dict[str, Callable[[Drawing], Canvas]]:
    """Return the function that builds the canvas of each edit, for one candidate."""
    return {
        "complete": lambda drawing: complete(drawing.image, CompleteConfig(rows=len(drawing.image.tokens) // 2)),
        "inpaint": lambda drawing: inpaint(
            drawing.image, middle_mask(drawing.image), InpaintConfig(refinement_passes=PASSES)
        ),
        "outpaint": lambda drawing: outpaint(
            drawing.image, OutpaintConfig(right=len(drawing.image.tokens) // 4, refinement_passes=PASSES)
        ),
        "variations": lambda drawing: variations(drawing.image, VariationsConfig(refinement_passes=PASSES), 1, seed),
        "remix": lambda drawing: remix(drawing.image, drawing.other, RemixConfig(refinement_passes=PASSES), 1, seed),
    }


def middle_mask(image: EncodedImage) -> Image.Image:
    """Return a mask of an image that marks the square in its middle, half as wide as the image."""
    width, height = image.size
    mask = Image.new("L", image.size)
    mask.paste(255, (width // 4, height // 4, width - width // 4, height - height // 4))
    return mask


def keeps_tokens(result: Result, canvas: Canvas) -> bool:
    """Return True if the first image has all tokens that the canvas keeps."""
    tokens = canvas.tokens[0] if canvas.tokens.ndim == 3 else canvas.tokens
    is_kept = tokens != MASKED
    return bool((result.tokens[0][is_kept] == tokens[is_kept]).all())


def right_square(image: Image.Image) -> Image.Image:
    """Return the square at the right end of an image that is at least as wide as high."""
    return image.crop((image.width - image.height, 0, image.width, image.height))
