"""Metric `alignment`: CLIP score, recall@k and the judge's accuracy of images sampled for held-out captions."""

from typing import Any

from PIL import Image

from dalle.data import attribution
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.caption_samples import CaptionSamples, caption_metrics, sample_for_source
from dalle.evaluation.metrics.recall_at_k import recall_at_k
from dalle.evaluation.sampling_settings import captions_digest, sampling_settings
from dalle.image_conversion import to_pil_images, to_unit_range
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.rerank import Scorer

DESCRIPTION = (
    "Images sampled for held-out captions: `top` is the candidate that ranks first, `first` is candidate 0, as without "
    "reranking, and `real` is the caption's own image. "
)
BY_CLIP = (
    "`clip_*` is the mean CLIP score (cosine similarity). `retrieval_*_R@k` is recall@k by CLIP among all captions or "
    "images, image-to-text and text-to-image: of candidate 0, which CLIP did not select, and of real images as the "
    "upper bound. "
)
BY_JUDGE = (
    "`judge_*` is the share of captions with every stated fact true: in the best candidate (`top`, and fact by fact), "
    "in candidate 0 (`first`), in all candidates (`mean`), in any candidate (`any`). "
)
NO_CLIP = "No CLIP score and no retrieval: the checkpoint has no clip/; give one with clip=<folder>."
GRID_CAPTIONS = 6  # captions on the image grid


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Sample images for the first `config.captions` captions of each held-out split and score their alignment."""
    dalle = context.require_pipeline()
    description, notes = DESCRIPTION + BY_CLIP, []
    if dalle.clip is None:
        description, notes = DESCRIPTION, [NO_CLIP]
    numbers: dict[str, float] = {}
    images: dict[str, Image.Image] = {}
    sampling = dalle.resolve(config.sampling(config.candidates))
    settings: dict[str, Any] = sampling_settings(dalle, sampling)
    for split, source in context.sources.items():
        samples = sample_for_source(dalle, source, config.captions, sampling)
        pairs = HeldOut(source, len(samples))
        real = [image for batch in pairs for image in to_pil_images(to_unit_range(batch.images))]
        numbers |= caption_metrics(samples, split, dalle.clip)
        if dalle.clip is not None:
            numbers |= clip_metrics(dalle.clip, samples, real, split)
        if samples[0].verdicts and BY_JUDGE not in description:
            description += BY_JUDGE
        digest = captions_digest([sample.caption for sample in samples])
        settings[split] = {**pairs.settings(), "captions": len(samples), "captions_digest": digest}
        notes += [f"{split}: {note}" for note in pairs.shortfall(config.captions)]
        images[f"samples_{split}"] = _sample_grid(samples, real, attribution(context.data.name))
    return MetricResult(description, numbers, settings, images, notes=notes)


def clip_metrics(clip: Scorer, samples: list[CaptionSamples], real: list[Image.Image], split: str) -> dict[str, float]:
    """Compute `clip_{split}_first` and `_real`, and `retrieval_{split}_...` of both; see `BY_CLIP`."""
    captions = [sample.caption for sample in samples]
    metrics = {}
    for name, images in {"first": [sample.first for sample in samples], "real": real}.items():
        similarities = clip.score(images, captions)
        metrics[f"clip_{split}_{name}"] = similarities.diagonal().mean().item()
        for recall, value in recall_at_k(similarities, captions).items():
            metrics[f"retrieval_{split}_{name}_{recall}"] = value
    return metrics


def _sample_grid(samples: list[CaptionSamples], real: list[Image.Image], note: str) -> Image.Image:
    rows = [
        ImageRow(sample.caption, [image, sample.first, sample.best], None)
        for sample, image in zip(samples[:GRID_CAPTIONS], real, strict=False)
    ]
    return labelled_grid(rows, note=f"From left: real image, candidate 0, best candidate. {note}")
