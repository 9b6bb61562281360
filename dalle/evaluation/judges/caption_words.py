"""Independent image-text scorer: predict caption words from the features of an ImageNet network.

Ridge regression maps efficientnet-lite0's features of training images to the words of their captions. The score of an
image and a caption is the cosine between the predicted words and the caption's words, both centred. It is crude, but
independent of the CLIP that ranks candidates, so its score does not rise by selection alone.
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
from dalle.image_conversion import to_tensor
from dalle.tokenizer import words_of

FITTED = 4_000  # maximum number of training images
SELDOM = 5  # minimum number of captions with a word
PENALTY = 100.0  # ridge penalty on the squared weights, for standardised features


@dataclass(frozen=True)
class CaptionWords:
    """Fitted word predictor. `score` implements `dalle.sampling.rerank.Scorer`."""

    features: Features
    words: list[str]
    mean: Tensor  # (width,) mean of the features
    spread: Tensor  # (width,) standard deviation of the features
    weights: Tensor  # (width, words)
    frequencies: Tensor  # (words,) share of captions with each word

    @classmethod
    def fit(cls, source: Source, features: Features) -> "CaptionWords":
        """Fit to the first images of a training split.

        Raises:
            ValueError: no word is in enough captions.
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
        # same as scikit-learn's Ridge, which would add a dependency for two lines
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
        scale = self.frequencies.clamp_min(1e-6).rsqrt()  # rare words have a larger weight
        return (F.normalize(told * scale, dim=1) @ F.normalize(wanted * scale, dim=1).T).float()


def _indicator(caption: str, words: Sequence[str]) -> Tensor:
    found = words_of(caption)
    return torch.tensor([float(word in found) for word in words])
