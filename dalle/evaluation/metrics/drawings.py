"""Metric `drawings`: concept, style, colour and panel partner of sampled drawings, by a classifier of drawings.

The classifier sees pixels only, and is trained on the training split (`judges.drawings_classifier`). Its accuracy on
the real drawings of the same captions is computed first, and limits what a model can reach.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dalle.data import attribution
from dalle.data.drawings.source import DrawingsSource
from dalle.data.transforms import inference_crop
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.judges.drawings_classifier import DrawingClassifier, Labels, class_numbers, load_classifier
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.sampling_settings import captions_digest, sampling_settings
from dalle.image_conversion import to_tensor
from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.pipeline import DALLE
from dalle.sampling.results import Result

DESCRIPTION = (
    "Drawings sampled for held-out captions, and classified by a network that was trained on pixels of real training "
    "drawings. `novel`: a concept in a style in which training never shows it; `colours`: a concept in a colour in "
    "which training never shows it. `top` is the candidate that ranks first by CLIP, `first` candidate 0, `real` the "
    "caption's own drawing, which limits what can be reached. `partner`: the upper panel of a concept that training "
    "never shows is given, and the lower one is sampled; the share whose lower panel is closer to its own real one "
    "than to those of nine others in the same style (features of the same network; chance is 0.1). `real` is the "
    "partner's reconstruction by the dVAE."
)
ATTRIBUTES = {"novel": ("concept", "style"), "colours": ("concept", "colour")}  # checked in each split
CHOICES = 10  # lower panels that a sampled one is compared with
GRID_CAPTIONS = 8


@dataclass(frozen=True)
class Candidates:
    """Images sampled for one record's caption (candidate 0 and the one that ranks first), and its real image."""

    caption: str
    real: Image.Image
    first: Image.Image
    top: Image.Image


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Sample `config.captions` captions of each held-out split, and as many image prompts, at most 200."""
    if context.data.name != "drawings":
        raise ValueError(
            f"metrics=[drawings] needs data=drawings, whose concepts the judge knows, and not data={context.data.name}"
        )
    dalle = context.require_pipeline()
    judge = load_classifier(context.data)
    numbers: dict[str, float] = {}
    rows: list[ImageRow] = []
    settings: dict[str, Any] = sampling_settings(dalle, config, config.candidates)
    for split, attributes in ATTRIBUTES.items():
        source = DrawingsSource(context.data, split)
        records = list(range(min(config.captions, len(source))))
        samples = sample_captions(dalle, source, records, config)
        labels = true_labels(source, records, judge.config.concepts)
        for name in ("first", "top", "real"):
            logits = classify(judge, [getattr(each, name) for each in samples])
            for attribute in attributes:
                hits = getattr(logits, attribute).argmax(dim=1) == getattr(labels, attribute)
                numbers[f"drawings_{split}_{attribute}_{name}"] = hits.float().mean().item()
        rows += [grid_row(each) for each in samples[:GRID_CAPTIONS]]
        digest = captions_digest([each.caption for each in samples])
        settings[split] = {"captions": len(samples), "captions_digest": digest}
    prompts, partners = measure_partners(dalle, judge, context, config)
    numbers |= partners
    rows += [grid_row(each) for each in prompts[:GRID_CAPTIONS]]
    settings["partner"] = {"prompts": len(prompts), "choices": CHOICES}
    settings["judge"] = {
        name: len(classes) for name, classes in vars(judge.config).items() if isinstance(classes, list)
    }
    grid = labelled_grid(rows, note=f"From left: real, candidate 0, top. {attribution(context.data)}")
    return MetricResult(DESCRIPTION, numbers, settings, {"drawings": grid}, table(numbers))


def table(numbers: dict[str, float]) -> str:
    """Return the numbers as a Markdown table, with the top candidate's share of the accuracy on real drawings."""
    lines = ["| | candidate 0 | top | real | top / real |", "|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys(key.rpartition("_")[0] for key in numbers):
        first, top, real = (numbers[f"{name}_{which}"] for which in ("first", "top", "real"))
        share = f"{top / real:.2f}" if real else "-"
        lines.append(f"| {name.removeprefix('drawings_')} | {first:.3f} | {top:.3f} | {real:.3f} | {share} |")
    return "\n".join(lines)


def sample_captions(
    dalle: DALLE, source: DrawingsSource, records: list[int], config: EvaluateConfig
) -> list[Candidates]:
    """Sample `config.candidates` images for the first caption of each record, which states its style."""
    captions = [source.captions(record)[0] for record in records]
    results = dalle.stream(captions, config.sampling(config.candidates), truncate=True)
    return [candidates_of(source, record, result) for record, result in zip(records, results, strict=True)]


def candidates_of(source: DrawingsSource, record: int, result: Result) -> Candidates:
    return Candidates(
        result.caption, real_image(source, record), result.images[result.candidates.index(0)], result.images[0]
    )


def grid_row(sample: Candidates) -> ImageRow:
    return ImageRow(sample.caption, [sample.real, sample.first, sample.top], None)


def true_labels(source: DrawingsSource, records: list[int], concepts: list[str]) -> Labels:
    """Return the classes of the records; UNLABELLED for a concept that is not in `concepts`, and for no colour."""
    numbers = {concept: number for number, concept in enumerate(concepts)}
    rows = [class_numbers(source, record, numbers) for record in records]
    return Labels(*torch.tensor(rows).unbind(dim=1))


@torch.inference_mode()
def classify(judge: DrawingClassifier, images: list[Image.Image]) -> Labels:
    """Return the judge's logits for n images of any one size: concept, style and colour, each (n, classes)."""
    batches = [judge(to_tensor(images[start : start + 64])) for start in range(0, len(images), 64)]
    return Labels(*(torch.cat(each) for each in zip(*batches, strict=True)))


def measure_partners(
    dalle: DALLE, judge: DrawingClassifier, context: EvaluationContext, config: EvaluateConfig
) -> tuple[list[Candidates], dict[str, float]]:
    """Measure how often the sampled lower panel resembles its real partner most, of ten real lower panels.

    The model is given the upper panel of a held-out concept and samples the lower one. Returns the samples, and the
    share found for candidate 0, for the best candidate and for reconstructions of the real picture.
    """
    source = DrawingsSource(context.data, "val")
    panels = [record for record, composed in enumerate(source.records) if composed.kind == "panels"]
    chosen = panels[: min(config.captions, 200)]
    grid = dalle.transformer.sequence.grid
    samples, reconstructions = [], []
    for record in chosen:
        original = dalle.encode_image(source.image(record))
        canvas = complete(original, CompleteConfig(rows=grid // 2, paste=False))
        caption = source.captions(record)[0]
        result = dalle.generate(caption, config.sampling(config.candidates), canvas=canvas)
        samples.append(candidates_of(source, record, result))
        reconstructions.extend(dalle.decode_images(original.tokens[None]))
    distractors = [other_partners(source, panels, record, config.seed) for record in chosen]
    numbers = {}
    sampled = {
        "first": [each.first for each in samples],
        "top": [each.top for each in samples],
        "real": reconstructions,
    }
    for name, images in sampled.items():
        found = [
            closest(judge, lower_panel(image), [lower_panel(real_image(source, other)) for other in (record, *others)])
            for image, record, others in zip(images, chosen, distractors, strict=True)
        ]
        numbers[f"drawings_partner_found_{name}"] = float(np.mean([choice == 0 for choice in found]))
    return samples, numbers


def other_partners(source: DrawingsSource, panels: list[int], record: int, seed: int) -> list[int]:
    """Choose, among the records `panels`, `CHOICES` - 1 with a lower panel of the same style and another concept."""
    pictures = source.drawings.pictures
    own = pictures[source.records[record].second]
    others: dict[str, int] = {}
    for other in np.random.default_rng([seed, record]).permutation(panels):
        picture = pictures[source.records[other].second]
        if picture.drawing_set.style == own.drawing_set.style and picture.subject.concept != own.subject.concept:
            others.setdefault(picture.subject.concept, int(other))
    return list(others.values())[: CHOICES - 1]


def real_image(source: DrawingsSource, record: int) -> Image.Image:
    return Image.fromarray(inference_crop(source.image(record), source.image_size))


def lower_panel(image: Image.Image) -> Image.Image:
    """Return the square in the middle of an image's lower half."""
    half = image.width // 2
    left = (image.width - half) // 2
    return image.crop((left, half, left + half, 2 * half))


@torch.inference_mode()
def closest(judge: DrawingClassifier, image: Image.Image, choices: list[Image.Image]) -> int:
    """Return the index in `choices` of the image with the features of largest cosine similarity to those of `image`."""
    features = F.normalize(judge.features(to_tensor([image, *choices])), dim=1)
    return int((features[1:] @ features[0]).argmax())
