"""Reranking: order candidates by how well image and caption match, best first (Sec. 2.6).

    clip                  CLIP's cosine similarity of image and caption, as in the paper
    image_likelihood      log p(image | caption) under the transformer, in nats
    caption_likelihood    pointwise mutual information of image and caption under the transformer, in nats
    mixture               a weighted sum of these

For a mixture each score is standardised over the caption's candidates (mean 0, standard deviation 1). Cosines and nats
have no common unit, and nats grow with the number of tokens, so weights of raw scores would depend on the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.models.transformer.sequence import SequenceLayout
from dalle.sampling.finite import check_finite
from dalle.sampling.guidance import empty_caption
from dalle.sampling.likelihood import image_log_likelihood, pointwise_mutual_information
from dalle.sampling.sampling_config import MIXTURE, RerankConfig

CLIP_BATCH_SIZE = 256  # images scored at a time, as many as `dalle.CLIP` encodes at a time
MAX_REFERENCES = 16  # captions used to estimate p(image); each costs as much as image_likelihood


class Scorer(Protocol):
    """Interface of a model that scores images against captions, such as `dalle.CLIP`."""

    def score(self, images: list[Image.Image], captions: list[str]) -> Tensor:
        """Score every image against every caption: (images, captions) floats; higher is better."""
        ...


@dataclass(frozen=True)
class CaptionCandidates:
    """The m images sampled for one caption, with their tokens and the caption's token ids."""

    caption: str
    ids: Tensor  # (T,) int64, the transformer's text input
    tokens: Tensor  # (m, h, w) int64
    images: list[Image.Image]


class ScoreFunction(Protocol):
    """Interface of a function that scores the m candidates of one caption, for reranking."""

    def __call__(self, candidates: CaptionCandidates, on_chunk: Callable[[], None] = lambda: None) -> Tensor:
        """Return the score of each candidate, (m,) floats; higher is better.

        on_chunk: called after each batch of images. An exception stops scoring.
        """
        ...


@dataclass(frozen=True)
class CLIPSimilarity:
    """Score function: CLIP's similarity of each image and the caption."""

    clip: Scorer

    def __call__(self, candidates: CaptionCandidates, on_chunk: Callable[[], None] = lambda: None) -> Tensor:
        scores = []
        for start in range(0, len(candidates.images), CLIP_BATCH_SIZE):
            images = candidates.images[start : start + CLIP_BATCH_SIZE]
            scores.append(self.clip.score(images, [candidates.caption])[:, 0].float())
            on_chunk()
        return torch.cat(scores)


@dataclass(frozen=True)
class ImageLogLikelihood:
    """Score function: log-likelihood of each image given the caption, in nats. Flaws lower it, and so does detail."""

    model: Transformer

    def __call__(self, candidates: CaptionCandidates, on_chunk: Callable[[], None] = lambda: None) -> Tensor:
        return image_log_likelihood(self.model, candidates.ids, candidates.tokens, on_chunk=on_chunk)


@dataclass(frozen=True)
class PointwiseMutualInformation:
    """Score function: pointwise mutual information of each image and the caption, in nats.

    It is the caption's log-likelihood given the image, up to a constant.
    """

    model: Transformer
    references: Tensor  # (r, T) from `reference_captions`; the candidates' own caption is skipped

    def __call__(self, candidates: CaptionCandidates, on_chunk: Callable[[], None] = lambda: None) -> Tensor:
        others = self.references[(self.references != candidates.ids).any(dim=1)][:MAX_REFERENCES]
        return pointwise_mutual_information(self.model, candidates.ids, candidates.tokens, others, on_chunk=on_chunk)


class Ranking(NamedTuple):
    """Candidates of one caption in order, best first, with their scores; ties keep the order of sampling."""

    order: list[int]  # indices of the candidates
    scores: list[float]  # scores they are ordered by
    scores_by_name: dict[str, list[float]]  # scores by name: each one, and the mixture if there are several

    def best(self, keep: int) -> "Ranking":
        """Return the ranking of the best `keep` candidates only."""
        scores_by_name = {name: scores[:keep] for name, scores in self.scores_by_name.items()}
        return Ranking(self.order[:keep], self.scores[:keep], scores_by_name)


@dataclass(frozen=True)
class Reranker:
    """Function that ranks the candidates of one caption.

    It uses one score, or a weighted sum of several standardised scores.
    """

    score_functions: Mapping[str, ScoreFunction]
    weights: Mapping[str, float]

    def __call__(self, candidates: CaptionCandidates, on_chunk: Callable[[], None] = lambda: None) -> Ranking:
        """Rank the candidates. `on_chunk` is called after each batch that is scored; an exception stops ranking."""
        scores = self.scores(candidates, on_chunk)
        *_, final = scores.values()
        order = final.argsort(descending=True, stable=True)
        by_name = {name: values[order].tolist() for name, values in scores.items()}
        return Ranking(order.tolist(), final[order].tolist(), by_name)

    def scores(self, candidates: CaptionCandidates, on_chunk: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
        """Return (m,) scores by name. The last entry is the score that candidates are ranked by.

        Raises:
            ValueError: scores that are NaN or infinite.
        """
        scores = {name: score(candidates, on_chunk) for name, score in self.score_functions.items()}
        for name, values in scores.items():
            check_finite(values, f"the model of rerank={name} computes scores")
        if list(self.weights.values()) == [1.0]:  # ranked by one score: standardising it would change no rank
            return scores
        weighted = [self.weights[name] * standardise(values) for name, values in scores.items()]
        return {**scores, MIXTURE: torch.stack(weighted).sum(dim=0)}


def build_reranker(
    config: RerankConfig, model: Transformer, clip: Scorer | None, references: Tensor | None
) -> Reranker | None:
    """Build the reranker that `config` describes. Returns None if it asks for CLIP only and there is no CLIP.

    config: one that `SamplingDefaults.resolve` has checked.
    references: (r, T), from `reference_captions`; needed for caption_likelihood.
    """
    weights = config.score_weights
    if clip is None and list(weights) == ["clip"]:
        return None
    score_functions: dict[str, ScoreFunction] = {"image_likelihood": ImageLogLikelihood(model)}
    if references is not None:
        score_functions["caption_likelihood"] = PointwiseMutualInformation(model, references)
    if clip is not None:
        score_functions["clip"] = CLIPSimilarity(clip)
    return Reranker({name: score_functions[name] for name in weights}, weights)


def reference_captions(
    sequence: SequenceLayout, captions: Tensor, given: Tensor | None, trained_on_empty: bool
) -> Tensor:
    """Choose the captions that p(image) is estimated with: (c, T) captions -> (r, T).

    These are the `given` captions if any; else the empty caption if the model was trained on it (`trained_on_empty`);
    else `captions` themselves, so that each is compared with the others.

    Raises:
        ValueError: a caption has no reference other than itself.
    """
    if given is None and trained_on_empty:
        return empty_caption(sequence)
    references = captions if given is None else given
    references = torch.stack(list({tuple(row.tolist()): row for row in references}.values()))
    if len(references) == 1 and (references == captions).all(dim=1).any():
        raise ValueError(
            "rerank=caption_likelihood compares a caption with others, as this model was trained without "
            'caption_dropout, and there are none; give some: \'rerank_references=["a red circle","two green squares"]\''
        )
    return references


def standardise(scores: Tensor) -> Tensor:
    """Standardise (m,) scores to mean 0 and standard deviation 1; zeros if all are equal."""
    deviation = scores.std(correction=0)
    return torch.zeros_like(scores) if deviation == 0 else (scores - scores.mean()) / deviation
