"""Drawing image tokens: the caption once, then cell by cell for all candidates at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.packed import packed
from dalle.models.stream import Stream
from dalle.models.transformer import Transformer
from dalle.sampling.filters import UNFILTERED, Filters
from dalle.sampling.graphs import Step, decoding_step
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
    within rounding.

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
    if guidance < 0:
        raise ValueError(f"guidance={guidance} is below 0; 0 leaves the caption out, 1 is the model's own")
    cells = canvas_cells(canvas, len(captions), candidates, model)
    device = model.image_head.weight.device
    firsts = torch.tensor([first] * len(captions) if isinstance(first, int) else first).unsqueeze(1)
    keys = candidate_keys(seed, (firsts + torch.arange(candidates)).to(device))  # (captions, candidates)
    together = max(1, batch_size // candidates)  # captions
    sides = 1 if guidance == 1 else 2  # rows that are decoded for each image
    model = packed(model, sides * min(batch_size, keys.numel()), precision)
    empty = None if guidance == 1 else model.prefill(empty_caption(model.stream).to(device))

    for caption in range(0, len(captions), together):
        text = model.prefill(captions[caption : caption + together].to(device))
        if empty is not None:
            text = beside_empty(text, empty)
        for candidate in range(0, candidates, batch_size):
            some = slice(caption, caption + together), slice(candidate, candidate + batch_size)
            step = decoding_step(model, text, keys[some].shape[1], compact)
            given = cells[some].to(device)
            images = decode_images(step, model.stream, keys[some], given, filters, guidance, on_progress)
            yield Batch(caption, candidate, images.cpu())


def decode_images(
    step: Step,
    stream: Stream,
    keys: Tensor,
    canvas: Tensor,
    filters: Filters,
    guidance: float,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """One batch: (captions, m) noise keys, (captions, m, h, w) canvas -> (captions, m, h, w) images.

    step: decodes a candidate of each caption, and behind them as many of the empty caption where images are guided.
    """
    captions, guides = len(keys), guidance != 1
    keys = keys.flatten()
    images = rearrange(canvas, "captions m h w -> (captions m) (h w)").clone()
    free = images == FREE
    some_free = free.any(dim=0).tolist()
    steps = max((position + 1 for position, wanted in enumerate(some_free) if wanted), default=0)

    previous = torch.full_like(keys, stream.start_of_image)
    for position in range(steps):
        logits = step(previous.repeat(2) if guides else previous, position)
        if guides:
            logits = guided(logits, guidance)  # (b, v)
        if some_free[position]:
            drawn = (filters(logits) + gumbel_noise(keys, position, logits.shape[-1])).argmax(dim=-1)
            images[:, position] = torch.where(free[:, position], drawn, images[:, position])
        previous = images[:, position]
        if on_progress is not None:
            on_progress(len(images) / steps)
    return rearrange(images, "(captions m) (h w) -> captions m h w", captions=captions, h=stream.grid)


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
