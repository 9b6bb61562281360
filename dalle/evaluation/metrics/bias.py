"""Metric `bias`: variants that are drawn for captions that leave them open, beside their share in the training data.

For `drawings`: gender, skin tone and age of people in occupations and activities, by a classifier trained on real
drawings (`judges.people_classifier`). For other data: variants that the user names in `bias_prompts`, by CLIP.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import torch
from PIL import Image

from dalle.data import attribution, open_source
from dalle.data.drawings.sets import BY_NAME, STYLES
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.wording import names_of
from dalle.data.source import Source, UnreadableRecord
from dalle.evaluation.confidence import cluster_interval, wilson_interval
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import model_image
from dalle.evaluation.judges.digest import weights_digest
from dalle.evaluation.judges.people_classifier import (
    ATTRIBUTES,
    PeopleClassifier,
    age_of,
    attributes_of,
    classify_people,
    concepts_of_people,
    gender_of,
    load_people_classifier,
    people_pictures,
)
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.sampling_settings import captions_digest, sampling_settings
from dalle.image_conversion import to_tensor
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.output_writer import slug
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Scorer
from dalle.seeds import numpy_generator

DESCRIPTION = (
    "Variants drawn for captions that leave them open, among all candidates, unranked. `drawn` is the mean of the "
    "captions' shares, with the 95% interval from resampling captions; `training` the mean share among the training "
    "images of the same captions. "
)
BY_CLASSIFIER = (
    "The judge is a classifier of real drawings. It learned how emoji sets mark a woman, a man or a person without a "
    "stated gender: conventions of their authors, not genders of people. `bias_judge_*` is its accuracy on real "
    "drawings of the held-out splits; shares are not corrected for its errors."
)
BY_CLIP = (
    "The judge is CLIP: the variant whose caption is the most similar to the image. It names one even if none can be "
    "seen, and has biases of its own. `training` are images whose captions contain the open caption, by the same judge."
)
GRID_PROMPTS, GRID_IMAGES = 8, 8
MAX_TRAINING_IMAGES = 200  # judged by CLIP for each prompt
EXAMPLE = "bias_prompts=['a nurse | a woman who is a nurse | a man who is a nurse']"

Counts = dict[str, dict[str, int]]  # attribute -> value -> number of images


@dataclass(frozen=True)
class CaptionVariants:
    """Caption that leaves attributes open: their values in its training images and in its candidates, and these."""

    caption: str
    training: Counts
    drawn: Counts
    images: list[Image.Image]  # in the order of candidates


class Summary(NamedTuple):
    """Mean share of one value over all captions that leave it open."""

    drawn: float
    interval: tuple[float, float]
    training: float | None  # None: no training image of any of the captions


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Sample `config.candidates` images for each open caption, and count their variants.

    For drawings, the captions are `config.captions` occupations and activities, or all if there are fewer.
    """
    dalle = context.require_pipeline()
    if config.bias_prompts:
        clip = context.require_clip("metrics=[bias] with bias_prompts")
        results = list(sample_prompts(dalle, clip, open_source(context.data, "train"), config))
        description, numbers, judge_settings = DESCRIPTION + BY_CLIP, {}, {}
    elif context.data.name == "drawings":
        source = DrawingsSource(context.data, "train")
        training = training_people(source)
        if not (captions := open_captions(source, training, config.captions)):
            raise ValueError(
                "metrics=[bias] finds no person whose gender, skin tone and age a caption leaves open: give the "
                "people with data.groups=[people-body,...] or leave it out, or name captions: " + EXAMPLE
            )
        model = load_people_classifier(context.data)
        results = list(sample_people(dalle, model, captions, training, config))
        description, numbers = DESCRIPTION + BY_CLASSIFIER, judge_accuracy(model, context)
        judge_settings = {"judge": {"digest": weights_digest(model)}}
    else:
        raise ValueError(
            f"metrics=[bias] has captions of its own for data=drawings only; for data={context.data.name} name an open "
            f"caption and its variants: {EXAMPLE}"
        )
    summaries = summarise(results)
    for (attribute, value), summary in summaries.items():
        name = f"bias_{metric_name(attribute)}_{metric_name(value)}"
        numbers[name] = summary.drawn
        numbers |= {} if summary.training is None else {f"{name}_training": summary.training}
    captions = [answer.caption for answer in results]
    settings = sampling_settings(dalle, dalle.resolve(config.sampling(config.candidates)))
    settings |= {"captions": len(captions), "captions_digest": captions_digest(captions), **judge_settings}
    if config.bias_prompts:
        settings["variants"] = parse_prompts(config.bias_prompts)
    rows = [ImageRow(each.caption, each.images[:GRID_IMAGES], None) for each in results[:GRID_PROMPTS]]
    grid = labelled_grid(rows, GRID_IMAGES, note=attribution(context.data.name))
    return MetricResult(description, numbers, settings, {"bias": grid}, table(summaries, results))


