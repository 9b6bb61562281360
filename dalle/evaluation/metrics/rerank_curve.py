"""Metric `rerank_curve`: quality of the best of n candidates against n, as tables and plots (Figure 9c)."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from dalle import checkpoint
from dalle.bundled import checkpoint_folder
from dalle.data import open_source
from dalle.data.blocks import BlocksSource
from dalle.data.source import Source
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.features import FeatureNetwork, load_feature_network
from dalle.evaluation.held_out import HeldOut
from dalle.evaluation.judges.word_probe import MAX_IMAGES, WordProbe
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.best_of_n import BestOfNCurves, best_of_n_curves
from dalle.evaluation.metrics.caption_samples import caption_qualities, first_captions
from dalle.evaluation.metrics.fid_kid_is import DistributionMetrics, describe
from dalle.evaluation.plots import check_matplotlib, plot_best_of_n, plot_best_of_n_sets
from dalle.evaluation.sampling_settings import captions_digest, sampling_settings
from dalle.image_conversion import to_pil_images, to_tensor, to_unit_range
from dalle.models.clip.model import CLIP
from dalle.sampling.rerank import Scorer

DESCRIPTION = (
    "Expected quality of the best of n candidates, estimated from one set of candidates per caption. `by_perfect` "
    "ranks by the quality itself, an upper bound for reranking. "
)
BY_WORDS = (
    "`words` is the score of a linear probe, independent of the reranker: the cosine between the words of a caption "
    "and the words predicted from efficientnet-lite0's features by ridge regression on training images. "
    "`words_val_real_pairs` is its accuracy on real images: the share of held-out images that it scores higher with "
    "their own caption than with the next image's, without pairs of equal captions. "
)
BY_CLIP = "`other_clip` is the score of the CLIP in `scorer`, which was used neither for training nor for ranking. "
OF_SETS = " Of the best candidates as a set, as in Figure 9c, against real images of the same captions: "


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Compute the best of 1, 2, 4, ... candidates for the first `config.curve_captions` validation captions."""
    check_matplotlib()
    dalle, source = context.require_pipeline(), context.sources["val"]
    captions = first_captions(source, config.curve_captions)
    sampling = dalle.resolve(config.sampling(config.curve_candidates))
    if not sampling.ranked:
        context.require_clip("a rerank curve by rerank=clip")
    features = load_feature_network(config.features, config.weights, context.device)
    scorers, scorer_description, scorer_settings = _scorers(
        context, config, ranked_by_clip="clip" in sampling.score_weights
    )
    qualities = caption_qualities(source, captions, scorers)
    curves = best_of_n_curves(dalle, captions, qualities, sampling)
    numbers = curves.numbers("val") | _real_pair_accuracy(scorers, source, len(captions))
    for curve in curves.curves:
        if curve.ranking != curves.reranker:
            for size, mean in zip(curves.sizes, curve.means, strict=True):
                numbers[f"{curve.quality}_val_best_of_{size}_by_{curve.ranking}"] = mean
    sets, notes = _set_metrics(curves, source, features, config.seed)
    numbers |= {f"{name}_best_of_{size}": value for size, row in sets.items() for name, value in row.items()}
    settings = sampling_settings(dalle, sampling)
    settings |= {"captions": len(captions), "captions_digest": captions_digest(captions)}
    settings |= {**features.settings(), **scorer_settings}
    names = [name for name in sets[1] if not name.endswith("_std")]
    series = {name: [row[name] for row in sets.values()] for name in names}
    plots = {"rerank_curve": plot_best_of_n(curves)} if curves.curves else {}
    if series:
        plots["rerank_sets"] = plot_best_of_n_sets(curves.sizes, series, curves.captions)
    description = DESCRIPTION + scorer_description + (OF_SETS + describe(features) if series else "")
    tables = f"{curves.table()}\n{_set_table(curves.sizes, series)}"
    return MetricResult(description, numbers, settings, plots, tables, notes)


