"""Attention patterns, captions and canvases for tests of decoding."""

import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import PATTERNS as REGISTRY
from dalle.sampling.decode import MASKED

PATTERNS = [*([name] for name in REGISTRY), ["paper"]]


def captions(model: Transformer) -> Tensor:
    return model.sequence.pad_captions([[1, 2, 3], [4], [5, 6, 7, 8]])


def some_canvases(*images: int, size: int = 4) -> Tensor:
    """Return canvases in which about half the cells are free, different for each image."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(13, (*images, size, size), generator=generator)
    return torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, MASKED, tokens)
