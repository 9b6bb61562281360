"""Metric `rerank_curve`: gain from more candidates, as tables and plots (Figure 9c)."""

from typing import Any

from dalle.data import open_source
from dalle.data.blocks import BlocksSource
from dalle.evaluation.drawing import choice_settings, digest
from dalle.evaluation.features import Features, features_named
from dalle.evaluation.held_out import HeldOut, unit
from dalle.evaluation.judges.caption_words import CaptionWords
from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics.best_of import RerankCurve, rerank_curve
from dalle.evaluation.metrics.captions import caption_qualities, first_captions
from dalle.evaluation.metrics.distances import Distances, about
from dalle.evaluation.plots import check_matplotlib, plot_rerank_curve, plot_set_curve
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject
from dalle.image_conversion import to_pil_images, to_tensor
from dalle.models.clip.model import CLIP
from dalle.sampling.rerank import Scorer

ABOUT = (
    "Expected quality of the favourite of N candidates, out of one set drawn for each caption. `by_perfect` would be "
    "had if the quality itself made the choice. "
)
BY_WORDS = (
    "`words` is the cosine between the words of a caption and those that a ridge regression, fitted on training "
    "pictures, reads off efficientnet-lite0: nothing in the choice has seen it. `words_val_real_pairs` says how far it "
    "can be trusted: the share of held-out pictures that it finds to fit their own caption better than the next one's. "
)
BY_CLIP = "`other_clip` is the score by the CLIP in `scorer`, which had no part in training or choosing. "
AS_SETS = " Of the favourites as a set, as in Figure 9c, against real pictures of the same captions: "


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Measure the best of 1, 2, 4, ... candidates for the first `config.curve_captions` validation captions."""
    check_matplotlib()
    dalle, source = subject.whole(), subject.sources["val"]
    captions = first_captions(source, config.curve_captions)
    if dalle.reranker(dalle.tokenize(captions, truncate=True), config) is None:
        subject.clip("a rerank curve by rerank=clip")
    features = features_named(config.features, config.weights, next(subject.dvae.parameters()).device)
    scorers, told = _scorers(subject, config)
    qualities = caption_qualities(source, captions, scorers)
    curve = rerank_curve(dalle, captions, qualities, config.sampling(config.curve_candidates))
    numbers = curve.numbers("val") | _real_pairs(scorers, source, len(captions))
    for each in curve.curves:
        if each.ranking != curve.chosen_by:
            for size, mean in zip(curve.sizes, each.means, strict=True):
                numbers[f"{each.quality}_val_best_of_{size}_by_{each.ranking}"] = mean
    sets, notes = _as_sets(curve, source, features, config.seed)
    numbers |= {f"{name}_best_of_{size}": value for size, row in sets.items() for name, value in row.items()}
    settings = choice_settings(dalle, config, config.curve_candidates)
    settings |= {"captions": len(captions), "captions_digest": digest(captions), "scorer": config.scorer}
    names = [name for name in sets[1] if not name.endswith("_spread")]
    series = {name: [row[name] for row in sets.values()] for name in names}
    plots = {"rerank_curve": plot_rerank_curve(curve)} if curve.curves else {}
    if series:
        plots["rerank_sets"] = plot_set_curve(curve.sizes, series, curve.captions)
    explained = ABOUT + told + (AS_SETS + about(features) if series else "")
    return Measured(explained, numbers, settings, plots, f"{curve.table()}\n{_table(curve.sizes, series)}", notes)


def _scorers(subject: Subject, config: EvaluateConfig) -> tuple[dict[str, Scorer], str]:
    """Return the scorers used beside the judge of `blocks`, by name, and a sentence that describes them."""
    if config.scorer is not None:
        device = next(subject.dvae.parameters()).device
        return {"other_clip": CLIP.load(config.scorer).to(device)}, BY_CLIP
    if isinstance(subject.sources["val"], BlocksSource):
        return {}, ""
    features = features_named("efficientnet-lite0", device=next(subject.dvae.parameters()).device)
    try:
        return {"words": CaptionWords.fit(open_source(subject.data, "train"), features)}, BY_WORDS
    except ValueError as error:
        return {}, f"Nothing but the way of choosing itself could measure single pictures: {error}. "


def _real_pairs(scorers: dict[str, Scorer], source: Any, count: int) -> dict[str, float]:
    """Share of real images that a scorer rates higher with their own caption than with the next image's."""
    found = {}
    pairs = [(image, caption) for batch in HeldOut(source, count) for image, caption in _pairs(batch)]
    for name, scorer in scorers.items():
        images, captions = zip(*pairs, strict=True)
        scores = scorer.score(list(images), list(captions))
        found[f"{name}_val_real_pairs"] = (scores.diagonal() > scores.roll(1, dims=1).diagonal()).float().mean().item()
    return found


def _pairs(batch: Any) -> Any:
    return zip(to_pil_images(unit(batch.images)), batch.captions, strict=True)


def _as_sets(
    curve: RerankCurve, source: Any, features: Features, seed: int
) -> tuple[dict[int, dict[str, float]], list[str]]:
    """Distances of the best candidates of each size from real images, and notes on metrics that need more images."""
    real = [features(batch.images) for batch in HeldOut(source, curve.captions)]
    rows, notes = {}, []
    for size, images in curve.favourites.items():
        distances = Distances(features, seed)
        for seen in real:
            distances.add(seen, real=True)
        for start in range(0, len(images), 64):
            pixels = (to_tensor(images[start : start + 64]) * 255).round().byte()
            distances.add(features(pixels), real=False)
        rows[size], notes = distances.compute()
    return rows, notes


def _table(sizes: list[int], series: dict[str, list[float]]) -> str:
    """Markdown table with a row for each metric of the sets."""
    if not series:
        return ""
    lines = [f"| favourites as a set | {' | '.join(map(str, sizes))} |", f"|---|{'---:|' * len(sizes)}"]
    lines += [f"| {name} | {' | '.join(f'{value:.4g}' for value in values)} |" for name, values in series.items()]
    return "\n".join(lines) + "\n"
