"""Conversion between images and tensors."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Convert RGB images of one size to (b, 3, h, w) floats in [0, 1]."""
    return rearrange(torch.from_numpy(np.stack([np.asarray(image) for image in images])), "b h w c -> b c h w") / 255


def to_unit_range(images: Tensor) -> Tensor:
    """Scale 8-bit pixels to floats in [0, 1], the models' input."""
    return images.float() / 255


def to_pil_images(pixels: Tensor) -> list[Image.Image]:
    """Convert (b, 3, h, w) floats, clamped to [0, 1], to b RGB images."""
    levels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in rearrange(levels, "b c h w -> b h w c").cpu().numpy()]
