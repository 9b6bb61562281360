"""Data source `blocks`: procedural images of a few coloured shapes, captioned in plain English.

A scene is generated in three steps: a random `Statement` and a random layout for which it is true
(`blocks_random_scene.py`), the image (`blocks_scene.py`), and several wordings of the statement as captions
(`blocks_captions.py`).
"""

from dataclasses import dataclass

import numpy as np

from dalle.data.blocks_captions import wordings
from dalle.data.blocks_random_scene import random_scene
from dalle.data.blocks_scene import Scene, draw
from dalle.data.index import StringArray, digest_of
from dalle.data.source import Record
from dalle.seeds import numpy_generator

SPLITS = ("train", "val", "novel")


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
        config, generator = self.config, self._generator(index, stream="scene")
        return random_scene(generator, config.lattice, config.radius_jitter, novel=self.split == "novel")

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
        first_records = [self[index] for index in range(min(8, len(self)))]
        pixels = b"".join(record.image.tobytes() for record in first_records)
        return digest_of(
            repr((self.config, self.split, [record.captions for record in first_records])).encode(), pixels
        )

    def _captions(self, scene: Scene, index: int) -> tuple[str, ...]:
        captions = wordings(scene.statement)
        # a separate random stream, so that changed wordings do not change the images
        order = self._generator(index, stream="captions").permutation(len(captions))
        return tuple(captions[i] for i in order[: self.config.wordings])
