"""Previews of a batch while it is drawn: the rows that are finished, decoded by the dVAE, as small PNG images."""

import base64
import io
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.decode import MASKED
from dalle.sampling.image_decoder import decode_images

UNDRAWN = (150, 150, 150)  # colour of what is not drawn yet, visible on light and dark pages
LONGEST_SIDE = 160  # pixels of a preview
INTERVAL, INTERVAL_OF_ONE = 0.25, 0.1  # seconds between previews of several images, and of a single one
SHARE = 0.08  # most of the time that previews may take

ShowPreviews = Callable[[int | None, list[str]], None]
"""Called with the number of finished rows, None for an edit, and a data: URL for each image of the batch."""


class Previews:
    """Token callback of sampling that shows previews after finished rows, seldom enough not to delay the drawing."""

    def __init__(self, dvae: DiscreteVAE, show: ShowPreviews, is_edit: bool):
        self.dvae, self.show, self.is_edit = dvae, show, is_edit
        self._rows = 0  # finished rows that were shown last
        self._next = 0.0  # time of the next preview

    def __call__(self, tokens: Tensor) -> None:
        """Take the tokens of a batch so far: (1, b, h, w), `MASKED` where not drawn."""
        if time.monotonic() < self._next:
            return
        images = tokens[0]
        if self.is_edit:
            self._show(None, self._edited(images))
        else:
            # of all images, which parallel decoding samples at different speeds
            rows = int((images[:, :, -1] != MASKED).all(dim=0).sum())
            if rows > self._rows:
                self._rows = rows
                self._show(rows, self._top_rows(images, rows))

    def _show(self, rows: int | None, decode: Callable[[], list[Image.Image]]) -> None:
        begin = time.monotonic()
        images = decode()
        self.show(rows, [data_url(image) for image in images])
        now = time.monotonic()
        interval = INTERVAL_OF_ONE if len(images) == 1 else INTERVAL
        self._next = now + max(interval, (now - begin) / SHARE)

    def _top_rows(self, images: Tensor, rows: int) -> Callable[[], list[Image.Image]]:
        """Return a function that decodes the first rows only, above an undrawn rest."""

        def decode() -> list[Image.Image]:
            height = images.shape[1] * self.dvae.downsample
            return [_on_undrawn(image, height) for image in decode_images(self.dvae, images[:, :rows])]

        return decode

    def _edited(self, images: Tensor) -> Callable[[], list[Image.Image]]:
        """Return a function that decodes all images, with undrawn tokens covered."""

        def decode() -> list[Image.Image]:
            masks = (images == MASKED).cpu()
            decoded = decode_images(self.dvae, images.clamp(min=0))
            return [_cover(image, mask) for image, mask in zip(decoded, masks, strict=True)]

        return decode


def data_url(image: Image.Image, longest_side: int = LONGEST_SIDE) -> str:
    """Return an image as a data: URL of a PNG file, scaled down to `longest_side`."""
    if max(image.size) > longest_side:
        image = image.copy()
        image.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _on_undrawn(image: Image.Image, height: int) -> Image.Image:
    whole = Image.new("RGB", (image.width, height), UNDRAWN)
    whole.paste(image)
    return whole


def _cover(image: Image.Image, mask: Tensor) -> Image.Image:
    """Cover the tokens of an image where the (h, w) mask is True."""
    cells = Image.fromarray(mask.to(torch.uint8).numpy() * 255)
    whole = cells.resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, UNDRAWN), image, whole)
