"""Block-sparse attention, equal to attention with a pattern's dense mask but with less computation.

Image positions attend in groups, such as a row or column of the image: to all text keys, and to a block of image keys
shared by the group. The two parts have one joint softmax, or a softmax each.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.attention import DenseMaskAttention, TextImageSoftmax, causal, full
from dalle.models.transformer.flex_attention import FlexAttention
from dalle.models.transformer.patterns import Column, Dense, Pattern, image_attend_mask, sequence_attend_mask

IMPLEMENTATIONS = ("auto", "dense", "sparse", "flex")


def build_attention(
    pattern: Pattern, text_positions: int, grid: int, implementation: str = "auto", normalisation: str = "joint"
) -> nn.Module:
    """Build the attention of a layer with `pattern` over the whole sequence.

    The returned module maps queries, keys and values, (b, heads, n, d) each, to (b, heads, n, d). Its optional argument
    `key_padding_mask`, (b, T) bool, is the key padding mask of the text.

    implementation: "dense" is attention with a dense mask, "sparse" block-sparse attention. "auto" is the faster of the
        two on a CPU; on a GPU, where they have not been compared, it is the dense mask in one fused kernel. "flex" is
        FlexAttention on a CUDA GPU, and the dense mask elsewhere.
    normalisation: "joint" is one softmax over the text and image keys of an image position; "separate" is a softmax
        for each, with results added (Sec. 2.2, fn. 7).

    Raises:
        ValueError: an unknown `implementation` or `normalisation`, or "flex" with "separate".
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention={implementation!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    softmax = TextImageSoftmax(normalisation)
    joint = normalisation == "joint"
    if implementation == "auto" and joint and isinstance(pattern, Dense):
        return CausalAttention()
    dense = (
        DenseMaskAttention(sequence_attend_mask(pattern, text_positions, grid))
        if joint
        else SeparateSoftmaxAttention(pattern, text_positions, grid)
    )
    if implementation == "flex":
        if not joint:
            raise ValueError("attention=flex has one softmax for all keys: set attention_normalisation=joint")
        return DeviceDispatch("cuda", FlexAttention(pattern, text_positions, grid), dense)
    sparse = partial(_sparse_attention, pattern, text_positions, grid, softmax)
    if implementation == "sparse":
        return sparse()
    # measured on CPUs: from 256 image positions on, sparse is faster if a query has at most 2/5 of all keys
    max_image_keys = (text_positions + grid * grid) * 2 // 5 - text_positions
    image_keys = grid if isinstance(pattern, Column) else rows_attended(pattern, grid) * grid
    return (
        DeviceDispatch("cpu", sparse(), dense)
        if implementation == "auto" and grid >= 16 and image_keys <= max_image_keys
        else dense
    )


def _sparse_attention(pattern: Pattern, text_positions: int, grid: int, softmax: TextImageSoftmax) -> nn.Module:
    if isinstance(pattern, Column):
        return ColumnSparseAttention(text_positions, grid, softmax)
    return RowSparseAttention(pattern, text_positions, grid, softmax)


def rows_attended(pattern: Pattern, grid: int) -> int:
    """Count the rows of the image, up to the query's own, that contain all keys of the queries in any one row."""
    cells = image_attend_mask(pattern, grid).view(grid, grid, grid, grid)
    rows = cells.any(dim=3).any(dim=1)  # rows of queries and of keys
    query, key = rows.nonzero().unbind(dim=1)
    return int((query - key).max()) + 1


class DeviceDispatch(nn.Module):
    """Dispatch to one implementation of attention on devices of one type, and to an equivalent one elsewhere."""

    def __init__(self, device_type: str, specialised: nn.Module, fallback: nn.Module):
        super().__init__()
        self.device_type, self.specialised, self.fallback = device_type, specialised, fallback

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        return (self.specialised if q.device.type == self.device_type else self.fallback)(q, k, v, key_padding_mask)


def use_dense_masks(model: nn.Module) -> nn.Module:
    """Replace attention that depends on the device by an equal one with a dense mask, in place. Returns `model`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DeviceDispatch):
                setattr(module, name, child.fallback)
    return model


class CausalAttention(nn.Module):
    """Causal attention over text and image, for the dense pattern with a joint softmax."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        return causal(q, k, v, key_padding_mask)


class SeparateSoftmaxAttention(nn.Module):
    """Dense-mask attention with separate softmaxes: an image position's attention to text plus that to image keys."""

    def __init__(self, pattern: Pattern, text_positions: int, grid: int):
        super().__init__()
        self.text_positions = text_positions
        self.to_image = DenseMaskAttention(image_attend_mask(pattern, grid))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        (text_q, q), (text_k, k), (text_v, v) = (_split(x, self.text_positions) for x in (q, k, v))
        image = full(q, text_k, text_v, key_padding_mask) + self.to_image(q, k, v)
        return torch.cat([causal(text_q, text_k, text_v, key_padding_mask), image], dim=2)


class BlockSparseAttention(nn.Module, ABC):
    """Block-sparse attention: g groups of s image positions, with m image keys shared in each group."""

    masked: Tensor  # (g or 1, s, m) bool: keys of each group that each of its queries does not attend to

    def __init__(self, masked: Tensor, text_positions: int, grid: int, softmax: TextImageSoftmax):
        super().__init__()
        self.register_buffer("masked", masked, persistent=False)
        self.text_positions = text_positions
        self.grid = grid
        self.softmax = softmax

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        (text_q, q), (text_k, k), (text_v, v) = (_split(x, self.text_positions) for x in (q, k, v))
        text = causal(text_q, text_k, text_v, key_padding_mask)
        q, k, v = self.queries(q), self.keys(k), self.keys(v)  # (b, heads, g, s, d), the others (b, heads, g, m, d)

        q = q * q.shape[-1] ** -0.5
        groups = q.shape[2]
        text_scores = rearrange(q, "b heads g s d -> b heads (g s) d") @ text_k.mT
        text_scores = rearrange(text_scores, "b heads (g s) t -> b heads g s t", g=groups)
        text_padding_mask = None if key_padding_mask is None else key_padding_mask[:, None, None, None]
        image_scores = q @ k.mT
        # added, because filling would cost another pass over all scores in the backward pass
        image_scores += q.new_zeros(self.masked.shape).masked_fill_(self.masked, -torch.inf)
        text_weights, image_weights = self.softmax(text_scores, image_scores, text_padding_mask, None)

        from_text = rearrange(text_weights, "b heads g s t -> b heads (g s) t") @ text_v
        from_text = rearrange(from_text, "b heads (g s) d -> b heads g s d", g=groups)
        return torch.cat([text, self.in_raster_order(from_text + image_weights @ v)], dim=2)

    @abstractmethod
    def queries(self, image: Tensor) -> Tensor:
        """Group the queries: (b, heads, I, d) -> (b, heads, g, s, d)."""

    @abstractmethod
    def keys(self, image: Tensor) -> Tensor:
        """Gather the keys, or values, of each group: (b, heads, I, d) -> (b, heads, g, m, d)."""

    @abstractmethod
    def in_raster_order(self, groups: Tensor) -> Tensor:
        """Return grouped results to raster order, undoing `queries`: (b, heads, g, s, d) -> (b, heads, I, d)."""


class RowSparseAttention(BlockSparseAttention):
    """Row-sparse attention, for patterns that attend to a few rows: queries of a row, or of a few, share their keys."""

    def __init__(self, pattern: Pattern, text_positions: int, grid: int, softmax: TextImageSoftmax):
        rows_before = rows_attended(pattern, grid) - 1
        # if queries attend to many earlier rows, two rows of queries per group are 1.05 to 1.1 times as fast as one
        query_rows = 2 if rows_before > 3 and grid % 2 == 0 else 1
        query = torch.arange(grid * grid, device="cpu").view(grid // query_rows, -1, 1)
        first = (torch.arange(0, grid, query_rows, device="cpu") - rows_before) * grid
        key = first[:, None, None] + torch.arange((rows_before + query_rows) * grid, device="cpu")
        attend_mask = pattern.attends(query, key, grid) & (key >= 0)  # keys before the first row are padding
        super().__init__(~attend_mask, text_positions, grid, softmax)
        self.rows_before, self.query_rows = rows_before, query_rows

    def queries(self, image: Tensor) -> Tensor:
        return rearrange(image, "b heads (g s) d -> b heads g s d", s=self.query_rows * self.grid)

    def keys(self, image: Tensor) -> Tensor:
        """Concatenate the keys of each group's attended rows, from the furthest to its own.

        (b, heads, I, d) -> (b, heads, g, m, d).
        """
        rows = rearrange(image, "b heads (h w) d -> b heads h (w d)", w=self.grid)
        windows = _RowWindows.apply(rows, self.rows_before, self.query_rows)
        return rearrange(windows, "b heads g rows (w d) -> b heads g (rows w) d", w=self.grid)

    def in_raster_order(self, groups: Tensor) -> Tensor:
        return rearrange(groups, "b heads g s d -> b heads (g s) d")


class _RowWindows(torch.autograd.Function):
    """Gather each group of `size` rows, and the `rows_before` before it: (b, heads, h, n) -> (b, heads, g, rows, n).

    The backward pass adds the windows up in one tensor; autograd would make one for each row of a window.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, rows_before: int, size: int) -> Tensor:
        ctx.rows_before, ctx.size = rows_before, size
        return F.pad(image, (0, 0, rows_before, 0)).unfold(2, rows_before + size, size).mT.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        b, heads, groups, rows, n = gradients[0].shape
        total = gradients[0].new_zeros(b, heads, ctx.rows_before + groups * ctx.size, n)
        for row, windows in enumerate(gradients[0].unbind(3)):
            total[:, :, row : row + (groups - 1) * ctx.size + 1 : ctx.size] += windows
        return total[:, :, ctx.rows_before :], None, None


class ColumnSparseAttention(BlockSparseAttention):
    """Column-sparse attention, for the column pattern: causal within each column of the image (Figure 11c)."""

    def __init__(self, text_positions: int, grid: int, softmax: TextImageSoftmax):
        masked = torch.ones(1, grid, grid, dtype=torch.bool, device="cpu").triu(diagonal=1)
        super().__init__(masked, text_positions, grid, softmax)

    def queries(self, image: Tensor) -> Tensor:
        return rearrange(image, "b heads (h w) d -> b heads w h d", w=self.grid)

    keys = queries

    def in_raster_order(self, groups: Tensor) -> Tensor:
        return rearrange(groups, "b heads w h d -> b heads (h w) d")


def _split(x: Tensor, text_positions: int) -> tuple[Tensor, Tensor]:
    """Split into text and image positions: (b, heads, n, d) -> (b, heads, T, d), (b, heads, I, d)."""
    return x[:, :, :text_positions], x[:, :, text_positions:]