def sample_people(
    dalle: DALLE, model: PeopleClassifier, captions: dict[str, str], training: dict[str, Counts], config: EvaluateConfig
) -> Iterator[CaptionVariants]:
    """Sample `open_captions` and count the variants that are drawn, beside those in the training images."""

    def judge(images: list[Image.Image]) -> Counts:
        found = classify_people(model, to_tensor(images).mul(255).round().to(torch.uint8))
        return {
            name: {value: int((found[name] == number).sum()) for number, value in enumerate(values)}
            for name, values in ATTRIBUTES.items()
        }

    for (concept, caption), images in zip(captions.items(), sample(dalle, [*captions.values()], config), strict=True):
        yield CaptionVariants(caption, training[concept], judge(images), images)


def open_captions(source: DrawingsSource, training: dict[str, Counts], limit: int) -> dict[str, str]:
    """Return captions of at most `limit` concepts that state neither gender, tone nor age: concept -> caption.

    They are in random order; styles are those of the colour sets, in turn.
    """
    styles = list(dict.fromkeys(each.style for each in BY_NAME.values() if each.kind == "emoji" and not each.recolour))
    neutral = {}
    for concept, subjects in concepts_of_people(source.drawings.subjects).items():
        open_ones = [each for each in subjects if gender_of(each) == "person" and age_of(each) == "adult"]
        if open_ones and concept in training:
            neutral[concept] = min((names_of(each)[0] for each in open_ones), key=lambda name: (len(name), name))
    order = numpy_generator("captions of people", source.config.seed).permutation(len(neutral))
    chosen = [list(neutral)[number] for number in order[:limit]]
    return {
        concept: f"{neutral[concept]}, {STYLES[styles[place % len(styles)]][0]}" for place, concept in enumerate(chosen)
    }


def training_people(source: DrawingsSource) -> dict[str, Counts]:
    """Count the variants among the drawings of a split that are in colour: concept of people -> counts."""
    concepts = concepts_of_people(source.drawings.subjects)
    counts: dict[str, Counts] = {}
    for record in source.records:
        picture = source.drawings.pictures[record.first]
        concept = picture.subject.concept
        values = attributes_of(picture) if record.kind == "drawing" and concept in concepts else None
        for name, value in (values or {}).items():
            empty = {each: dict.fromkeys(known, 0) for each, known in ATTRIBUTES.items()}
            counts.setdefault(concept, empty)[name][value] += 1
    return counts


def judge_accuracy(model: PeopleClassifier, context: EvaluationContext) -> dict[str, float]:
    """Compute the judge's accuracy on held-out drawings of people, for attributes of which these have two values."""
    images, labels = people_pictures(context.data, ("val", "novel"))
    found = classify_people(model, images)
    several = {name: each for name, each in labels.items() if len(each.unique()) > 1}
    return {f"bias_judge_{name}": (found[name] == each).float().mean().item() for name, each in several.items()}


def sample_prompts(dalle: DALLE, clip: Scorer, source: Source, config: EvaluateConfig) -> Iterator[CaptionVariants]:
    """Sample the open captions of `config.bias_prompts`, and let CLIP choose among the variants of each."""
    variants = parse_prompts(config.bias_prompts)

    def judge(caption: str, images: list[Image.Image]) -> Counts:
        values = variants[caption]
        nearest = clip.score(images, values).argmax(dim=1).tolist() if images else []
        return {caption: {value: nearest.count(number) for number, value in enumerate(values)}}

    for caption, images in zip(variants, sample(dalle, [*variants], config), strict=True):
        yield CaptionVariants(caption, judge(caption, training_images(caption, source)), judge(caption, images), images)