def _scorers(
    context: EvaluationContext, config: EvaluateConfig, ranked_by_clip: bool
) -> tuple[dict[str, Scorer], str, dict[str, Any]]:
    """Return the scorers used beside the judge of `blocks` by name, a sentence about them, and their settings.

    Raises:
        ValueError: `config.scorer` is the CLIP that ranks.
    """
    device = context.device
    settings: dict[str, Any] = {"scorer": config.scorer}
    if config.scorer is not None:
        folder = checkpoint_folder(config.scorer)
        digest = checkpoint.digest(folder)
        if ranked_by_clip and digest == context.digests.get("clip"):
            raise ValueError(
                f"scorer={config.scorer} is the CLIP that ranks the candidates, so its score rises by selection alone; "
                "give another CLIP, or leave scorer out"
            )
        scorers: dict[str, Scorer] = {"other_clip": CLIP.load(folder).to(device)}
        return scorers, BY_CLIP, settings | {"scorer_digest": digest}
    if isinstance(context.sources["val"], BlocksSource):
        return {}, "", settings
    features = load_feature_network("efficientnet-lite0", device=device)
    try:
        probe = WordProbe.fit(open_source(context.data, "train"), features)
    except ValueError as error:
        reason = f"No scorer is independent of the reranker, so single images are not scored: {error}. "
        return {}, reason, settings
    return {"words": probe}, BY_WORDS, settings | {"word_probe": {**features.settings(), "max_images": MAX_IMAGES}}


def _real_pair_accuracy(scorers: dict[str, Scorer], source: Source, count: int) -> dict[str, float]:
    """Return, for each scorer, the share of `count` real images that it rates higher with their own caption.

    The other caption is that of the next image; the first one's for the last image. Images whose two captions are equal
    are left out; there is no number if none is left.
    """
    numbers = {}
    images, captions = zip(*_image_caption_pairs(source, count), strict=True)
    next_captions = [*captions[1:], captions[0]]
    captions_differ = torch.tensor(
        [caption != next_caption for caption, next_caption in zip(captions, next_captions, strict=True)]
    )
    for name, scorer in scorers.items() if captions_differ.any() else ():
        scores = scorer.score(list(images), list(captions))
        correct = scores.diagonal() > scores.roll(-1, dims=1).diagonal()
        numbers[f"{name}_val_real_pairs"] = correct[captions_differ.to(correct.device)].float().mean().item()
    return numbers


def _image_caption_pairs(source: Source, count: int) -> Iterator[tuple[Image.Image, str]]:
    for batch in HeldOut(source, count):
        yield from zip(to_pil_images(to_unit_range(batch.images)), batch.captions, strict=True)


def _set_metrics(
    curves: BestOfNCurves, source: Source, features: FeatureNetwork, seed: int
) -> tuple[dict[int, dict[str, float]], list[str]]:
    """Return, for each n, FID, KID and IS of the set of all captions' best of n candidates, and notes.

    The notes are on metrics that need more images.
    """
    real = [features(batch.images) for batch in HeldOut(source, curves.captions)]
    rows, notes = {}, []
    for size, images in curves.best_images.items():
        metrics = DistributionMetrics(features, seed)
        for output in real:
            metrics.add(output, real=True)
        for start in range(0, len(images), 64):
            pixels = (to_tensor(images[start : start + 64]) * 255).round().byte()
            metrics.add(features(pixels), real=False)
        rows[size], notes = metrics.compute()
    return rows, notes


def _set_table(sizes: list[int], series: dict[str, list[float]]) -> str:
    """Return a Markdown table of the sets of best candidates: a row for each metric, a column for each size."""
    if not series:
        return ""
    lines = [f"| set of best candidates | {' | '.join(map(str, sizes))} |", f"|---|{'---:|' * len(sizes)}"]
    lines += [f"| {name} | {' | '.join(f'{value:.4g}' for value in values)} |" for name, values in series.items()]
    return "\n".join(lines) + "\n"
