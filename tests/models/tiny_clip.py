"""Captions and random images for tests of CLIP."""

import torch
from PIL import Image

CAPTIONS = ["a small red circle above a large blue square", "three green triangles", "one circle left of a square"]


def pixels(batch: int, side: int = 12) -> torch.Tensor:
    """Return the same random images at each call: (batch, 3, side, side) in [0, 1]."""
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
