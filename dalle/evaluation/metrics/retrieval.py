"""Retrieval: recall at 1, 5 and 10 of captions given images and of images given captions, by CLIP."""

from collections.abc import Sequence

import torch
from torch import Tensor

RANKS = (1, 5, 10)


def recalls(similarities: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Compute recall@R, `to_caption_R` and `to_picture_R`, for each R of `RANKS`.

    Recall@R is the share of queries with a right answer among the R best.

    similarities: (n, n), row i of the image that belongs to captions[i]. Any caption of the same words is a right
    answer, and so is its image. A wrong answer that ties with the right one ranks before it.
    """
    names = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    which = torch.tensor([names[caption] for caption in captions])
    right = which[:, None] == which[None, :]
    found = {"to_caption": places(similarities, right), "to_picture": places(similarities.T, right)}
    return {
        f"{direction}_{rank}": (place < rank).float().mean().item()
        for direction, place in found.items()
        for rank in RANKS
    }


def places(similarities: Tensor, right: Tensor) -> Tensor:
    """Count the wrong answers ranked before the first right one: (n, m) scores, (n, m) bool -> (n,) int64."""
    # torchmetrics' retrieval_hit_rate takes one row at a time, and resolves ties by chance
    best = similarities.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarities >= best) & ~right).sum(dim=1)
