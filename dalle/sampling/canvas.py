"""The canvas of an edit: image tokens to keep and cells to sample. Every edit builds one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle.data.transforms import central_box, inference_crop
from dalle.image_conversion import to_tensor
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.decode import FREE

Corner = tuple[int, int]
"""Row and column of a window's top left cell."""


@dataclass(frozen=True)
class Original:
    """Encoded image to edit: its centre square as pixels and tokens."""

    size: tuple[int, int]  # width and height of the whole image in pixels
    pixels: Image.Image  # the centre square, scaled to the dVAE's input size
    tokens: Tensor  # (h, w) int64

    def touched(self, mask: Image.Image) -> Tensor:
        """Convert a mask of the whole image to tokens: (h, w) bool.

        A token is True if at least one of its pixels is white (half or more).

        Raises:
            ValueError: a mask of another size, or one that marks no token.
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
    """Scale and crop an image of any size and mode, as held-out images in training are, and encode it."""
    pixels = Image.fromarray(inference_crop(image, grid * dvae.downsample))
    device = dvae.encoder.input.weight.device
    return Original(image.size, pixels, dvae.encode(to_tensor([pixels]).to(device))[0].cpu().clone())


@dataclass(frozen=True)
class Canvas:
    """Tokens of an image before sampling. A canvas larger than the model's grid is sampled in several windows."""

    tokens: Tensor  # (h, w), or (candidates, h, w), int64; `FREE` where tokens are sampled
    windows: tuple[Corner, ...] = ((0, 0),)  # top left cells of grid x grid windows, sampled in this order
    sweeps: int = 0  # refinement sweeps over each window's free cells, to fit them to later ones: `dalle.sampling.fill`
    proposals: int = 8  # proposals compared in each step of a sweep
    pixels: Image.Image | None = None  # pasted over kept cells; has the size of the whole result

    def __post_init__(self):
        if self.sweeps < 0 or self.proposals < 1:
            raise ValueError(
                f"sweeps={self.sweeps} must be at least 0, and proposals={self.proposals} at least 1 for each"
            )

    @property
    def draws(self) -> int:
        """Number of times that images are sampled, over all windows, sweeps and proposals."""
        return len(self.windows) * (1 + self.proposals * self.sweeps * (self.sweeps + 1) // 2)

    def check(self, grid: int, vocabulary: int, candidates: int) -> None:
        """Raise `ValueError` if a model of `grid` x `grid` cells cannot sample this canvas for `candidates` images."""
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
        """Raise `ValueError` if images are larger than the model's grid and some options need the model's grid.

        looks: these options, as the user gives them.
        """
        height, width = self.tokens.shape[-2:]
        if looks and (height, width) != (grid, grid):
            raise ValueError(
                f"{' and '.join(looks)}: the transformer looks at {grid} x {grid} tokens, and this edit's pictures are "
                f"{height} x {width}; leave that out"
            )

    def paste(self, images: list[Image.Image]) -> list[Image.Image]:
        """Paste the original's pixels into sampled images where cells are kept. Without `pixels`, return `images`."""
        if self.pixels is None:
            return images
        kept = Image.fromarray((self.tokens != FREE).numpy().astype(np.uint8) * 255)
        mask = kept.resize(self.pixels.size, Image.Resampling.NEAREST)
        return [Image.composite(self.pixels, image, mask) for image in images]


def near(cells: Tensor, reach: int) -> Tensor:
    """Dilate a mask by `reach` rows and columns: (..., h, w) bool -> (..., h, w) bool."""
    maps = rearrange(cells.float(), "... h w -> (...) 1 h w")
    return F.max_pool2d(maps, 2 * reach + 1, stride=1, padding=reach).bool().view_as(cells)
