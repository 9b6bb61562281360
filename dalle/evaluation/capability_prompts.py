"""Prompts for the capabilities of a model of `blocks`: captions, and the statements that the judge checks.

They are testable counterparts of limitations that the paper's authors report: attribute binding is less reliable with
more objects, relations are confused, counting is poor beyond three, and of two wordings of the same caption one may
work well and the other badly (docs/prompts.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dalle.data.blocks_captions import wordings
from dalle.data.blocks_random_scene import KINDS, random_objects
from dalle.data.blocks_scene import DIRECTIONS, NounPhrase, Statement
from dalle.seeds import numpy_generator

MAX_TRIES = 100  # per caption: some capabilities have fewer captions than requested
ON_TOP = ("on top of",)
BESIDE = tuple(name for name in DIRECTIONS if name not in ON_TOP)


class Prompt(NamedTuple):
    """Caption to sample images for, with the statement that the judge checks in them."""

    caption: str
    statement: Statement  # the facts that the caption states


@dataclass(frozen=True)
class Capability:
    """Capability to evaluate: its name, and a sampler of statements that need it."""

    name: str  # key in metrics.json
    title: str  # row title in the table
    statement: Callable[[np.random.Generator], Statement]  # samples a statement that needs this capability
    trained: str = "yes"  # "yes" if the training data has such captions; otherwise the reason why not
    every_wording: bool = False  # use all wordings of each statement, to compare them


def _scene(kind: str, novel: bool = False) -> Callable[[np.random.Generator], Statement]:
    """Return a sampler of statements with all objects and relations of a scene of this kind, one of KINDS."""

    def statement(generator: np.random.Generator) -> Statement:
        objects, relations = random_objects(kind, generator, novel)
        phrases = (NounPhrase(*attributes, count) for attributes, count in zip(objects, KINDS[kind][1], strict=True))
        return Statement(tuple(phrases), relations)

    return statement


def _pair_in_relation(names: tuple[str, ...]) -> Callable[[np.random.Generator], Statement]:
    """Return a sampler of statements about two objects in one of the relations `names`."""
    sample_pair = _scene("related pair")

    def statement(generator: np.random.Generator) -> Statement:
        sampled = sample_pair(generator)
        while sampled.relations[0].name not in names:
            sampled = sample_pair(generator)
        return sampled

    return statement


def _equal_objects(count: int) -> Callable[[np.random.Generator], Statement]:
    """Return a sampler of statements about `count` equal objects. Three and more are small, to fit."""

    def statement(generator: np.random.Generator) -> Statement:
        ((shape, colour, size),), _ = random_objects("one", generator)
        return Statement((NounPhrase(shape, colour, size if count < 3 else "small", count),))

    return statement


UNSEEN_COUNT = "no: at most three in training"
UNSEEN_PAIR = "no: held-out pairs of shape and colour"
CAPABILITIES = (
    Capability("binding_1", "binding: 1 object", _scene("one")),
    Capability("binding_2", "binding: 2 objects", _scene("pair")),
    Capability("binding_3", "binding: 3 objects", _scene("three")),
    Capability("relation", "relation: left, right, above or below", _pair_in_relation(BESIDE)),
    Capability("stacking_2", "stacking: 2 objects", _pair_in_relation(ON_TOP)),
    Capability("stacking_3", "stacking: 3 objects", _scene("stack")),
    Capability("counting_2", "counting: 2", _equal_objects(2)),
    Capability("counting_3", "counting: 3", _equal_objects(3)),
    Capability("counting_4", "counting: 4", _equal_objects(4), UNSEEN_COUNT),
    Capability("counting_5", "counting: 5", _equal_objects(5), UNSEEN_COUNT),
    Capability("novel_1", "novel combination: 1 object", _scene("one", novel=True), UNSEEN_PAIR),
    Capability("novel_2", "novel combination: 2 objects", _scene("pair", novel=True), UNSEEN_PAIR),
    Capability(
        "rephrasing", "rephrasing: all wordings of a relation", _pair_in_relation(tuple(DIRECTIONS)), every_wording=True
    ),
)


def prompts(capability: Capability, count: int) -> list[Prompt]:
    """Return the first `count` different prompts of a capability, deterministically; fewer if there are no more.

    A capability with `every_wording` has half as many statements; all wordings of a statement are adjacent.
    """
    generator = numpy_generator(f"prompts of {capability.name}")
    by_caption: dict[str, Statement] = {}
    if capability.every_wording:
        statements = dict.fromkeys(capability.statement(generator) for _ in range(max(1, count // 2)))
        by_caption = {caption: statement for statement in statements for caption in wordings(statement)}
    else:
        for _ in range(MAX_TRIES * count):
            statement = capability.statement(generator)
            captions = wordings(statement)
            by_caption.setdefault(captions[generator.integers(len(captions))], statement)
            if len(by_caption) == count:
                break
    return [Prompt(caption, statement) for caption, statement in by_caption.items()]
