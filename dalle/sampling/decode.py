"""Drawing image tokens: the caption once, then cell by cell for all candidates at a time."""

import torch
from einops import rearrange, repeat
from torch import Tensor

from dalle.models.cache import CaptionCache
from dalle.models.transformer import Transformer
from dalle.sampling.filters import UNFILTERED, Filters
from dalle.sampling.noise import candidate_keys, gumbel_noise

FREE = -1  # a cell of a canvas that the model is to fill


@torch.inference_mode()
def generate(
    model: Transformer,
    captions: Tensor,
    candidates: int,
    *,
    filters: Filters = UNFILTERED,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 64,
    canvas: Tensor | None = None,
) -> Tensor:
    """Draw images for each caption: (captions, T) -> (captions, candidates, h, w) int64 on the CPU.

    Candidates are numbered first, first + 1, ...; the tokens of candidate i depend on its caption, the
    filters and (seed, i) alone, whatever is drawn beside it, unless two tokens tie to within rounding.

    captions: as `model.stream.captions` makes them.
    batch_size: images decoded at a time.
    canvas: (h, w) int64; cells other than `FREE` are kept as they are.

    Raises:
        ValueError: no candidates, a batch size below 1, or a canvas of another size or with unknown tokens.
    """
    if candidates < 1 or batch_size < 1:
        raise ValueError(f"candidates={candidates} and batch_size={batch_size} must be at least 1")
    if canvas is not None:
        _check_canvas(canvas, model)
    device = model.image_head.weight.device
    numbers = torch.arange(first, first + candidates, device=device)
    together = max(1, batch_size // candidates)  # captions

    drawn = []
    for some_captions in captions.to(device).split(together):
        text = model.prefill(some_captions)
        images = [
            decode_images(model, text, candidate_keys(seed, some), filters, canvas)
            for some in numbers.split(batch_size)
        ]
        drawn.append(torch.cat(images, dim=1).cpu())
    return torch.cat(drawn)


def decode_images(
    model: Transformer, text: CaptionCache, keys: Tensor, filters: Filters, canvas: Tensor | None = None
) -> Tensor:
    """One batch, a candidate of each caption for each of (m,) noise keys -> (captions, m, h, w) int64."""
    captions, grid = len(text[0][0]), model.stream.grid
    cache = model.new_cache(text, len(keys))
    keys = repeat(keys, "m -> (captions m)", captions=captions)
    given = [FREE] * model.stream.image_positions if canvas is None else canvas.flatten().tolist()

    tokens = [torch.full_like(keys, model.stream.start_of_image)]
    for position in range(model.stream.image_positions):
        logits = model.decode_one_token(tokens[-1], position, cache)  # (b, v)
        if given[position] == FREE:
            noise = gumbel_noise(keys, position, logits.shape[-1])
            tokens.append((filters(logits) + noise).argmax(dim=-1))
        else:
            tokens.append(torch.full_like(keys, given[position]))
    images = torch.stack(tokens[1:], dim=1)
    return rearrange(images, "(captions m) (h w) -> captions m h w", captions=captions, h=grid)


def _check_canvas(canvas: Tensor, model: Transformer) -> None:
    grid, vocabulary = model.stream.grid, model.stream.image_vocabulary
    if canvas.shape != (grid, grid):
        raise ValueError(f"the canvas is {tuple(canvas.shape)} tokens, but the model draws {grid} x {grid}")
    if canvas.min() < FREE or canvas.max() >= vocabulary:
        raise ValueError(
            f"the canvas holds tokens from {canvas.min()} to {canvas.max()}; "
            f"use 0 to {vocabulary - 1}, or {FREE} for cells to be drawn"
        )
