"""Settings of sampling, shared by the Python API, the commands, evaluation, edits and previews.

    DecodingConfig    settings that decide the tokens and pixels of a candidate: used by `decode.py`, `inpainting.py`
                      and `image_decoder.py`
    RerankConfig      number of candidates, and the score that ranks them: used by `rerank.py`
    SamplingConfig    both, and the number kept: used by `DALLE.generate`, `generate_many` and `stream`

SampleCommandConfig and EvaluateConfig inherit these, so each setting is declared, documented and validated only here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, TypeVar

MIXTURE = "mixture"
UNRANKED = "none"  # in records: the score of images that nothing ranked
# scores that a checkpoint may rank by if none is set; caption_likelihood may need references of the user's
DEFAULT_SCORES = ("clip", "image_likelihood", MIXTURE)
DECODING = ("sequential", "parallel", "auto")
# settings for speed and memory only, on which images do not depend in float32
SPEED_SETTINGS = ("batch_size", "decoding", "window", "guess", "memory")
GUESS_NAMES = ("above", "left", "noise", "counts")  # of `dalle.sampling.token_guesses.GUESSES`
GB = 10**9
# ranges that keep the logits finite in 16 bits too; beyond them nothing changes that can be seen
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 100.0
MAX_GUIDANCE = 100.0
MAX_CANDIDATES = 1_000_000  # for each caption
KEPT = 8  # images kept of more candidates, unless `keep` is set

Config = TypeVar("Config", bound="SamplingConfig")


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """Settings that decide the tokens and pixels of each candidate, and the batch size of decoding.

    Raises:
        ValueError: a setting out of its range.
    """

    # divides the logits; 1 in the paper; 0 is greedy decoding; None: the checkpoint's
    temperature: float | None = None
    top_k: int | None = None  # sample among this many most probable tokens only; None, as in the paper: all tokens
    top_p: float | None = None  # sample among the most probable tokens that sum to this; None, as in the paper: all
    min_p: float | None = None  # sample among tokens at least this many times as probable as the most probable
    # scale of classifier-free guidance; values other than 1 need caption_dropout in training; None: the checkpoint's
    guidance: float | None = None
    seed: int = 0  # candidate i depends on (seed, i) alone
    # images decoded at a time, for speed and memory only (in 16 bits also for rounding); None: what memory allows
    batch_size: int | None = None
    # steps of the diffusion decoder, if there is one (decoder=); None: 8, or 1 if it was trained to decode in one step
    decoder_steps: int | None = None
    # sequential: one token per pass | parallel: the same images in fewer passes, for small batches | auto: parallel
    # where it is expected to be faster and float32 makes the images equal
    decoding: str = "sequential"
    # tokens that parallel decoding guesses and verifies in one pass, for speed only; None: what recorded figures expect
    # to be fastest for the number of images
    window: int | None = None
    guess: str = "above"  # first guess of a token, for speed only: above | left | noise | counts

    def __post_init__(self) -> None:
        in_range = MIN_TEMPERATURE <= (self.temperature or 1) <= MAX_TEMPERATURE  # 0 and None count as 1
        if not in_range:
            raise ValueError(
                f"temperature={self.temperature} is out of range; use 0 for greedy decoding, or "
                f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE:g} to sample"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} leaves no token to sample; use at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not a probability; use more than 0 and at most 1")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} is not a fraction of a probability; use more than 0 and at most 1")
        if self.guidance is not None and not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(
                f"guidance={self.guidance} is out of range; use 0 to ignore the caption, 1 for no guidance, or up to "
                f"{MAX_GUIDANCE:g}"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.decoder_steps is not None and self.decoder_steps < 1:
            raise ValueError(f"decoder_steps={self.decoder_steps} must be at least 1")
        if self.decoding not in DECODING:
            raise ValueError(f"unknown decoding={self.decoding}; choose one of {', '.join(DECODING)}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} guesses no token; use at least 1")
        if self.guess not in GUESS_NAMES:
            raise ValueError(f"unknown guess={self.guess}; choose one of {', '.join(GUESS_NAMES)}")

    @property
    def guided(self) -> bool:
        """True if each image is decoded twice, with and without its caption. None counts as 1: no guidance."""
        return self.guidance not in (None, 1)

    @property
    def greedy(self) -> bool:
        """True if the most probable token is taken at each position, whatever the seed."""
        return self.temperature == 0 or self.top_k == 1


@dataclass(frozen=True)
class RerankWeights:
    """Weight of each score in a mixture; 0 leaves it out. docs/lab.md has the experiments behind the defaults.

    Raises:
        ValueError: a weight that is NaN or infinite.
    """

    clip: float = 1.0  # CLIP's similarity of image and caption (the paper's choice)
    image_likelihood: float = 0.5  # log-likelihood of the image tokens, given the caption
    caption_likelihood: float = 0.0  # pointwise mutual information of image and caption

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not math.isfinite(weight):
                raise ValueError(f"rerank_weights.{name}={weight} must be a finite number")


SCORE_NAMES = tuple(weight.name for weight in fields(RerankWeights))


@dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """Number of candidates for each caption, and the score that ranks them; the paper ranks by CLIP (Sec. 2.6).

    Raises:
        ValueError: no candidates or over `MAX_CANDIDATES`, an unknown score, weights without a mixture, or weights
            that are all 0.
    """

    candidates: int = 64  # images sampled for each caption; the paper samples 512
    # score for ranking: clip, as in the paper | image_likelihood | caption_likelihood | mixture; None: the
    # checkpoint's, which is clip unless it names another
    rerank: str | None = None
    rerank_weights: RerankWeights = RerankWeights()  # weights of the scores of rerank=mixture
    # captions that caption_likelihood compares with; none: the empty one if trained on it, else the others sampled
    rerank_references: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates={self.candidates} samples no image; use at least 1")
        if self.candidates > MAX_CANDIDATES:
            raise ValueError(f"candidates={self.candidates} are too many; use at most {MAX_CANDIDATES}")
        if self.rerank not in (None, *SCORE_NAMES, MIXTURE):
            raise ValueError(f"unknown rerank={self.rerank}; choose one of {', '.join((*SCORE_NAMES, MIXTURE))}")
        if self.rerank != MIXTURE and self.rerank_weights != RerankWeights():
            mend = "; set it too" if self.rerank is None else f", not rerank={self.rerank}; leave one of them out"
            raise ValueError(f"rerank_weights need rerank={MIXTURE}{mend}")
        if not self.score_weights:
            raise ValueError("all rerank_weights are 0; give at least one that is not")

    @property
    def score_weights(self) -> dict[str, float]:
        """Weight of each score with a weight other than 0, by name; of CLIP's for None."""
        weights = vars(self.rerank_weights) if self.rerank == MIXTURE else {self.rerank or "clip": 1.0}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def ranked(self) -> bool:
        """True if images are ranked. Valid only after `DALLE.resolve`, which sets `rerank` if anything can rank."""
        return self.rerank is not None

    @property
    def options_on_model_grid(self) -> list[str]:
        """Options that need images of the model's grid, as the user types them."""
        return [f"rerank={self.rerank}"] if set(self.score_weights) - {"clip"} else []


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(RerankConfig, DecodingConfig):
    """All settings of sampling images for captions; by default the best 8 of 64.

    Raises:
        ValueError: a setting that `RerankConfig` or `DecodingConfig` rejects, `keep` above `candidates`, or `memory`
            that is neither "auto" nor a number of GB.
    """

    keep: int | None = None  # images kept, the best by `rerank`; None: 8, or all candidates if they are fewer
    memory: str = "auto"  # GB that sampling may take beside the models; auto: what is free at the start

    def __post_init__(self) -> None:
        RerankConfig.__post_init__(self)
        DecodingConfig.__post_init__(self)
        if self.keep is not None and not 1 <= self.keep <= self.candidates:
            raise ValueError(
                f"keep={self.keep} of candidates={self.candidates} is impossible; use 1 to {self.candidates}"
            )
        memory_limit(self.memory)

    @property
    def num_kept(self) -> int:
        """Number of images kept of all candidates: `keep`, or its default."""
        return min(KEPT, self.candidates) if self.keep is None else self.keep


def with_overrides(
    config: SamplingConfig, settings: Mapping[str, Any], other_names: Sequence[str] = ()
) -> SamplingConfig:
    """Return a copy of `config` with some settings changed.

    settings: new values by field name.
    other_names: names of the caller's other arguments, suggested for a misspelt name.

    Raises:
        TypeError: `config` is not a SamplingConfig, or an unknown setting; the message suggests the nearest one.
    """
    if not isinstance(config, SamplingConfig):
        raise TypeError(f"config must be a SamplingConfig, not {config!r}; give settings by name, as candidates=64")
    names = [setting.name for setting in fields(config)]
    for unknown in (name for name in settings if name not in names):
        nearest = get_close_matches(unknown, [*names, *other_names], n=1)
        raise TypeError(
            f"unknown sampling setting {unknown}; "
            + (f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join([*names, *other_names])}")
        )
    return replace(config, **settings)


def memory_limit(memory: str) -> int | None:
    """Convert `SamplingConfig.memory` to bytes. Returns None for "auto": the free memory.

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
        raise ValueError(f"memory={memory} is not an amount of memory; use auto, or a number of GB such as 8")
    return int(gigabytes * GB)
