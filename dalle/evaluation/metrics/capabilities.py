"""Metric `capabilities`: accuracy of a model of `blocks` for each capability, as a table and an image grid."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from dalle.data.blocks_scene import Statement
from dalle.evaluation.capability_prompts import CAPABILITIES, Prompt, prompts
from dalle.evaluation.confidence import cluster_interval
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.evaluation.metric_result import MetricResult
from dalle.evaluation.metrics.caption_samples import CaptionSamples, accuracies, sample_and_judge
from dalle.evaluation.sampling_settings import captions_digest, sampling_settings
from dalle.image_grid import Cell, GridRow, image_grid
from dalle.sampling.pipeline import DALLE

DESCRIPTION = (
    "Accuracy: the share of captions with every stated fact true, by the judge, and its 95% interval over "
    "statements. `first` is of candidate 0, `mean` the mean over all candidates, `top` of the best candidate (`best "
    "of`), and `any` of any candidate, an upper bound for reranking. All captions use the same noise, so samples for "
    "several wordings of one statement differ only by the words."
)
NO_RERANKER = "Candidates are not ranked, as the checkpoint has no clip/: the best candidate is candidate 0."
GRID_IMAGES = 6  # best candidates of each capability on the grid
CORRECT, WRONG = "#2f9e5b", "#d04a3e"  # frame colours
COLUMNS = ("first", "mean", "top", "any")


def measure(context: EvaluationContext, config: EvaluateConfig) -> MetricResult:
    """Compute the accuracy on `config.capability_captions` captions per capability.

    Raises:
        ValueError: data other than `blocks`, which has no judge.
    """
    if context.data.name != "blocks":
        raise ValueError(
            f"metrics=[capabilities] needs data=blocks, which has a judge, but the data are `{context.data.name}`: "
            "sample prompts with sample.py captions_file=configs/prompts/... instead"
        )
    dalle = context.require_pipeline()
    sampling = dalle.resolve(config.sampling(config.candidates))
    numbers: dict[str, float] = {}
    all_captions: list[str] = []
    rows, grid_rows = [], []
    for capability in CAPABILITIES:
        own_prompts = prompts(capability, config.capability_captions)
        captions, statements = [prompt.caption for prompt in own_prompts], [prompt.statement for prompt in own_prompts]
        samples = sample_and_judge(dalle, captions, statements, sampling)
        accuracy = accuracies(samples)
        numbers |= {f"capability_{capability.name}_{column}": mean(accuracy[column]) for column in COLUMNS}
        if capability.every_wording:
            numbers |= _consistency(capability.name, own_prompts, accuracy["top"])
        cells = [capability.title, str(len(samples)), capability.trained]
        cells += [_mean_and_interval(own_prompts, accuracy[column]) for column in COLUMNS]
        rows.append(f"| {' | '.join(cells)} |")
        grid_rows.append(GridRow(best_cells(samples), f"{capability.title}, accuracy {mean(accuracy['top']):.0%}"))
        all_captions += captions
    headers = ["capability", "captions", "trained", "first", "mean", f"best of {config.candidates}", "any"]
    table = [
        f"| {' | '.join(headers)} |",
        f"|---|---:|---|{'---:|' * len(COLUMNS)}",
        *rows,
        "",
        _wordings_note(numbers),
    ]
    notes = [] if sampling.ranked else [NO_RERANKER]
    notes += _truncation_note(dalle, all_captions)
    settings: dict[str, Any] = sampling_settings(dalle, sampling)
    settings |= {
        "captions_per_capability": config.capability_captions,
        "captions_digest": captions_digest(all_captions),
    }
    grid = image_grid(grid_rows, title="Best candidates; green frame: every fact is true, red frame: not")
    return MetricResult(DESCRIPTION, numbers, settings, {"capabilities": grid}, "\n".join(table), notes)


def _consistency(name: str, own_prompts: Sequence[Prompt], correct: Sequence[float]) -> dict[str, float]:
    """Return the shares of statements whose best candidates are correct in every wording, and in at least one."""
    by_statement = _group_by_statement(own_prompts, correct)
    return {
        f"capability_{name}_every_wording": mean(float(all(values)) for values in by_statement),
        f"capability_{name}_some_wording": mean(float(any(values)) for values in by_statement),
    }


def _wordings_note(numbers: dict[str, float]) -> str:
    """Return sentences with the shares of statements that are correct in some wording and in every wording."""
    every_wording, some_wording = (
        numbers[f"capability_rephrasing_{quantifier}_wording"] for quantifier in ("every", "some")
    )
    return (
        f"Rephrasing: the best candidate is correct in at least one wording of {some_wording:.0%} of the statements, "
        f"and in every wording of {every_wording:.0%}. The two are equal if the wording does not matter."
    )


def _mean_and_interval(own_prompts: Sequence[Prompt], correct: Sequence[float]) -> str:
    """Format the mean accuracy with its 95% interval over statements: "0.75 (0.62 to 0.86)".

    The interval is not over prompts, because all wordings of a statement share their noise.
    """
    by_statement = [mean(values) for values in _group_by_statement(own_prompts, correct)]
    low, high = cluster_interval(by_statement, "capabilities")
    return f"{mean(correct):.2f} ({low:.2f} to {high:.2f})"


def _group_by_statement(own_prompts: Sequence[Prompt], correct: Sequence[float]) -> list[list[float]]:
    """Group the accuracies of prompts by statement, in the order of first occurrence."""
    groups: dict[Statement, list[float]] = {}
    for prompt, value in zip(own_prompts, correct, strict=True):
        groups.setdefault(prompt.statement, []).append(value)
    return list(groups.values())


def best_cells(samples: Sequence[CaptionSamples]) -> list[Cell]:
    """Return grid cells of the best candidates of the first `GRID_IMAGES` captions, framed by `CORRECT` or `WRONG`."""
    return [
        Cell(sample.best, sample.caption, frame=CORRECT if sample.verdicts[0].holds else WRONG)
        for sample in samples[:GRID_IMAGES]
    ]


def _truncation_note(dalle: DALLE, captions: Sequence[str]) -> list[str]:
    limit = dalle.transformer.sequence.caption_limit
    too_long = sum(len(dalle.tokenizer.encode(caption)) > limit for caption in captions)
    return [f"{too_long} of {len(captions)} captions are longer than {limit} tokens; truncated."] if too_long else []
