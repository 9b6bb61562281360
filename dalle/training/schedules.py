"""Schedules of quantities that change during training: learning rate, KL weight, relaxation temperature."""

import math
from dataclasses import dataclass, replace

KINDS = ("constant", "linear", "cosine", "exponential")


@dataclass(frozen=True)
class Schedule:
    """Schedule from `start` to `end` over `steps` updates, constant before and after (paper, Appendix A.2).

    What None stands for depends on the length of the run. `StageConfig` knows it, and calls `for_run`.
    """

    kind: str = "constant"  # constant: always `start` | linear | cosine | exponential
    start: float = 1.0  # initial value
    end: float = 1.0  # final value
    steps: int | None = None  # updates from `start` to `end`; null: all after `delay`, to the end of the run
    delay: int | None = 0  # updates at `start` before the change begins; null: `steps` are the last ones of the run

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if (self.steps is not None and self.steps < 1) or (self.delay is not None and self.delay < 0):
            raise ValueError(f"a schedule needs steps >= 1 and delay >= 0, not {self.steps} and {self.delay}")
        if self.kind == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError(f"an exponential schedule cannot go from {self.start} to {self.end}: both must be > 0")

    def for_run(self, steps: int) -> "Schedule":
        """Return the schedule with numbers instead of None, for a run of `steps` updates.

        Without `delay`, its own `steps` are at most those of the run. Raises ValueError if `delay` leaves no update.
        """
        if self.kind == "constant" or None not in (self.steps, self.delay):
            return self
        schedule_steps = steps - (self.delay or 0) if self.steps is None else min(self.steps, steps)
        if schedule_steps < 1:
            raise ValueError(
                f"a schedule with delay={self.delay} does not begin within steps={steps} of the run: set a lower delay"
            )
        return replace(self, steps=schedule_steps, delay=steps - schedule_steps)

    @property
    def last_step(self) -> int | None:
        """Number of updates after which the value is `end`; None if it is constant."""
        if self.kind == "constant" or self.steps is None or self.delay is None:
            return None
        return self.delay + self.steps

    def value(self, step: int) -> float:
        """Return the value after `step` updates; exactly `end` from `delay + steps` on."""
        if self.kind == "constant":
            return self.start
        if self.steps is None or self.delay is None:
            raise ValueError("the schedule has no length: call for_run with the number of updates of the run")
        progress = (step - self.delay) / self.steps
        if progress <= 0:
            return self.start
        if progress >= 1:
            return self.end
        if self.kind == "exponential":
            return self.start * (self.end / self.start) ** progress
        if self.kind == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress
