"""Reranking: candidates best first, by how well they and their caption go together (Sec. 2.6).

    clip                  CLIP's cosine similarity of picture and caption: the paper's
    image_likelihood      log p(picture | caption) under the transformer, in nats
    caption_likelihood    log p(caption | picture) under the transformer, in nats, by Bayes' rule
    mixture               a weighted sum of these

For a mixture each is standardised over the caption's candidates (mean 0, standard deviation 1): cosines and nats have
no common unit, and nats grow with the number of tokens, so that weights of raw scores would mean something else for
each model. A weight then says how large a part of the choice that score has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from dalle.models.transformer.model import Transformer
from dalle.models.transformer.sequence import Stream
from dalle.sampling.guidance import empty_caption
from dalle.sampling.likelihood import caption_given_image, image_given_caption
from dalle.sampling.sampling_config import MIXTURE, RerankConfig

MOST_REFERENCES = 16  # captions that p(picture) is estimated with; each costs as much as image_likelihood


class Scorer(Protocol):
    """Anything that scores pictures against captions, such as `dalle.CLIP`."""

    def score(self, images: list[Image.Image], captions: list[str]) -> Tensor:
        """(images, captions), higher is better."""
        ...


@dataclass(frozen=True)
class Candidates:
    """The m pictures drawn for one caption, among which to choose."""

    caption: str
    ids: Tensor  # (T,) int64, the caption as the transformer reads it
    tokens: Tensor  # (m, h, w) int64
    images: list[Image.Image]


class Judge(Protocol):
    """One way to say how good candidates are."""

    def __call__(self, candidates: Candidates) -> Tensor:
        """(m,) scores, higher is better."""
        ...


@dataclass(frozen=True)
class ByCLIP:
    """How well CLIP finds that picture and caption fit."""

    clip: Scorer

    def __call__(self, candidates: Candidates) -> Tensor:
        return self.clip.score(candidates.images, [candidates.caption])[:, 0].float()


@dataclass(frozen=True)
class ByImageLikelihood:
    """How likely the transformer finds the picture, given the caption. Flaws cost, and so does detail."""

    model: Transformer

    def __call__(self, candidates: Candidates) -> Tensor:
        return image_given_caption(self.model, candidates.ids, candidates.tokens)


@dataclass(frozen=True)
class ByCaptionLikelihood:
    """How likely the transformer finds the caption, given the picture: see `caption_given_image`."""

    model: Transformer
    references: Tensor  # (r, T) from `reference_captions`; the candidates' own caption is passed over

    def __call__(self, candidates: Candidates) -> Tensor:
        others = self.references[(self.references != candidates.ids).any(dim=1)][:MOST_REFERENCES]
        return caption_given_image(self.model, candidates.ids, candidates.tokens, others)


class Ranking(NamedTuple):
    """Candidates in order, best first; equal ones keep the order they were drawn in."""

    order: list[int]  # indices of the candidates
    scores: list[float]  # what they were ordered by
    by_name: dict[str, list[float]]  # the same for each judge, and for the mixture where there are several

    def best(self, keep: int) -> "Ranking":
        """Of the first `keep` alone."""
        by_name = {name: scores[:keep] for name, scores in self.by_name.items()}
        return Ranking(self.order[:keep], self.scores[:keep], by_name)


@dataclass(frozen=True)
class Reranker:
    """One judge whose word is final, or several whose standardised scores are added up with their weights."""

    judges: Mapping[str, Judge]
    weights: Mapping[str, float]

    def __call__(self, candidates: Candidates) -> Ranking:
        scores = self.scores(candidates)
        *_, final = scores.values()
        order = final.argsort(descending=True, stable=True)
        by_name = {name: each[order].tolist() for name, each in scores.items()}
        return Ranking(order.tolist(), final[order].tolist(), by_name)

    def scores(self, candidates: Candidates) -> dict[str, Tensor]:
        """(m,) scores of each judge by its name; the last are those that the choice is made by."""
        scores = {name: judge(candidates) for name, judge in self.judges.items()}
        if len(scores) == 1:
            return scores
        weighted = [self.weights[name] * standardised(each) for name, each in scores.items()]
        return {**scores, MIXTURE: torch.stack(weighted).sum(dim=0)}


def reranker_for(
    config: RerankConfig, model: Transformer, clip: Scorer | None, references: Tensor | None
) -> Reranker | None:
    """Build the reranker that `config` describes; None where CLIP alone is to judge and there is none.

    references: (r, T), from `reference_captions`, where caption_likelihood has a say.

    Raises:
        ValueError: CLIP is to be mixed with others, and there is none.
    """
    weights = config.judges
    judges: dict[str, Judge] = {"image_likelihood": ByImageLikelihood(model)}
    if references is not None:
        judges["caption_likelihood"] = ByCaptionLikelihood(model, references)
    if clip is not None:
        judges["clip"] = ByCLIP(clip)
    elif list(weights) == ["clip"]:
        return None
    elif "clip" in weights:
        raise ValueError("the mixture asks for CLIP, and there is none; give clip=<folder>, or other rerank_weights")
    return Reranker({name: judges[name] for name in weights}, weights)


def reference_captions(stream: Stream, captions: Tensor, given: Tensor | None, knows_empty: bool) -> Tensor:
    """Choose the captions that p(picture) is estimated with, for these (c, T) captions: (r, T).

    The captions `given` for it; else the empty caption, if the model `knows_empty` from caption dropout; else the
    captions themselves, each of which serves the others.

    Raises:
        ValueError: a caption would have no other than itself.
    """
    if given is None and knows_empty:
        return empty_caption(stream)
    references = captions if given is None else given
    references = torch.stack(list({tuple(row.tolist()): row for row in references}.values()))
    if len(references) == 1 and (references == captions).all(dim=1).any():
        raise ValueError(
            "caption_likelihood compares a caption with others, as this model was trained without caption_dropout, "
            'and there are none; give some: \'rerank_references=["a red circle","two green squares"]\''
        )
    return references


def standardised(scores: Tensor) -> Tensor:
    """(m,) scores less their mean, in units of their standard deviation; zeros where all are equal."""
    spread = scores.std(correction=0)
    return torch.zeros_like(scores) if spread == 0 else (scores - scores.mean()) / spread
