"""Variants of captions that the user names in `bias_prompts`, told apart by CLIP, for the metric `bias`."""

import re
from collections.abc import Iterator, Sequence

from PIL import Image

from dalle.data.source import Source, UnreadableRecord
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import model_image
from dalle.evaluation.metrics.caption_variants import (
    CaptionVariants,
    Counts,
    leaves_open,
    metric_name,
    sample_candidates,
)
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Scorer

MAX_TRAINING_IMAGES = 200  # judged by CLIP for each prompt
EXAMPLE = "bias_prompts=['a nurse | a woman who is a nurse | a man who is a nurse']"


def sample_prompts(dalle: DALLE, clip: Scorer, source: Source, config: EvaluateConfig) -> Iterator[CaptionVariants]:
    """Sample the open captions of `config.bias_prompts`, and let CLIP choose among the variants of each."""
    variants = parse_prompts(config.bias_prompts)

    def judge(caption: str, images: list[Image.Image]) -> Counts:
        values = variants[caption]
        nearest = clip.score(images, values).argmax(dim=1).tolist() if images else []
        return {caption: {value: nearest.count(number) for number, value in enumerate(values)}}

    for caption, images in zip(variants, sample_candidates(dalle, [*variants], config), strict=True):
        training = training_images(caption, variants[caption], source)
        yield CaptionVariants(caption, judge(caption, training), judge(caption, images), images)


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


def variant_words(caption: str, variants: list[str]) -> re.Pattern[str]:
    """Return the pattern of the words that some variants have, and neither all of them nor the open caption."""
    words = [set(re.findall(r"\w+", variant.lower())) for variant in variants]
    distinguishing_words = set().union(*words) - set.intersection(*words) - set(re.findall(r"\w+", caption.lower()))
    return re.compile(
        rf"\b({'|'.join(sorted(distinguishing_words))})\b" if distinguishing_words else r"(?!)", re.IGNORECASE
    )


def training_images(caption: str, variants: list[str], source: Source) -> list[Image.Image]:
    """Return the first training images with a caption that contains `caption` and names no variant, at most 200.

    They have the models' size.
    """
    stated, images = variant_words(caption, variants), []
    for index in range(len(source)):
        if any(leaves_open(text, caption, stated) for text in source.captions(index)):
            try:
                images.append(model_image(source, index))
            except UnreadableRecord:
                continue
            if len(images) == MAX_TRAINING_IMAGES:
                break
    return images