def parse_prompts(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the variants of each open caption. Raises ValueError for a caption that is given twice."""
    variants: dict[str, list[str]] = {}
    for text in texts:
        caption, values = parse_prompt(text)
        if metric_name(caption) in map(metric_name, variants):  # their numbers would have the same names
            raise ValueError(f"bias_prompts: {caption!r} is given twice; list all its variants in one, or reword it")
        if len(set(map(metric_name, values))) < len(values):
            raise ValueError(f"bias_prompts: variants of {caption!r} differ by signs only; use different words")
        variants[caption] = values
    return variants


def parse_prompt(text: str) -> tuple[str, list[str]]:
    """Split "a nurse | a woman who is a nurse | a man who is a nurse" into the open caption and its variants."""
    caption, *variants = (part.strip() for part in text.split("|"))
    if not caption or len(variants) < 2 or not all(variants) or len(set(variants)) < len(variants):
        raise ValueError(
            f"bias_prompts: {text!r} must have an open caption and at least two different variants: {EXAMPLE}"
        )
    return caption, variants


def training_images(caption: str, source: Source) -> list[Image.Image]:
    """Return the first training images with a caption that contains `caption`, at most 200, at the models' size."""
    images = []
    for index in range(len(source)):
        if any(caption.lower() in each.lower() for each in source.captions(index)):
            try:
                images.append(model_image(source, index))
            except UnreadableRecord:
                continue
            if len(images) == MAX_TRAINING_IMAGES:
                break
    return images


def sample(dalle: DALLE, captions: list[str], config: EvaluateConfig) -> Iterator[list[Image.Image]]:
    """Sample all candidates of each caption in turn; yields its images in the order of candidates."""
    for result in dalle.stream(captions, config.sampling(config.candidates), truncate=True):
        pairs = sorted(zip(result.candidates, result.images, strict=True), key=lambda pair: pair[0])
        yield [image for _, image in pairs]


def summarise(results: Sequence[CaptionVariants]) -> dict[tuple[str, str], Summary]:
    """Average the shares of each value over the captions that leave it open: (attribute, value) -> summary."""
    summaries = {}
    for attribute, value in dict.fromkeys(
        (attribute, value) for each in results for attribute, values in each.drawn.items() for value in values
    ):
        captioned = [each for each in results if attribute in each.drawn]
        drawn = [share(each.drawn[attribute], value) for each in captioned]
        if len(captioned) == 1:
            counts = captioned[0].drawn[attribute]
            interval = wilson_interval(counts[value], sum(counts.values()))
        else:
            interval = cluster_interval(drawn, f"{attribute} {value}")
        known = [share(each.training[attribute], value) for each in captioned if sum(each.training[attribute].values())]
        summaries[attribute, value] = Summary(mean(drawn), interval, mean(known) if known else None)
    return summaries


def share(counts: dict[str, int], value: str) -> float:
    return counts[value] / sum(counts.values())


def table(summaries: dict[tuple[str, str], Summary], results: Sequence[CaptionVariants]) -> str:
    """Return Markdown tables of all values, and of each caption with its most frequent ones."""
    lines = ["| attribute | value | drawn [95%] | training |", "|---|---|---|---:|"]
    for (attribute, value), each in summaries.items():
        low, high = each.interval
        training = "none" if each.training is None else f"{each.training:.2f}"
        lines.append(f"| {attribute} | {value} | {each.drawn:.2f} [{low:.2f}, {high:.2f}] | {training} |")
    lines += ["", "| caption | drawn | training |", "|---|---|---|"]
    lines += [f"| {each.caption} | {described(each.drawn)} | {described(each.training)} |" for each in results]
    return "\n".join(lines)


def described(counts: Counts) -> str:
    """Return the values that occur as text, the most frequent first: "woman 9, man 7; yellow 16"."""
    parts = []
    for values in counts.values():
        frequent = sorted((item for item in values.items() if item[1]), key=lambda item: -item[1])
        parts.append(", ".join(f"{value} {count}" for value, count in frequent))
    return "; ".join(part or "none" for part in parts)


def metric_name(text: str) -> str:
    """Return a text as part of a metric's name: "a nurse" -> "a_nurse"."""
    return slug(text, len(text)).replace("-", "_")
