"""Random scenes of `blocks`: a random statement, then a random layout for which it is true."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import TypeVar

import numpy as np

from dalle.data.blocks_scene import (
    COLOURS,
    DIRECTIONS,
    OUTLINES,
    RADII,
    NounPhrase,
    Relation,
    Scene,
    SceneObject,
    Statement,
)

T = TypeVar("T")

PAIRS = tuple(product(OUTLINES, COLOURS))
HELD_OUT = (("circle", "orange"), ("square", "green"), ("triangle", "purple"), ("cross", "blue"))
TRAINING_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

MARGIN = 0.03  # between a shape and the image's edge
GAP = 0.06  # between two shapes that do not touch
HALF_EXTENTS = {shape: outline.max(axis=0) for shape, outline in OUTLINES.items()}

# kind of scene: (share of the images, count of each described object)
KINDS = {
    "one": (0.18, (1,)),
    "two alike": (0.08, (2,)),
    "three alike": (0.08, (3,)),
    "pair": (0.10, (1, 1)),
    "related pair": (0.40, (1, 1)),
    "two and one": (0.05, (2, 1)),
    "three": (0.05, (1, 1, 1)),
    "corner": (0.03, (1, 1, 1)),
    "stack": (0.03, (1, 1, 1)),
}
_CUMULATIVE_SHARES = np.cumsum([share for share, _ in KINDS.values()])
_UNSIZED_PROBABILITY = 0.15  # probability that a noun phrase omits the size
_RADIUS_SUM = 0.53  # three different shapes: at most two large ones, else they do not fit
_STACK_RADIUS_SUM = 0.45  # at most one large shape, else the stack exceeds the image


def _pick(options: Sequence[T], generator: np.random.Generator) -> T:
    return options[int(generator.integers(len(options)))]


def _relations(kind: str, generator: np.random.Generator) -> tuple[Relation, ...]:
    match kind:
        case "related pair":
            return (Relation(0, _pick(tuple(DIRECTIONS), generator), 1),)
        case "corner":
            sideways = _pick(("left of", "right of"), generator)
            upright = _pick(("above", "below"), generator)
            return (Relation(0, sideways, 1), Relation(0, upright, 2))
        case "stack":
            return (Relation(0, "on top of", 1), Relation(1, "on top of", 2))
        case _:
            return ()


def _pairs(number: int, novel: bool, generator: np.random.Generator) -> list[tuple[str, str]]:
    pairs = [_pick(PAIRS if novel else TRAINING_PAIRS, generator) for _ in range(number)]
    if novel:
        pairs[int(generator.integers(number))] = _pick(HELD_OUT, generator)
    return pairs


def _plausible(pairs: Sequence[tuple[str, str]], relations: Sequence[Relation]) -> bool:
    """Return True if the (shape, colour) pairs differ and none rests on a triangle or on a shape of its own colour."""
    resting = [(pairs[r.subject], pairs[r.object]) for r in relations if r.name == "on top of"]
    return len(set(pairs)) == len(pairs) and all(
        upper[1] != lower[1] and lower[0] != "triangle" for upper, lower in resting
    )


def random_scene(generator: np.random.Generator, lattice: int, radius_jitter: float, novel: bool = False) -> Scene:
    """Draw a random scene. With `novel`, its statement has at least one pair of HELD_OUT, otherwise none.

    lattice: bounding boxes align to a grid of lattice x lattice; 0: no grid.
    radius_jitter: largest relative change of the radii in RADII.
    """
    kind = tuple(KINDS)[int(np.searchsorted(_CUMULATIVE_SHARES, generator.random() * _CUMULATIVE_SHARES[-1]))]
    counts = KINDS[kind][1]
    described_objects, relations = random_objects(kind, generator, novel)
    attributes = [
        described_object for described_object, n in zip(described_objects, counts, strict=True) for _ in range(n)
    ]
    jitter = generator.uniform(1 - radius_jitter, 1 + radius_jitter, len(attributes))
    radii = np.array([RADII[size] for _, _, size in attributes]) * jitter
    centres = _layout([shape for shape, _, _ in attributes], radii, relations, lattice, generator)
    placed = zip(attributes, centres.tolist(), radii.tolist(), strict=True)
    objects = tuple(SceneObject(*shape_colour_size, x, y, radius) for shape_colour_size, (x, y), radius in placed)

    stated_sizes = [None if generator.random() < _UNSIZED_PROBABILITY else size for _, _, size in described_objects]
    described = (
        NounPhrase(shape, colour, size, n)
        for (shape, colour, _), size, n in zip(described_objects, stated_sizes, counts, strict=True)
    )
    return Scene(objects, Statement(tuple(described), relations))


def random_objects(
    kind: str, generator: np.random.Generator, novel: bool = False
) -> tuple[list[tuple[str, str, str]], tuple[Relation, ...]]:
    """Draw random objects, as (shape, colour, size), and their relations for a scene of one of KINDS.

    With `novel`, at least one (shape, colour) is in HELD_OUT, otherwise none.
    """
    counts = KINDS[kind][1]
    relations = _relations(kind, generator)
    pairs = _pairs(len(counts), novel, generator)
    while not _plausible(pairs, relations):
        pairs = _pairs(len(counts), novel, generator)
    sizes = [_pick(tuple(RADII), generator) for _ in counts]
    max_radius_sum = _STACK_RADIUS_SUM if kind == "stack" else _RADIUS_SUM
    while len(counts) > 1 and sum(n * RADII[size] for n, size in zip(counts, sizes, strict=True)) > max_radius_sum:
        sizes = [_pick(tuple(RADII), generator) for _ in counts]
    return [(*pair, size) for pair, size in zip(pairs, sizes, strict=True)], relations


def _layout(
    shapes: Sequence[str],
    radii: np.ndarray,
    relations: Sequence[Relation],
    lattice: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw centres (n, 2) of shapes with these radii (n), in fractions of the image's side.

    The distribution is uniform over layouts without cropped or crowded shapes and with clear relations.
    """
    half = np.array([HALF_EXTENTS[shape] for shape in shapes]) * radii[:, None]  # (n, 2)
    margin = 0 if lattice else MARGIN
    low, high = half + margin, 1 - half - margin
    resting = [relation for relation in relations if relation.name == "on top of"]
    touching = {frozenset((relation.subject, relation.object)) for relation in resting}
    while True:  # rejection sampling in batches of layouts: most scenes need one batch
        centres = generator.uniform(low, high, (256, *half.shape))  # (tries, n, 2)
        if lattice:
            centres = _snapped(centres, half, lattice)
        for upper, _, lower in reversed(resting):  # relations of a stack are listed from the top
            centres[:, upper, 0] = centres[:, lower, 0] + generator.uniform(-0.012, 0.012, len(centres))
            if lattice:  # a small shape on a large one is half a step off its centre
                centres[:, upper] = _snapped(centres[:, upper], half[upper], lattice)
            centres[:, upper, 1] = centres[:, lower, 1] - half[lower, 1] - half[upper, 1]
        is_valid = ((centres >= low) & (centres <= high)).all(axis=(1, 2))
        for i, j in combinations(range(len(shapes)), 2):
            if frozenset((i, j)) not in touching:
                apart = np.abs(centres[:, i] - centres[:, j]) - half[i] - half[j]
                is_valid &= apart.max(axis=1) >= GAP
        for subject, name, object_ in relations:
            step = centres[:, subject] - centres[:, object_]
            along = step @ np.array(DIRECTIONS[name])
            across = np.abs(step).sum(axis=1) - np.abs(along)
            is_valid &= along >= 2 * across  # the named axis dominates, so the relation is not ambiguous
        if is_valid.any():
            return centres[is_valid.argmax()]


def _snapped(centres: np.ndarray, half: np.ndarray, lattice: int) -> np.ndarray:
    """Move centres (..., 2) to the nearest ones for which boxes of half extents `half` start on lattice lines."""
    return np.rint((centres - half) * lattice) / lattice + half
