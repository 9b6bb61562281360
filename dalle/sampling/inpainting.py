"""Inpainting: sample a canvas window by window in raster order, then refine it with passes that use later tokens.

Raster order conditions on earlier tokens only. The target is p(hole | before, after), which by Bayes' rule is
p(hole | before) * p(after | before, hole) up to a constant. The model samples from the first factor. The second is the
likelihood of the kept tokens, from one teacher-forced forward pass. So a refinement pass samples proposals and keeps,
for each candidate, the one with the highest likelihood of the later tokens that it left unchanged, or the current
tokens if no proposal is better. The first pass resamples the whole hole, the second one half of its rows and then the
other, the third each third of its rows in turn. Without kept tokens after the hole, raster order is exact and nothing
is refined. Not in the paper: its image prompts have no tokens after the hole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.sampling.canvas import Canvas, Corner, refinable
from dalle.sampling.decode import (
    DEFAULTS,
    MASKED,
    DecodingSession,
    OnProgress,
    OnTokens,
    SampledBatch,
    TokenSampler,
    batch_slices,
    candidate_numbers,
)
from dalle.sampling.gumbel_noise import candidate_noise_keys
from dalle.sampling.likelihood import scoring_batch_size, token_log_likelihood
from dalle.sampling.parallel_decode import DecodingCount
from dalle.sampling.sampling_config import DecodingConfig
from dalle.seeds import derive_seed


class SampleTokens(Protocol):
    """Interface of a function that samples the masked tokens of a batch of images."""

    def __call__(self, *, canvas: Tensor, seed: int, on_tokens: OnTokens | None = None) -> Tensor:
        """Sample the `MASKED` tokens of a canvas: (captions, candidates, h, w) -> the same without `MASKED`."""
        ...


LogLikelihood = Callable[[Tensor], Tensor]
"""Log-likelihood of each token given those before it: (captions, candidates, h, w) -> the same shape, fp32."""


def inpaint_batches(
    model: Transformer,
    captions: Tensor,
    candidates: int,
    config: DecodingConfig = DEFAULTS,
    *,
    canvas: Canvas,
    candidate_offset: int | Sequence[int] = 0,
    precision: torch.dtype = torch.float32,
    recompute_kv: bool = False,
    on_progress: OnProgress | None = None,
    on_tokens: OnTokens | None = None,
    count: DecodingCount | None = None,
) -> Iterator[SampledBatch]:
    """Sample and refine images on a canvas of any size, one batch at a time, as `dalle.sampling.decode.sample_batches`.

    As there, candidate i depends only on its caption, its canvas, the settings and (seed, i).

    Raises:
        ValueError: a canvas that does not fit the model or the number of candidates.
    """
    canvas.check(model.sequence.grid, model.sequence.image_vocabulary, candidates)
    if config.greedy:
        canvas = replace(canvas, proposals=1)  # all proposals for a band are equal
    canvases = canvas.tokens.expand(len(captions), candidates, *canvas.tokens.shape[-2:])
    numbers = candidate_numbers(candidate_offset, len(captions), candidates)
    session = DecodingSession(model, config, numbers.numel(), precision, recompute_kv, count)
    report = on_progress and partial(_report_fraction, on_progress, canvas.sampling_passes(model.sequence.grid))
    for batch in batch_slices(len(captions), candidates, session.batch_size):
        batch_captions = captions[batch[0]]
        # one sampler for all windows and passes, so that a GPU captures its CUDA graph once
        sampler = TokenSampler(session, batch_captions, numbers[batch].shape[1])
        sample = partial(_sample_tokens, sampler, numbers[batch], report)
        log_likelihood = partial(
            _log_likelihood, model, batch_captions, min(session.batch_size, scoring_batch_size(model))
        )
        tokens = inpaint_canvas(
            canvases[batch], canvas, model.sequence.grid, sample, log_likelihood, config.seed, on_tokens
        )
        del sampler, sample
        yield SampledBatch(batch[0].start, batch[1].start, tokens)


def inpaint_canvas(
    tokens: Tensor,
    canvas: Canvas,
    grid: int,
    sample: SampleTokens,
    log_likelihood: LogLikelihood,
    seed: int,
    on_tokens: OnTokens | None = None,
) -> Tensor:
    """Sample and refine the images of one batch: (captions, candidates, h, w) tokens -> the same without `MASKED`.

    on_tokens: called with the whole images while a window is sampled first, and after each step of a refinement pass.
    """
    images = tokens.clone()
    for number, ((top, left), refine) in enumerate(zip(canvas.windows, canvas.refined_windows(grid), strict=True)):
        seeds = (_derived_seed(seed, index) for index in count(number * canvas.passes_per_refined_window))
        window = images[..., top : top + grid, left : left + grid]
        show = None if on_tokens is None else partial(_show_window, on_tokens, images.clone(), (top, left))
        window[:] = inpaint_window(
            window.clone(),
            canvas.proposals,
            canvas.refinement_passes if refine else 0,
            sample,
            log_likelihood,
            seeds,
            show,
        )
    return images


def inpaint_window(
    tokens: Tensor,
    proposals: int,
    refinement_passes: int,
    sample: SampleTokens,
    log_likelihood: LogLikelihood,
    seeds: Iterator[int],
    show: OnTokens | None = None,
) -> Tensor:
    """Sample and refine one window: (captions, candidates, grid, grid) -> the same without `MASKED`.

    Images without a kept token after a masked one stay as they were sampled first.
    show: called with the window while it is sampled first, and after each step of a refinement pass. Proposals that may
    be rejected are not shown.
    """
    first = sample if show is None else partial(sample, on_tokens=show)
    images, masked = first(canvas=tokens, seed=next(seeds)), tokens == MASKED
    refined = refinable(masked)
    for bands in range(1, refinement_passes + 1):
        for number in range(bands):
            band = band_of_rows(masked, bands, number)
            if not band.any():  # more bands than rows: proposals would equal the images
                for _ in range(proposals):
                    next(seeds)  # those of other bands stay
                continue
            best = suffix_log_likelihood(band, log_likelihood(images))
            for _ in range(proposals):
                proposal = sample(canvas=images.masked_fill(band, MASKED), seed=next(seeds))
                proposed = suffix_log_likelihood(band, log_likelihood(proposal))
                better = refined & (proposed > best)
                images = torch.where(better[..., None, None], proposal, images)
                best = torch.where(better, proposed, best)
                if show is not None:
                    show(images)
    return images


def band_of_rows(masked: Tensor, bands: int, number: int) -> Tensor:
    """Select the masked tokens in one of `bands` equal parts of the rows that have any, from the top.

    (..., h, w) bool -> the same shape.
    """
    rows = masked.any(dim=-1)  # (..., h)
    band_of_row = (rows.cumsum(dim=-1) - 1) * bands // rows.sum(dim=-1, keepdim=True).clamp(min=1)
    return masked & (band_of_row == number)[..., None]


def suffix_log_likelihood(band: Tensor, log_likelihoods: Tensor) -> Tensor:
    """Sum the log-likelihoods of the kept tokens that follow the masked tokens in raster order.

    band: (..., h, w) bool, True for masked tokens. log_likelihoods: (..., h, w), of all tokens. Returns (...): the sum
    over tokens that are after the first masked token and are not masked themselves.
    """
    # left out, because log-likelihoods of earlier tokens differ by rounding only
    suffix = (band.flatten(-2).cumsum(dim=-1) > 0).view_as(band)
    return log_likelihoods.where(suffix & ~band, 0.0).sum(dim=(-2, -1))


def _sample_tokens(
    sampler: TokenSampler,
    numbers: Tensor,
    on_progress: OnProgress | None,
    *,
    canvas: Tensor,
    seed: int,
    on_tokens: OnTokens | None = None,
) -> Tensor:
    return sampler.sample(candidate_noise_keys(seed, numbers), canvas, on_progress, on_tokens)


def _show_window(on_tokens: OnTokens, images: Tensor, corner: Corner, window: Tensor) -> None:
    """Call `on_tokens` with the whole images, (..., h, w), in which a window at `corner` is replaced, in place."""
    (top, left), (height, width) = corner, window.shape[-2:]
    images[..., top : top + height, left : left + width] = window
    on_tokens(images)


def _log_likelihood(model: Transformer, captions: Tensor, batch_size: int, images: Tensor) -> Tensor:
    """Compute the log-likelihood of each image token, `batch_size` images at a time.

    captions: (captions, T); images: (captions, m, h, w) -> (captions, m, h, w) nats.
    """
    scored = [token_log_likelihood(model, caption, m, batch_size) for caption, m in zip(captions, images, strict=True)]
    return torch.stack(scored)


def _report_fraction(on_progress: OnProgress, sampling_passes: int, images: float) -> None:
    on_progress(images / sampling_passes)


def _derived_seed(seed: int, number: int) -> int:
    """Derive the seed of the number-th sampling of the same tokens; `seed` itself for number 0."""
    return seed if number == 0 else derive_seed("inpainting", seed, number)
