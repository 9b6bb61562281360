"""Data source `blocks`: procedural images of a few coloured shapes, captioned in plain English.

A scene is generated in three steps: a random `Statement`, a random layout for which it is true, then the image and
several wordings of the statement as captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
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
    draw,
)
from dalle.data.index import StringArray, digest_of
from dalle.data.source import Record
from dalle.seeds import numpy_generator

T = TypeVar("T")

PAIRS = tuple(product(OUTLINES, COLOURS))
HELD_OUT = (("circle", "orange"), ("square", "green"), ("triangle", "purple"), ("cross", "blue"))
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
SPLITS = ("train", "val", "novel")

MARGIN = 0.03  # between a shape and the image's edge
GAP = 0.06  # between two shapes that do not touch
HALF_EXTENTS = {shape: outline.max(axis=0) for shape, outline in OUTLINES.items()}


@dataclass
class BlocksConfig:
    """Procedural scenes of one to three coloured shapes, drawn on demand, with captions in plain English.

    They follow the attribute-binding prompts of DALL-E's announcement, at a size that can be learned on a CPU. A shape
    detector checks generated images automatically.

    Splits: train and val are drawn alike, with other random numbers; on the default lattice val repeats simple scenes
    of train (docs/evaluation.md). Every scene of novel has a combination of shape and colour that never occurs in the
    other two (`HELD_OUT`).
    Attribution: none needed, the images are made by this code.
    """

    name: str = "blocks"
    image_size: int = 64  # side of the images in pixels
    lattice: int = 8  # bounding boxes align to a grid of lattice x lattice; 16 is harder, 0 (no grid) hardest
    radius_jitter: float = 0.0  # relative random change of the radii in RADII; 0.05 makes the data harder
    train: int = 100_000  # number of training images; they are drawn on demand, so a large number costs nothing
    val: int = 2_000  # number of held-out images of the same kind
    novel: int = 2_000  # number of held-out images with a (shape, colour) of HELD_OUT, never shown in train and val
    wordings: int = 4  # maximum number of captions per image
    seed: int = 0  # random seed of the scenes

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise ValueError(f"image_size={self.image_size} shows no shapes; choose at least 8, better 64")
        if self.lattice % 8:
            raise ValueError(f"lattice={self.lattice}: shapes are 2/8 and 3/8 wide; choose 0 or a multiple of 8")
        if not 0 <= self.radius_jitter <= 0.1:
            raise ValueError(f"radius_jitter={self.radius_jitter} would blur small and large; choose 0 to 0.1")
        for name, count in (("train", self.train), ("val", self.val), ("novel", self.novel)):
            if count < 0:
                raise ValueError(f"{name}={count} must be at least 0")
        if self.wordings < 1:
            raise ValueError(f"wordings={self.wordings} leaves images without a caption; choose at least 1")


# --- random statements --------------------------------------------------------------------------------------

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
_TIMES_UNSIZED = 0.15  # probability that a noun phrase omits the size
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
    pairs = [_pick(PAIRS if novel else SEEN, generator) for _ in range(number)]
    if novel:
        pairs[int(generator.integers(number))] = _pick(HELD_OUT, generator)
    return pairs


def _plausible(pairs: Sequence[tuple[str, str]], relations: Sequence[Relation]) -> bool:
    """Return True if the (shape, colour) pairs differ and none rests on a triangle or on a shape of its own colour."""
    resting = [(pairs[r.subject], pairs[r.object]) for r in relations if r.name == "on top of"]
    return len(set(pairs)) == len(pairs) and all(
        upper[1] != lower[1] and lower[0] != "triangle" for upper, lower in resting
    )


def random_scene(config: BlocksConfig, generator: np.random.Generator, novel: bool = False) -> Scene:
    """Draw a random scene. With `novel`, its statement has at least one pair of HELD_OUT, otherwise none."""
    kind = tuple(KINDS)[int(np.searchsorted(_CUMULATIVE_SHARES, generator.random() * _CUMULATIVE_SHARES[-1]))]
    counts = KINDS[kind][1]
    things, relations = random_objects(kind, generator, novel)
    each = [thing for thing, n in zip(things, counts, strict=True) for _ in range(n)]
    jitter = generator.uniform(1 - config.radius_jitter, 1 + config.radius_jitter, len(each))
    radii = np.array([RADII[size] for _, _, size in each]) * jitter
    centres = _layout([shape for shape, _, _ in each], radii, relations, config.lattice, generator)
    placed = zip(each, centres.tolist(), radii.tolist(), strict=True)
    objects = tuple(SceneObject(*what, x, y, radius) for what, (x, y), radius in placed)

    stated_sizes = [None if generator.random() < _TIMES_UNSIZED else size for _, _, size in things]
    described = (
        NounPhrase(shape, colour, size, n)
        for (shape, colour, _), size, n in zip(things, stated_sizes, counts, strict=True)
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
    most = _STACK_RADIUS_SUM if kind == "stack" else _RADIUS_SUM
    while len(counts) > 1 and sum(n * RADII[size] for n, size in zip(counts, sizes, strict=True)) > most:
        sizes = [_pick(tuple(RADII), generator) for _ in counts]
    return [(*pair, size) for pair, size in zip(pairs, sizes, strict=True)], relations


# --- layout -------------------------------------------------------------------------------------------------


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
        good = ((centres >= low) & (centres <= high)).all(axis=(1, 2))
        for one, other in combinations(range(len(shapes)), 2):
            if frozenset((one, other)) not in touching:
                apart = np.abs(centres[:, one] - centres[:, other]) - half[one] - half[other]
                good &= apart.max(axis=1) >= GAP
        for subject, name, object_ in relations:
            step = centres[:, subject] - centres[:, object_]
            along = step @ np.array(DIRECTIONS[name])
            across = np.abs(step).sum(axis=1) - np.abs(along)
            good &= along >= 2 * across  # the named axis dominates, so the relation is not ambiguous
        if good.any():
            return centres[good.argmax()]


def _snapped(centres: np.ndarray, half: np.ndarray, lattice: int) -> np.ndarray:
    """Move centres (..., 2) to the nearest ones for which boxes of half extents `half` start on lattice lines."""
    return np.rint((centres - half) * lattice) / lattice + half


# --- captions -----------------------------------------------------------------------------------------------

# "A left of B", "B with A to its left"
_PLAIN_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "on top of": ("on top of", "resting on"),
}
_WITH_WORDS = {
    "left of": ("to its left",),
    "right of": ("to its right",),
    "above": ("above it",),
    "below": ("below it",),
    "on top of": ("on top of it",),
}
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}  # scenes have at most three; evaluation prompts have more
_MOST_WORDS = 20


def _noun_phrase(thing: NounPhrase) -> str:
    adjectives = f"{thing.size} {thing.colour}" if thing.size else thing.colour
    if thing.count > 1:
        return f"{_NUMBERS[thing.count]} {adjectives} {thing.shape}{'es' if thing.shape == 'cross' else 's'}"
    return f"{'an' if adjectives[0] in 'aeiou' else 'a'} {adjectives} {thing.shape}"


def wordings(statement: Statement) -> list[str]:
    """Return all captions of `statement`. They have the same meaning and at most 20 words each."""
    phrases = [_noun_phrase(thing) for thing in statement.described]
    match statement.relations:
        case ():
            orders = permutations(phrases)
            bare = [" and ".join(filter(None, [", ".join(order[:-1]), order[-1]])) for order in orders]
        case (Relation(subject, name, object_),):
            a, b = phrases[subject], phrases[object_]
            bare = [f"{a} {words} {b}" for words in _PLAIN_WORDS[name]]
            bare += [f"{b} with {a} {words}" for words in _WITH_WORDS[name]]
        case (first, second):
            a, b, c = phrases[first.subject], phrases[first.object], phrases[second.object]
            also = " and " if first.subject == second.subject else " "  # else `second` is about b
            ways = zip(_PLAIN_WORDS[first.name], _PLAIN_WORDS[second.name], strict=True)
            bare = [f"{a} {one} {b}{also}{two} {c}" for one, two in ways]
        case _:
            raise ValueError(f"captions state at most 2 relations, not {len(statement.relations)}")
    there = [("there is " if words.startswith("a") else "there are ") + words for words in bare]
    every = bare + there + [f"a picture of {words}" for words in bare]
    return [words for words in every if words.count(" ") < _MOST_WORDS]


# --- data source --------------------------------------------------------------------------------------------


class BlocksSource:
    """Data source of one split of `blocks`. Record `index` is a pure function of (config, split, index)."""

    def __init__(self, config: BlocksConfig, split: str):
        if split not in SPLITS:
            raise ValueError(f"blocks has the splits {', '.join(SPLITS)}, and no {split!r}")
        self.config = config
        self.split = split
        self.image_size = config.image_size
        self.dropped: dict[str, int] = {}

    def __len__(self) -> int:
        return getattr(self.config, self.split)

    def _generator(self, index: int, stream: str) -> np.random.Generator:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} images of blocks/{self.split}")
        return numpy_generator(f"blocks {stream}", self.config.seed, SPLITS.index(self.split), index)

    def scene(self, index: int) -> Scene:
        """Return the scene of record `index`: its shapes and the statement of its captions."""
        return random_scene(self.config, self._generator(index, stream="scene"), novel=self.split == "novel")

    def __getitem__(self, index: int) -> Record:
        scene = self.scene(index)
        return Record(draw(scene, self.image_size), self._captions(scene, index), f"{self.split}/{index:06d}")

    def keys(self) -> StringArray:
        """Return the keys of all records, such as train/000123."""
        return StringArray.from_strings(f"{self.split}/{index:06d}" for index in range(len(self)))

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of record `index`."""
        return self._captions(self.scene(index), index)

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height of the drawn image, which is square."""
        return self.image_size, self.image_size

    def digest(self) -> str:
        """Return a digest of the config, the split and the first scenes, which also reflect changes of this code."""
        first = [self[index] for index in range(min(8, len(self)))]
        shown = b"".join(record.image.tobytes() for record in first)
        return digest_of(repr((self.config, self.split, [record.captions for record in first])).encode(), shown)

    def _captions(self, scene: Scene, index: int) -> tuple[str, ...]:
        captions = wordings(scene.statement)
        # a separate random stream, so that changed wordings do not change the images
        order = self._generator(index, stream="captions").permutation(len(captions))
        return tuple(captions[i] for i in order[: self.config.wordings])
