"""Prompts of each capability: deterministic, of the right kind, and understood by the judge."""

import numpy as np
import pytest
from PIL import Image

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.blocks_captions import wordings
from dalle.data.blocks_random_scene import HELD_OUT
from dalle.data.blocks_scene import RADII, NounPhrase, Scene, SceneObject, Statement, draw
from dalle.evaluation.capability_prompts import CAPABILITIES, prompts
from dalle.evaluation.judges.blocks_judge import judge

BY_NAME = {capability.name: capability for capability in CAPABILITIES}
EACH_CAPABILITY = pytest.mark.parametrize("name", BY_NAME)
# centres of small objects, well separated
CENTRES = [(2 / 8, 2 / 8), (6 / 8, 2 / 8), (2 / 8, 6 / 8), (6 / 8, 6 / 8), (4 / 8, 4 / 8)]


def described(name):
    return [prompt.statement.described for prompt in prompts(BY_NAME[name], 12)]


@EACH_CAPABILITY
def test_prompts_are_distinct_and_deterministic(name):
    sampled = prompts(BY_NAME[name], 12)
    captions = [prompt.caption for prompt in sampled]
    assert len(set(captions)) == len(captions) >= 12
    assert sampled == prompts(BY_NAME[name], 12)
    assert all(prompt.caption in wordings(prompt.statement) for prompt in sampled)


@pytest.mark.parametrize("name", ["binding_1", "novel_1", "counting_5"])
def test_capability_with_few_captions_returns_all(name):
    sampled = prompts(BY_NAME[name], 300)
    assert 12 < len(sampled) < 300


@pytest.mark.parametrize("name, things", [("binding_1", 1), ("binding_2", 2), ("binding_3", 3), ("stacking_3", 3)])
def test_binding_and_stacking_have_distinct_objects(name, things):
    for objects in described(name):
        assert len({(thing.shape, thing.colour) for thing in objects}) == things
        assert all(thing.count == 1 for thing in objects)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_counting_states_the_number_of_equal_objects(count):
    word = ("two", "three", "four", "five")[count - 2]
    for prompt in prompts(BY_NAME[f"counting_{count}"], 12):
        (thing,) = prompt.statement.described
        assert thing.count == count
        assert f"{word} {thing.size}" in prompt.caption


def test_only_novel_combinations_are_held_out():
    for capability in CAPABILITIES:
        for objects in described(capability.name):
            novel = any((thing.shape, thing.colour) in HELD_OUT for thing in objects)
            assert novel == capability.name.startswith("novel")


def test_rephrasing_has_every_wording_of_each_statement():
    by_statement = {}
    for caption, statement in prompts(BY_NAME["rephrasing"], 12):
        by_statement.setdefault(statement, []).append(caption)
    assert len(by_statement) == 6
    assert all(captions == wordings(statement) for statement, captions in by_statement.items())


def test_untrained_capabilities_do_not_occur_in_training():
    source = BlocksSource(BlocksConfig(), "train")
    counts = {thing.count for index in range(500) for thing in source.scene(index).statement.described}
    assert counts == {1, 2, 3}
    untrained = {capability.name for capability in CAPABILITIES if capability.trained != "yes"}
    assert untrained == {"counting_4", "counting_5", "novel_1", "novel_2"}


def image_of_small_objects(shown: int, shape: str = "circle", colour: str = "red") -> Image.Image:
    pieces = tuple(SceneObject(shape, colour, "small", x, y, RADII["small"]) for x, y in CENTRES[:shown])
    return draw(Scene(pieces, Statement(())), 64)


@pytest.mark.parametrize("asked", [4, 5])
@pytest.mark.parametrize("shown", [3, 4, 5])
def test_judge_counts_to_five(asked, shown):
    generator = np.random.default_rng(shown)
    for thing in (counted for (counted,) in described(f"counting_{asked}")):
        verdict = judge(image_of_small_objects(shown, thing.shape, thing.colour), Statement((thing,)))
        assert verdict.holds == (asked == shown)
        other = str(generator.choice([shape for shape in ("circle", "square", "cross") if shape != thing.shape]))
        wrong = NounPhrase(other, thing.colour, thing.size, asked)
        assert not judge(image_of_small_objects(shown, thing.shape, thing.colour), Statement((wrong,))).shapes
