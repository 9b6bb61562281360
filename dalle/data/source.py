"""Interface of a data source: captioned images by index, and the error for unreadable ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from dalle.data.index import StringArray


@dataclass(frozen=True)
class Record:
    """One image with its captions and the key that identifies it."""

    image: Image.Image  # RGB, any size
    captions: tuple[str, ...]  # at least one; the loader draws one of them per epoch
    key: str  # identifies the record in logs and results: "train/000123", or a file's path


class UnreadableRecord(Exception):
    """Raised for a record that cannot be used. The loader skips it, counts it and logs its key once."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Return (class, arguments) for pickling, so that worker processes can send the exception."""
        return type(self), (self.key, self.reason)


class Source(Protocol):
    """One split of a data set. Indexable and finite; a record depends only on the configuration and the index."""

    image_size: int  # side in pixels of the square images that models get

    @property
    def dropped(self) -> Mapping[str, int]:
        """Number of records left out when the data set was opened, by reason. Counts all splits."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Return the record at `index` in [0, len). Raises `UnreadableRecord` if it cannot be read."""
        ...

    def keys(self) -> StringArray:
        """Return the keys of all records in order, without opening an image."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of the record at `index`, without opening its image."""
        ...

    def size(self, index: int) -> tuple[int, int] | None:
        """Return width and height in pixels of the stored image at `index`, or None if they cannot be read."""
        ...

    def digest(self) -> str:
        """Return a digest that changes with the number, order, captions or images of the records. Opens no image."""
        ...


def check_image_size(side: int) -> None:
    """Raise ValueError if `image_size`, the side in pixels of the square images that models get, is below 1."""
    if side < 1:
        raise ValueError(f"image_size={side} must be at least 1")
