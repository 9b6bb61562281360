"""The held-out pairs that are measured: the first of a split, a batch at a time, and a digest of what they were."""

import hashlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from dalle.data.loader import Batch, ordered
from dalle.data.source import Source
from dalle.data.transforms import inference_crop

RESIZE = "shorter side to the models' size with Lanczos, then the centre (dalle.data.transforms.inference_crop)"


class HeldOut:
    """The first `count` pairs of a split that can be read, all where there are fewer; each with its first caption.

    Once passed through, it knows how many there were and which.
    """

    def __init__(self, source: Source, count: int, batch_size: int = 64):
        """Raises ValueError for a count below 1."""
        if count < 1:
            raise ValueError(f"{count} pictures are none to measure; use at least 1")
        self.source, self.count, self.batch_size = source, count, min(batch_size, count)
        self.seen = 0
        self._known = hashlib.sha256()

    def __iter__(self) -> Iterator[Batch]:
        self.seen, self._known = 0, hashlib.sha256()
        for batch in ordered(self.source, inference_crop, self.batch_size):
            room = self.count - self.seen
            kept = Batch(batch.images[:room], batch.captions[:room], batch.keys[:room])
            self.seen += len(kept.captions)
            for image, caption in zip(kept.images, kept.captions, strict=True):
                self._known.update(image.numpy().tobytes() + caption.encode() + b"\0")
            yield kept
            if self.seen == self.count:
                return

    def shortfall(self, asked: int) -> list[str]:
        """What is to be said where there were fewer pairs than were asked for."""
        if self.seen == asked:
            return []
        return [f"There are {self.seen} held-out pairs that can be read, not {asked}."]

    def described(self) -> dict[str, Any]:
        """What was passed through: the number of pairs, a digest of pixels and captions, how pictures were resized."""
        return {"pairs": self.seen, "digest": self._known.hexdigest()[:16], "resize": RESIZE}


def unit(images: Tensor) -> Tensor:
    """8-bit pixels as floats in [0, 1], as the models take them."""
    return images.float() / 255
