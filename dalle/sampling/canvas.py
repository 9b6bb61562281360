"""The canvas: image tokens to keep and cells to draw. Every edit of a picture is a way to make one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle.data.transforms import central_box, inference_crop
from dalle.models.dvae.model import DiscreteVAE
from dalle.pixels import to_tensor
from dalle.sampling.decode import FREE

Corner = tuple[int, int]
"""Row and column of a window's top left cell."""


@dataclass(frozen=True)
class Original:
    """A picture that is edited, as the models see it: its middle square."""

    size: tuple[int, int]  # width and height of the whole picture in pixels
    pixels: Image.Image  # the middle square, scaled to what the dVAE reads
    tokens: Tensor  # (h, w) int64

    def touched(self, mask: Image.Image) -> Tensor:
        """The cells that a mask of the whole picture marks with at least one white (half or more) pixel: (h, w) bool.

        Raises:
            ValueError: a mask of another size, or one that marks none.
        """
        if mask.size != self.size:
            raise ValueError(
                f"the mask has {mask.width}x{mask.height} pixels and the picture {self.size[0]}x{self.size[1]}; "
                "they must be of one size"
            )
        white = Image.fromarray((np.asarray(mask.convert("L")) >= 128).astype(np.float32))
        box = central_box(self.size, self.pixels.width)
        share = np.asarray(white.resize((self.tokens.shape[1], self.tokens.shape[0]), Image.Resampling.BOX, box))
        touched = torch.from_numpy(share > 0)
        if not touched.any():
            raise ValueError(
                "the mask marks nothing of the picture's middle square: paint white what is to be drawn anew"
            )
        return touched


@torch.inference_mode()
def original(image: Image.Image, dvae: DiscreteVAE, grid: int) -> Original:
    """A picture of any size and mode, scaled and cropped as held-out pictures are in training, and encoded."""
    pixels = Image.fromarray(inference_crop(image, grid * dvae.downsample))
    device = dvae.encoder.input.weight.device
    return Original(image.size, pixels, dvae.encode(to_tensor([pixels]).to(device))[0].cpu().clone())


@dataclass(frozen=True)
class Canvas:
    """What stands in each cell before drawing. A canvas larger than the model's grid is drawn in several windows."""

    tokens: Tensor  # (h, w), or (candidates, h, w), int64; `FREE` where the model draws
    windows: tuple[Corner, ...] = ((0, 0),)  # grid x grid cells each, filled in this order
    sweeps: int = 0  # over each window's hole, to fit it to what comes after: see `dalle.sampling.fill`
    proposals: int = 8  # redrawings that compete in each step of a sweep
    pixels: Image.Image | None = None  # to paste where cells are kept, as large as the picture that is drawn

    def __post_init__(self):
        if self.sweeps < 0 or self.proposals < 1:
            raise ValueError(
                f"sweeps={self.sweeps} must be at least 0, and proposals={self.proposals} at least 1 for each"
            )

    @property
    def draws(self) -> int:
        """How many times each window's images are drawn, all in all."""
        return len(self.windows) * (1 + self.proposals * self.sweeps * (self.sweeps + 1) // 2)

    def check(self, grid: int, vocabulary: int, candidates: int) -> None:
        """Raises `ValueError` where a model of `grid` x `grid` cells cannot fill it for so many candidates."""
        *images, height, width = self.tokens.shape
        if images not in ([], [candidates]):
            raise ValueError(f"the canvas is for {images} candidates, but candidates={candidates}")
        reached = torch.zeros(height, width, dtype=torch.bool)
        for top, left in self.windows:
            if not (0 <= top <= height - grid and 0 <= left <= width - grid):
                raise ValueError(
                    f"the canvas has {height} x {width} cells, too few for the model's window of {grid} x {grid} "
                    f"at row {top}, column {left}"
                )
            reached[top : top + grid, left : left + grid] = True
        if ((self.tokens == FREE) & ~reached).any():
            raise ValueError(
                f"the canvas has {height} x {width} cells, but the model draws {grid} x {grid}, and some cells that "
                "are free lie in none of its windows; edit=outpaint chooses windows for larger pictures"
            )
        low, high = int(self.tokens.min()), int(self.tokens.max())
        if low < FREE or high >= vocabulary:
            raise ValueError(
                f"the canvas holds tokens from {low} to {high}; use 0 to {vocabulary - 1}, or {FREE} for free cells"
            )

    def check_looks(self, grid: int, looks: Sequence[str]) -> None:
        """Raises `ValueError` where pictures are larger than the model's grid and options ask for it to look at them.

        looks: these options, as a user gives them.
        """
        height, width = self.tokens.shape[-2:]
        if looks and (height, width) != (grid, grid):
            raise ValueError(
                f"{' and '.join(looks)}: the transformer looks at {grid} x {grid} tokens, and this edit's pictures are "
                f"{height} x {width}; leave that out"
            )

    def paste(self, images: list[Image.Image]) -> list[Image.Image]:
        """The drawn pictures with the original's own pixels where cells are kept, if the canvas has them."""
        if self.pixels is None:
            return images
        kept = Image.fromarray((self.tokens != FREE).numpy().astype(np.uint8) * 255)
        mask = kept.resize(self.pixels.size, Image.Resampling.NEAREST)
        return [Image.composite(self.pixels, image, mask) for image in images]


def near(cells: Tensor, reach: int) -> Tensor:
    """Cells at most `reach` rows and columns from one of these: (..., h, w) bool -> (..., h, w) bool."""
    maps = rearrange(cells.float(), "... h w -> (...) 1 h w")
    return F.max_pool2d(maps, 2 * reach + 1, stride=1, padding=reach).bool().view_as(cells)
