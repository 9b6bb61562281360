"""What the transformer learns of a picture: the dVAE's most probable codes, or draws from its distribution (fn. 6)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle.precision import cumulative_sum
from dalle.transfer import to_device


class ImageTokens(NamedTuple):
    """What the image states read and what they are asked for, in raster order."""

    inputs: Tensor  # (b, n) int64
    targets: Tensor  # (b, n) int64, or distributions over the codes, (b, n, v) fp32


Generators = Sequence[np.random.Generator]
"""A source of chance for each picture, so that its draws are the same in whatever batch it comes."""


def argmax(logits: Tensor, generators: Generators = ()) -> ImageTokens:
    """The most probable codes, without chance, as in the paper: (b, v, h, w) logits -> tokens."""
    tokens = rearrange(logits.argmax(dim=1), "b h w -> b (h w)")
    return ImageTokens(tokens, tokens)


def sampled(logits: Tensor, generators: Generators) -> ImageTokens:
    """One draw from the dVAE's posterior, as Equation 1 has it: (b, v, h, w) logits -> tokens."""
    tokens = _drawn(_posterior(logits), generators)
    return ImageTokens(tokens, tokens)


def soft(logits: Tensor, generators: Generators) -> ImageTokens:
    """A draw to read, and the whole distribution to predict at each position: (b, v, h, w) logits -> tokens.

    Given the picture, the codes of its positions are independent, so this is the mean of `sampled`'s loss over
    the draws of each target, with less noise.
    """
    posterior = _posterior(logits)
    return ImageTokens(_drawn(posterior, generators), posterior)


IMAGE_TARGETS: dict[str, Callable[[Tensor, Generators], ImageTokens]] = {
    "argmax": argmax,
    "sampled": sampled,
    "soft": soft,
}


def image_tokens_named(name: str) -> Callable[[Tensor, Generators], ImageTokens]:
    """The way that settings call `name`. Raises `ValueError` if there is none of that name."""
    if name not in IMAGE_TARGETS:
        raise ValueError(f"image_targets={name!r} is unknown; choose one of {', '.join(IMAGE_TARGETS)}")
    return IMAGE_TARGETS[name]


def _posterior(logits: Tensor) -> Tensor:
    """(b, v, h, w) logits -> (b, n, v) probabilities, fp32."""
    return rearrange(logits.float(), "b v h w -> b (h w) v").softmax(dim=-1)


def _drawn(posterior: Tensor, generators: Generators) -> Tensor:
    """One code a position: (b, n, v) probabilities -> (b, n) int64.

    The code at which the running sum of probabilities passes a uniform number: one number a position to be drawn
    on the CPU, not one for each code.
    """
    rows = [generator.random(posterior.shape[1], dtype=np.float32) for generator in generators]
    uniform = to_device(torch.from_numpy(np.stack(rows)), posterior.device).unsqueeze(-1)
    cumulative = cumulative_sum(posterior)
    # the sum is not 1 to the last digit
    return torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True).squeeze(-1)
