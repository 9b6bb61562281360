"""Drawing image tokens: the caption once, then cell by cell for all candidates at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.packed import packed
from dalle.models.transformer import Transformer
from dalle.precision import without_autocast
from dalle.sampling.filters import UNFILTERED, Filters
from dalle.sampling.graphs import decoding_step
from dalle.sampling.guidance import beside_empty, empty_caption, guided
from dalle.sampling.noise import candidate_keys, gumbel_noise

FREE = -1  # a cell of a canvas that the model is to fill

OnProgress = Callable[[float], None]
"""Told after each cell how many images' worth of work it was. What it raises ends the drawing."""


class Batch(NamedTuple):
    """Images that were drawn together."""

    caption: int  # the place of the first of their captions
    candidate: int  # the place of the first candidate of each
    images: Tensor  # (captions, candidates, h, w) int64 on the CPU


def generate(model: Transformer, captions: Tensor, candidates: int, **settings: Any) -> Tensor:
    """`batches`, whose settings it takes, put together: (captions, T) -> (captions, candidates, h, w) int64."""
    images = torch.empty(len(captions), candidates, model.stream.grid, model.stream.grid, dtype=torch.int64)
    for batch in batches(model, captions, candidates, **settings):
        rows, columns = batch.images.shape[:2]
        images[batch.caption : batch.caption + rows, batch.candidate : batch.candidate + columns] = batch.images
    return images


@torch.inference_mode()
def batches(
    model: Transformer,
    captions: Tensor,
    candidates: int,
    *,
    filters: Filters = UNFILTERED,
    guidance: float = 1.0,
    seed: int = 0,
    first: int | Sequence[int] = 0,
    batch_size: int = 64,
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
    guidance: how much the captions' say is scaled, see `dalle.sampling.guidance`; 1 is the model's own and the
        paper's, and any other decodes each image twice.
    first: one number for all captions, or one for each.
    batch_size: images decoded at a time.
    canvas: (h, w), (candidates, h, w) or (captions, candidates, h, w) int64; cells other than `FREE` are kept.
    precision: of the linear layers on a CPU, see `dalle.models.packed`; elsewhere the model's own is used.
    compact: caches that take less memory and a little longer, see `Transformer.new_cache`.

    Raises:
        ValueError: no candidates, a batch size below 1, a guidance below 0, or a canvas of another size or with
            unknown tokens.
    """
    if candidates < 1 or batch_size < 1:
        raise ValueError(f"candidates={candidates} and batch_size={batch_size} must be at least 1")
    cells = canvas_cells(canvas, len(captions), candidates, model)
    firsts = torch.tensor([first] * len(captions) if isinstance(first, int) else first).unsqueeze(1)
    keys = candidate_keys(seed, firsts + torch.arange(candidates))  # (captions, candidates)
    samplers = TokenSamplerFactory(model, min(batch_size, keys.numel()), filters, guidance, precision, compact)
    together = max(1, batch_size // candidates)  # captions
    for caption in range(0, len(captions), together):
        for candidate in range(0, candidates, batch_size):
            some = slice(caption, caption + together), slice(candidate, candidate + batch_size)
            sampler = samplers.create(captions[some[0]], keys[some].shape[1])
            images = sampler.sample(keys[some], cells[some], on_progress)
            del sampler  # before the caller decodes and ranks the images, and before the next one is made
            yield Batch(caption, candidate, images)


class TokenSamplerFactory:
    """Makes a `TokenSampler` for each batch of captions; holds what all of them share."""

    @torch.inference_mode()
    def __init__(
        self,
        model: Transformer,
        batch_size: int,
        filters: Filters = UNFILTERED,
        guidance: float = 1.0,
        precision: torch.dtype = torch.float32,
        compact: bool = False,
    ):
        """See `batches`; batch_size: images that most samplers will draw at a time.

        Raises ValueError for a batch size below 1 or a guidance below 0.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if guidance < 0:
            raise ValueError(f"guidance={guidance} is below 0; 0 leaves the caption out, 1 is the model's own")
        self.filters, self.guidance, self.compact = filters, guidance, compact
        self.device = model.image_head.weight.device
        rows = 1 if guidance == 1 else 2  # that are decoded for each image
        with without_autocast(self.device.type):
            self.model = packed(model, rows * batch_size, precision)
            empty = empty_caption(model.stream).to(self.device)
            self.empty = None if guidance == 1 else self.model.prefill(empty)

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
        self.filters, self.guidance, self.device = shared.filters, shared.guidance, shared.device
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
        guides = self.guidance != 1
        free = images == FREE
        some_free = free.any(dim=0).tolist()
        steps = max((position + 1 for position, wanted in enumerate(some_free) if wanted), default=0)

        previous = torch.full_like(keys, self.stream.start_of_image)
        for position in range(steps):
            logits = self.step(previous.repeat(2) if guides else previous, position)
            if guides:
                logits = guided(logits, self.guidance)  # (b, v)
            if some_free[position]:
                drawn = (self.filters(logits) + gumbel_noise(keys, position, logits.shape[-1])).argmax(dim=-1)
                images[:, position] = torch.where(free[:, position], drawn, images[:, position])
            previous = images[:, position]
            if on_progress is not None:
                on_progress(len(images) / steps)


def canvas_cells(canvas: Tensor | None, captions: int, candidates: int, model: Transformer) -> Tensor:
    """What stands in each cell before drawing: (captions, candidates, h, w) int64, `FREE` where nothing does.

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
