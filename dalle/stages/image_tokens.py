"""Image tokens to train the transformer on: the most probable ones, samples, or samples with soft targets (fn. 6)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dalle.device_transfer import to_device
from dalle.precision import cumulative_sum


class ImageTokens(NamedTuple):
    """Inputs and targets of the image positions, in raster order."""

    inputs: Tensor  # (b, n) int64
    targets: Tensor  # (b, n) int64, or distributions over the codes, (b, n, v) fp32


Generators = Sequence[np.random.Generator]
"""Random generator of each image, so that its samples do not depend on the batch."""


def most_probable_tokens(logits: Tensor, generators: Generators = ()) -> ImageTokens:
    """Return the most probable codes, as in the paper: (b, v, h, w) logits -> tokens; deterministic."""
    tokens = rearrange(logits.argmax(dim=1), "b h w -> b (h w)")
    return ImageTokens(tokens, tokens)


def sampled_tokens(logits: Tensor, generators: Generators) -> ImageTokens:
    """Sample codes from the dVAE's posterior, as in Equation 1: (b, v, h, w) logits -> tokens."""
    tokens = _sample(_posterior(logits), generators)
    return ImageTokens(tokens, tokens)


def soft_target_tokens(logits: Tensor, generators: Generators) -> ImageTokens:
    """Sample codes as inputs, with the posterior at each position as soft targets: (b, v, h, w) logits -> tokens.

    Given the image, the codes of its positions are independent, so the loss is the expectation of the loss of
    `sampled_tokens` over each target, with lower variance.
    """
    posterior = _posterior(logits)
    return ImageTokens(_sample(posterior, generators), posterior)


TokenChoice = Callable[[Tensor, Generators], ImageTokens]
"""Function that chooses the tokens of images by the dVAE's logits."""

IMAGE_TARGETS: dict[str, TokenChoice] = {
    "argmax": most_probable_tokens,
    "sampled": sampled_tokens,
    "soft": soft_target_tokens,
}


def token_choice_named(name: str) -> TokenChoice:
    """Return the function for `name`, a value of the setting `image_targets`. Raises `ValueError` if it is unknown."""
    if name not in IMAGE_TARGETS:
        raise ValueError(f"image_targets={name!r} is unknown; choose one of {', '.join(IMAGE_TARGETS)}")
    return IMAGE_TARGETS[name]


def _posterior(logits: Tensor) -> Tensor:
    """Compute the posterior: (b, v, h, w) logits -> (b, n, v) probabilities, fp32."""
    return rearrange(logits.float(), "b v h w -> b (h w) v").softmax(dim=-1)


def _sample(posterior: Tensor, generators: Generators) -> Tensor:
    """Sample one code per position: (b, n, v) probabilities -> (b, n) int64.

    Uses inverse transform sampling on the cumulative probabilities: one random number per position is drawn on the CPU,
    instead of one per code.
    """
    draws = [generator.random(posterior.shape[1], dtype=np.float32) for generator in generators]
    uniform = to_device(torch.from_numpy(np.stack(draws)), posterior.device).unsqueeze(-1)
    cumulative = cumulative_sum(posterior)
    # scaled by the total, which is not exactly 1
    return torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True).squeeze(-1)
