"""How well drawn pictures fit their captions, by CLIP for any data, and by the judge for `blocks`."""

from dataclasses import asdict
from hashlib import sha256
from typing import Any

from PIL import Image

from dalle.data import ATTRIBUTIONS
from dalle.evaluation.captions import Drawn, caption_metrics, caption_qualities, draw, first_captions
from dalle.evaluation.drawing import Drawing
from dalle.evaluation.held_out import HeldOut, unit
from dalle.evaluation.measured import Measured
from dalle.evaluation.plots import check_matplotlib, plot_rerank_curve
from dalle.evaluation.rerank_curve import rerank_curve
from dalle.evaluation.retrieval import recalls
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject
from dalle.pixels import to_images
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Rerank, Scorer
from dalle.sampling.sheet import Row, sample_sheet

ABOUT = (
    "Pictures drawn for held-out captions; `top` is the favourite of the candidates, `first` the one that is drawn "
    "first, `real` the picture that belongs to the caption. "
)
BY_CLIP = (
    "`clip_*` are mean cosines, and `retrieval_*` the share of pictures whose caption is among the 1, 5 or 10 that "
    "CLIP finds to fit best of all captions (`to_caption`), and of captions whose picture is (`to_picture`): of "
    "pictures that CLIP has not chosen, and of real ones, as the ceiling. "
)
BY_JUDGE = (
    "`judge_*` is the share of captions of which every stated fact holds: in the favourite (and there fact by fact), "
    "in the first, in all candidates (`mean`), in any of them (`any`). "
)
CURVE = (
    "Expected quality of the favourite of N candidates, out of one set drawn for each caption. `by_perfect` would be "
    "had if the quality itself made the choice. "
)
NO_CLIP = "No CLIP scores and no retrieval: the checkpoint has no clip/; say where one is with clip=<folder>."
SHOWN = 6  # captions on the sheet


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Draw for the first `config.captions` captions of each held-out split."""
    dalle, rerank = subject.whole(), rerank_of(config)
    about, notes = ABOUT + BY_CLIP, []
    if dalle.clip is None:
        about, notes = ABOUT, [NO_CLIP]
    numbers: dict[str, float] = {}
    pictures: dict[str, Image.Image] = {}
    settings: dict[str, Any] = choice_settings(dalle, config, config.candidates)
    for split, source in subject.sources.items():
        drawn = draw(dalle, source, config.captions, config.candidates, rerank, Drawing.of(config))
        pairs = HeldOut(source, len(drawn))
        real = [image for batch in pairs for image in to_images(unit(batch.images))]
        numbers |= caption_metrics(drawn, split, dalle.clip)
        if dalle.clip is not None:
            numbers |= clip_metrics(dalle.clip, drawn, real, split)
        if drawn[0].verdicts and BY_JUDGE not in about:
            about += BY_JUDGE
        captions = [each.caption for each in drawn]
        settings[split] = {**pairs.described(), "captions": len(drawn), "captions_digest": digest(captions)}
        notes += [f"{split}: {each}" for each in pairs.shortfall(config.captions)]
        pictures[f"samples_{split}"] = _sheet(drawn, real, ATTRIBUTIONS.get(subject.data.name, ""))
    return Measured(about, numbers, settings, pictures, notes=notes)


def measure_rerank_curve(subject: Subject, config: EvaluateConfig) -> Measured:
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
    return Measured(CURVE, numbers, settings, {"rerank_curve": plot_rerank_curve(curve)}, curve.table())


def rerank_of(config: EvaluateConfig) -> Rerank:
    """What favourites are chosen by."""
    return Rerank(config.rerank, config.rerank_weights, config.rerank_references)


def choice_settings(dalle: DALLE, config: EvaluateConfig, candidates: int) -> dict[str, Any]:
    """What decides the pictures that are drawn for captions, and which of them is the favourite."""
    rerank = asdict(rerank_of(config))
    return {"candidates": candidates, **Drawing.of(config).described(dalle), "rerank": rerank}


def clip_metrics(clip: Scorer, drawn: list[Drawn], real: list[Image.Image], split: str) -> dict[str, float]:
    """`clip_{split}_first` and `_real`, and `retrieval_{split}_...` of both; see `BY_CLIP`."""
    captions = [each.caption for each in drawn]
    metrics = {}
    for name, images in {"first": [each.first for each in drawn], "real": real}.items():
        similarities = clip.score(images, captions)
        metrics[f"clip_{split}_{name}"] = similarities.diagonal().mean().item()
        for direction, share in recalls(similarities, captions).items():
            metrics[f"retrieval_{split}_{name}_{direction}"] = share
    return metrics


def digest(captions: list[str]) -> str:
    """Which captions these are."""
    return sha256("\n".join(captions).encode()).hexdigest()[:16]


def _sheet(drawn: list[Drawn], real: list[Image.Image], note: str) -> Image.Image:
    rows = [
        Row(each.caption, [picture, each.first, each.best], None)
        for each, picture in zip(drawn[:SHOWN], real, strict=False)
    ]
    return sample_sheet(rows, note=f"From left: real, drawn first, favourite. {note}")
