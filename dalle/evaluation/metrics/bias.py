"""Metric `bias`: variants that are drawn for captions that leave them open, beside their share in the training data.

For `drawings`: gender, skin tone and age of people in occupations and activities, by a classifier trained on real
drawings (`judges.people_classifier`). For other data: variants that the user names in `bias_prompts`, by CLIP.
"""

from typing import Any

from dalle.data import attribution, open_source
from dalle.data.drawings.source import DrawingsSource
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.judges.digest import weights_digest
from dalle.evaluation.judges.people_classifier import load_people_classifier
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.caption_variants import metric_name, summarise, table
from dalle.evaluation.metrics.people_variants import judge_accuracy, open_captions, sample_people, training_people
from dalle.evaluation.metrics.prompt_variants import EXAMPLE, parse_prompts, sample_prompts
from dalle.evaluation.sampling_settings import captions_digest, decoding_settings
from dalle.sampling.labelled_grid import ImageRow, labelled_grid

DESCRIPTION = (
    "Variants drawn for captions that leave them open, among all candidates, unranked. `drawn` is the mean of the "
    "captions' shares, with the 95% interval from resampling captions; `training` the mean share among training images "
    "whose captions leave them open too: they contain the open caption, and state none of the variants. "
)
BY_CLASSIFIER = (
    "The judge is a classifier of real drawings. It learned how emoji sets mark a woman, a man or a person without a "
    "stated gender: conventions of their authors, not genders of people. `bias_judge_*` is its accuracy on real "
    "drawings of the held-out splits; shares are not corrected for its errors. Training drawings count by the share of "
    "their captions that contain the open one, without its style."
)
BY_CLIP = (
    "The judge is CLIP: the variant whose caption is the most similar to the image. It names one even if none can be "
    "seen, and has biases of its own. It judges the training images too."
)
GRID_PROMPTS, GRID_IMAGES = 8, 8


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Sample `config.candidates` images for each open caption, and count their variants.

    For drawings, the captions are `config.captions` occupations and activities, or all if there are fewer.
    """
    dalle = context.require_pipeline()
    if config.bias_prompts:
        clip = context.require_clip("metrics=[bias] with bias_prompts")
        results = list(sample_prompts(dalle, clip, open_source(context.data, "train"), config))
        description, numbers, judge_settings = DESCRIPTION + BY_CLIP, {}, {}
    elif context.data.name == "drawings":
        source = DrawingsSource(context.data, "train")
        training = training_people(source)
        if not (captions := open_captions(source, training, config.captions)):
            raise ValueError(
                "metrics=[bias] finds no person whose gender, skin tone and age a caption leaves open: give the "
                "people with data.groups=[people-body,...] or leave it out, or name captions: " + EXAMPLE
            )
        model = load_people_classifier(context.data)
        results = list(sample_people(dalle, model, captions, training, config))
        description, numbers = DESCRIPTION + BY_CLASSIFIER, judge_accuracy(model, context)
        judge_settings = {"judge": {"digest": weights_digest(model)}}
    else:
        raise ValueError(
            f"metrics=[bias] has captions of its own for data=drawings only; for data={context.data.name} name an open "
            f"caption and its variants: {EXAMPLE}"
        )
    summaries = summarise(results)
    for (attribute, value), summary in summaries.items():
        name = f"bias_{metric_name(attribute)}_{metric_name(value)}"
        numbers[name] = summary.drawn
        numbers |= {} if summary.training is None else {f"{name}_training": summary.training}
    captions = [result.caption for result in results]
    sampling = dalle.resolve(config.sampling(config.candidates))
    settings: dict[str, Any] = {"candidates": sampling.candidates, **decoding_settings(dalle, sampling)}
    settings |= {"captions": len(captions), "captions_digest": captions_digest(captions), **judge_settings}
    if config.bias_prompts:
        settings["variants"] = parse_prompts(config.bias_prompts)
    rows = [ImageRow(result.caption, result.images[:GRID_IMAGES], None) for result in results[:GRID_PROMPTS]]
    grid = labelled_grid(rows, GRID_IMAGES, note=attribution(context.data.name))
    return MetricResult(description, numbers, settings, {"bias": grid}, table(summaries, results))
