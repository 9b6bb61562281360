"""Drawing image tokens: the caption once, then cell by cell for all candidates at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.cpu_linear import packed
from dalle.models.transformer.model import Transformer
from dalle.precision import without_autocast
from dalle.sampling.filters import filtered
from dalle.sampling.graphs import decoding_step
from dalle.sampling.guidance import beside_empty, empty_caption, guided
from dalle.sampling.noise import candidate_keys, gumbel_noise
from dalle.sampling.sampling_config import DecodingConfig

FREE = -1  # a cell of a canvas that the model is to fill
BATCH_SIZE = 64  # images decoded at a time, where nothing says how many
DEFAULTS = DecodingConfig()

OnProgress = Callable[[float], None]
"""Told after each cell how many images' worth of work it was. What it raises ends the drawing."""


class Batch(NamedTuple):
    """Images that were drawn together."""

    caption: int  # the place of the first of their captions
    candidate: int  # the place of the first candidate of each
    images: Tensor  # (captions, candidates, h, w) int64 on the CPU


def generate(
    model: Transformer, captions: Tensor, candidates: int, config: DecodingConfig = DEFAULTS, **options: Any
) -> Tensor:
    """Draw the images of `batches`, whose options it takes: (captions, T) -> (captions, candidates, h, w) int64."""
    images = torch.empty(len(captions), candidates, model.stream.grid, model.stream.grid, dtype=torch.int64)
    for batch in batches(model, captions, candidates, config, **options):
        rows, columns = batch.images.shape[:2]
        images[batch.caption : batch.caption + rows, batch.candidate : batch.candidate + columns] = batch.images
    return images


@torch.inference_mode()
def batches(
    model: Transformer,
    captions: Tensor,
    candidates: int,
    config: DecodingConfig = DEFAULTS,
    *,
    first: int | Sequence[int] = 0,
    canvas: Tensor | None = None,
    precision: torch.dtype = torch.float32,
    compact: bool = False,
    on_progress: OnProgress | None = None,
) -> Iterator[Batch]:
    """Draw images for each caption, a batch at a time: caption by caption, or several whose candidates all fit.

    Candidates are numbered first, first + 1, ...; the tokens of candidate i depend on its caption, its canvas, the
    filters, the guidance, the precision and (seed, i) alone, whatever is drawn beside it, unless two tokens tie to
    within rounding. No memory but the images' is held between two batches.

    captions: as `model.stream.captions` makes them.
    config: a guidance other than 1 decodes each image twice, see `dalle.sampling.guidance`; `batch_size` None is 64.
    first: one number for all captions, or one for each.
    canvas: (h, w), (candidates, h, w) or (captions, candidates, h, w) int64; cells other than `FREE` are kept.
    precision: of the linear layers on a CPU, see `dalle.models.cpu_linear`; elsewhere the model's own is used.
    compact: caches that take less memory and a little longer, see `Transformer.new_cache`.

    Raises:
        ValueError: no candidates, or a canvas of another size or with unknown tokens.
    """
    numbers = candidate_numbers(first, len(captions), candidates)
    cells = canvas_cells(canvas, len(captions), candidates, model)
    samplers = TokenSamplerFactory(model, config, numbers.numel(), precision, compact)
    for some in batch_slices(len(captions), candidates, samplers.batch_size):
        sampler = samplers.create(captions[some[0]], numbers[some].shape[1])
        images = sampler.sample(candidate_keys(config.seed, numbers[some]), cells[some], on_progress)
        del sampler  # before the caller decodes and ranks the images, and before the next one is made
        yield Batch(some[0].start, some[1].start, images)


