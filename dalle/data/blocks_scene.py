"""Vocabulary of `blocks`: shapes, colours, relations and statements, and drawing of scenes.

Shared by the data source (`blocks.py`) and its judge (`dalle/evaluation/judges/blocks_judge.py`), so that captions,
images and checks stay consistent. Lengths are fractions of the image's side; x grows to the right, y downwards.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

BACKGROUND = (244, 244, 240)
COLOURS = {
    "red": (206, 28, 44),
    "green": (36, 156, 62),
    "blue": (30, 80, 218),
    "yellow": (250, 220, 40),
    "purple": (142, 44, 178),
    "orange": (244, 122, 12),
}
RADII = {"small": 1 / 8, "large": 3 / 16}
SUPERSAMPLING = 4


def _circle(points: int = 72) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float = 0.36) -> np.ndarray:
    top = np.array([(-arm, -1), (arm, -1), (arm, -arm)])  # the other corners are rotations by 90 degrees
    right = top[:, ::-1] * (-1, 1)
    return np.concatenate([top, right, -top, -right])


# corners (k, 2) in units of the radius; all bounding boxes are 2 x 2, so that stacks stay on the lattice
OUTLINES = {
    "circle": _circle(),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": np.array([(0, -1), (1, 1), (-1, 1)]),
    "cross": _cross(),
}
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1), "on top of": (0, -1)}


@dataclass(frozen=True)
class NounPhrase:
    """Shape named in a caption, with its colour, size and number: "two small red circles"."""

    shape: str
    colour: str
    size: str | None = None  # None: not in the caption
    count: int = 1


class Relation(NamedTuple):
    """Relation of two noun phrases in a `Statement`: described[subject] is `name` ("left of") described[object]."""

    subject: int
    name: str
    object: int


@dataclass(frozen=True)
class Statement:
    """Facts that a caption states: the shapes that it names, and the relations between them.

    The judge gets a statement and an image, nothing else.
    """

    described: tuple[NounPhrase, ...]
    relations: tuple[Relation, ...] = ()


class SceneObject(NamedTuple):
    """Shape in an image: (x, y) is the centre of its bounding box, in fractions of the image's side, like `radius`."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Content of one image: all of its shapes, and a true statement about them."""

    objects: tuple[SceneObject, ...]
    statement: Statement  # true for the objects; describes all of them


def draw(scene: Scene, size: int) -> Image.Image:
    """Draw a scene as an anti-aliased image of size x size pixels."""
    side = size * SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for scene_object in scene.objects:
        corners = (OUTLINES[scene_object.shape] * scene_object.radius + (scene_object.x, scene_object.y)) * side - 0.5
        canvas.polygon(corners.ravel().tolist(), fill=COLOURS[scene_object.colour])
    return image.reduce(SUPERSAMPLING)
