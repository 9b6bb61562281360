"""Samples and batches: transformed images with captions, or cached image tokens with captions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle.data.source import Source, UnreadableRecord
from dalle.data.token_cache import TokenCache
from dalle.data.transforms import Transform
from dalle.seeds import numpy_generator


@dataclass(frozen=True)
class ImageBatch:
    """Batch of images with one caption each."""

    images: Tensor  # (b, 3, size, size) uint8
    captions: list[str]  # b
    keys: list[str]  # b, keys of the records
    unreadable: dict[str, str] = field(default_factory=dict)  # key -> reason, of records skipped for this batch


@dataclass(frozen=True)
class TokenBatch:
    """Batch of image tokens encoded beforehand, with one caption each."""

    tokens: Tensor  # (b, n) int64, in raster order
    captions: list[str]  # b
    keys: list[str]  # b
    unreadable: dict[str, str] = field(default_factory=dict)


BatchT = TypeVar("BatchT", covariant=True)


class Collator(Protocol[BatchT]):
    """Interface that turns records into samples, and samples into a batch."""

    source: Source

    def sample(self, index: int, epoch: int, seed: int) -> Any:
        """Return record `index` as a sample, drawn for this epoch and seed. Raises `UnreadableRecord`."""
        ...

    def collate(self, samples: Sequence[Any], unreadable: dict[str, str]) -> BatchT:
        """Stack samples into a batch. unreadable: key -> reason, of the records skipped for this batch."""
        ...


class ImageSample(NamedTuple):
    """One transformed image, one of its captions, and the key of the record."""

    pixels: np.ndarray  # (size, size, 3) uint8
    caption: str
    key: str


class ImageCollator(Collator[ImageBatch]):
    """Collator that reads images from the data source, transforms them and stacks them into an `ImageBatch`."""

    def __init__(self, source: Source, transform: Transform):
        self.source = source
        self.transform = transform

    def sample(self, index: int, epoch: int, seed: int) -> ImageSample:
        generator = numpy_generator("training record", seed, epoch, index)
        record = self.source[index]
        caption = draw_caption(record.captions, generator)
        pixels = self.transform(record.image, self.source.image_size, generator)
        return ImageSample(pixels, caption, record.key)

    def collate(self, samples: Sequence[ImageSample], unreadable: dict[str, str]) -> ImageBatch:
        pixels, captions, keys = zip(*samples, strict=True)
        return ImageBatch(to_tensor(np.stack(pixels)), list(captions), list(keys), unreadable)


class TokenSample(NamedTuple):
    """Position of one image's tokens in a `TokenCache`, and one caption. Tokens are read for a whole batch at once."""

    crop: int
    record: int
    caption: str
    key: str


class TokenCollator(Collator[TokenBatch]):
    """Collator that reads cached tokens instead of images, with the captions that `ImageCollator` draws.

    It opens no image.
    """

    def __init__(self, source: Source, cache: TokenCache):
        self.source = source
        self.cache = cache
        self.keys = source.keys()

    def sample(self, index: int, epoch: int, seed: int) -> TokenSample:
        crop, key = epoch % self.cache.settings.crops, self.keys[index]
        if not self.cache.is_encoded(crop, index):
            raise UnreadableRecord(key, "could not be read when the tokens were encoded")
        captions = self.source.captions(index)
        caption = draw_caption(captions, numpy_generator("training record", seed, epoch, index))
        return TokenSample(crop, index, caption, key)

    def collate(self, samples: Sequence[TokenSample], unreadable: dict[str, str]) -> TokenBatch:
        crops, indices, captions, keys = zip(*samples, strict=True)
        tokens = torch.from_numpy(self.cache.read(crops, indices))
        return TokenBatch(tokens, list(captions), list(keys), unreadable)


def draw_caption(captions: tuple[str, ...], generator: np.random.Generator) -> str:
    """Draw one of a record's captions and return it. This must be the first draw from the generator."""
    return captions[generator.integers(len(captions))]


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Convert images to a tensor: (b, size, size, 3) uint8 -> (b, 3, size, size)."""
    return torch.from_numpy(np.ascontiguousarray(rearrange(pixels, "b h w c -> b c h w")))
