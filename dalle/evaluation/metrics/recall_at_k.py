"""Retrieval: recall at 1, 5 and 10 of captions given images and of images given captions, by CLIP."""

from collections.abc import Sequence

import torch
from torch import Tensor

KS = (1, 5, 10)


def recall_at_k(similarities: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Compute recall@k, `image_to_text_R@k` and `text_to_image_R@k`, for each k of `KS`.

    Recall@k is the share of queries with a correct answer among the k best.

    similarities: (n, n), row i of the image that belongs to captions[i]. Equal captions are all correct answers for
    each other's images. A wrong answer that ties with the correct one ranks before it.
    """
    ids = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    caption_ids = torch.tensor([ids[caption] for caption in captions])
    correct = caption_ids[:, None] == caption_ids[None, :]
    ranks = {
        "image_to_text": correct_ranks(similarities, correct),
        "text_to_image": correct_ranks(similarities.T, correct),
    }
    return {f"{direction}_R@{k}": (rank < k).float().mean().item() for direction, rank in ranks.items() for k in KS}


def correct_ranks(similarities: Tensor, correct: Tensor) -> Tensor:
    """Rank, from 0, of each query's first correct answer among m: (n, m) scores, (n, m) bool -> (n,) int64."""
    # torchmetrics' retrieval_hit_rate takes one row at a time, and resolves ties by chance
    best_correct = similarities.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarities >= best_correct) & ~correct).sum(dim=1)
