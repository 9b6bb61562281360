"""Metric `capabilities`: a row and a grid row per capability, consistency of wordings, error messages."""

from dataclasses import replace

import pytest
from PIL import Image

from dalle.data.blocks_scene import NounPhrase, Statement
from dalle.data.folder import FolderConfig
from dalle.evaluation.capability_prompts import CAPABILITIES, Prompt
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.metrics import capabilities
from dalle.evaluation.metrics.caption_samples import CaptionSamples
from dalle.sampling.sampling_config import RerankConfig


@pytest.fixture
def config(config):
    return replace(config, capability_captions=2)


def fake_sampler(correct):
    """Fake of `sample_and_judge`: all candidates of a caption are correct if `correct(caption)`."""

    class FakeVerdict:
        def __init__(self, holds):
            self.holds = holds

    def draw(dalle, captions, statements, config):
        blank = Image.new("RGB", (8, 8))
        return [
            CaptionSamples(caption, blank, blank, [FakeVerdict(correct(caption))] * config.candidates, 0)
            for caption in captions
        ]

    return draw


def test_every_capability_has_numbers_and_a_table_row(context, config):
    result = capabilities.measure(context, config)
    which = ("first", "mean", "top", "any")
    names = {f"capability_{capability.name}_{statistic}" for capability in CAPABILITIES for statistic in which}
    names |= {f"capability_rephrasing_{which}_wording" for which in ("every", "some")}
    assert set(result.numbers) == names
    rows = [line.split(" | ")[0] for line in result.table.splitlines()[2:] if line.startswith("|")]
    assert rows == [f"| {capability.title}" for capability in CAPABILITIES]
    assert set(result.images) == {"capabilities"}
    assert result.settings["captions_per_capability"] == 2


def test_model_that_is_always_correct_has_accuracy_1(context, config, monkeypatch):
    monkeypatch.setattr(capabilities, "sample_and_judge", fake_sampler(lambda caption: True))
    assert set(capabilities.measure(context, config).numbers.values()) == {1.0}


def test_model_that_knows_some_wordings_is_inconsistent(context, config, monkeypatch):
    monkeypatch.setattr(capabilities, "sample_and_judge", fake_sampler(lambda caption: not caption.startswith("there")))
    numbers = capabilities.measure(context, config).numbers
    assert numbers["capability_rephrasing_some_wording"] == 1
    assert numbers["capability_rephrasing_every_wording"] == 0
    assert numbers["capability_rephrasing_top"] == pytest.approx(2 / 3, abs=0.05)


def test_consistency_is_computed_per_statement():
    one, other = (Statement((NounPhrase(shape, "red"),)) for shape in ("circle", "square"))
    wanted = [Prompt("a", one), Prompt("b", one), Prompt("c", other), Prompt("d", other)]
    assert capabilities._consistency("x", wanted, [1, 1, 0, 1]) == {
        "capability_x_every_wording": 0.5,
        "capability_x_some_wording": 1,
    }


def test_interval_does_not_depend_on_the_order_of_prompts():
    """Wordings of a statement share their noise, wherever they stand."""
    one, other = (Statement((NounPhrase(shape, "red"),)) for shape in ("circle", "square"))
    prompts = [Prompt("a", one), Prompt("b", other), Prompt("c", one), Prompt("d", other)]
    together = capabilities._group_by_statement([prompts[0], prompts[2], prompts[1], prompts[3]], [1, 1, 0, 0])
    assert capabilities._group_by_statement(prompts, [1, 0, 1, 0]) == together == [[1, 1], [0, 0]]


def test_truncated_captions_are_counted_in_a_note(context, config):
    dalle = context.require_pipeline()
    too_long = ""
    while len(dalle.tokenizer.encode(too_long)) < 32:  # one more than fits beside the start token
        fits, too_long = too_long, f"{too_long} e"
    assert capabilities._truncation_note(dalle, [fits, too_long]) == [
        "1 of 2 captions are longer than 31 tokens; truncated."
    ]
    assert capabilities._truncation_note(dalle, [fits]) == []
    dalle.tokenize([fits])
    with pytest.raises(ValueError, match="32 tokens"):
        dalle.tokenize([too_long])


def test_note_if_candidates_are_not_ranked(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    result = capabilities.measure(EvaluationContext.load(config), config)
    assert capabilities.NO_RERANKER in result.notes


def test_other_data_than_blocks_raise(context, config):
    other = replace(context, data=FolderConfig(path="photos"))
    with pytest.raises(ValueError, match="needs data=blocks.*`folder`.*captions_file="):
        capabilities.measure(other, config)


def test_grid_cells_have_captions_and_frames_by_correctness():
    samples = fake_sampler(lambda caption: caption == "two")(None, ["two", "three"], [], RerankConfig(candidates=1))
    correct, wrong = capabilities.best_cells(samples)
    assert (correct.label, correct.frame) == ("two", capabilities.CORRECT)
    assert (wrong.label, wrong.frame) == ("three", capabilities.WRONG)
