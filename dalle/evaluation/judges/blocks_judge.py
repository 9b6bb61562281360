"""Judge of `blocks`: check fact by fact if a statement is true of an image.

Its inputs are the statement and the image only. The blobs that `blocks_eye` detects are matched with the statement's
noun phrases in every possible way; the match with the most true facts counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from PIL import Image

from dalle.data.blocks_scene import DIRECTIONS, Relation, Statement
from dalle.evaluation.judges.blocks_eye import Blob, find_blobs

TOUCHING = 2  # rows from an object's lowest pixels to those of the object it rests on; separate objects have 4
MOST_BLOBS = 6  # an image with more is wrong anyway, and every order of them is tried


@dataclass(frozen=True)
class Verdict:
    """Facts of a statement that hold. Facts that it does not mention hold; facts of missing objects do not."""

    objects: bool  # only whole, known shapes in known colours
    colours: bool
    shapes: bool
    sizes: bool
    relation: bool
    count: bool  # number of objects is as described

    @property
    def holds(self) -> bool:
        """True if every fact holds."""
        return all(vars(self).values())


def judge(image: Image.Image, statement: Statement) -> Verdict:
    """Check the facts of `statement` on `image`, a square image of any resolution.

    Raises:
        ValueError: an image that is not square.
    """
    blobs = find_blobs(image)
    wanted = [index for index, thing in enumerate(statement.described) for _ in range(thing.count)]
    candidates = [*blobs[:MOST_BLOBS], *[None] * (len(wanted) - len(blobs))]
    facts = (_facts(statement, wanted, order) for order in permutations(candidates, len(wanted)))
    best = max(facts, key=lambda rows: sum(map(sum, rows)))
    colours, shapes, sizes, relations = map(all, best)
    return Verdict(
        objects=bool(blobs) and all(blob.shape and blob.colour for blob in blobs),
        colours=colours,
        shapes=shapes,
        sizes=sizes,
        relation=relations,
        count=len(blobs) == len(wanted),
    )


def _facts(statement: Statement, wanted: Sequence[int], found: Sequence[Blob | None]) -> list[list[bool]]:
    """Truth of each colour, shape, size and relation, if found[i] is the object described[wanted[i]]."""
    things = [statement.described[index] for index in wanted]
    pairs = list(zip(things, found, strict=True))
    return [
        [blob is not None and blob.colour == thing.colour for thing, blob in pairs],
        [blob is not None and blob.shape == thing.shape for thing, blob in pairs],
        [blob is not None and thing.size in (None, blob.size) for thing, blob in pairs],
        [
            all(
                _related(one, relation, other)
                for i, one in zip(wanted, found, strict=True)
                for j, other in zip(wanted, found, strict=True)
                if (i, j) == (relation.subject, relation.object)
            )
            for relation in statement.relations
        ],
    ]


def _related(subject: Blob | None, relation: Relation, object_: Blob | None) -> bool:
    if subject is None or object_ is None:
        return False
    step = (subject.x - object_.x, subject.y - object_.y)
    direction = DIRECTIONS[relation.name]
    along = step[0] * direction[0] + step[1] * direction[1]
    across = abs(step[0]) + abs(step[1]) - abs(along)
    if relation.name != "on top of":
        return along > across
    near = any((subject.mask[:-rows] & object_.mask[rows:]).any() for rows in range(1, TOUCHING + 1))
    return along > across and near
