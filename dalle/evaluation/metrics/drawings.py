"""Metric `drawings`: concept, style and colour of sampled drawings, and their partners in panels.

The judge sees pixels only, and is trained on the training split (`judges.drawings_classifier`). Its accuracy on the
real drawings of the same captions is computed first, and limits what a model can reach. A second judge, with features
learned on photographs (`judges.efficientnet_classifier`), is shown for comparison. The metrics `reconstruction` and
`sample_quality` of the dVAE's checkpoint measure reconstructions of concepts that training never shows.
"""

from typing import Any

import torch

from dalle.data import attribution
from dalle.data.drawings.source import DrawingsSource
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.judges.digest import weights_digest
from dalle.evaluation.judges.drawings_classifier import Judge, Labels, accuracy, classify
from dalle.evaluation.judges.drawings_classifier_training import load_classifier
from dalle.evaluation.judges.efficientnet_classifier import load_efficientnet_classifier
from dalle.evaluation.judges.training_pictures import class_numbers
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.drawing_partners import CHOICES, measure_partners
from dalle.evaluation.metrics.drawing_samples import grid_row, sample_captions
from dalle.evaluation.sampling_settings import captions_digest, sampling_settings
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

DESCRIPTION = (
    "Drawings sampled for held-out captions, and classified by a network that was trained on pixels of real training "
    "drawings. `novel`: a concept in a style in which training never shows it; `colours`: a concept in a colour in "
    "which training never shows it. `top` is the candidate that ranks first by the score in `rerank` of the settings, "
    "`first` candidate 0, `real` the caption's own drawing, which limits what can be reached; `effnet` is a second "
    "classifier, on features of efficientnet-lite0. `partner`: the upper panel of a concept that training never shows "
    "is given, and the lower one is sampled: the share whose lower panel is closer to its own real one than to those "
    "of up to nine others in the same style (features of the same network; `chance` is the mean chance), and the share "
    "in the right style; `real` is the reconstruction by the dVAE."
)
NO_PARTNERS = "No partners: the split val has no panels (data.mix.panels)."
NO_OTHERS = "No partners: no two panels of the split val have the same style."
ATTRIBUTES = {"novel": ("concept", "style"), "colours": ("concept", "colour")}  # checked in each split
GRID_CAPTIONS = 8  # captions of each split on the image grid


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Sample `config.captions` captions of each held-out split, and as many image prompts, at most 200."""
    if context.data.name != "drawings":
        raise ValueError(
            f"metrics=[drawings] needs data=drawings, whose concepts the judge knows, and not data={context.data.name}"
        )
    dalle = context.require_pipeline()
    sources = {split: DrawingsSource(context.data, split) for split in ATTRIBUTES}
    if empty_splits := [split for split, source in sources.items() if not len(source)]:  # before hours of sampling
        raise ValueError(
            f"the split {empty_splits[0]} of the drawings is empty: build the whole set with `make drawings`, and use "
            "all groups (data.groups=[])"
        )
    judge = load_classifier(context.data)
    effnet = load_efficientnet_classifier(context.data)
    judges: dict[str, Judge] = {"": judge, "_effnet": effnet}
    numbers: dict[str, float] = {}
    rows: list[ImageRow] = []
    settings: dict[str, Any] = sampling_settings(dalle, dalle.resolve(config.sampling(config.candidates)))
    for split, attributes in ATTRIBUTES.items():
        source = sources[split]
        records = list(range(min(config.captions, len(source))))
        samples = sample_captions(dalle, source, records, config)
        labels = true_labels(source, records, judge.config.concepts)
        for suffix, classifier in judges.items():
            for image_kind in ("first", "top", "real"):
                shares = accuracy(classify(classifier, [getattr(sample, image_kind) for sample in samples]), labels)
                numbers |= {f"drawings_{split}_{name}{suffix}_{image_kind}": shares[name] for name in attributes}
        rows += [grid_row(sample) for sample in samples[:GRID_CAPTIONS]]
        digest = captions_digest([sample.caption for sample in samples])
        settings[split] = {"captions": len(samples), "captions_digest": digest}
    held_out = DrawingsSource(context.data, "val")
    prompts, partners = measure_partners(dalle, judge, held_out, config)
    numbers |= partners
    rows += [grid_row(prompt) for prompt in prompts[:GRID_CAPTIONS]]
    settings["partner"] = {"prompts": len(prompts), "choices": CHOICES}
    notes = [] if "drawings_partner_chance" in partners else [NO_OTHERS if prompts else NO_PARTNERS]
    classes = {name: len(values) for name, values in vars(judge.config).items() if isinstance(values, list)}
    settings["judge"] = {"digest": weights_digest(judge), **classes}
    settings["judge_effnet"] = {"digest": weights_digest(effnet.heads)}
    grid = labelled_grid(rows, note=f"From left: real, candidate 0, top. {attribution(context.data.name)}")
    return MetricResult(DESCRIPTION, numbers, settings, {"drawings": grid}, table(numbers), notes)


def table(numbers: dict[str, float]) -> str:
    """Return the numbers as a Markdown table, with the top candidate's share of the accuracy on real drawings.

    Numbers that are not of three images are left out.
    """
    lines = ["| | candidate 0 | top | real | top / real |", "|---|---:|---:|---:|---:|"]
    for name in (key.removesuffix("_first") for key in numbers if key.endswith("_first")):
        first, top, real = (numbers[f"{name}_{image_kind}"] for image_kind in ("first", "top", "real"))
        share = f"{top / real:.2f}" if real else "-"
        lines.append(f"| {name.removeprefix('drawings_')} | {first:.3f} | {top:.3f} | {real:.3f} | {share} |")
    return "\n".join(lines)


def true_labels(source: DrawingsSource, records: list[int], concepts: list[str]) -> Labels:
    """Return the classes of the records; UNLABELLED for a concept that is not in `concepts`, and for no colour."""
    numbers = {concept: number for number, concept in enumerate(concepts)}
    rows = [class_numbers(source, record, numbers) for record in records]
    return Labels(*torch.tensor(rows).unbind(dim=1))
