"""Metric `decoder`: the diffusion decoder beside the dVAE's decoder, on the same tokens of held-out images."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.data import attribution
from dalle.data.audit.scan import evenly_spaced
from dalle.data.drawings.source import DrawingsSource
from dalle.data.source import Source
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.features import FeatureNetwork, load_feature_network
from dalle.evaluation.held_out import HeldOut, model_image, readable_images
from dalle.evaluation.judges.digest import weights_digest
from dalle.evaluation.judges.drawings_classifier import DrawingClassifier, accuracy, classify
from dalle.evaluation.judges.drawings_classifier_training import load_classifier
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.drawings import ATTRIBUTES, true_labels
from dalle.evaluation.metrics.fid_kid_is import DistributionMetrics
from dalle.image_conversion import to_pil_images, to_tensor
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.image_decoder import ImageDecoder, decode_images
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

DESCRIPTION = (
    "Held-out images are encoded to tokens, and these are decoded twice: by the dVAE's decoder (`_dvae`) and by the "
    "diffusion decoder (`_diffusion`). `rmse` is the root mean square error over all pixel values in [0, 1]; "
    "`{frechet}` and `{kid}` are the Frechet and the kernel distance to the real images in features of {features}. "
    "Lower is better. `ms` is the time to decode one image on this machine."
)
JUDGE_DESCRIPTION = (
    " `novel` and `colours` are the shares of drawings of these splits whose concept, style and colour the judge of "
    "drawings still recognises; `_real` is its accuracy on the real drawings."
)
GRID_IMAGES, GRID_COLUMNS = 16, 8  # images on the grid, at equal distances in the split: they are not selected

Decode = Callable[[Tensor, Sequence[int]], list[Image.Image]]
"""Decode tokens (b, h, w) for b numbers of images, which determine the noise."""


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Decode the first `config.samples` images of val and, of drawings, `config.captions` of each other split.

    Raises ValueError if no diffusion decoder is given.
    """
    decoders = decoders_of(context, config)
    source = context.sources["val"]
    features = load_feature_network(config.features, config.weights, context.device)
    pairs = HeldOut(source, config.samples, batch_size=32)
    numbers, notes = compare_with_real(context.dvae, decoders, pairs, features, config.seed)
    description = DESCRIPTION.format(frechet=features.frechet, kid=features.kid, features=features.name)
    settings: dict[str, Any] = {**pairs.settings(), **features.settings(), "seed": config.seed}
    steps = require_decoder(context).num_steps(config.decoder_steps)
    settings |= {"decoder_steps": steps, "threads": torch.get_num_threads()}
    if context.data.name == "drawings":
        judge = load_classifier(context.data)
        numbers |= judged(context, judge, config.captions, decoders)
        settings |= {"captions": config.captions, "judge": {"digest": weights_digest(judge)}}
        description += JUDGE_DESCRIPTION
    grid = decoder_grid(context.dvae, decoders, source, attribution(context.data.name))
    notes = [*pairs.shortfall(config.samples), *notes]
    return MetricResult(description, numbers, settings, {"decoders": grid}, notes=notes)


def require_decoder(context: EvaluationContext) -> DiffusionDecoder:
    """Return the diffusion decoder. Raises ValueError if none is given."""
    if context.decoder is None:
        raise ValueError(
            "metrics=[decoder] compares a diffusion decoder with the dVAE's: give one with decoder=<folder>"
        )
    return context.decoder


def decoders_of(context: EvaluationContext, config: EvaluateConfig) -> dict[str, Decode]:
    """Return both decoders by name. Raises ValueError if no diffusion decoder is given."""
    precision = torch.float32 if context.pipeline is None else context.pipeline.precision
    diffusion = ImageDecoder(require_decoder(context), config, precision)
    return {
        "dvae": lambda tokens, _: decode_images(context.dvae, tokens),
        "diffusion": lambda tokens, numbers: diffusion(context.dvae, tokens, numbers),
    }


