"""Metric `quality`: distance between sampled and real images, as sets, in network features (Sec. 3.1, Figure 9)."""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.data import attribution
from dalle.evaluation.drawing import decoding_settings, rerank_settings
from dalle.evaluation.features import Features, features_named
from dalle.evaluation.held_out import HeldOut, unit
from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics.distances import FEWEST, Distances, about
from dalle.evaluation.samples import Samples
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject
from dalle.image_conversion import to_pil_images
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.sheet import Row, sample_sheet

RECONSTRUCTED = " `*_reconstructed` is of the real pictures' own reconstructions, which no drawing is expected to beat."
SHOWN = 16  # images of each kind on the image grid


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Compare images sampled for the first `config.samples` val captions, and reconstructions, with real images."""
    features = features_named(config.features, config.weights, next(subject.dvae.parameters()).device)
    pairs = HeldOut(subject.sources["val"], config.samples)
    samples = None if subject.dalle is None else draw_samples(subject, config, pairs)
    drawn, reconstructed = Distances(features, config.seed), Distances(features, config.seed)
    for batch in pairs:
        real = features(batch.images)
        drawn.add(real, real=True)
        reconstructed.add(real, real=True)
        reconstructed.add(features(_reconstructed(subject.dvae, batch.images)), real=False)
    found, notes = reconstructed.compute()
    few = pairs.shortfall(config.samples)
    numbers = {f"{name}_reconstructed": found[name] for name in (features.frechet, features.kid) if name in found}
    settings: dict[str, Any] = {**pairs.described(), **reconstructed.described()}
    if samples is None:
        return Measured(about(features) + RECONSTRUCTED, numbers, settings, notes=[*few, *notes])
    for images in samples.batches(pairs.seen):
        drawn.add(features(images), real=False)
    found, notes = drawn.compute()
    settings |= {**drawn.described(), **drawing_settings(subject, config), "drawn_in": samples.digest}
    sheet = _sheet(subject, next(samples.batches(pairs.seen)))
    return Measured(about(features) + RECONSTRUCTED, numbers | found, settings, {"drawn": sheet}, notes=[*few, *notes])


def draw_samples(subject: Subject, config: EvaluateConfig, pairs: HeldOut) -> Samples:
    """Sample an image for the caption of each of `pairs`, or load those of an earlier run.

    Raises:
        CheckpointError: the checkpoint has no transformer, or several candidates are sampled and there is no CLIP.
        ValueError: fewer than `FEWEST` pairs, or the folder has images for other captions.
    """
    dalle = subject.whole()
    captions = [caption for batch in pairs for caption in batch.captions]
    if len(captions) < FEWEST:
        raise ValueError(f"{len(captions)} held-out pictures are no set to compare with; it takes {FEWEST} or more")
    if config.sample_candidates > 1 and dalle.reranker(dalle.tokenize(captions, truncate=True), config) is None:
        subject.clip(f"choosing among sample_candidates={config.sample_candidates}")
    samples = Samples(config.folder / "drawn", {**subject.described(), **drawing_settings(subject, config)})
    samples.draw(dalle, captions, config.sampling(config.sample_candidates))
    return samples


def drawing_settings(subject: Subject, config: EvaluateConfig) -> dict[str, Any]:
    """Settings that the sampled images depend on, beside models and data."""
    settings = {
        "split": "val",
        "sample_candidates": config.sample_candidates,
        **decoding_settings(subject.whole(), config),
    }
    return settings if config.sample_candidates == 1 else {**settings, "rerank": rerank_settings(config)}


def compare(features: Features, real: Iterable[Tensor], drawn: Iterable[Tensor], seed: int) -> Distances:
    """Compute the features of both sets; each yields batches of (b, 3, h, w) uint8."""
    distances = Distances(features, seed)
    for is_real, batches in ((True, real), (False, drawn)):
        for images in batches:
            distances.add(features(images), is_real)
    return distances


@torch.inference_mode()
def _reconstructed(dvae: DiscreteVAE, images: Tensor) -> Tensor:
    """Reconstruct images with the dVAE's most probable codes: (b, 3, s, s) uint8 -> the same."""
    pixels = unit(images.to(next(dvae.parameters()).device))
    return (dvae.decode(dvae.encode(pixels)).float() * 255).round().to(torch.uint8)


def _sheet(subject: Subject, drawn: Tensor) -> Image.Image:
    real = next(iter(HeldOut(subject.sources["val"], SHOWN))).images
    rows = [
        Row("real pictures", to_pil_images(unit(real)), None),
        Row("drawn for their captions", to_pil_images(unit(drawn[:SHOWN])), None),
    ]
    return sample_sheet(rows, note=attribution(subject.data))
