"""The part `rerank_curve` of an evaluation: what more candidates gain, as a table and a plot."""

from dalle.evaluation.best_of import rerank_curve
from dalle.evaluation.captions import caption_qualities, first_captions
from dalle.evaluation.drawing import Drawing, choice_settings, digest, rerank_of
from dalle.evaluation.measured import Measured
from dalle.evaluation.plots import check_matplotlib, plot_rerank_curve
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject

ABOUT = (
    "Expected quality of the favourite of N candidates, out of one set drawn for each caption. `by_perfect` would be "
    "had if the quality itself made the choice. "
)


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Favourites of 1, 2, 4, ... candidates, for the first `config.curve_captions` validation captions (Figure 9c)."""
    check_matplotlib()
    dalle, source, rerank = subject.whole(), subject.sources["val"], rerank_of(config)
    captions = first_captions(source, config.curve_captions)
    qualities = caption_qualities(dalle, source, captions)
    if not qualities:
        subject.clip("a rerank curve of data without known facts")
    if dalle.reranker(dalle.tokenize(captions, truncate=True), rerank) is None:
        subject.clip("a rerank curve by rerank=clip")
    curve = rerank_curve(dalle, captions, config.curve_candidates, qualities, rerank, Drawing.of(config))
    numbers = curve.numbers("val")
    for each in curve.curves:
        if each.ranking != curve.chosen_by:
            for size, mean in zip(curve.sizes, each.means, strict=True):
                numbers[f"{each.quality}_val_best_of_{size}_by_{each.ranking}"] = mean
    settings = choice_settings(dalle, config, config.curve_candidates)
    settings |= {"captions": len(captions), "captions_digest": digest(captions)}
    return Measured(ABOUT, numbers, settings, {"rerank_curve": plot_rerank_curve(curve)}, curve.table())
