"""Metric `sample_quality`: FID, KID and Inception score of sampled images against real ones (Sec. 3.1, Figure 9)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dalle.data import attribution
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.features import FeatureNetwork, load_feature_network
from dalle.evaluation.held_out import HeldOut, captions_of
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.fid_kid_is import MIN_IMAGES, DistributionMetrics, describe
from dalle.evaluation.sample_cache import SampleCache
from dalle.evaluation.sampling_settings import decoding_settings, rerank_settings
from dalle.image_conversion import to_pil_images, to_unit_range
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import MAX_REFERENCES
from dalle.sampling.sampling_config import SamplingConfig

RECONSTRUCTED = " `*_reconstructed` is of the dVAE's reconstructions of the real images; samples are rarely better."
GRID_IMAGES = 16  # images of each kind on the image grid


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Compare images sampled for the first `config.samples` val captions, and reconstructions, with real images."""
    features = load_feature_network(config.features, config.weights, context.device)
    pairs = HeldOut(context.sources["val"], config.samples)
    cached = None if context.pipeline is None else cached_samples(context, config, pairs)
    sampled, reconstructed = DistributionMetrics(features, config.seed), DistributionMetrics(features, config.seed)
    for batch in pairs:
        real = features(batch.images)
        sampled.add(real, real=True)
        reconstructed.add(real, real=True)
        reconstructed.add(features(_reconstruct(context.dvae, batch.images)), real=False)
    description = describe(features) + RECONSTRUCTED
    values, notes = reconstructed.compute()
    numbers = {f"{name}_reconstructed": values[name] for name in (features.frechet, features.kid) if name in values}
    settings: dict[str, Any] = {**pairs.settings(), **reconstructed.settings()}
    shortfall = pairs.shortfall(config.samples)
    if cached is None:
        return MetricResult(description, numbers, settings, notes=[*shortfall, *notes])
    cache, cache_settings = cached
    for images in cache.batches(pairs.num_pairs):
        sampled.add(features(images), real=False)
    values, notes = sampled.compute()
    settings |= {**sampled.settings(), **cache_settings, "sample_cache": cache.digest}
    grid = _sample_grid(context, next(cache.batches(pairs.num_pairs)))
    return MetricResult(description, numbers | values, settings, {"samples": grid}, notes=[*shortfall, *notes])


def cached_samples(
    context: EvaluationContext, config: EvaluateConfig, pairs: HeldOut
) -> tuple[SampleCache, dict[str, Any]]:
    """Sample an image for the caption of each of `pairs`, or load those of an earlier run.

    Returns the images, and the settings that they depend on beside models and data.

    Raises:
        CheckpointError: the checkpoint has no transformer, or several candidates are sampled and there is no CLIP.
        ValueError: fewer than `MIN_IMAGES` pairs, or the folder has images for other captions.
    """
    dalle = context.require_pipeline()
    captions = [caption for batch in pairs for caption in captions_of(batch)]
    if len(captions) < MIN_IMAGES:
        raise ValueError(f"sample quality needs at least {MIN_IMAGES} held-out images, but there are {len(captions)}")
    sampling = with_references(dalle, dalle.resolve(config.sampling(config.sample_candidates)), captions)
    if sampling.candidates > 1 and not sampling.ranked:
        context.require_clip(f"reranking sample_candidates={sampling.candidates}")
    settings = {"split": "val", "sample_candidates": sampling.candidates, **decoding_settings(dalle, sampling)}
    if sampling.candidates > 1:
        settings["rerank"] = rerank_settings(sampling)
    cache = SampleCache(config.folder / "sampled", {**context.identity(), **settings})
    cache.sample_missing(dalle, captions, sampling)
    return cache, settings


def with_references(dalle: DALLE, config: SamplingConfig, captions: list[str]) -> SamplingConfig:
    """Set the captions that caption_likelihood compares with, if these would be the captions that are sampled.

    A run that was interrupted, or has more images now, samples only some of them, and would rank by others.
    """
    compared = "caption_likelihood" in config.score_weights
    if not compared or config.rerank_references or dalle.defaults.caption_dropout:
        return config
    # one more than are used: a caption is not compared with itself
    return replace(config, rerank_references=list(dict.fromkeys(captions))[: MAX_REFERENCES + 1])


def compare_sets(
    features: FeatureNetwork, real: Iterable[Tensor], sampled: Iterable[Tensor], seed: int
) -> DistributionMetrics:
    """Return metrics with the features of real and of sampled images; each set yields batches (b, 3, h, w) uint8."""
    metrics = DistributionMetrics(features, seed)
    for is_real, batches in ((True, real), (False, sampled)):
        for images in batches:
            metrics.add(features(images), is_real)
    return metrics


@torch.inference_mode()
def _reconstruct(dvae: DiscreteVAE, images: Tensor) -> Tensor:
    """Reconstruct images with the dVAE's most probable codes: (b, 3, s, s) uint8 -> the same shape."""
    pixels = to_unit_range(images.to(next(dvae.parameters()).device))
    return (dvae.decode(dvae.encode(pixels)).float() * 255).round().to(torch.uint8)


def _sample_grid(context: EvaluationContext, samples: Tensor) -> Image.Image:
    real = next(iter(HeldOut(context.sources["val"], GRID_IMAGES))).images
    rows = [
        ImageRow("real images", to_pil_images(to_unit_range(real)), None),
        ImageRow("sampled for their captions", to_pil_images(to_unit_range(samples[:GRID_IMAGES])), None),
    ]
    return labelled_grid(rows, note=attribution(context.data.name))
