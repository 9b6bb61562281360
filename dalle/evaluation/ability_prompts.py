"""What a model of `blocks` is asked for, ability by ability: captions, and the statements that the judge is told.

They are testable counterparts of what the paper's authors report of their model: it binds attributes to objects the
less reliably the more objects there are, confuses relations, counts poorly beyond three, and draws one of two wordings
of the same thing well and the other badly (docs/prompts.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dalle.data.blocks import KINDS, facts, wordings
from dalle.data.blocks_world import DIRECTIONS, Described, Statement
from dalle.seeds import numpy_generator

MOST_TRIES = 100  # for each caption: where an ability has fewer captions than asked for, those that there are do
ON_TOP = ("on top of",)
BESIDE = tuple(name for name in DIRECTIONS if name not in ON_TOP)


class Prompt(NamedTuple):
    caption: str
    statement: Statement  # the facts that the caption states


@dataclass(frozen=True)
class Ability:
    """One thing that a model may be able to do."""

    name: str  # in metrics.json
    title: str  # in the table
    statement: Callable[[np.random.Generator], Statement]  # a random one that takes this ability
    trained: str = "yes"  # whether training shows the like; if not, why
    every_wording: bool = False  # ask for a statement in all its wordings, to compare them


def _scene(kind: str, novel: bool = False) -> Callable[[np.random.Generator], Statement]:
    """All that is in a scene of one of KINDS."""

    def statement(generator: np.random.Generator) -> Statement:
        things, relations = facts(kind, generator, novel)
        described = (Described(*thing, count) for thing, count in zip(things, KINDS[kind][1], strict=True))
        return Statement(tuple(described), relations)

    return statement


def _related(names: tuple[str, ...]) -> Callable[[np.random.Generator], Statement]:
    """Two things in one of these relations."""
    pair = _scene("related pair")

    def statement(generator: np.random.Generator) -> Statement:
        found = pair(generator)
        while found.relations[0].name not in names:
            found = pair(generator)
        return found

    return statement


def _alike(count: int) -> Callable[[np.random.Generator], Statement]:
    """So many of the same thing, small from three on: of large ones there is no room for more than two."""

    def statement(generator: np.random.Generator) -> Statement:
        ((shape, colour, size),), _ = facts("one", generator)
        return Statement((Described(shape, colour, size if count < 3 else "small", count),))

    return statement


UNSEEN_COUNT = "no: training counts to three"
UNSEEN_PAIR = "no: these shapes never have these colours"
ABILITIES = (
    Ability("binding_1", "binding: 1 object", _scene("one")),
    Ability("binding_2", "binding: 2 objects", _scene("pair")),
    Ability("binding_3", "binding: 3 objects", _scene("three")),
    Ability("relation", "relation: left, right, above or below", _related(BESIDE)),
    Ability("stacking_2", "stacking: 2 objects", _related(ON_TOP)),
    Ability("stacking_3", "stacking: 3 objects", _scene("stack")),
    Ability("counting_2", "counting: 2", _alike(2)),
    Ability("counting_3", "counting: 3", _alike(3)),
    Ability("counting_4", "counting: 4", _alike(4), UNSEEN_COUNT),
    Ability("counting_5", "counting: 5", _alike(5), UNSEEN_COUNT),
    Ability("novel_1", "novel combination: 1 object", _scene("one", novel=True), UNSEEN_PAIR),
    Ability("novel_2", "novel combination: beside another", _scene("pair", novel=True), UNSEEN_PAIR),
    Ability("rephrasing", "rephrasing: all wordings of a relation", _related(tuple(DIRECTIONS)), every_wording=True),
)


def prompts(ability: Ability, count: int) -> list[Prompt]:
    """The first `count` different prompts of an ability, always the same; fewer, where it has no more.

    One that asks in every wording has half as many statements, side by side in all their wordings.
    """
    generator = numpy_generator(f"prompts of {ability.name}")
    found: dict[str, Statement] = {}
    if ability.every_wording:
        statements = dict.fromkeys(ability.statement(generator) for _ in range(max(1, count // 2)))
        found = {caption: statement for statement in statements for caption in wordings(statement)}
    else:
        for _ in range(MOST_TRIES * count):
            statement = ability.statement(generator)
            ways = wordings(statement)
            found.setdefault(ways[generator.integers(len(ways))], statement)
            if len(found) == count:
                break
    return [Prompt(caption, statement) for caption, statement in found.items()]
