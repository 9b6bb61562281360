"""Images of a session, drawn and uploaded, in memory only. Each has a random id; the oldest are forgotten."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

from PIL import Image
from torch import Tensor

from dalle.sampling.image_record import encode_png
from dalle.studio.errors import ApiError

MAX_BYTES = 256_000_000  # of the pixels of all images of a kind
GONE = "there is no such image; it may be too old, or of a studio that was restarted"


@dataclass
class DrawnImage:
    """A finished candidate. Its record gets a rank and a score once all candidates are drawn."""

    image: Image.Image
    tokens: Tensor  # (h, w) int64
    record: dict[str, Any]  # what its PNG file says: caption, seed, candidate, rank, score, settings

    def png(self) -> bytes:
        return encode_png(self.image, self.record)


@dataclass
class UploadedImage:
    """An uploaded image, decoded and scaled down. Nothing else of its file is kept."""

    image: Image.Image
    settings: dict[str, Any] | None = None  # settings of the drawing, if this project made the file

    def png(self) -> bytes:
        return encode_png(self.image, {})


Item = TypeVar("Item", DrawnImage, UploadedImage)


class BoundedStore(Generic[Item]):
    """Images of one kind by id, at most `limit` of them and `max_bytes` of pixels."""

    def __init__(self, limit: int, max_bytes: int = MAX_BYTES):
        self.limit, self.max_bytes = limit, max_bytes
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> str:
        """Keep an image, forget the oldest above the limits, and return its id."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._items[key] = item
            self._bytes += _size(item)
            while len(self._items) > 1 and (len(self._items) > self.limit or self._bytes > self.max_bytes):
                _, oldest = self._items.popitem(last=False)
                self._bytes -= _size(oldest)
        return key

    def get(self, key: str) -> Item | None:
        return self._items.get(key)


@dataclass
class Store:
    """Drawn and uploaded images."""

    drawn: BoundedStore[DrawnImage]
    uploaded: BoundedStore[UploadedImage] = field(default_factory=lambda: BoundedStore(64))

    def find(self, key: str) -> DrawnImage | UploadedImage:
        """Return an image by its id. Raises ApiError if there is none."""
        if (found := self.drawn.get(key) or self.uploaded.get(key)) is None:
            raise ApiError(404, GONE)
        return found

    def find_drawn(self, key: str) -> DrawnImage:
        """Return a drawn image by its id. Raises ApiError if there is none, or it was uploaded."""
        found = self.find(key)
        if not isinstance(found, DrawnImage):
            raise ApiError(404, "this is an uploaded image; only images drawn in this session have that")
        return found


def _size(item: DrawnImage | UploadedImage) -> int:
    return 3 * item.image.width * item.image.height
