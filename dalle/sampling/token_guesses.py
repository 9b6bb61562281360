"""Guesses of image tokens for parallel decoding. They decide its speed, never its images.

Each function makes the first guess of a token; later ones are outputs of passes. A token is the argmax of its logits
plus Gumbel noise that is known in advance, so an estimate of the distribution is a better guess with the same noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

HISTORY_LENGTH = 16_384  # most recent cells that `counts` keeps
# factor of log-frequencies: the model sees more than two neighbours, so its distributions are sharper than these counts
COUNTS_SHARPNESS = 2.0
IMAGES_AT_A_TIME = 4  # images that `counts` compares with the history at a time, in about 1 MB


class Context(NamedTuple):
    """Cells to guess, one of each of b images, and what is known about them."""

    positions: Tensor  # (b,) int64
    left: Tensor  # (b,) tokens to the left in raster order, -1 for the first cell
    above: Tensor  # (b,) tokens above, -1 in the first row
    noise: Tensor  # (b, v) Gumbel noise of the cells


class TokenHistory:
    """Tokens sampled so far in one call of the sampler, each with its position, left token and above token."""

    def __init__(self) -> None:
        self.cells = torch.empty(0, 4, dtype=torch.int64)

    def add(self, positions: Tensor, tokens: Tensor, left: Tensor, above: Tensor) -> None:
        """Add n cells, (n,) each, and forget the oldest beyond `HISTORY_LENGTH`."""
        new = torch.stack([positions, tokens, left, above], dim=1)
        self.cells = torch.cat([self.cells.to(new.device), new])[-HISTORY_LENGTH:]

    def log_frequencies(self, context: Context) -> Tensor:
        """Estimate the log-probability of each token, up to a constant: (b, v).

        Every cell votes for its token, with more weight the more of its left token, above token and position agree.
        """
        tokens = self.cells[:, 1]
        frequencies = torch.full_like(context.noise, 1e-4)
        for begin in range(0, len(frequencies), IMAGES_AT_A_TIME):
            images = slice(begin, begin + IMAGES_AT_A_TIME)
            votes = self._votes(context.positions[images], context.left[images], context.above[images])
            frequencies[images].scatter_add_(1, tokens.expand(len(votes), -1), votes)
        return frequencies.log()

    def _votes(self, positions: Tensor, left: Tensor, above: Tensor) -> Tensor:
        """Return the weight of the vote of each cell of the history for each of m cells, (m,) each: (m, cells)."""
        cell_positions, _, cell_left, cell_above = self.cells.T
        same_left = left.unsqueeze(1) == cell_left
        same_above = above.unsqueeze(1) == cell_above
        same_position = positions.unsqueeze(1) == cell_positions
        return 0.001 + 0.1 * same_left + 0.1 * same_above + 0.1 * same_position + 3.0 * (same_left & same_above)


Guess = Callable[[Context, TokenHistory], Tensor]
"""Guess function: context and history -> (b,) guessed tokens of the context's cells."""


def guess_left(context: Context, history: TokenHistory) -> Tensor:
    """Guess the token to the left; 0 for the first cell."""
    return context.left.clamp(min=0)


def guess_above(context: Context, history: TokenHistory) -> Tensor:
    """Guess the token above; in the first row the one to the left."""
    return torch.where(context.above < 0, context.left, context.above).clamp(min=0)


def guess_noise(context: Context, history: TokenHistory) -> Tensor:
    """Guess the token with the largest noise: a sample of the uniform distribution, as Jacobi decoding starts with."""
    return context.noise.argmax(dim=-1)


def guess_counts(context: Context, history: TokenHistory) -> Tensor:
    """Guess by the frequencies of the tokens sampled so far, with the cell's own noise; `guess_above` without any."""
    if not len(history.cells):
        return guess_above(context, history)
    return (COUNTS_SHARPNESS * history.log_frequencies(context) + context.noise).argmax(dim=-1)


GUESSES: dict[str, Guess] = {
    "above": guess_above,
    "left": guess_left,
    "noise": guess_noise,
    "counts": guess_counts,
}
