"""Results of sampling: the images kept for a caption, with their scores."""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.canvas import Canvas
from dalle.sampling.rerank import CaptionCandidates, Reranker
from dalle.sampling.sampling_config import SamplingConfig


@dataclass(frozen=True)
class Result:
    """Images kept for one caption, best first; without a reranker in the order of sampling."""

    caption: str
    images: list[Image.Image]
    scores: list[float] | None  # scores that images were ranked by, CLIP's by default; None: unranked
    tokens: Tensor  # (keep, grid, grid) int64
    candidates: list[int]  # candidate number of each image; with the seed it determines the image
    num_sampled: int  # candidates sampled: fewer than requested if sampling was stopped
    scores_by_name: dict[str, list[float]] = field(default_factory=dict)  # each score, and the mixture


@dataclass(frozen=True)
class SelectBest:
    """Select the best candidates by the reranker, or the first ones without a reranker."""

    dvae: DiscreteVAE
    config: SamplingConfig
    reranker: Reranker | None
    canvas: Canvas | Tensor | None  # canvas that was sampled on; an `EncodedImage`'s pixels are pasted back

    def __call__(self, caption: str, ids: Tensor, tokens: Tensor, candidate_offset: int) -> Result:
        """Decode the m candidates of one caption, and return those that are kept.

        ids: (T,), the caption's token ids.
        tokens: (m, h, w) image tokens.
        candidate_offset: candidate number of tokens[0].
        """
        if self.reranker is None:
            order, scores, by_name = list(range(min(self.config.keep, len(tokens)))), None, {}
            images = self._decode(tokens[order])
        else:
            decoded = self._decode(tokens)
            candidates = CaptionCandidates(caption, ids, tokens, decoded)
            order, scores, by_name = self.reranker(candidates).best(self.config.keep)
            images = [decoded[index] for index in order]
        numbers = [candidate_offset + index for index in order]
        return Result(caption, images, scores, tokens[order], numbers, len(tokens), by_name)

    def _decode(self, tokens: Tensor) -> list[Image.Image]:
        images = decode_images(self.dvae, tokens)
        return self.canvas.paste(images) if isinstance(self.canvas, Canvas) else images


@torch.inference_mode()
def decode_images(dvae: DiscreteVAE, tokens: Tensor, batch_size: int = 16) -> list[Image.Image]:
    """Decode image tokens with the dVAE: (b, h, w) int64 -> b images."""
    device = next(dvae.parameters()).device
    decoded = [dvae.decode(batch.to(device)).float().cpu() for batch in tokens.split(batch_size)]
    pixels = rearrange(torch.cat(decoded), "b c h w -> b h w c").mul(255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in pixels.numpy()]
