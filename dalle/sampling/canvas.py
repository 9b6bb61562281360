"""The canvas of an edit: image tokens to keep, and masked tokens to sample. Every edit builds one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from dalle.data.transforms import central_box, inference_crop, on_background
from dalle.image_conversion import to_tensor
from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.decode import MASKED

Corner = tuple[int, int]
"""Row and column of a window's top left token."""


@dataclass(frozen=True)
class EncodedImage:
    """Encoded image to edit: its centre square as pixels and tokens."""

    size: tuple[int, int]  # width and height of the whole image in pixels
    pixels: Image.Image  # the centre square, scaled to the dVAE's input size
    tokens: Tensor  # (h, w) int64

    def mask_to_tokens(self, mask: Image.Image) -> Tensor:
        """Convert a mask of the whole image to tokens: (h, w) bool.

        A token is True if at least one of its pixels is white (128 or more of 255). Transparent pixels count as black.

        Raises:
            ValueError: a mask of another size, or one that marks no token.
        """
        if mask.size != self.size:
            raise ValueError(
                f"the mask has {mask.width}x{mask.height} pixels and the image {self.size[0]}x{self.size[1]}; "
                "they must have the same size"
            )
        white = Image.fromarray((np.asarray(on_background(mask, "black").convert("L")) >= 128).astype(np.float32))
        box = central_box(self.size, self.pixels.width)
        share = np.asarray(white.resize((self.tokens.shape[1], self.tokens.shape[0]), Image.Resampling.BOX, box))
        masked = torch.from_numpy(share > 0)
        if not masked.any():
            raise ValueError(
                "the mask has no white pixel in the image's centre square: paint white what is to be sampled again"
            )
        return masked


@torch.inference_mode()
def encode_image(image: Image.Image, dvae: DiscreteVAE, grid: int) -> EncodedImage:
    """Scale and crop an image of any size and mode, as held-out images in training are, and encode it.

    A photo that its EXIF data turn is turned first, as image files are when they are read.
    """
    image = ImageOps.exif_transpose(image)
    pixels = Image.fromarray(inference_crop(image, grid * dvae.downsample))
    device = dvae.encoder.input.weight.device
    return EncodedImage(image.size, pixels, dvae.encode(to_tensor([pixels]).to(device))[0].cpu().clone())


@dataclass(frozen=True)
class Canvas:
    """Tokens of an image before sampling. A canvas larger than the model's grid is sampled in several windows."""

    tokens: Tensor  # (h, w), or (candidates, h, w), int64; `MASKED` for tokens to sample
    windows: tuple[Corner, ...] = ((0, 0),)  # top left corners of grid x grid windows, sampled in this order
    refinement_passes: int = 0  # passes over each window's masked tokens: `dalle.sampling.inpainting`
    proposals: int = 8  # proposals compared in each step of a pass
    pixels: Image.Image | None = None  # pasted over kept cells; has the size of the whole result

    def __post_init__(self):
        if self.refinement_passes < 0 or self.proposals < 1:
            raise ValueError(
                f"refinement_passes={self.refinement_passes} must be at least 0, "
                f"and proposals={self.proposals} at least 1"
            )

    @property
    def passes_per_refined_window(self) -> int:
        """Number of times that a window is sampled, over all refinement passes and proposals."""
        return 1 + self.proposals * self.refinement_passes * (self.refinement_passes + 1) // 2

    def refined_windows(self, grid: int) -> list[bool]:
        """Return for each window of `grid` x `grid` tokens if there is something to refine, see `refinable`."""
        masked, refined = self.tokens == MASKED, []
        for top, left in self.windows:
            window = masked[..., top : top + grid, left : left + grid]
            refined.append(bool(refinable(window).any()))
            window.fill_(False)  # later windows keep its tokens
        return refined

    def sampling_passes(self, grid: int) -> int:
        """Count the times that images are sampled, over all windows, refinement passes and proposals."""
        return sum(self.passes_per_refined_window if refined else 1 for refined in self.refined_windows(grid))

    def check(self, grid: int, vocabulary: int, candidates: int) -> None:
        """Raise `ValueError` if a model of `grid` x `grid` tokens cannot sample this canvas for `candidates` images."""
        *images, height, width = self.tokens.shape
        if images not in ([], [candidates]):
            raise ValueError(f"the canvas is for {images} candidates, but candidates={candidates}")
        covered = torch.zeros(height, width, dtype=torch.bool)
        for top, left in self.windows:
            if not (0 <= top <= height - grid and 0 <= left <= width - grid):
                raise ValueError(
                    f"the canvas has {height} x {width} tokens, too few for the model's window of {grid} x {grid} "
                    f"at row {top}, column {left}"
                )
            covered[top : top + grid, left : left + grid] = True
        if ((self.tokens == MASKED) & ~covered).any():
            raise ValueError(
                f"the canvas has {height} x {width} tokens, but the model samples {grid} x {grid}, and some masked "
                "tokens are in no window; edit=outpaint chooses windows for larger images"
            )
        low, high = int(self.tokens.min()), int(self.tokens.max())
        if low < MASKED or high >= vocabulary:
            raise ValueError(
                f"the canvas has tokens from {low} to {high}; use 0 to {vocabulary - 1}, or {MASKED} for masked tokens"
            )

    def require_model_grid(self, grid: int, options: Sequence[str]) -> None:
        """Raise `ValueError` if images are larger than the model's grid and there are options that need that grid.

        options: those options, as the user types them.
        """
        height, width = self.tokens.shape[-2:]
        if options and (height, width) != (grid, grid):
            raise ValueError(
                f"{' and '.join(options)}: the transformer scores images of {grid} x {grid} tokens, and this edit's "
                f"images have {height} x {width}; leave that option out"
            )

    def paste(self, images: list[Image.Image], candidates: Sequence[int] | None = None) -> list[Image.Image]:
        """Paste the original's pixels into sampled images where tokens are kept. Without `pixels`, return `images`.

        candidates: index of each image's tokens if the canvas has tokens for each candidate; None: 0, 1, 2, ...
        """
        if self.pixels is None:
            return images
        if self.tokens.ndim == 2:
            tokens = self.tokens.expand(len(images), *self.tokens.shape)
        else:
            tokens = self.tokens[list(range(len(images)) if candidates is None else candidates)]
        kept = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in (tokens != MASKED).numpy()]
        masks = [mask.resize(self.pixels.size, Image.Resampling.NEAREST) for mask in kept]
        return [Image.composite(self.pixels, image, mask) for image, mask in zip(images, masks, strict=True)]


def refinable(masked: Tensor) -> Tensor:
    """Find the images in which a kept token follows a masked one in raster order: (..., h, w) bool -> (...) bool.

    In the others, sampling in raster order is exact: no kept token is left to compare proposals by.
    """
    masked = masked.flatten(-2)
    return ((masked.cumsum(dim=-1) > 0) & ~masked).any(dim=-1)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Dilate a mask by `radius` rows and columns: (..., h, w) bool -> (..., h, w) bool."""
    maps = rearrange(mask.float(), "... h w -> (...) 1 h w")
    return F.max_pool2d(maps, 2 * radius + 1, stride=1, padding=radius).bool().view_as(mask)
