"""Attention patterns: which image states an image state sees, and where a decoder keeps those still needed.

A pattern has two faces. `sees` defines it: from it follow the dense mask (training and reference) and what a
step of decoding reads. `slot` says where in a compact cache a state's key and value lie; they may be
overwritten only once no later state sees them, which `kv_cache.layout_of` checks against `sees`.

Image states are counted in raster order from 0, the state that predicts the first cell. Text is the same for
all: a text state sees the text up to itself, an image state sees all text (Sec. 2.2, App. B.1, Figure 11).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dalle.registry import Entry, Registry


class Pattern(Protocol):
    """What one attention layer lets image states see of each other. Hashable."""

    def sees(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        """Whether image state `query` sees image state `key`: integers that broadcast -> bool."""
        ...

    def slot(self, state: Tensor, grid: int) -> Tensor:
        """The place in the cache of each image state's key and value."""
        ...


@dataclass(frozen=True)
class Dense:
    """Every state up to and including itself."""

    def sees(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        return key <= query

    def slot(self, state: Tensor, grid: int) -> Tensor:
        return state


@dataclass(frozen=True)
class Row:
    """grid + 1 states in raster order, wrapping over rows (Figure 11a): the 5 of the paper's 4-wide drawing.

    Counting the state itself, the furthest is the cell straight above, as the paper has it. The other reading,
    grid + 1 states before it, reaches one cell further.
    """

    counts_itself: bool = True

    def sees(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        return (key <= query) & (query - key <= self._furthest(grid))

    def slot(self, state: Tensor, grid: int) -> Tensor:
        return state % (self._furthest(grid) + 1)  # a ring

    def _furthest(self, grid: int) -> int:
        return grid if self.counts_itself else grid + 1


@dataclass(frozen=True)
class Column:
    """The state itself and all those above it in its column (Figures 11b and 11c)."""

    def sees(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        return (key <= query) & ((query - key) % grid == 0)

    def slot(self, state: Tensor, grid: int) -> Tensor:
        # Transposed, so that a column is one stretch of memory; the next row wants every column again.
        return state % grid * grid + state // grid


@dataclass(frozen=True)
class Convolutional:
    """A causal `kernel` x `kernel` neighbourhood (Figure 11d).

    It wraps over rows as the row pattern does (Figure 11's caption): counted back along the raster, the offsets
    grid * dy - dx >= 0 of the cells dy rows up and dx columns to the right, dy in 0..kernel // 2 and
    |dx| <= kernel // 2. Clamped, it ends at the picture's left and right edges.
    """

    kernel: int = 11
    wraps: bool = True

    def __post_init__(self):
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"the convolutional pattern needs an odd kernel, not {self.kernel}")

    def sees(self, query: Tensor, key: Tensor, grid: int) -> Tensor:
        half = self.kernel // 2
        offset = query - key
        if self.wraps:
            near = torch.stack([(offset - grid * up).abs() <= half for up in range(half + 1)]).any(dim=0)
        else:
            up, left = query // grid - key // grid, query % grid - key % grid
            near = (up <= half) & (left.abs() <= half)
        return (offset >= 0) & near

    def slot(self, state: Tensor, grid: int) -> Tensor:
        # A ring of lines, transposed, so that the neighbourhood's columns are one stretch of memory.
        lines = min(self.kernel // 2 + 1, grid)
        return state % grid * lines + state // grid % lines


@dataclass(frozen=True)
class PatternOptions:
    """What a transformer's config says of its patterns."""

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


def layer_names(order: list[str], depth: int) -> list[str]:
    """The pattern's name for each of `depth` layers.

    `["paper"]` is the paper's order: of layers 1..depth, i is "column" where (i - 2) % 4 == 0, else "row";
    the last is "convolutional" (App. B.1). Any other single name serves all layers; else each has its own.

    Raises:
        ValueError: the number of names is neither 1 nor `depth`.
    """
    if order == ["paper"]:
        names = ["column" if (layer - 2) % 4 == 0 else "row" for layer in range(1, depth)]
        return [*names, "convolutional"]
    if len(order) == 1:
        return order * depth
    if len(order) != depth:
        raise ValueError(
            f"patterns names {len(order)} layers but depth={depth}; give one name, one per layer, or [paper]"
        )
    return list(order)


def image_mask(pattern: Pattern, grid: int) -> Tensor:
    """(I, I) bool: may image state `row` see image state `column`?"""
    states = torch.arange(grid * grid, device="cpu")
    return pattern.sees(states[:, None], states[None, :], grid)


def stream_mask(pattern: Pattern, text_positions: int, grid: int) -> Tensor:
    """(n, n) bool over the whole stream, text first: the pattern's dense mask."""
    length = text_positions + grid * grid
    mask = torch.ones(length, length, dtype=torch.bool, device="cpu").tril()
    mask[text_positions:, text_positions:] = image_mask(pattern, grid)
    return mask