def compare_with_real(
    dvae: DiscreteVAE, decoders: dict[str, Decode], pairs: HeldOut, features: FeatureNetwork, seed: int
) -> tuple[dict[str, float], list[str]]:
    """Compute errors, distances and milliseconds of each decoder. Returns them by name, and notes on missing ones."""
    distances = {name: DistributionMetrics(features, seed) for name in decoders}
    errors, seconds = dict.fromkeys(decoders, 0.0), dict.fromkeys(decoders, 0.0)
    seen = values = 0
    for batch in pairs:
        real, tokens = features(batch.images), encode(dvae, to_pil_images(batch.images.float() / 255))
        for name, decode in decoders.items():
            begin = time.perf_counter()
            images = decode(tokens, range(seen, seen + len(tokens)))
            seconds[name] += time.perf_counter() - begin
            pixels = to_tensor(images)
            errors[name] += (pixels - batch.images.float() / 255).square().sum().item()
            distances[name].add(real, real=True)
            distances[name].add(features((255 * pixels).round().to(torch.uint8)), real=False)
        seen, values = seen + len(tokens), values + batch.images.numel()
    numbers: dict[str, float] = {}
    notes: list[str] = []
    for name in decoders:
        found, notes = distances[name].compute()
        numbers[f"decoder_rmse_{name}"] = (errors[name] / values) ** 0.5
        kept = (metric for metric in (features.frechet, features.kid) if metric in found)
        numbers |= {f"decoder_{metric}_{name}": found[metric] for metric in kept}
        numbers[f"decoder_ms_{name}"] = 1000 * seconds[name] / seen
    return numbers, notes


def judged(
    context: EvaluationContext, judge: DrawingClassifier, captions: int, decoders: dict[str, Decode]
) -> dict[str, float]:
    """Compute the judge's accuracy on `captions` decoded drawings of each split, and on the real ones."""
    numbers: dict[str, float] = {}
    for split, attributes in ATTRIBUTES.items():
        source = DrawingsSource(context.data, split)
        records = list(range(min(captions, len(source))))
        if not records:  # of some groups of drawings
            continue
        labels = true_labels(source, records, judge.config.concepts)
        for name, images in decoded_sets(context.dvae, decoders, source, records):
            shares = accuracy(classify(judge, images), labels)
            numbers |= {f"decoder_{split}_{attribute}_{name}": shares[attribute] for attribute in attributes}
    return numbers


def decoded_sets(
    dvae: DiscreteVAE, decoders: dict[str, Decode], source: Source, records: Sequence[int]
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield the images of the records as "real", and then as each decoder restores them from their tokens."""
    real = [model_image(source, record) for record in records]
    yield "real", real
    tokens = encode(dvae, real)
    for name, decode in decoders.items():
        yield name, decode(tokens, records)


def decoder_grid(dvae: DiscreteVAE, decoders: dict[str, Decode], source: Source, note: str = "") -> Image.Image:
    """Draw images at equal distances in the split, and below them what each decoder restores.

    The next readable image replaces one that cannot be read.
    """
    records = [record for record, _ in readable_images(source, evenly_spaced(len(source), GRID_IMAGES))]
    titles = {"real": "held-out images", "dvae": "the dVAE's decoder", "diffusion": "the diffusion decoder"}
    rows = []
    for start in range(0, len(records), GRID_COLUMNS):
        part = records[start : start + GRID_COLUMNS]
        sets = decoded_sets(dvae, decoders, source, part)
        rows += [ImageRow(titles[name], images, None) for name, images in sets]
    return labelled_grid(rows, columns=GRID_COLUMNS, note=note)


@torch.inference_mode()
def encode(dvae: DiscreteVAE, images: list[Image.Image]) -> Tensor:
    """Encode images of one size to the most probable codes, in batches: n images -> (n, h, w) int64 on the CPU."""
    device = next(dvae.parameters()).device
    parts = (to_tensor(images[start : start + 32]) for start in range(0, len(images), 32))
    return torch.cat([dvae.encode(part.to(device)).cpu() for part in parts])
