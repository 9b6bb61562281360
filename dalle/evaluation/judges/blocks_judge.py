"""Judge of `blocks`: check fact by fact if a statement is true of an image.

Its inputs are the statement and the image only. The objects that `shape_detector` finds are matched with the
statement's noun phrases in every possible way; the match with the most true facts counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from PIL import Image

from dalle.data.blocks_scene import DIRECTIONS, Relation, Statement
from dalle.evaluation.judges.shape_detector import DetectedShape, detect_shapes

TOUCHING = 2  # rows from an object's lowest pixels to those of the object it rests on; separate objects have 4
MAX_OBJECTS = 6  # considered in an image, as every order of them is tried; an image with more is wrong anyway


@dataclass(frozen=True)
class Verdict:
    """Result of judging one image by a statement: for each kind of fact, True if it is right in the image.

    Facts that the statement does not mention are True; facts of missing objects are False.
    """

    objects: bool  # all detected objects are known shapes in known colours
    colours: bool
    shapes: bool
    sizes: bool
    relation: bool
    count: bool  # number of objects is as described

    @property
    def holds(self) -> bool:
        """True if the facts of all kinds hold."""
        return all(vars(self).values())


def judge(image: Image.Image, statement: Statement) -> Verdict:
    """Compare a square image of any resolution with a statement: return which kinds of facts hold in it.

    Raises:
        ValueError: an image that is not square.
    """
    objects = detect_shapes(image)
    wanted = [index for index, thing in enumerate(statement.described) for _ in range(thing.count)]
    candidates = [*objects[:MAX_OBJECTS], *[None] * (len(wanted) - len(objects))]
    facts = (_facts(statement, wanted, order) for order in permutations(candidates, len(wanted)))
    best = max(facts, key=lambda rows: sum(map(sum, rows)))
    colours, shapes, sizes, relations = map(all, best)
    return Verdict(
        objects=bool(objects) and all(detected.shape and detected.colour for detected in objects),
        colours=colours,
        shapes=shapes,
        sizes=sizes,
        relation=relations,
        count=len(objects) == len(wanted),
    )


def _facts(statement: Statement, wanted: Sequence[int], found: Sequence[DetectedShape | None]) -> list[list[bool]]:
    """Return the truth of each colour, shape, size and relation (four lists), if found[i] is described[wanted[i]]."""
    things = [statement.described[index] for index in wanted]
    pairs = list(zip(things, found, strict=True))
    return [
        [detected is not None and detected.colour == thing.colour for thing, detected in pairs],
        [detected is not None and detected.shape == thing.shape for thing, detected in pairs],
        [detected is not None and thing.size in (None, detected.size) for thing, detected in pairs],
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


def _related(subject: DetectedShape | None, relation: Relation, object_: DetectedShape | None) -> bool:
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
