"""A data source of random images with numbered keys and captions, and batches of it, for tests."""

from itertools import islice

import numpy as np
from PIL import Image

from dalle.data.collate import ImageBatch
from dalle.data.index import StringArray
from dalle.data.loader import image_batches
from dalle.data.source import Record, UnreadableRecord
from dalle.data.transforms import dvae_augmentation

SIZE = 8


class Numbered:
    """Source whose record i is a random image with two captions; those in `broken` are unreadable."""

    image_size = SIZE
    dropped: dict[str, int] = {}

    def __init__(self, length: int, broken: tuple[int, ...] = ()):
        self.length = length
        self.broken = broken

    def __len__(self) -> int:
        return self.length

    def keys(self) -> StringArray:
        return StringArray.from_strings(f"record {index}" for index in range(self.length))

    def captions(self, index: int) -> tuple[str, ...]:
        return f"{index} in words", f"number {index}"

    def digest(self) -> str:
        return f"{self.length} numbers"

    def __getitem__(self, index: int) -> Record:
        if index in self.broken:
            raise UnreadableRecord(f"record {index}", "made so")
        pixels = np.random.default_rng(index).integers(0, 256, (SIZE + 4, SIZE + 6, 3), dtype=np.uint8)
        return Record(Image.fromarray(pixels), self.captions(index), f"record {index}")


def taken(count: int, source: Numbered, **options) -> list[ImageBatch]:
    settings = {"batch_size": 3, "seed": 7} | options
    return list(islice(image_batches(source, dvae_augmentation, **settings), count))
