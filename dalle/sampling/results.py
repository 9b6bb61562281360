"""Results: the pictures kept of the candidates that were drawn for a caption, with their scores."""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.canvas import Canvas
from dalle.sampling.rerank import Candidates, Reranker
from dalle.sampling.sampling_config import SamplingConfig


@dataclass(frozen=True)
class Result:
    """The pictures kept for one caption, best first; without a scorer in the order they were drawn."""

    caption: str
    images: list[Image.Image]
    scores: list[float] | None  # what they were ranked by, CLIP scores if not told otherwise; None: unranked
    tokens: Tensor  # (keep, grid, grid) int64
    candidates: list[int]  # which candidate each picture is: with the seed, what it depends on
    drawn: int  # candidates that these were chosen from: fewer than asked for where drawing was stopped
    scores_by_name: dict[str, list[float]] = field(default_factory=dict)  # of each judge, and of their mixture


@dataclass(frozen=True)
class Choice:
    """Makes results of drawn tokens: the best of them, or the first where nothing ranks them."""

    dvae: DiscreteVAE
    config: SamplingConfig
    reranker: Reranker | None
    canvas: Canvas | Tensor | None  # what they were drawn on; a picture that was edited comes back into them

    def __call__(self, caption: str, ids: Tensor, tokens: Tensor, first: int) -> Result:
        """ids: (T,), the caption as the transformer reads it; tokens: (m, h, w), of which the first is `first`."""
        if self.reranker is None:
            order, scores, by_name = list(range(min(self.config.keep, len(tokens)))), None, {}
            images = self._pictures(tokens[order])
        else:
            candidates = self._pictures(tokens)
            order, scores, by_name = self.reranker(Candidates(caption, ids, tokens, candidates)).best(self.config.keep)
            images = [candidates[index] for index in order]
        numbers = [first + index for index in order]
        return Result(caption, images, scores, tokens[order], numbers, len(tokens), by_name)

    def _pictures(self, tokens: Tensor) -> list[Image.Image]:
        images = pictures(self.dvae, tokens)
        return self.canvas.paste(images) if isinstance(self.canvas, Canvas) else images


@torch.inference_mode()
def pictures(dvae: DiscreteVAE, tokens: Tensor, batch_size: int = 16) -> list[Image.Image]:
    """The pictures that image tokens stand for: (b, h, w) int64 -> b of them."""
    device = next(dvae.parameters()).device
    decoded = [dvae.decode(some.to(device)).float().cpu() for some in tokens.split(batch_size)]
    pixels = rearrange(torch.cat(decoded), "b c h w -> b h w c").mul(255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in pixels.numpy()]
