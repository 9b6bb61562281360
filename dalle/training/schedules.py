"""Quantities that change while training: a step size, a KL weight, a relaxation temperature."""

import math
from dataclasses import dataclass

KINDS = ("constant", "linear", "cosine", "exponential")


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` within `steps` updates, held before and after (as in the paper, Appendix A.2)."""

    kind: str = "constant"  # constant (start, always) | linear | cosine | exponential
    start: float = 1.0  # value at first
    end: float = 1.0  # value at last
    steps: int = 1  # updates that the way from start to end takes
    delay: int = 0  # updates before it sets out

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.steps < 1 or self.delay < 0:
            raise ValueError(f"a schedule needs steps >= 1 and delay >= 0, not {self.steps} and {self.delay}")
        if self.kind == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError(f"an exponential schedule cannot go from {self.start} to {self.end}: both must be > 0")

    def value(self, step: int) -> float:
        """The value after `step` updates; `end` exactly from `delay + steps` on."""
        progress = (step - self.delay) / self.steps
        if self.kind == "constant" or progress <= 0:
            return self.start
        if progress >= 1:
            return self.end
        if self.kind == "exponential":
            return self.start * (self.end / self.start) ** progress
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress
