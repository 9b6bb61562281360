"""Schedules of quantities that change during training: learning rate, KL weight, relaxation temperature."""

import math
from dataclasses import dataclass

KINDS = ("constant", "linear", "cosine", "exponential")


@dataclass(frozen=True)
class Schedule:
    """Schedule from `start` to `end` over `steps` updates, constant before and after (paper, Appendix A.2)."""

    kind: str = "constant"  # constant: always `start` | linear | cosine | exponential
    start: float = 1.0  # initial value
    end: float = 1.0  # final value
    steps: int = 1  # updates from `start` to `end`
    delay: int = 0  # updates at `start` before the change begins

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.steps < 1 or self.delay < 0:
            raise ValueError(f"a schedule needs steps >= 1 and delay >= 0, not {self.steps} and {self.delay}")
        if self.kind == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError(f"an exponential schedule cannot go from {self.start} to {self.end}: both must be > 0")

    def value(self, step: int) -> float:
        """Return the value after `step` updates; exactly `end` from `delay + steps` on."""
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
