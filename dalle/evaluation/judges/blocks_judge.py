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
    phrase_indices = [index for index, phrase in enumerate(statement.described) for _ in range(phrase.count)]
    candidates = [*objects[:MAX_OBJECTS], *[None] * (len(phrase_indices) - len(objects))]
    facts = (
        _facts(statement, phrase_indices, assignment) for assignment in permutations(candidates, len(phrase_indices))
    )
    best_facts = max(facts, key=lambda fact_lists: sum(map(sum, fact_lists)))
    colours, shapes, sizes, relations = map(all, best_facts)
    return Verdict(
        objects=bool(objects) and all(detected.shape and detected.colour for detected in objects),
        colours=colours,
        shapes=shapes,
        sizes=sizes,
        relation=relations,
        count=len(objects) == len(phrase_indices),
    )


def _facts(
    statement: Statement, phrase_indices: Sequence[int], objects: Sequence[DetectedShape | None]
) -> list[list[bool]]:
    """Return the truth of each colour, shape, size and relation (four lists), if found[i] is described[wanted[i]]."""
    phrases = [statement.described[index] for index in phrase_indices]
    pairs = list(zip(phrases, objects, strict=True))
    return [
        [detected is not None and detected.colour == phrase.colour for phrase, detected in pairs],
        [detected is not None and detected.shape == phrase.shape for phrase, detected in pairs],
        [detected is not None and phrase.size in (None, detected.size) for phrase, detected in pairs],
        [
            all(
                _related(subject, relation, object_)
                for i, subject in zip(phrase_indices, objects, strict=True)
                for j, object_ in zip(phrase_indices, objects, strict=True)
                if (i, j) == (relation.subject, relation.object)
            )
            for relation in statement.relations
        ],
    ]


def _related(subject: DetectedShape | None, relation: Relation, object_: DetectedShape | None) -> bool:
    if subject is None or object_ is None:
        return False
    offset = (subject.x - object_.x, subject.y - object_.y)
    direction = DIRECTIONS[relation.name]
    along = offset[0] * direction[0] + offset[1] * direction[1]
    across = abs(offset[0]) + abs(offset[1]) - abs(along)
    if relation.name != "on top of":
        return along > across
    is_touching = any((subject.mask[:-rows] & object_.mask[rows:]).any() for rows in range(1, TOUCHING + 1))
    return along > across and is_touching
