"""Linear probe that predicts caption words from the features of an ImageNet network: an independent image-text scorer.

Ridge regression maps efficientnet-lite0's features of training images to the words of their captions (bag of words).
The score of an image and a caption is the cosine between the predicted words and the caption's words, both centred. It
is crude, but independent of the CLIP that ranks candidates, so its score does not rise by selection alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from dalle.data.audit.scan import evenly_spaced
from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import inference_crop
from dalle.evaluation.features import FeatureNetwork
from dalle.image_conversion import to_tensor
from dalle.progress import with_progress
from dalle.tokenizer import words_of

MAX_IMAGES = 4_000  # maximum number of training images
BATCH_SIZE = 64  # images at a time: the network enlarges them to 224 pixels
MIN_COUNT = 5  # minimum number of captions with a word
RIDGE_PENALTY = 100.0  # ridge penalty on the squared weights, for standardised features


@dataclass(frozen=True)
class WordProbe:
    """Fitted linear probe. `score` implements `dalle.sampling.rerank.Scorer`."""

    features: FeatureNetwork
    words: list[str]
    mean: Tensor  # (width,) mean of the features
    std: Tensor  # (width,) standard deviation of the features
    weights: Tensor  # (width, words)
    frequencies: Tensor  # (words,) share of captions with each word

    @classmethod
    def fit(cls, source: Source, features: FeatureNetwork) -> "WordProbe":
        """Fit a probe to images of a training split and their captions: at most `MAX_IMAGES`, evenly spaced.

        Files are sorted by path, and drawings by set: the first records would have the words of a part only.
        Unreadable records are left out.

        Raises:
            ValueError: no word is in enough captions.
        """
        outputs, captions = [], []
        for images, texts in _training_batches(source):
            outputs.append(features(images).features)
            captions += texts
        counts = Counter(word for caption in captions for word in words_of(caption))
        words = sorted(word for word, count in counts.items() if MIN_COUNT <= count <= len(captions) / 2)
        if not words:
            raise ValueError(
                f"no word is in {MIN_COUNT} to {len(captions) // 2} of {len(captions)} training captions, so no word "
                "can be learned: use a CLIP as the scorer, with scorer=<folder>"
            )
        x = torch.cat(outputs).double()
        mean, std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        x = (x - mean) / std
        targets = torch.stack([_bag_of_words(caption, words) for caption in captions]).double()
        frequencies = targets.mean(dim=0)
        # same as scikit-learn's Ridge, which would add a dependency for two lines
        penalty = RIDGE_PENALTY * torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (targets - frequencies))
        return cls(features, words, mean, std, weights, frequencies)

    def score(self, images: list[Image.Image], captions: list[str]) -> Tensor:
        """Return cosines in [-1, 1] of all pairs: (images, captions). 0 for captions without a known word."""
        batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
        features = torch.cat([self.features((to_tensor(batch) * 255).round().byte()).features for batch in batches])
        predicted = ((features.double() - self.mean) / self.std) @ self.weights
        bags = torch.stack([_bag_of_words(caption, self.words) for caption in captions]).double()
        has_known_word = bags.any(dim=1, keepdim=True)
        centred = torch.where(has_known_word, bags - self.frequencies, 0.0)
        scale = self.frequencies.clamp_min(1e-6).rsqrt()  # rare words have a larger weight
        return (F.normalize(predicted * scale, dim=1) @ F.normalize(centred * scale, dim=1).T).float()


def _training_batches(source: Source) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield the images (b, 3, s, s) uint8 and first captions of evenly spaced records, without unreadable ones."""
    pixels: list[np.ndarray] = []
    captions: list[str] = []
    records = evenly_spaced(len(source), MAX_IMAGES)
    for number, record in enumerate(with_progress(records, len(records), "word probe"), start=1):
        with suppress(UnreadableRecord):
            pixels.append(inference_crop(source[record].image, source.image_size))
            captions.append(source.captions(record)[0])
        if pixels and (len(pixels) == BATCH_SIZE or number == len(records)):
            yield rearrange(torch.from_numpy(np.stack(pixels)), "b h w c -> b c h w"), captions
            pixels, captions = [], []


def _bag_of_words(caption: str, words: Sequence[str]) -> Tensor:
    """Return a vector (words,) with 1.0 for each of `words` that is in the caption, else 0.0."""
    caption_words = words_of(caption)
    return torch.tensor([float(word in caption_words) for word in words])
