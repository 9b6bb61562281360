"""A scorer of pictures and captions that had no part in training or choosing: words read off an ImageNet network.

Ridge regression maps efficientnet-lite0's features of training pictures to the words of their captions. A picture's
score with a caption is the cosine between the words that its features tell and those that the caption has, both
centred. It is crude, but a picture gains nothing by having pleased the CLIP that chose it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.data.source import Source
from dalle.evaluation.features import Features
from dalle.evaluation.held_out import HeldOut
from dalle.pixels import to_tensor
from dalle.tokenizer import words_of

FITTED = 4_000  # training pictures at most
SELDOM = 5  # captions that a word must be in
PENALTY = 100.0  # of the squared weights, for standardised features


@dataclass(frozen=True)
class CaptionWords:
    """The fitted map. `score` is that of `dalle.sampling.rerank.Scorer`."""

    features: Features
    words: list[str]
    mean: Tensor  # (width,) of the features
    spread: Tensor  # (width,)
    weights: Tensor  # (width, words)
    frequencies: Tensor  # (words,) share of the captions that have each

    @classmethod
    def fit(cls, source: Source, features: Features) -> "CaptionWords":
        """Fit to the first pictures of a training split.

        Raises ValueError where no word is in enough captions.
        """
        seen, captions = [], []
        for batch in HeldOut(source, min(FITTED, len(source))):
            seen.append(features(batch.images).features)
            captions += batch.captions
        counts = Counter(word for caption in captions for word in words_of(caption))
        words = sorted(word for word, count in counts.items() if SELDOM <= count <= len(captions) / 2)
        if not words:
            raise ValueError(
                f"no word is in {SELDOM} to {len(captions) // 2} of {len(captions)} training captions, so none can be "
                "learned to be told: name another scorer with scorer=<folder of a CLIP>"
            )
        x = torch.cat(seen).double()
        mean, spread = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        x = (x - mean) / spread
        targets = torch.stack([_indicator(caption, words) for caption in captions]).double()
        frequencies = targets.mean(dim=0)
        # scikit-learn's Ridge does the same, and would be a dependency for two lines
        penalty = PENALTY * torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (targets - frequencies))
        return cls(features, words, mean, spread, weights, frequencies)

    def score(self, images: list[Image.Image], captions: list[str]) -> Tensor:
        """Cosines in [-1, 1]: (images, captions). 0 for captions without a known word."""
        pixels = (to_tensor(images) * 255).round().to(torch.uint8)
        told = ((self.features(pixels).features.double() - self.mean) / self.spread) @ self.weights
        said = torch.stack([_indicator(caption, self.words) for caption in captions]).double()
        known = said.any(dim=1, keepdim=True)
        wanted = torch.where(known, said - self.frequencies, 0.0)
        scale = self.frequencies.clamp_min(1e-6).rsqrt()  # rare words count for more
        return (F.normalize(told * scale, dim=1) @ F.normalize(wanted * scale, dim=1).T).float()


def _indicator(caption: str, words: Sequence[str]) -> Tensor:
    found = words_of(caption)
    return torch.tensor([float(word in found) for word in words])
