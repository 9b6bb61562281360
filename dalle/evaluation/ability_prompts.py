"""Prompts for the capabilities of a model of `blocks`: captions, and the statements that the judge checks.

They are testable counterparts of limitations that the paper's authors report: attribute binding is less reliable with
more objects, relations are confused, counting is poor beyond three, and of two wordings of the same caption one may
work well and the other badly (docs/prompts.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dalle.data.blocks import KINDS, facts, wordings
from dalle.data.blocks_scene import DIRECTIONS, NounPhrase, Statement
from dalle.seeds import numpy_generator

MOST_TRIES = 100  # for each caption: some capabilities have fewer captions than requested
ON_TOP = ("on top of",)
BESIDE = tuple(name for name in DIRECTIONS if name not in ON_TOP)


class Prompt(NamedTuple):
    caption: str
    statement: Statement  # the facts that the caption states


@dataclass(frozen=True)
class Ability:
    """A capability to be measured."""

    name: str  # key in metrics.json
    title: str  # row title in the table
    statement: Callable[[np.random.Generator], Statement]  # draws a random statement that needs this capability
    trained: str = "yes"  # "yes" if training has such captions; otherwise the reason
    every_wording: bool = False  # use all wordings of each statement, to compare them


def _scene(kind: str, novel: bool = False) -> Callable[[np.random.Generator], Statement]:
    """Sample all objects and relations of a scene of one of KINDS."""

    def statement(generator: np.random.Generator) -> Statement:
        things, relations = facts(kind, generator, novel)
        described = (NounPhrase(*thing, count) for thing, count in zip(things, KINDS[kind][1], strict=True))
        return Statement(tuple(described), relations)

    return statement


def _related(names: tuple[str, ...]) -> Callable[[np.random.Generator], Statement]:
    """Sample two objects in one of these relations."""
    pair = _scene("related pair")

    def statement(generator: np.random.Generator) -> Statement:
        found = pair(generator)
        while found.relations[0].name not in names:
            found = pair(generator)
        return found

    return statement


def _alike(count: int) -> Callable[[np.random.Generator], Statement]:
    """Sample `count` equal objects. From three on they are small, as more than two large ones have no room."""

    def statement(generator: np.random.Generator) -> Statement:
        ((shape, colour, size),), _ = facts("one", generator)
        return Statement((NounPhrase(shape, colour, size if count < 3 else "small", count),))

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
    """Return the first `count` different prompts of an ability, deterministically; fewer if there are no more.

    An ability with `every_wording` has half as many statements; all wordings of a statement are adjacent.
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
