"""Variants drawn for captions that leave them open: counts, shares, intervals and tables of the metric `bias`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

from PIL import Image

from dalle.evaluation.confidence import cluster_interval, wilson_interval
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.sampling.output_writer import slug
from dalle.sampling.pipeline import DALLE

Counts = dict[str, dict[str, float]]
"""Attribute -> value -> number of images; not whole where an image counts for a part of its captions only."""


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


def leaves_open(caption: str, prompt: str, stated: re.Pattern[str]) -> bool:
    """Return True if a training caption contains the open `prompt`, as whole words, and `stated` finds no variant."""
    contained = re.search(rf"(?<!\w){re.escape(prompt)}(?!\w)", caption, re.IGNORECASE)
    return contained is not None and stated.search(caption) is None


def sample_candidates(dalle: DALLE, captions: list[str], config: EvaluateConfig) -> Iterator[list[Image.Image]]:
    """Sample all candidates of each caption in turn; yields its images in the order of candidates."""
    for result in dalle.stream(captions, config.sampling(config.candidates), truncate=True):
        numbered = sorted(zip(result.candidates, result.images, strict=True), key=lambda pair: pair[0])
        yield [image for _, image in numbered]


def summarise(results: Sequence[CaptionVariants]) -> dict[tuple[str, str], Summary]:
    """Average the shares of each value over the captions that leave it open: (attribute, value) -> summary."""
    summaries = {}
    for attribute, value in dict.fromkeys(
        (attribute, value) for result in results for attribute, values in result.drawn.items() for value in values
    ):
        open_results = [result for result in results if attribute in result.drawn]
        drawn = [share(result.drawn[attribute], value) for result in open_results]
        if len(open_results) == 1:
            counts = open_results[0].drawn[attribute]
            interval = wilson_interval(int(counts[value]), int(sum(counts.values())))
        else:
            interval = cluster_interval(drawn, f"{attribute} {value}")
        training_shares = [
            share(result.training[attribute], value)
            for result in open_results
            if sum(result.training[attribute].values())
        ]
        summaries[attribute, value] = Summary(mean(drawn), interval, mean(training_shares) if training_shares else None)
    return summaries


def share(counts: dict[str, float], value: str) -> float:
    """Return the share of the images that have `value`. counts: number of images by value, not all 0."""
    return counts[value] / sum(counts.values())


def table(summaries: dict[tuple[str, str], Summary], results: Sequence[CaptionVariants]) -> str:
    """Return Markdown tables of all values, and of each caption with its most frequent ones."""
    lines = ["| attribute | value | drawn [95%] | training |", "|---|---|---|---:|"]
    for (attribute, value), summary in summaries.items():
        low, high = summary.interval
        training = "none" if summary.training is None else f"{summary.training:.2f}"
        lines.append(f"| {attribute} | {value} | {summary.drawn:.2f} [{low:.2f}, {high:.2f}] | {training} |")
    lines += ["", "| caption | drawn | training |", "|---|---|---|"]
    lines += [
        f"| {result.caption} | {format_counts(result.drawn)} | {format_counts(result.training)} |" for result in results
    ]
    return "\n".join(lines)


def format_counts(counts: Counts) -> str:
    """Format counts as text, most frequent values first, attributes separated by ";": "woman 9, man 7; yellow 16"."""
    attribute_texts = []
    for values in counts.values():
        frequent = sorted(
            (value_count for value_count in values.items() if value_count[1]), key=lambda value_count: -value_count[1]
        )
        attribute_texts.append(", ".join(f"{value} {round(count, 1):g}" for value, count in frequent))
    return "; ".join(attribute_text or "none" for attribute_text in attribute_texts)


def metric_name(text: str) -> str:
    """Return a text as part of a metric's name: "a nurse" -> "a_nurse"."""
    return slug(text, len(text)).replace("-", "_")
