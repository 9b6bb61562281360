"""Chunks of known image tokens: several positions processed at once, before decoding starts at the first unknown one.

The queries of a chunk attend to the caption, to the slots of the cache as the positions before the chunk left them, and
to the chunk's own keys. Only then are its keys and values written, since in a ring buffer they replace keys that its
first queries still attend to. The cache is afterwards as `Transformer.decode_one_token` would have left it.
"""

import torch
from torch import Tensor

from dalle.models.attention import SelfAttention
from dalle.models.transformer.cache_layout import cache_layout
from dalle.models.transformer.kv_cache import LayerCache, join_candidates, split_captions
from dalle.models.transformer.patterns import Pattern


class PrefixChunk:
    """Consecutive image positions of one pass: their slots, and keys they attend to, in caches of one pattern."""

    def __init__(self, pattern: Pattern, grid: int, positions: range, device: torch.device):
        """positions: those of the chunk. All before them must be in the cache, and none after them is read."""
        layout = cache_layout(pattern, grid)
        chunk = torch.arange(positions.start, positions.stop, device="cpu")
        cached = torch.full((layout.slots,), -1, device="cpu")  # position in each slot before the chunk; -1: none
        for position in range(positions.start):
            cached[layout.write_slots[position]] = position
        attends_cached = (cached >= 0) & pattern.attends(chunk[:, None], cached.clamp(min=0), grid)
        attended = attends_cached.any(dim=0).nonzero().flatten().tolist()
        # shortest range of slots that are attended to
        self.read_slice = slice(attended[0], attended[-1] + 1) if attended else slice(0)
        attends_chunk = pattern.attends(chunk[:, None], chunk, grid)
        attends = torch.cat([attends_cached[:, self.read_slice], attends_chunk], dim=1)
        self.masked = (~attends).to(device)  # (n, s + n) bool
        # of positions with the same slot the last one is kept
        last = {layout.write_slots[position]: position - positions.start for position in positions}
        self._slots, self._offsets = (
            torch.tensor(list(indices), device=device) for indices in (last.keys(), last.values())
        )

    def attend(self, x: Tensor, attention: SelfAttention, *, cache: LayerCache, rows: slice) -> Tensor:
        """Attend from the chunk and add it to the cache: (b, n, heads * d) -> (b, heads, n, d).

        rows: the b images of the cache that x belongs to, all of one caption.
        """
        q, k, v = attention.project(x)
        n = q.shape[2]
        scaled = q * q.shape[-1] ** -0.5
        caption = rows.start * len(cache.prefix.keys) // cache.batch_size
        text_keys, text_values = (tensor[caption : caption + 1] for tensor in (cache.prefix.keys, cache.prefix.values))
        text_scores = split_captions(join_candidates(scaled, 1) @ text_keys.mT, n)
        keys, values = cache.keys_values(rows, self.read_slice, attention)
        image_scores = torch.cat([scaled @ keys.mT, scaled @ k.mT], dim=-1)
        padding = None if cache.text_padding_mask is None else cache.text_padding_mask[rows]
        text_weights, image_weights = cache.softmax(text_scores, image_scores, padding, self.masked)
        cached_weights, chunk_weights = image_weights.split([keys.shape[2], n], dim=-1)
        from_text = split_captions(join_candidates(text_weights, 1) @ text_values, n)
        output = from_text + cached_weights @ values + chunk_weights @ v
        for cached, entries in zip(cache.tensors, cache.entries(x, k, v, attention), strict=True):
            last_entries = entries.index_select(entries.ndim - 2, self._offsets).to(cached.dtype)
            cached[rows].index_copy_(cached.ndim - 2, self._slots, last_entries)
        return output
