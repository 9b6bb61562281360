"""Whether a picture finds its caption among others, and a caption its picture: recall at 1, 5 and 10, by CLIP."""

from collections.abc import Sequence

import torch
from torch import Tensor

RANKS = (1, 5, 10)


def recalls(similarities: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """`to_caption_R` and `to_picture_R` for each R of `RANKS`: the share of right answers among the R best.

    similarities: (n, n), row i of the picture that belongs to captions[i]. Any caption of the same words is a right
    answer, and so is its picture. A wrong answer that ties with the right one comes before it.
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
    """How many wrong answers come before the first right one: (n, m) scores, (n, m) bool -> (n,) int64."""
    # torchmetrics' retrieval_hit_rate takes a row at a time, and lets a right answer win a tie by chance
    best = similarities.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarities >= best) & ~right).sum(dim=1)
