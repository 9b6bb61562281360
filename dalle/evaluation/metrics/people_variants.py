"""Gender, skin tone and age of people that are drawn for captions that leave them open, for the metric `bias`."""

import re
from collections.abc import Iterator

import torch
from PIL import Image

from dalle.data.drawings.sets import BY_NAME, STYLES
from dalle.data.drawings.source import DrawingsSource
from dalle.data.drawings.wording import names_of
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.judges.people_classifier import (
    ATTRIBUTES,
    MAN,
    WOMAN,
    PeopleClassifier,
    age_of,
    attributes_of,
    classify_people,
    concepts_of_people,
    gender_of,
    people_pictures,
)
from dalle.evaluation.metrics.caption_variants import CaptionVariants, Counts, leaves_open, sample_candidates
from dalle.image_conversion import to_tensor
from dalle.sampling.pipeline import DALLE
from dalle.seeds import numpy_generator

# captions that state a gender, an age or a skin tone
STATED = re.compile(rf"{WOMAN.pattern}|{MAN.pattern}|\b(baby|child|old|older|skin tone)\b", re.IGNORECASE)


def sample_people(
    dalle: DALLE, model: PeopleClassifier, captions: dict[str, str], training: dict[str, Counts], config: EvaluateConfig
) -> Iterator[CaptionVariants]:
    """Sample `open_captions` and count the variants that are drawn, beside those in the training images."""

    def judge(images: list[Image.Image]) -> Counts:
        predictions = classify_people(model, to_tensor(images).mul(255).round().to(torch.uint8))
        return {
            name: {value: int((predictions[name] == number).sum()) for number, value in enumerate(values)}
            for name, values in ATTRIBUTES.items()
        }

    for (concept, caption), images in zip(
        captions.items(), sample_candidates(dalle, [*captions.values()], config), strict=True
    ):
        yield CaptionVariants(caption, training[concept], judge(images), images)


def open_captions(source: DrawingsSource, training: dict[str, Counts], limit: int) -> dict[str, str]:
    """Return captions of at most `limit` concepts that state neither gender, tone nor age: concept -> caption.

    They are in random order; styles are those of the colour sets, in turn.
    """
    styles = list(
        dict.fromkeys(
            drawing_set.style
            for drawing_set in BY_NAME.values()
            if drawing_set.kind == "emoji" and not drawing_set.recolour
        )
    )
    names = {concept: name for concept, name in open_names(source).items() if concept in training}
    permutation = numpy_generator("captions of people", source.config.seed).permutation(len(names))
    concepts = [list(names)[number] for number in permutation[:limit]]
    return {
        concept: f"{names[concept]}, {STYLES[styles[position % len(styles)]][0]}"
        for position, concept in enumerate(concepts)
    }


def open_names(source: DrawingsSource) -> dict[str, str]:
    """Return a name of each concept of people that states neither gender, tone nor age: "an astronaut"."""
    names = {}
    for concept, subjects in concepts_of_people(source.drawings.subjects).items():
        open_subjects = [
            subject for subject in subjects if gender_of(subject) == "person" and age_of(subject) == "adult"
        ]
        if open_subjects:
            names[concept] = min(
                (names_of(subject)[0] for subject in open_subjects), key=lambda name: (len(name), name)
            )
    return names


def training_people(source: DrawingsSource) -> dict[str, Counts]:
    """Count the variants in training where captions leave them open: concept of people -> counts.

    Each drawing in colour counts by the share of its captions that have the concept's open name and state no variant.
    """
    names, counts = open_names(source), {}
    for index, record in enumerate(source.records):
        picture = source.drawings.pictures[record.first]
        concept = picture.subject.concept
        values = attributes_of(picture) if record.kind == "drawing" and concept in names else None
        if values is None:
            continue
        captions = source.captions(index)
        weight = sum(leaves_open(caption, names[concept], STATED) for caption in captions) / len(captions)
        for name, value in values.items():
            zero_counts = {
                attribute: dict.fromkeys(attribute_values, 0.0) for attribute, attribute_values in ATTRIBUTES.items()
            }
            counts.setdefault(concept, zero_counts)[name][value] += weight
    return counts


def judge_accuracy(model: PeopleClassifier, context: EvaluationContext) -> dict[str, float]:
    """Compute the judge's accuracy on held-out drawings of people, for attributes of which these have two values."""
    images, labels = people_pictures(context.data, ("val", "novel"))
    predictions = classify_people(model, images)
    labels_with_two_values = {name: classes for name, classes in labels.items() if len(classes.unique()) > 1}
    return {
        f"bias_judge_{name}": (predictions[name] == classes).float().mean().item()
        for name, classes in labels_with_two_values.items()
    }
