"""What every data set is to the rest of the code: captioned pictures by index."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from dalle.data.index import Strings


@dataclass(frozen=True)
class Record:
    """One picture with its captions."""

    image: Image.Image  # RGB, any size
    captions: tuple[str, ...]  # at least one; the loader draws one of them per epoch
    key: str  # names the record in logs and results, such as "train/000123" or a file's path


class UnreadableRecord(Exception):
    """A record that cannot be used; the loader skips it, counts it and names it once."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """So that worker processes can send it."""
        return type(self), (self.key, self.reason)


class Source(Protocol):
    """A split of a data set: indexable, finite, a pure function of its configuration and the index."""

    image_size: int  # side in pixels of the square pictures that models are given

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many records of the whole data set, all splits, were left out when it was opened, by reason."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """The record at `index` in [0, len). Raises `UnreadableRecord` when it cannot be read."""
        ...

    def keys(self) -> Strings:
        """The records' keys in order, without opening a picture."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of the record at `index`, without opening its picture."""
        ...

    def size(self, index: int) -> tuple[int, int] | None:
        """Width and height in pixels of the picture at `index` as it is stored; None where that cannot be read."""
        ...

    def digest(self) -> str:
        """Changes when the records do, in number, order, captions or pictures; opens no picture."""
        ...
