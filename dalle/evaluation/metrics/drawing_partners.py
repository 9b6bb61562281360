"""Image prompts on drawings: the upper panel is given, the sampled lower one is matched to its true partner."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dalle.data.drawings.source import DrawingsSource
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import model_image
from dalle.evaluation.judges.drawings_classifier import DrawingClassifier, style_agreement
from dalle.evaluation.metrics.drawing_samples import Candidates, candidates_of
from dalle.image_conversion import to_tensor
from dalle.progress import with_progress
from dalle.sampling.edits.complete import CompleteConfig, complete
from dalle.sampling.pipeline import DALLE

CHOICES = 10  # lower panels that a sampled one is compared with, at most
MAX_PROMPTS = 200
TIE = 1e-6  # cosine similarities of equal images differ by rounding


def measure_partners(
    dalle: DALLE, judge: DrawingClassifier, source: DrawingsSource, config: EvaluateConfig
) -> tuple[list[Candidates], dict[str, float]]:
    """Measure how often the sampled lower panel resembles its true partner most, of up to ten real lower panels.

    The model is given the upper panel of a held-out concept and samples the lower one. Returns the samples, and the
    share found and the share with the right style for candidate 0 ("first"), for the best candidate ("top") and for
    the dVAE's reconstructions of the real pictures ("real"), and the mean chance to find the partner. Both are empty
    if the source has no panels. Prompts with no other panel of the same style count for the style only.
    """
    panels = [record for record, composed in enumerate(source.records) if composed.kind == "panels"]
    if not panels:
        return [], {}
    prompt_records = panels[: min(config.captions, MAX_PROMPTS)]
    grid = dalle.transformer.sequence.grid
    samples, reconstructions = [], []
    for record in with_progress(prompt_records, len(prompt_records), "image prompts", "prompts"):
        original = dalle.encode_image(source.image(record))
        canvas = complete(original, CompleteConfig(rows=grid // 2, paste=False))
        captions, sampling = [source.captions(record)[0]], config.sampling(config.candidates)
        (result,) = dalle.stream(captions, sampling, canvas=canvas, truncate=True, progress=False)
        samples.append(candidates_of(source, record, result))
        reconstructions.extend(dalle.decode_images(original.tokens[None]))
    choices = [[record, *other_partners(source, panels, record, config.seed)] for record in prompt_records]
    styles = [
        judge.config.styles.index(source.drawings.pictures[source.records[record].second].drawing_set.style)
        for record in prompt_records
    ]
    with_alternatives = [number for number, records in enumerate(choices) if len(records) > 1]
    numbers = {}
    if with_alternatives:
        numbers["drawings_partner_chance"] = float(np.mean([1 / len(choices[number]) for number in with_alternatives]))
    sampled = {
        "first": [sample.first for sample in samples],
        "top": [sample.top for sample in samples],
        "real": reconstructions,
    }
    for name, images in sampled.items():
        lower = [lower_panel(image) for image in images]
        if with_alternatives:
            is_found = [
                is_closest(
                    judge, lower[number], *(lower_panel(model_image(source, record)) for record in choices[number])
                )
                for number in with_alternatives
            ]
            numbers[f"drawings_partner_found_{name}"] = float(np.mean(is_found))
        numbers[f"drawings_partner_style_{name}"] = style_agreement(judge, lower, torch.tensor(styles))
    return samples, numbers


def other_partners(source: DrawingsSource, panels: list[int], record: int, seed: int) -> list[int]:
    """Choose, among the records `panels`, up to 9 with a lower panel of the same style and each of another concept."""
    pictures = source.drawings.pictures
    true_partner = pictures[source.records[record].second]
    record_by_concept: dict[str, int] = {}
    for candidate in np.random.default_rng([seed, record]).permutation(panels):
        picture = pictures[source.records[candidate].second]
        if (
            picture.drawing_set.style == true_partner.drawing_set.style
            and picture.subject.concept != true_partner.subject.concept
        ):
            record_by_concept.setdefault(picture.subject.concept, int(candidate))
    return list(record_by_concept.values())[: CHOICES - 1]


def lower_panel(image: Image.Image) -> Image.Image:
    """Return the square in the middle of an image's lower half."""
    side = image.width // 2
    left = (image.width - side) // 2
    return image.crop((left, side, left + side, 2 * side))


@torch.inference_mode()
def is_closest(judge: DrawingClassifier, image: Image.Image, true_partner: Image.Image, *others: Image.Image) -> bool:
    """Return True if the features of `image` are more similar to those of `true_partner` than to those of `others`.

    Similarity is the cosine. False for a tie, as between equal images.
    """
    features = F.normalize(judge.features(to_tensor([image, true_partner, *others])), dim=1)
    similarities = features[1:] @ features[0]
    return bool(similarities[0] > similarities[1:].max() + TIE)
