"""Capabilities of a model of `blocks`: a table of accuracies and an image grid of samples."""

from collections.abc import Sequence
from itertools import groupby
from statistics import mean, stdev
from typing import Any

from dalle.evaluation.ability_prompts import ABILITIES, Prompt, prompts
from dalle.evaluation.drawing import choice_settings, digest
from dalle.evaluation.measured import Measured
from dalle.evaluation.metrics.captions import Drawn, draw_stated, rightness
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject
from dalle.image_grid import Cell, GridRow, image_grid
from dalle.sampling.pipeline import DALLE

ABOUT = (
    "The share of captions of which the judge finds every stated fact true, and its standard error over statements: in "
    "the picture drawn first, in all candidates on average, in the favourite of them, and in any, which no choice "
    "exceeds. All captions share the noise of their candidates, so wordings of one statement differ in words alone."
)
NOTHING_CHOSE = "Nothing ranks candidates, as the checkpoint has no clip/: the favourite is the one drawn first."
SHOWN = 6  # best candidates of each capability on the grid
RIGHT, WRONG = "#2f9e5b", "#d04a3e"  # frame colours
COLUMNS = ("first", "mean", "top", "any")


def measure(subject: Subject, config: EvaluateConfig) -> Measured:
    """Measure accuracy on `config.ability_captions` captions an ability. Raises ValueError for data with no judge."""
    if subject.data.name != "blocks":
        raise ValueError(
            f"metrics=[abilities] needs pictures whose facts can be read, those of `blocks`, and not "
            f"`{subject.data.name}`: look at what the model draws for captions_file=configs/prompts/... of sample.py"
        )
    dalle = subject.whole()
    numbers: dict[str, float] = {}
    asked: list[str] = []
    rows, shown = [], []
    for ability in ABILITIES:
        wanted = prompts(ability, config.ability_captions)
        captions, statements = [each.caption for each in wanted], [each.statement for each in wanted]
        drawn = draw_stated(dalle, captions, statements, config.sampling(config.candidates))
        right = rightness(drawn)
        numbers |= {f"ability_{ability.name}_{which}": mean(right[which]) for which in COLUMNS}
        if ability.every_wording:
            numbers |= _agreement(ability.name, wanted, right["top"])
        cells = [ability.title, str(len(drawn)), ability.trained, *(_share(wanted, right[which]) for which in COLUMNS)]
        rows.append(f"| {' | '.join(cells)} |")
        shown.append(GridRow(favourites(drawn), f"{ability.title}, {mean(right['top']):.0%} right"))
        asked += captions
    heads = ["ability", "captions", "trained", "first", "mean", f"best of {config.candidates}", "any"]
    table = [f"| {' | '.join(heads)} |", f"|---|---:|---|{'---:|' * len(COLUMNS)}", *rows, "", _in_words(numbers)]
    notes = [] if dalle.reranker(dalle.tokenize(asked, truncate=True), config) else [NOTHING_CHOSE]
    settings: dict[str, Any] = choice_settings(dalle, config, config.candidates)
    settings |= {"captions_for_each": config.ability_captions, "captions_digest": digest(asked)}
    sheet = image_grid(shown, title="Favourites, framed green where every fact is true and red where one is not")
    return Measured(ABOUT, numbers, settings, {"abilities": sheet}, "\n".join(table), [*notes, *_cut(dalle, asked)])


def _agreement(name: str, wanted: Sequence[Prompt], right: Sequence[float]) -> dict[str, float]:
    """Share of statements whose best candidates are right in every wording, and in at least one."""
    by_statement = _by_statement(wanted, right)
    return {
        f"ability_{name}_every_wording": mean(float(all(each)) for each in by_statement),
        f"ability_{name}_some_wording": mean(float(any(each)) for each in by_statement),
    }


def _in_words(numbers: dict[str, float]) -> str:
    every, some = (numbers[f"ability_rephrasing_{which}_wording"] for which in ("every", "some"))
    return (
        f"Rephrasings: the favourite is right in at least one wording of {some:.0%} of the statements, and in every "
        f"wording of {every:.0%}; were words no matter, the two would be the same."
    )


def _share(wanted: Sequence[Prompt], right: Sequence[float]) -> str:
    """Mean and its standard error over statements, as all wordings of a statement share their noise."""
    by_statement = [mean(each) for each in _by_statement(wanted, right)]
    error = f" ± {stdev(by_statement) / len(by_statement) ** 0.5:.2f}" if len(by_statement) > 1 else ""
    return f"{mean(right):.2f}{error}"


def _by_statement(wanted: Sequence[Prompt], right: Sequence[float]) -> list[list[float]]:
    pairs = zip(wanted, right, strict=True)
    return [[holds for _, holds in group] for _, group in groupby(pairs, lambda pair: pair[0].statement)]


def favourites(drawn: Sequence[Drawn]) -> list[Cell]:
    """Cells of the first `SHOWN` best candidates with their captions, framed by `RIGHT` or `WRONG`."""
    return [Cell(each.best, each.caption, frame=RIGHT if each.verdicts[0].holds else WRONG) for each in drawn[:SHOWN]]


def _cut(dalle: DALLE, captions: Sequence[str]) -> list[str]:
    limit = dalle.transformer.sequence.caption_limit
    cut = sum(len(dalle.tokenizer.encode(caption)) > limit for caption in captions)
    return [f"{cut} of {len(captions)} captions are longer than {limit} tokens, and were cut."] if cut else []
