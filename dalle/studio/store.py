"""Images of a session, drawn and uploaded, in memory only. Each has a random id; the oldest are forgotten."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from PIL import Image
from torch import Tensor

from dalle.data.transforms import on_white
from dalle.sampling.image_record import encode_png
from dalle.studio.errors import ApiError

MAX_BYTES = 256_000_000  # of the pixels of all images of a kind


@dataclass
class StoredImage:
    """An image, drawn or uploaded."""

    image: Image.Image
    record: dict[str, Any]  # what its PNG file says: caption, seed, candidate, rank, score, settings; {} for an upload

    def png(self) -> bytes:
        return encode_png(on_white(self.image), self.record)


@dataclass
class DrawnImage(StoredImage):
    """A finished candidate. Its record gets a rank and a score once all candidates are drawn."""

    tokens: Tensor  # (h, w) int64


Item = TypeVar("Item", bound=StoredImage)


class BoundedStore(Generic[Item]):
    """Images of one kind by id, at most `limit` of them and `MAX_BYTES` of pixels."""

    def __init__(self, limit: int):
        self.limit = limit
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def add(self, item: Item) -> str:
        """Keep an image, forget the oldest above the limits, and return its id."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._items[key] = item
            self._bytes += _size(item)
            while len(self._items) > 1 and (len(self._items) > self.limit or self._bytes > MAX_BYTES):
                _, oldest = self._items.popitem(last=False)
                self._bytes -= _size(oldest)
        return key

    def discard(self, key: str) -> None:
        """Forget an image, if it is still there."""
        with self._lock:
            if (item := self._items.pop(key, None)) is not None:
                self._bytes -= _size(item)

    def get(self, key: str) -> Item | None:
        return self._items.get(key)


@dataclass
class Store:
    """Drawn and uploaded images."""

    drawn: BoundedStore[DrawnImage]
    uploaded: BoundedStore[StoredImage]

    def find(self, key: str) -> StoredImage:
        """Return an image by its id. Raises ApiError if there is none."""
        if (stored := self.drawn.get(key) or self.uploaded.get(key)) is None:
            raise ApiError(404, "there is no such image; it may be too old, or of a studio that was restarted")
        return stored

    def find_drawn(self, key: str) -> DrawnImage:
        """Return a drawn image by its id. Raises ApiError if there is none, or it was uploaded."""
        stored = self.find(key)
        if not isinstance(stored, DrawnImage):
            raise ApiError(404, "this is an uploaded image; only images drawn in this session have that")
        return stored


def _size(item: StoredImage) -> int:
    return 3 * item.image.width * item.image.height
