"""Previews of a batch while it is drawn: the rows that are finished, decoded by the dVAE, as small PNG images."""

import base64
import io
import time
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor

from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.decode import MASKED
from dalle.sampling.image_decoder import decode_images

UNDRAWN_COLOUR = (150, 150, 150)  # colour of what is not drawn yet, visible on light and dark pages
LONGEST_SIDE = 160  # pixels of a preview
INTERVAL, INTERVAL_OF_ONE = 0.25, 0.1  # seconds between previews of several images, and of a single one
MAX_TIME_SHARE = 0.08  # most of the time that previews may take

ShowPreviews = Callable[[int | None, list[str]], None]
"""Called with the number of finished rows, None for an edit, and a data: URL for each image of the batch."""


class Previews:
    """Token callback of sampling that shows previews after finished rows, seldom enough not to delay the drawing."""

    def __init__(self, dvae: DiscreteVAE, show: ShowPreviews, is_edit: bool):
        self.dvae, self.show, self.is_edit = dvae, show, is_edit
        self._shown_rows = 0  # finished rows that were shown last
        self._next_time = 0.0  # time of the next preview

    def __call__(self, tokens: Tensor) -> None:
        """Show previews if they are due. tokens: of a batch so far, (1, b, h, w), `MASKED` where not sampled yet."""
        begin = time.monotonic()
        if begin < self._next_time:
            return
        images, rows = tokens[0], None
        if not self.is_edit:
            # of all images, which parallel decoding samples at different speeds
            rows = int((images[:, :, -1] != MASKED).all(dim=0).sum())
            if rows <= self._shown_rows:
                return
            self._shown_rows = rows
        self.show(rows, [data_url(image) for image in self._previews(images, rows)])
        end = time.monotonic()
        interval = INTERVAL_OF_ONE if len(images) == 1 else INTERVAL
        self._next_time = end + max(interval, (end - begin) / MAX_TIME_SHARE)

    def _previews(self, images: Tensor, rows: int | None) -> Iterator[Image.Image]:
        """Decode the first rows of images, None: all, and leave what is not drawn in one colour."""
        height, images = images.shape[1] * self.dvae.downsample, images[:, :rows]
        masks = (images != MASKED).to("cpu", torch.uint8) * 255
        for image, mask in zip(decode_images(self.dvae, images.clamp(min=0)), masks, strict=True):
            preview = Image.new("RGB", (image.width, height), UNDRAWN_COLOUR)
            preview.paste(image, mask=Image.fromarray(mask.numpy()).resize(image.size, Image.Resampling.NEAREST))
            yield preview


def data_url(image: Image.Image, longest_side: int = LONGEST_SIDE) -> str:
    """Return an image as a data: URL of a PNG file, scaled down to `longest_side`."""
    if max(image.size) > longest_side:
        image = image.copy()
        image.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
