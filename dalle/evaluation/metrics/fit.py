"""Metric `fit`: agreement of images sampled for held-out captions with the captions, compared with real images."""

from typing import Any

from PIL import Image

from dalle.data import attribution
from dalle.evaluation.drawing import choice_settings, digest
from dalle.evaluation.held_out import HeldOut, unit
from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics.captions import Drawn, caption_metrics, draw
from dalle.evaluation.metrics.retrieval import recalls
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject
from dalle.image_conversion import to_pil_images
from dalle.sampling.rerank import Scorer
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
NO_CLIP = "No CLIP scores and no retrieval: the checkpoint has no clip/; say where one is with clip=<folder>."
SHOWN = 6  # captions on the image grid


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Sample images for the first `config.captions` captions of each held-out split and measure their fit."""
    dalle = subject.whole()
    about, notes = ABOUT + BY_CLIP, []
    if dalle.clip is None:
        about, notes = ABOUT, [NO_CLIP]
    numbers: dict[str, float] = {}
    pictures: dict[str, Image.Image] = {}
    settings: dict[str, Any] = choice_settings(dalle, config, config.candidates)
    for split, source in subject.sources.items():
        drawn = draw(dalle, source, config.captions, config.sampling(config.candidates))
        pairs = HeldOut(source, len(drawn))
        real = [image for batch in pairs for image in to_pil_images(unit(batch.images))]
        numbers |= caption_metrics(drawn, split, dalle.clip)
        if dalle.clip is not None:
            numbers |= clip_metrics(dalle.clip, drawn, real, split)
        if drawn[0].verdicts and BY_JUDGE not in about:
            about += BY_JUDGE
        captions = [each.caption for each in drawn]
        settings[split] = {**pairs.described(), "captions": len(drawn), "captions_digest": digest(captions)}
        notes += [f"{split}: {each}" for each in pairs.shortfall(config.captions)]
        pictures[f"samples_{split}"] = _sheet(drawn, real, attribution(subject.data))
    return Measured(about, numbers, settings, pictures, notes=notes)


def clip_metrics(clip: Scorer, drawn: list[Drawn], real: list[Image.Image], split: str) -> dict[str, float]:
    """Compute `clip_{split}_first` and `_real`, and `retrieval_{split}_...` of both; see `BY_CLIP`."""
    captions = [each.caption for each in drawn]
    metrics = {}
    for name, images in {"first": [each.first for each in drawn], "real": real}.items():
        similarities = clip.score(images, captions)
        metrics[f"clip_{split}_{name}"] = similarities.diagonal().mean().item()
        for direction, share in recalls(similarities, captions).items():
            metrics[f"retrieval_{split}_{name}_{direction}"] = share
    return metrics


def _sheet(drawn: list[Drawn], real: list[Image.Image], note: str) -> Image.Image:
    rows = [
        Row(each.caption, [picture, each.first, each.best], None)
        for each, picture in zip(drawn[:SHOWN], real, strict=False)
    ]
    return sample_sheet(rows, note=f"From left: real, drawn first, favourite. {note}")
