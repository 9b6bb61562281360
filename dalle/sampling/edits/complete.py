"""Complete: keep the top rows of an image and sample the rest, the paper's image prompts (Sec. 3.3, App. G)."""

from dataclasses import dataclass

from dalle.sampling.canvas import Canvas, EncodedImage
from dalle.sampling.decode import MASKED

PAPER_SHARE = 15 / 32  # share of rows that the paper keeps


@dataclass
class CompleteConfig:
    """Keep the top rows of tokens and sample the rest: the paper's image prompts (Sec. 3.3), 15 of 32 rows by default.

    python sample.py caption="a red apple" edit=complete image=photo.png
    """

    name: str = "complete"
    rows: int | None = None  # rows of tokens kept, from the top; None: the paper's share, 15 of 32
    paste: bool = True  # show the original pixels of kept tokens; false: show their dVAE reconstruction


def complete(original: EncodedImage, config: CompleteConfig | None = None) -> Canvas:
    """Build the canvas that keeps the top rows of `original`.

    Raises:
        ValueError: no rows, or so many that nothing is left to sample.
    """
    config, grid = config or CompleteConfig(), len(original.tokens)
    rows = round(PAPER_SHARE * grid) if config.rows is None else config.rows
    if not 1 <= rows < grid:
        raise ValueError(f"cannot keep rows={rows} of an image of {grid} rows of tokens; use 1 to {grid - 1}")
    tokens = original.tokens.clone()
    tokens[rows:] = MASKED
    return Canvas(tokens, pixels=original.pixels if config.paste else None)
