"""How evaluation draws its pictures and chooses among them, whatever it measures on them."""

from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from dalle.evaluation.settings import EvaluateConfig
from dalle.sampling.filters import Filters
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Rerank


@dataclass(frozen=True)
class Drawing:
    """What decides the pictures of a model beside its captions and the number of candidates."""

    seed: int = 0
    batch_size: int = 64  # changes speed and memory only
    temperature: float = 1.0
    guidance: float | None = None  # None: the checkpoint's own

    @classmethod
    def of(cls, config: EvaluateConfig) -> "Drawing":
        return cls(config.seed, config.batch_size, config.temperature, config.guidance)

    def settings(self) -> dict[str, Any]:
        """For `DALLE.stream`."""
        return {
            "filters": Filters(self.temperature),
            "guidance": self.guidance,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def described(self, dalle: DALLE) -> dict[str, Any]:
        """For metrics.json."""
        guidance = dalle.guidance if self.guidance is None else self.guidance
        told = {"seed": self.seed, "temperature": self.temperature, "guidance": guidance}
        return {**told, "precision": str(dalle.precision)}


USUAL = Drawing()


def rerank_of(config: EvaluateConfig) -> Rerank:
    """What favourites are chosen by."""
    return Rerank(config.rerank, config.rerank_weights, config.rerank_references)


def choice_settings(dalle: DALLE, config: EvaluateConfig, candidates: int) -> dict[str, Any]:
    """What decides the pictures that are drawn for captions, and which of them is the favourite."""
    rerank = asdict(rerank_of(config))
    return {"candidates": candidates, **Drawing.of(config).described(dalle), "rerank": rerank}


def digest(captions: list[str]) -> str:
    """Which captions these are."""
    return sha256("\n".join(captions).encode()).hexdigest()[:16]
