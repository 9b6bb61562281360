"""Attention by torch's FlexAttention (`torch.nn.attention.flex_attention`), for CUDA: masked blocks are not computed.

The mask of every pattern comes from its `attends`, as dense masks and caches do; torch's `mask_mod` and block mask are
also true where a query attends to a key. It has no backward pass on CPUs.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle.models.transformer.patterns import Column, Pattern

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexAttention(nn.Module):
    """Attention with `pattern` over the whole sequence, equal to that with the pattern's dense mask up to rounding.

    Image positions of the column pattern are numbered column by column, so that a query attends to adjacent keys.
    """

    def __init__(self, pattern: Pattern, text_positions: int, grid: int):
        super().__init__()
        self.pattern, self.text_positions, self.grid = pattern, text_positions, grid
        self.by_columns = isinstance(pattern, Column)
        self.block_mask: Any = None  # a BlockMask, which is no tensor; None: not built yet

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend: (b, heads, n, d) each -> (b, heads, n, d). `key_padding_mask`: (b, T) bool, of the text."""
        if self.block_mask is None:
            self.block_mask = self._build_block_mask(q.device)
        if self.by_columns:
            q, k, v = (self._transpose_image(x) for x in (q, k, v))
        score_mod = None if key_padding_mask is None else padding_score_mod(key_padding_mask)
        output = flex_attention(q.device.type)(q, k, v, score_mod=score_mod, block_mask=self.block_mask)
        return self._transpose_image(output) if self.by_columns else output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FlexAttention":
        """Build the block mask when the module moves to a GPU, before its caller may be compiled."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device="cpu")).device
        self.block_mask = self._build_block_mask(device) if device.type == "cuda" else None
        return self

    def _build_block_mask(self, device: torch.device) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        length = self.text_positions + self.grid**2
        mask_mod = sequence_mask_mod(self.pattern, self.text_positions, self.grid, self.by_columns)
        return create_block_mask(mask_mod, None, None, length, length, device=device)

    def _transpose_image(self, x: Tensor) -> Tensor:
        """Swap rows and columns of the image positions, which undoes itself: (b, heads, n, d) -> (b, heads, n, d)."""
        text, image = x.split([self.text_positions, self.grid**2], dim=2)
        return torch.cat([text, rearrange(image, "b heads (h w) d -> b heads (w h) d", w=self.grid)], dim=2)


def sequence_mask_mod(pattern: Pattern, text_positions: int, grid: int, by_columns: bool = False) -> MaskMod:
    """Return the attend mask over the whole sequence, as a function of (batch, head, query, key) positions.

    by_columns: image positions are numbered column by column, not row by row.
    """

    def in_raster_order(position: Tensor) -> Tensor:
        image = position - text_positions
        return image % grid * grid + image // grid if by_columns else image

    def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_text = query < text_positions
        in_image = pattern.attends(in_raster_order(query), in_raster_order(key), grid)
        return torch.where(in_text, key <= query, (key < text_positions) | in_image)

    return attends


def padding_score_mod(key_padding_mask: Tensor) -> Callable[..., Tensor]:
    """Return a function that sets the scores of masked text keys to -inf; `key_padding_mask`: (b, T) bool."""
    text_positions = key_padding_mask.shape[1]

    def score_mod(score: Tensor, batch: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        in_text = key < text_positions
        # the index is clamped for image keys, whose value `in_text` then discards
        masked = in_text & key_padding_mask[batch, key.clamp(max=text_positions - 1)]
        return torch.where(masked, -torch.inf, score)

    return score_mod


@cache
def flex_attention(device_type: str) -> Callable[..., Any]:
    """Return torch's `flex_attention`, compiled to one kernel on a GPU; on a CPU as it is, which stores all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device_type == "cuda" else flex_attention
