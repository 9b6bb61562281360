"""Passes that process known image tokens, `Transformer.prefill_image`: as large as memory allows."""

from bisect import bisect_right

from torch import Tensor

from dalle.models.transformer.kv_cache import Cache, HiddenStateCache
from dalle.models.transformer.model import Transformer
from dalle.sampling.memory import BYTES_PER_LOGIT


def prefill_sizes(model: Transformer, cache: Cache, positions: int) -> tuple[int, int]:
    """Return how many images, and positions of each, `Transformer.prefill_image` may process at a time.

    (0, 0) if memory does not suffice for one position of one image, or if there are no positions.
    It may take what sampling takes from logits of all images, which is free meanwhile; it computes no logits.

    positions: number of positions to process in all.
    """
    budget = cache[0].batch_size * BYTES_PER_LOGIT * model.config.image_vocabulary
    positions = bisect_right(range(1, positions + 1), budget, key=lambda number: _prefill_bytes(model, cache, number))
    return (budget // _prefill_bytes(model, cache, positions), positions) if positions else (0, 0)


def prefill_passes(cache: Cache, previous: Tensor, max_images: int, max_positions: int) -> int:
    """Return an upper bound of the passes of `Transformer.prefill_image`, which takes the same arguments."""
    captions = len(cache[0].prefix.keys)
    by_caption = previous.view(captions, -1, previous.shape[1])
    sequences = 1 if (by_caption == by_caption[:, :1]).all() else by_caption.shape[1]  # of each caption
    return captions * -(-sequences // max_images) * -(-previous.shape[1] // max_positions)


def _prefill_bytes(model: Transformer, cache: Cache, positions: int) -> int:
    """Compute an upper bound of the working memory of `Transformer.prefill_image` for each image at a time."""
    attention = 0
    for layer, block in zip(cache, model.layers, strict=True):
        _, heads, text_positions, _ = layer.prefix.keys.shape
        slots = layer.index.layout.slots
        scores = 6 * heads * positions * (text_positions + slots + positions)  # before and after masking and softmax
        recomputed = slots * block.attention.branch.activations if isinstance(layer, HiddenStateCache) else 0
        attention = max(attention, scores + recomputed)
    return cache[0].prefix.keys.itemsize * attention + 4 * positions * max(block.activations for block in model.layers)
