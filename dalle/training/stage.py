"""What the loop asks of a stage, and what a stage's config tells the loop."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from dalle.training.ema import EMAConfig
from dalle.training.optimizer import OptimizerConfig
from dalle.training.powersgd import CompressionConfig

GRADIENT_SCALINGS = ("global", "resblock")


@dataclass(frozen=True)
class TrainingConfig:
    """How a stage is optimised and watched; each stage's config inherits it and sets its own defaults."""

    steps: int = 3_000_000  # optimizer updates; raise it to train a finished run further
    batch_size: int = 512  # pictures per update, over all ranks and micro-batches
    accumulate: int = 1  # micro-batches per update: less memory, same update (but losses over a batch see each alone)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    clip_norm: float | None = None  # the gradient's norm is cut down to it (transformer: 4; paper, Appendix B.2)
    ema: EMAConfig = field(default_factory=EMAConfig)
    precision: str = "auto"  # of matrix products and convolutions: auto | float32 | bfloat16 | float16
    gradient_scaling: str = "global"  # of float16: on the loss | "resblock": each residual branch's own (App. D)
    gradient_exponent: int | None = None  # bits; simulates this narrow a format in branches, with scaling (float16: 5)
    recompute: bool = False  # residual branches in the backward pass: less memory, a third more work (Section 2.4)
    compression: CompressionConfig = field(default_factory=CompressionConfig)  # of what ranks exchange
    max_bad_steps: int = 25  # updates in a row skipped for an infinite loss or gradient before the run stops
    log_every: int = 50  # updates between two lines of metrics; 0 for any of these: only at the end
    validate_every: int = 5_000  # updates between two looks at held-out pictures
    preview_every: int = 5_000  # between two sheets of pictures in previews/
    save_every: int = 5_000  # between two checkpoints

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0; null turns clipping off")
        if self.gradient_scaling not in GRADIENT_SCALINGS:
            choices = " or ".join(GRADIENT_SCALINGS)
            raise ValueError(f"gradient_scaling={self.gradient_scaling} is unknown; choose {choices}")
        if self.gradient_exponent is not None and not 2 <= self.gradient_exponent <= 5:
            raise ValueError(f"gradient_exponent={self.gradient_exponent} must be 2 to 5 bits, or null for no format")

    def micro_batch_size(self, world: int) -> int:
        """Pictures per micro-batch and rank. Raises ValueError if the batch does not divide evenly."""
        size, rest = divmod(self.batch_size, world * self.accumulate)
        if rest or not size:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into {world} ranks"
                f" x {self.accumulate} micro-batches: make it a multiple of {world * self.accumulate}"
            )
        return size


class Stage(Protocol):
    """What is optimised. The loop never asks which stage it runs.

    Where a method takes `model`, it is `self.model`, its wrapper (which shares gradients between ranks, and
    therefore has to be called, not reached into), or a model like it with the average of its weights.
    """

    name: str
    model: nn.Module  # on the device; its parameters that require gradients are trained

    def batches(self, start: int) -> Iterator[Any]:
        """This rank's micro-batches of training pictures without end, from number `start` on.

        Each holds `TrainingConfig.micro_batch_size` pictures and is a pure function of its number. Those of
        one update hold, together, the same pictures however many ranks and micro-batches there are.
        """
        ...

    def loss(
        self, model: nn.Module, batch: Any, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """(mean loss of a micro-batch, other metrics by name) for the update that follows `step` others.

        All randomness comes from `generator`, on the model's device and seeded by (seed, step, micro-batch,
        rank), or from torch's global one (dropout), which is seeded so too.
        """
        ...

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on held-out data; every rank calls it, and the first one's answer is logged."""
        ...

    def preview(self, model: nn.Module) -> Image.Image | None:
        """A picture by which a person sees how training goes; only the first rank calls it."""
        ...

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        """Write a checkpoint of `model` that can be loaded without the stage."""
        ...
