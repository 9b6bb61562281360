"""Results of sampling: the images kept for a caption, with their scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from dalle.models.dvae.model import DiscreteVAE
from dalle.sampling.canvas import Canvas
from dalle.sampling.image_decoder import ImageDecoder, decode_images
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
    canvas: Canvas | Tensor | None  # canvas that was sampled on; its `pixels`, if any, are pasted over kept tokens
    decoder: ImageDecoder | None = None  # decodes the images that are kept; None: the dVAE's decoder

    def __call__(
        self,
        caption: str,
        ids: Tensor,
        tokens: Tensor,
        candidate_offset: int,
        decoded: list[Image.Image] | None = None,
        on_chunk: Callable[[], None] = lambda: None,
    ) -> Result:
        """Decode the m candidates of one caption, and return those that are kept.

        ids: (T,), the caption's token ids.
        tokens: (m, h, w) image tokens.
        candidate_offset: candidate number of tokens[0].
        decoded: images of all candidates, decoded by the dVAE and pasted on the canvas; None: decode what is needed.
        on_chunk: called after each batch of candidates that is scored. An exception stops ranking.
        """
        if self.reranker is None:
            order, scores, by_name = list(range(min(self.config.num_kept, len(tokens)))), None, {}
        else:
            # ranked as the dVAE decodes them; the diffusion decoder, which is slower, decodes only those that are kept
            decoded = decoded or self._paste(decode_images(self.dvae, tokens), range(len(tokens)))
            candidates = CaptionCandidates(caption, ids, tokens, decoded)
            order, scores, by_name = self.reranker(candidates, on_chunk).best(self.config.num_kept)
        kept, numbers = tokens[order], [candidate_offset + index for index in order]
        if self.decoder is not None:
            images = self._paste(self.decoder(self.dvae, kept, numbers), order)
        elif decoded is None:
            images = self._paste(decode_images(self.dvae, kept), order)
        else:
            images = [decoded[index] for index in order]
        return Result(caption, images, scores, kept, numbers, len(tokens), by_name)

    def _paste(self, images: list[Image.Image], candidates: Sequence[int]) -> list[Image.Image]:
        return self.canvas.paste(images, candidates) if isinstance(self.canvas, Canvas) else images
