"""How evaluation draws its pictures, whatever it measures on them."""

from dataclasses import dataclass
from typing import Any

from dalle.evaluation.settings import EvaluateConfig
from dalle.sampling.filters import Filters
from dalle.sampling.pipeline import DALLE


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
