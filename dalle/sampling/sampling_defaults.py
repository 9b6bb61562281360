"""Default sampling settings that a transformer checkpoint records, for what a config leaves open."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dalle.sampling.sampling_config import DEFAULT_SCORES, MIXTURE, Config


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling settings of a transformer checkpoint, used where the user sets none; these are the paper's.

    Raises:
        ValueError: `rerank` is not in `DEFAULT_SCORES`.
    """

    caption_dropout: float = 0.0  # share of training captions that were empty; guidance needs a share above 0
    guidance: float = 1.0  # scale of classifier-free guidance; 1: none
    temperature: float = 1.0
    rerank: str = "clip"  # score for ranking, one of `DEFAULT_SCORES`

    def __post_init__(self) -> None:
        if self.rerank not in DEFAULT_SCORES:
            raise ValueError(
                f"the transformer's default rerank={self.rerank} is not one of {', '.join(DEFAULT_SCORES)}: the "
                "checkpoint may be from a newer version"
            )

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "SamplingDefaults":
        """Read the defaults from the meta of a transformer checkpoint, which may lack some of them."""
        names = ("caption_dropout", "guidance", "temperature", "rerank")
        return cls(**{name: meta[name] for name in names if name in meta})

    def resolve(self, config: Config, has_clip: bool, larger: bool = False) -> Config:
        """Return `config` with guidance, temperature, the score for ranking and the number kept where it sets none.

        The default score is clip where that of the checkpoint cannot rank: a mixture needs a CLIP, and the transformer
        does not score images that are `larger` than its own, as those of outpaint. It is None, and images are not
        ranked, if it is clip and there is no CLIP.

        has_clip: there is a CLIP to rank with.

        Raises:
            ValueError: guidance with a transformer that was trained without empty captions, or a score that was set and
                needs a CLIP, and there is none.
        """
        clip_only = larger or (self.rerank == MIXTURE and not has_clip)
        default = "clip" if clip_only else self.rerank
        if default == "clip" and not has_clip:
            default = None
        config = replace(
            config,
            guidance=self.guidance if config.guidance is None else config.guidance,
            temperature=self.temperature if config.temperature is None else config.temperature,
            rerank=config.rerank or default,
            keep=config.num_kept,
        )
        if config.guided and not self.caption_dropout:
            raise ValueError(
                f"guidance={config.guidance} needs a transformer that was trained with empty captions, and this one "
                "was not: train one with stage.caption_dropout=0.1, or leave guidance at 1"
            )
        if config.rerank == "clip" and not has_clip:
            raise ValueError(
                "rerank=clip needs a CLIP, and there is none; give clip=<folder>, choose another rerank or leave it out"
            )
        if config.rerank == MIXTURE and "clip" in config.score_weights and not has_clip:
            raise ValueError(
                "rerank=mixture needs a CLIP for rerank_weights.clip, and there is none; give clip=<folder>, or set it "
                "to 0"
            )
        return config
