"""Variations: keep a random share of an image's tokens, different for each candidate, and sample the rest."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.decode import MASKED
from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise
from dalle.seeds import derive_seed


@dataclass
class VariationsConfig:
    """Keep a random share of the tokens, different for each candidate, and sample the rest.

    python sample.py caption="a red apple" edit=variations image=photo.png edit.share=0.5
    """

    name: str = "variations"
    share: float = 0.5  # share of tokens kept; a larger share gives more similar images
    keep: str = "cells"  # unit that is kept or sampled as a whole: cells, rows or columns
    refinement_passes: int = 2  # refinement passes over the sampled tokens; 0: raster order alone
    proposals: int = 8  # proposals compared in each step of a pass


def variations(
    original: EncodedImage,
    config: VariationsConfig | None = None,
    candidates: int = 64,
    seed: int = 0,
    candidate_offset: int = 0,
) -> Canvas:
    """Build a canvas for each of the candidates from `candidate_offset` that keeps random tokens of `original`.

    The tokens kept by candidate i depend on (seed, i) alone.

    Raises:
        ValueError: a share that keeps nothing or everything, or an unknown `keep`.
    """
    config = config or VariationsConfig()
    height, width = original.tokens.shape
    shapes = {"cells": (height, width), "rows": (height, 1), "columns": (1, width)}
    if config.keep not in shapes:
        raise ValueError(f"keep={config.keep} is unknown; choose one of {', '.join(shapes)}")
    if not 0 < config.share < 1:
        raise ValueError(f"share={config.share} keeps all tokens or none; use more than 0 and less than 1")
    check_share(config.share, math.prod(shapes[config.keep]), config.keep)
    kept = random_mask(shapes[config.keep], config.share, candidates, seed, candidate_offset)
    tokens = torch.where(kept, original.tokens, MASKED)  # (candidates, h, w)
    return Canvas(tokens, refinement_passes=config.refinement_passes, proposals=config.proposals)


def check_share(share: float, count: int, unit: str) -> None:
    """Raise ValueError if `share` of `count` cells, rows or columns, rounded, is none or all of them."""
    if not 0 < round(share * count) < count:
        max_share = math.floor((1 - 1 / count) * 1000) / 1000  # rounded up, it could be 1
        raise ValueError(
            f"share={share} of {count} {unit} is {round(share * count)} of them, after rounding: use "
            f"{1 / count:.2g} to {max_share:g}"
        )


def random_mask(shape: tuple[int, int], share: float, candidates: int, seed: int, candidate_offset: int) -> Tensor:
    """Choose random cells, a `share` of them for each candidate: (candidates, *shape) bool."""
    count = shape[0] * shape[1]
    keys = candidate_noise_keys(
        derive_seed("variations", seed), torch.arange(candidate_offset, candidate_offset + candidates)
    )
    order = gumbel_noise(keys, 0, count).argsort(dim=-1)
    chosen = torch.zeros(candidates, count, dtype=torch.bool)
    return chosen.scatter(1, order[:, : round(share * count)], True).view(candidates, *shape)
