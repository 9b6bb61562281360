"""Chunks of known image tokens: several positions processed at once, before decoding starts at the first unknown one.

The queries of a chunk attend to the caption, to the slots of the cache as the positions before the chunk left them, and
to the chunk's own keys. Only then are its keys and values written, since in a ring buffer they replace keys that its
first queries still attend to. The cache is afterwards as `Transformer.decode_one_token` would have left it.
"""

import torch
from torch import Tensor

from dalle.models.attention import SelfAttention
from dalle.models.transformer.kv_cache import LayerCache, cache_layout, join_candidates, split_captions
from dalle.models.transformer.patterns import Pattern


class PrefixChunk:
    """Consecutive image positions of one pass, with their mask and slots in the caches of one attention pattern."""

    def __init__(self, pattern: Pattern, grid: int, positions: range, device: torch.device):
        """positions: those of the chunk. All before them must be in the cache, and none after them is read."""
        layout = cache_layout(pattern, grid)
        own = torch.arange(positions.start, positions.stop, device="cpu")
        cached = torch.full((layout.slots,), -1, device="cpu")  # position in each slot before the chunk; -1: none
        for position in range(positions.start):
            cached[layout.write_slots[position]] = position
        to_cached = (cached >= 0) & pattern.attends(own[:, None], cached.clamp(min=0), grid)
        read = to_cached.any(dim=0).nonzero().flatten().tolist()
        self.read = slice(read[0], read[-1] + 1) if read else slice(0)  # shortest range of slots that are attended to
        attends = torch.cat([to_cached[:, self.read], pattern.attends(own[:, None], own, grid)], dim=1)
        self.mask = (~attends).to(device)  # (n, s + n) bool, true where masked
        # of positions with the same slot the last one is kept
        last = {layout.write_slots[position]: position - positions.start for position in positions}
        self._slots, self._offsets = (
            torch.tensor(list(indices), device=device) for indices in (last.keys(), last.values())
        )

    def attend(self, x: Tensor, layer: SelfAttention, *, cache: LayerCache, images: slice) -> Tensor:
        """Attend from the chunk and add it to the cache: (b, n, heads * d) -> (b, heads, n, d).

        images: the b images of the cache that x belongs to, all of one caption.
        """
        q, k, v = layer.project(x)
        n = q.shape[2]
        scaled = q * q.shape[-1] ** -0.5
        caption = images.start * len(cache.text.keys) // cache.images
        text_keys, text_values = (tensor[caption : caption + 1] for tensor in (cache.text.keys, cache.text.values))
        text_scores = split_captions(join_candidates(scaled, 1) @ text_keys.mT, n)
        keys, values = cache.keys_values(images, self.read, layer)
        image_scores = torch.cat([scaled @ keys.mT, scaled @ k.mT], dim=-1)
        padding = None if cache.text_padding_mask is None else cache.text_padding_mask[images]
        text_weights, image_weights = cache.softmax(text_scores, image_scores, padding, self.mask)
        to_cached, to_own = image_weights.split([keys.shape[2], n], dim=-1)
        output = split_captions(join_candidates(text_weights, 1) @ text_values, n) + to_cached @ values + to_own @ v
        for cached, new in zip(cache.tensors, cache.entries(x, k, v, layer), strict=True):
            rows = cached[images]
            rows.index_copy_(rows.ndim - 2, self._slots, new.index_select(new.ndim - 2, self._offsets).to(rows.dtype))
        return output
