"""Variations: keep a random share of an image's tokens, different for each candidate, and sample the rest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.sampling.canvas import Canvas, Original
from dalle.sampling.decode import FREE
from dalle.sampling.noise import candidate_keys, gumbel_noise
from dalle.seeds import derive_seed


@dataclass
class VariationsConfig:
    """Keep a random share of the tokens, different for each candidate, and sample the rest.

    python sample.py checkpoint=outputs/demo caption="a red circle" edit=variations image=photo.png edit.share=0.5
    """

    name: str = "variations"
    share: float = 0.5  # share of tokens kept; a larger share gives more similar images
    keep: str = "cells"  # unit that is kept or sampled as a whole: cells, rows or columns
    sweeps: int = 2  # refinement sweeps over the sampled tokens, to fit them to later ones; 0: raster order alone
    proposals: int = 8  # proposals compared in each step of a sweep


def variations(
    original: Original, config: VariationsConfig | None = None, candidates: int = 64, seed: int = 0, first: int = 0
) -> Canvas:
    """Build a canvas for each of the candidates first, first + 1, ... that keeps random tokens of `original`.

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
    kept = random_cells(shapes[config.keep], config.share, candidates, seed, first)
    tokens = torch.where(kept, original.tokens, FREE)  # (candidates, h, w)
    return Canvas(tokens, sweeps=config.sweeps, proposals=config.proposals)


def random_cells(shape: tuple[int, int], share: float, candidates: int, seed: int, first: int) -> Tensor:
    """Choose the same number of random cells for each candidate, about a `share` of them: (candidates, *shape) bool."""
    cells = shape[0] * shape[1]
    keys = candidate_keys(derive_seed("variations", seed), torch.arange(first, first + candidates))
    order = gumbel_noise(keys, 0, cells).argsort(dim=-1)
    chosen = torch.zeros(candidates, cells, dtype=torch.bool)
    return chosen.scatter(1, order[:, : round(share * cells)], True).view(candidates, *shape)
