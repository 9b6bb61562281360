"""Inpainting: sample a canvas window by window in raster order, then refine it by sweeps that use later tokens.

Raster order conditions on earlier tokens only. The target is p(hole | before, after), which by Bayes' rule is
p(hole | before) * p(after | before, hole) up to a constant. The model samples from the first factor. The second is the
likelihood of the kept tokens, from one teacher-forced pass. A sweep therefore samples proposals and keeps, for each
candidate, the one with the highest likelihood of the later tokens that it left unchanged, or the current tokens if no
proposal is better. The first sweep resamples the whole hole, the second one half of its rows and then the other, the
third one third after another: from coarse to fine. Not in the paper: its image prompts have no tokens after the hole.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.sampling.canvas import Canvas
from dalle.sampling.decode import (
    DEFAULTS,
    FREE,
    Batch,
    OnProgress,
    TokenSampler,
    TokenSamplerFactory,
    batch_slices,
    candidate_numbers,
)
from dalle.sampling.likelihood import cells_given_caption
from dalle.sampling.noise import candidate_keys
from dalle.sampling.sampling_config import DecodingConfig
from dalle.seeds import derive_seed

SCORED = 64  # maximum of images scored at a time: the logits of all positions are in memory at once


class Draw(Protocol):
    """Interface of a function that samples the free tokens of a batch of images."""

    def __call__(self, *, canvas: Tensor, seed: int) -> Tensor:
        """(captions, candidates, h, w) -> the same without `FREE`."""
        ...


Likelihood = Callable[[Tensor], Tensor]
"""Log-likelihood of each token given those before it: (captions, candidates, h, w) -> the same shape, fp32."""


def batches(
    model: Transformer,
    captions: Tensor,
    candidates: int,
    config: DecodingConfig = DEFAULTS,
    *,
    canvas: Canvas,
    first: int | Sequence[int] = 0,
    precision: torch.dtype = torch.float32,
    recompute_kv: bool = False,
    on_progress: OnProgress | None = None,
) -> Iterator[Batch]:
    """`dalle.sampling.decode.batches` for a canvas of any size. The images have the canvas's number of tokens.

    As there, candidate i depends only on its caption, its canvas, the settings and (seed, i).

    Raises:
        ValueError: a canvas that does not fit the model or the number of candidates.
    """
    canvas.check(model.sequence.grid, model.sequence.image_vocabulary, candidates)
    cells = canvas.tokens.expand(len(captions), candidates, *canvas.tokens.shape[-2:])
    numbers = candidate_numbers(first, len(captions), candidates)
    samplers = TokenSamplerFactory(model, config, numbers.numel(), precision, recompute_kv)
    told = on_progress and partial(_share_of, on_progress, canvas.draws)
    for some in batch_slices(len(captions), candidates, samplers.batch_size):
        texts = captions[some[0]]
        # one sampler for all windows and sweeps, so that a GPU captures its CUDA graph once
        sampler = samplers.create(texts, numbers[some].shape[1])
        draw = partial(_drawn, sampler, numbers[some], told)
        likelihood = partial(_likelihood, model, texts, min(samplers.batch_size, SCORED))
        images = fill(cells[some], canvas, model.sequence.grid, draw, likelihood, config.seed)
        del sampler, draw
        yield Batch(some[0].start, some[1].start, images)


def fill(given: Tensor, canvas: Canvas, grid: int, draw: Draw, likelihood: Likelihood, seed: int) -> Tensor:
    """Sample and refine the images of one batch: (captions, candidates, h, w) tokens -> the same without `FREE`."""
    images = given.clone()
    seeds = (_another(seed, number) for number in count())
    for top, left in canvas.windows:
        window = images[..., top : top + grid, left : left + grid]
        window[:] = fill_window(window.clone(), canvas, draw, likelihood, seeds)
    return images


def fill_window(given: Tensor, canvas: Canvas, draw: Draw, likelihood: Likelihood, seeds: Iterator[int]) -> Tensor:
    """Sample and refine one window: (captions, candidates, grid, grid) -> the same without `FREE`."""
    images, free = draw(canvas=given, seed=next(seeds)), given == FREE
    for bands in range(1, canvas.sweeps + 1):
        for number in range(bands):
            band = band_of_rows(free, bands, number)
            before = likelihood_behind(band, likelihood(images))
            for _ in range(canvas.proposals):
                proposal = draw(canvas=images.masked_fill(band, FREE), seed=next(seeds))
                after = likelihood_behind(band, likelihood(proposal))
                better = after > before
                images = torch.where(better[..., None, None], proposal, images)
                before = torch.where(better, after, before)
    return images


def band_of_rows(free: Tensor, bands: int, number: int) -> Tensor:
    """Select the free cells in one of `bands` equal parts of the rows that have any, from the top: (..., h, w) bool."""
    rows = free.any(dim=-1)  # (..., h)
    place = (rows.cumsum(dim=-1) - 1) * bands // rows.sum(dim=-1, keepdim=True).clamp(min=1)
    return free & (place == number)[..., None]


def likelihood_behind(band: Tensor, likelihoods: Tensor) -> Tensor:
    """Log-likelihood of the tokens after a band's first cell, except the band's own: (..., h, w) -> (...)."""
    # likelihoods of earlier tokens differ only by rounding, which must not decide
    behind = (band.flatten(-2).cumsum(dim=-1) > 0).view_as(band)
    return likelihoods.where(behind & ~band, 0.0).sum(dim=(-2, -1))


def _drawn(
    sampler: TokenSampler, numbers: Tensor, on_progress: OnProgress | None, *, canvas: Tensor, seed: int
) -> Tensor:
    return sampler.sample(candidate_keys(seed, numbers), canvas, on_progress)


def _likelihood(model: Transformer, captions: Tensor, few: int, images: Tensor) -> Tensor:
    """Score each caption's images. few: images scored at a time."""
    scored = [cells_given_caption(model, text, some, few) for text, some in zip(captions, images, strict=True)]
    return torch.stack(scored)


def _share_of(on_progress: OnProgress, draws: int, images: float) -> None:
    on_progress(images / draws)


def _another(seed: int, number: int) -> int:
    """Seed of the number-th sampling of the same cells; number 0 gives `seed`."""
    return seed if number == 0 else derive_seed("inpainting", seed, number)
