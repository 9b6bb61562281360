"""Attention patterns between image positions: masks, and cache slots for decoding.

Masks in `dalle.models` are named after what true means: an `attend_mask` is true where a query attends to a key, as in
`torch.nn.functional.scaled_dot_product_attention`; `masked` is true where it does not. `key_padding_mask` is true for
padding, as in `torch.nn.MultiheadAttention`.

A pattern has two methods. `attends` defines the attend mask, from which the dense mask and the reads of a decoding step
are derived. `slot` is the cache slot of a position's key and value. A slot may be overwritten only when no later
position attends to it; `cache_layout.cache_layout` checks this against `attends`.

Image positions are numbered in raster order from 0, the position that predicts the first cell. Text is the same for all
patterns: attention within the text is causal, and every image position attends to all text (Sec. 2.2, App. B.1,
Figure 11).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dalle.registry import Entry, Registry


class Pattern(Protocol):
    """Interface of an attention pattern: the image positions that each one attends to in one layer. Hashable."""

    def attends(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        """Return the attend mask: true if image position `query` attends to `key`; broadcastable int -> bool."""
        ...

    def slot(self, position: Tensor, grid: int) -> Tensor:
        """Return the cache slot, from 0, of the key and value of each image position: int of any shape -> the same."""
        ...


@dataclass(frozen=True)
class Dense:
    """Dense causal pattern: all positions up to and including the query's."""

    def attends(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        return key <= query

    def slot(self, position: Tensor, grid: int) -> Tensor:
        return position


@dataclass(frozen=True)
class Row:
    """Row pattern: the last grid + 1 positions in raster order, wrapping over rows (Figure 11a: 5 on a 4-wide grid).

    If the query's own position is counted, the furthest is the cell directly above, as in the paper. Otherwise there
    are grid + 1 positions before it, one cell further.
    """

    counts_itself: bool = True

    def attends(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        return (key <= query) & (query - key <= self._furthest(grid))

    def slot(self, position: Tensor, grid: int) -> Tensor:
        return position % (self._furthest(grid) + 1)  # ring buffer

    def _furthest(self, grid: int) -> int:
        return grid if self.counts_itself else grid + 1


@dataclass(frozen=True)
class Column:
    """Column pattern: the query's position and all above it in the same column (Figures 11b and 11c)."""

    def attends(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        return (key <= query) & ((query - key) % grid == 0)

    def slot(self, position: Tensor, grid: int) -> Tensor:
        # transposed, so that a column is contiguous; nothing is overwritten, since the next row needs every column
        return position % grid * grid + position // grid


@dataclass(frozen=True)
class Convolutional:
    """Convolutional pattern: a causal `kernel` x `kernel` neighbourhood (Figure 11d). Raises ValueError unless odd.

    With `wraps` it wraps over rows, as the row pattern does (Figure 11's caption): the offsets back in raster order are
    grid * dy - dx >= 0, for the cells dy rows up and dx columns to the right, with dy in 0..kernel // 2 and
    |dx| <= kernel // 2. Without it, the neighbourhood ends at the image's left and right edges.
    """

    kernel: int = 11
    wraps: bool = True

    def __post_init__(self):
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"the convolutional pattern needs an odd kernel, not {self.kernel}")

    def attends(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        half = min(self.kernel // 2, grid)  # the whole image
        offset = query - key
        if self.wraps:
            up = ((offset + grid // 2) // grid).clamp(0, half)  # the nearest row of the kernel: no other can be near
            near = (offset - grid * up).abs() <= half
        else:
            up, left = query // grid - key // grid, query % grid - key % grid
            near = (up <= half) & (left.abs() <= half)
        return (offset >= 0) & near

    def slot(self, position: Tensor, grid: int) -> Tensor:
        # ring buffer of rows, transposed, so that the neighbourhood's columns are contiguous
        rows = min(self.kernel // 2 + 1, grid)
        return position % grid * rows + position // grid % rows


@dataclass(frozen=True)
class PatternOptions:
    """Options of the attention patterns, from the transformer's config."""

    kernel: int = 11  # side of the convolutional pattern's neighbourhood
    row_counts_itself: bool = True
    convolution_wraps: bool = True


PATTERNS: Registry[Pattern] = Registry(
    "attention pattern",
    {
        "dense": Entry(lambda options: Dense()),
        "row": Entry(lambda options: Row(options.row_counts_itself)),
        "column": Entry(lambda options: Column()),
        "convolutional": Entry(lambda options: Convolutional(options.kernel, options.convolution_wraps)),
    },
)


def pattern_names(patterns: list[str], depth: int) -> list[str]:
    """Return the name of the attention pattern of each of `depth` layers.

    `["paper"]` is the paper's order: of layers 1..depth, layer i is "column" if (i - 2) % 4 == 0, else "row"; the last
    is "convolutional" (App. B.1). Any other single name applies to all layers; otherwise there is one name per layer.

    Raises:
        ValueError: the number of names is neither 1 nor `depth`.
    """
    if patterns == ["paper"]:
        names = ["column" if (layer - 2) % 4 == 0 else "row" for layer in range(1, depth)]
        return [*names, "convolutional"]
    if len(patterns) == 1:
        return patterns * depth
    if len(patterns) != depth:
        raise ValueError(
            f"patterns names {len(patterns)} layers but depth={depth}; give one name, one per layer, or [paper]"
        )
    return list(patterns)


def image_attend_mask(pattern: Pattern, grid: int) -> Tensor:
    """Return the attend mask between image positions: (I, I) bool, rows are queries."""
    positions = torch.arange(grid * grid, device="cpu")
    # a few queries at a time: differences of positions take 8 bytes for each byte of the mask
    return torch.cat([pattern.attends(queries[:, None], positions, grid) for queries in positions.split(256)])


def sequence_attend_mask(pattern: Pattern, text_positions: int, grid: int) -> Tensor:
    """Return the pattern's dense attend mask over the whole sequence, text first: (n, n) bool, rows are queries."""
    length = text_positions + grid * grid
    attend_mask = torch.ones(length, length, dtype=torch.bool, device="cpu").tril()
    attend_mask[text_positions:, text_positions:] = image_attend_mask(pattern, grid)
    return attend_mask
