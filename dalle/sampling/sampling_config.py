"""Settings of sampling: one dataclass that the Python API, the commands, evaluation, edits and previews share.

    DecodingConfig    settings that decide the tokens of a candidate: `decode.py` and `fill.py` need no more
    RerankConfig      number of candidates, and what the best of them are chosen by: `rerank.py`
    SamplingConfig    both, with how many are kept: `DALLE.generate`, `generate_many` and `stream`

SampleConfig and EvaluateConfig inherit these, so that each setting is declared, explained and validated here alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, TypeVar

MIXTURE = "mixture"
GB = 10**9

Config = TypeVar("Config", bound="SamplingConfig")


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """Settings that decide the tokens of each candidate, and how many candidates are decoded at a time.

    Raises:
        ValueError: a setting out of its range.
    """

    temperature: float = 1.0  # divides the logits; 1 is the paper's, 0 takes the most probable tokens
    top_k: int | None = None  # draw among this many most probable tokens only; the paper does not filter
    top_p: float | None = None  # draw among the most probable tokens that add up to this; the paper does not
    min_p: float | None = None  # draw among tokens at least this many times as probable as the likeliest
    # how much the caption's say is scaled; others than 1 need a model with caption_dropout; None: the checkpoint's own
    guidance: float | None = None
    seed: int = 0  # candidate i depends on (seed, i) alone
    batch_size: int | None = None  # pictures decoded at a time, for speed and memory only; None: what memory allows

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} is below 0; 0 is greedy, 1 the model's own")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} leaves nothing to draw; use at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is no probability; use more than 0 and at most 1")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} is no share of a probability; use more than 0 and at most 1")
        if self.guidance is not None and self.guidance < 0:
            raise ValueError(f"guidance={self.guidance} is below 0; 0 leaves the caption out, 1 is the model's own")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    @property
    def guided(self) -> bool:
        """True where each image is decoded twice, with and without its caption. None counts as 1: no guidance."""
        return self.guidance not in (None, 1)


@dataclass(frozen=True)
class RerankWeights:
    """Weight of each score in a mixture; 0 leaves it out. docs/lab.md has the trials that chose these."""

    clip: float = 1.0  # how well picture and caption fit (CLIP, the paper's choice)
    image_likelihood: float = 0.5  # of the image tokens, given the caption
    caption_likelihood: float = 0.0  # how much more likely the picture makes the caption


JUDGES = tuple(each.name for each in fields(RerankWeights))


@dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """Number of candidates for each caption, and the score that orders them; the paper's is CLIP's (Sec. 2.6).

    Raises:
        ValueError: no candidates, an unknown score, weights without a mixture, or none that counts.
    """

    candidates: int = 64  # pictures drawn for each caption; the paper draws 512
    rerank: str = "clip"  # what finds the best: clip, as in the paper | image_likelihood | caption_likelihood | mixture
    rerank_weights: RerankWeights = RerankWeights()  # of a mixture
    # captions that caption_likelihood compares with; none: the empty one, if the model knows it, or those drawn beside
    rerank_references: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates={self.candidates} draws nothing; use at least 1")
        if self.rerank not in (*JUDGES, MIXTURE):
            raise ValueError(f"unknown rerank={self.rerank}; choose one of {', '.join((*JUDGES, MIXTURE))}")
        if self.rerank != MIXTURE and self.rerank_weights != RerankWeights():
            raise ValueError(
                f"rerank_weights are for rerank={MIXTURE}, but this is rerank={self.rerank}; leave one out"
            )
        if not self.judges:
            raise ValueError("all rerank_weights are 0; give at least one that counts")

    @property
    def judges(self) -> dict[str, float]:
        """The weight of each score that counts, by its name."""
        weights = vars(self.rerank_weights) if self.rerank == MIXTURE else {self.rerank: 1.0}
        return {name: weight for name, weight in weights.items() if weight}


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(RerankConfig, DecodingConfig):
    """All settings of drawing pictures for captions; by default the best 8 of 64 at temperature 1.

    Raises:
        ValueError: as above, or more pictures to keep than there are candidates, or `memory` that is no amount of it.
    """

    keep: int = 8  # pictures kept, the best by `rerank`
    memory: str = "auto"  # GB that drawing may take beside the models; auto: what is free when it starts

    def __post_init__(self) -> None:
        RerankConfig.__post_init__(self)
        DecodingConfig.__post_init__(self)
        if not 1 <= self.keep <= self.candidates:
            raise ValueError(
                f"keep={self.keep} of candidates={self.candidates} cannot be kept; use 1 to {self.candidates}"
            )
        memory_limit(self.memory)

    def changed(self: Config, settings: Mapping[str, Any], beside: Sequence[str] = ()) -> Config:
        """Return a copy with some settings changed.

        beside: names that the caller knows beside these settings, to suggest for a misspelt one.

        Raises:
            TypeError: a name that is no setting, with the nearest right one.
        """
        names = [each.name for each in fields(self)]
        for stranger in (name for name in settings if name not in names):
            alike = get_close_matches(stranger, [*names, *beside], n=1)
            raise TypeError(
                f"there is no sampling setting {stranger}; "
                + (f"did you mean {alike[0]}?" if alike else f"there are {', '.join([*names, *beside])}")
            )
        return replace(self, **settings)


def memory_limit(memory: str) -> int | None:
    """Convert `SamplingConfig.memory` to bytes; None for "auto", which is whatever is free.

    Raises:
        ValueError: neither "auto" nor a number of GB.
    """
    if memory == "auto":
        return None
    try:
        gigabytes = float(memory)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < float("inf"):
        raise ValueError(f"memory={memory} is no amount of memory; use auto, or a number of GB such as 8")
    return int(gigabytes * GB)