def candidate_numbers(first: int | Sequence[int], captions: int, candidates: int) -> Tensor:
    """Number the candidates of each caption from `first` on, which may be one number for each: (captions, candidates).

    Raises:
        ValueError: no candidates.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates} must be at least 1")
    firsts = torch.tensor([first] * captions if isinstance(first, int) else first)
    return firsts.unsqueeze(1) + torch.arange(candidates)


def batch_slices(captions: int, candidates: int, batch_size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of captions and of candidates, of at most `batch_size` images each, that cover all of them in order."""
    together = max(1, batch_size // candidates)  # captions
    for caption in range(0, captions, together):
        for candidate in range(0, candidates, batch_size):
            yield slice(caption, caption + together), slice(candidate, candidate + batch_size)


class TokenSamplerFactory:
    """Makes a `TokenSampler` for each batch of captions; holds what all of them share."""

    @torch.inference_mode()
    def __init__(
        self,
        model: Transformer,
        config: DecodingConfig,
        images: int,
        precision: torch.dtype = torch.float32,
        compact: bool = False,
    ):
        """See `batches`; images: to be drawn in all, with all samplers."""
        self.config, self.compact = config, compact
        self.batch_size = BATCH_SIZE if config.batch_size is None else config.batch_size
        self.device = model.image_head.weight.device
        rows = 2 if config.guided else 1  # that are decoded for each image
        with without_autocast(self.device.type):
            self.model = packed(model, rows * min(self.batch_size, images), precision)
            self.empty = self.model.prefill(empty_caption(model.stream).to(self.device)) if config.guided else None

    def create(self, captions: Tensor, candidates: int) -> "TokenSampler":
        """The sampler of `candidates` images of each of (captions, T)."""
        return TokenSampler(self, captions, candidates)


class TokenSampler:
    """Samples the image tokens of some captions' candidates, cell by cell for all of them at a time.

    Holds the memory of decoding: the captions' keys and values, a cache, and on a GPU a CUDA graph. `sample` can be
    called again and again.
    """

    @torch.inference_mode()
    def __init__(self, shared: TokenSamplerFactory, captions: Tensor, candidates: int):
        self.config, self.device = shared.config, shared.device
        self.stream = shared.model.stream
        with without_autocast(self.device.type):  # which a caller may be in, and which would round the logits
            text = shared.model.prefill(captions.to(self.device))
            if shared.empty is not None:
                text = beside_empty(text, shared.empty)
            self.step = decoding_step(shared.model, text, candidates, shared.compact)

    @torch.inference_mode()
    def sample(self, keys: Tensor, canvas: Tensor, on_progress: OnProgress | None = None) -> Tensor:
        """(captions, m) noise keys, (captions, m, h, w) canvas -> (captions, m, h, w) images on the CPU."""
        images = rearrange(canvas.to(self.device), "captions m h w -> (captions m) (h w)").clone()
        with without_autocast(self.device.type):
            self._fill(images, keys.flatten().to(self.device), on_progress)
        return rearrange(images, "(captions m) (h w) -> captions m h w", captions=len(keys), h=self.stream.grid).cpu()

    def _fill(self, images: Tensor, keys: Tensor, on_progress: OnProgress | None) -> None:
        """Replace what is `FREE` in (b, h * w) images."""
        scale = self.config.guidance if self.config.guided else None
        free = images == FREE
        some_free = free.any(dim=0).tolist()
        steps = max((position + 1 for position, wanted in enumerate(some_free) if wanted), default=0)

        previous = torch.full_like(keys, self.stream.start_of_image)
        for position in range(steps):
            logits = self.step(previous if scale is None else previous.repeat(2), position)
            if scale is not None:
                logits = guided(logits, scale)  # (b, v)
            if some_free[position]:
                noise = gumbel_noise(keys, position, logits.shape[-1])
                drawn = (filtered(logits, self.config) + noise).argmax(dim=-1)
                images[:, position] = torch.where(free[:, position], drawn, images[:, position])
            previous = images[:, position]
            if on_progress is not None:
                on_progress(len(images) / steps)


def canvas_cells(canvas: Tensor | None, captions: int, candidates: int, model: Transformer) -> Tensor:
    """Content of each cell before drawing: (captions, candidates, h, w) int64, `FREE` where there is none.

    Raises:
        ValueError: a canvas of another size than the model's, for other numbers of images, or with unknown tokens.
    """
    grid, vocabulary = model.stream.grid, model.stream.image_vocabulary
    if canvas is None:
        canvas = torch.full((grid, grid), FREE)
    if canvas.shape[-2:] != (grid, grid):
        raise ValueError(f"the canvas is {tuple(canvas.shape[-2:])} tokens, but the model draws {grid} x {grid}")
    images = (captions, candidates)
    if canvas.shape[:-2] not in ((), images[1:], images):
        raise ValueError(
            f"the canvas is for {tuple(canvas.shape[:-2])} images, but captions={captions} and "
            f"candidates={candidates}; give one for all, one for each candidate, or one for each of each caption"
        )
    if canvas.min() < FREE or canvas.max() >= vocabulary:
        raise ValueError(
            f"the canvas holds tokens from {canvas.min()} to {canvas.max()}; "
            f"use 0 to {vocabulary - 1}, or {FREE} for cells to be drawn"
        )
    return canvas.cpu().expand(captions, candidates, grid, grid)
