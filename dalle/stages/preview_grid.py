"""Preview image of a stage: a titled row for each set of images."""

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from dalle.image_conversion import to_pil_images
from dalle.image_grid import Cell, GridRow, image_grid


def preview_grid(rows: Mapping[str, Tensor]) -> Image.Image:
    """Draw the images of each title in a row below it: (b, 3, s, s) in [0, 1] each."""
    return image_grid([GridRow([*map(Cell, to_pil_images(images))], title) for title, images in rows.items()])
