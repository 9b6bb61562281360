"""Reranking: candidates best first, by how well a scorer finds that they fit their caption (Sec. 2.6)."""

from typing import Protocol

from PIL import Image
from torch import Tensor


class Scorer(Protocol):
    """Anything that scores pictures against captions, such as `dalle.CLIP`."""

    def score(self, images: list[Image.Image], captions: list[str]) -> Tensor:
        """(images, captions), higher is better."""
        ...


def rank(images: list[Image.Image], caption: str, scorer: Scorer) -> tuple[list[int], list[float]]:
    """Indices of the images, best first, and their scores in that order. Equal scores keep their order."""
    scores = scorer.score(images, [caption])[:, 0].float()
    order = scores.argsort(descending=True, stable=True).tolist()
    return order, scores[order].tolist()
