"""The part `abilities`: a row and a line of pictures for each, numbers that fit each other, refusals in words."""

from dataclasses import replace

import pytest
from PIL import Image

from dalle.data.blocks_scene import NounPhrase, Statement
from dalle.data.folder import FolderConfig
from dalle.evaluation.ability_prompts import ABILITIES, Prompt
from dalle.evaluation.metrics import abilities
from dalle.evaluation.metrics.captions import Drawn
from dalle.evaluation.subject import Subject
from dalle.sampling.sampling_config import RerankConfig


@pytest.fixture
def config(config):
    return replace(config, ability_captions=2)


def as_judged(right):
    """`draw_stated` with verdicts made up: `right` says of a caption whether its candidates are."""

    class Made:
        def __init__(self, holds):
            self.holds = holds

    def draw(dalle, captions, statements, config):
        blank = Image.new("RGB", (8, 8))
        return [Drawn(each, blank, blank, [Made(right(each))] * config.candidates, 0) for each in captions]

    return draw


def test_every_ability_has_its_numbers_its_row_and_its_line_on_the_sheet(subject, config):
    found = abilities.measure(subject, config)
    names = {f"ability_{ability.name}_{which}" for ability in ABILITIES for which in ("first", "mean", "top", "any")}
    names |= {f"ability_rephrasing_{which}_wording" for which in ("every", "some")}
    assert set(found.numbers) == names
    rows = [line.split(" | ")[0] for line in found.table.splitlines()[2:] if line.startswith("|")]
    assert rows == [f"| {ability.title}" for ability in ABILITIES]
    assert set(found.pictures) == {"abilities"}
    assert found.settings["captions_for_each"] == 2


def test_a_model_that_is_always_right_has_every_ability(subject, config, monkeypatch):
    monkeypatch.setattr(abilities, "draw_stated", as_judged(lambda caption: True))
    assert set(abilities.measure(subject, config).numbers.values()) == {1.0}


def test_a_model_that_knows_some_wordings_is_called_inconsistent(subject, config, monkeypatch):
    monkeypatch.setattr(abilities, "draw_stated", as_judged(lambda caption: not caption.startswith("there")))
    numbers = abilities.measure(subject, config).numbers
    assert numbers["ability_rephrasing_some_wording"] == 1
    assert numbers["ability_rephrasing_every_wording"] == 0
    assert numbers["ability_rephrasing_top"] == pytest.approx(2 / 3, abs=0.05)


def test_wordings_are_compared_within_their_own_statement():
    one, other = (Statement((NounPhrase(shape, "red"),)) for shape in ("circle", "square"))
    wanted = [Prompt("a", one), Prompt("b", one), Prompt("c", other), Prompt("d", other)]
    assert abilities._agreement("x", wanted, [1, 1, 0, 1]) == {
        "ability_x_every_wording": 0.5,
        "ability_x_some_wording": 1,
    }


def test_captions_that_the_model_has_no_room_for_are_counted(subject, config):
    dalle = subject.whole()
    many = ""
    while len(dalle.tokenizer.encode(many)) < 32:  # one more than there is room for beside the start of the text
        fits, many = many, f"{many} e"
    assert abilities._cut(dalle, [fits, many]) == ["1 of 2 captions are longer than 31 tokens, and were cut."]
    assert abilities._cut(dalle, [fits]) == []
    dalle.tokenize([fits])
    with pytest.raises(ValueError, match="32 tokens"):
        dalle.tokenize([many])


def test_without_a_clip_the_favourite_is_said_to_be_the_first(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    found = abilities.measure(Subject.load(config), config)
    assert abilities.NOTHING_CHOSE in found.notes


def test_data_whose_facts_cannot_be_read_are_refused_with_what_to_do(subject, config):
    other = replace(subject, data=FolderConfig(path="photos"))
    with pytest.raises(ValueError, match="needs pictures whose facts can be read.*`folder`.*captions_file="):
        abilities.measure(other, config)


def test_favourites_stand_over_their_captions_framed_by_whether_they_are_right():
    drawn = as_judged(lambda caption: caption == "two")(None, ["two", "three"], [], RerankConfig(candidates=1))
    right, wrong = abilities.favourites(drawn)
    assert (right.label, right.frame, wrong.label, wrong.frame) == ("two", abilities.RIGHT, "three", abilities.WRONG)
