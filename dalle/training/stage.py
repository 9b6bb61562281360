"""Interface between the training loop and a stage: the `Stage` protocol and the base config."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from dalle.precision import check_float32_matmul_precision, check_precision
from dalle.training.compression import CompressionConfig
from dalle.training.ema import EMAConfig
from dalle.training.flops import ImageCost
from dalle.training.optimizer import OptimizerConfig
from dalle.training.schedules import Schedule

PARAMETER_DTYPES = ("float32", "bfloat16")
GRADIENT_SCALINGS = ("global", "resblock")
MAX_CONSTANT_END = 0.1  # share of a run that may follow the end of the learning rate's schedule without a warning


@dataclass(frozen=True)
class StageConfig:
    """Optimisation and logging of a stage; each stage's config inherits it and sets its own defaults.

    Schedules that end with the run get their numbers when the config is built: `replace(config, steps=...)` keeps them.
    """

    # True: the stage's `validate` only calls the model, on all ranks equally often, and the model may then be sharded;
    # False: it needs whole weights
    validates_sharded: ClassVar[bool] = False
    # False: the loss of a micro-batch depends on its size, so that `accumulate` changes what is trained
    accumulation_is_exact: ClassVar[bool] = True

    steps: int = 3_000_000  # optimizer updates; raise it to train a finished run further
    batch_size: int = 512  # images per update, over all ranks and micro-batches
    accumulate: int = 1  # micro-batches per update: less memory, same update (except for contrastive losses)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    clip_norm: float | None = None  # maximum norm of the gradient (transformer: 4; paper, Appendix B.2)
    ema: EMAConfig = field(default_factory=EMAConfig)
    precision: str = "auto"  # number format of matrix products and convolutions: auto | float32 | bfloat16 | float16
    # float32 matrix products and convolutions of updates on a GPU, also of the frozen dVAE that encodes images: highest
    # (float32) | high, medium (both TF32: faster, 10 significand bits); without effect on a CPU
    float32_matmul_precision: str = "highest"
    parameters: str = "float32"  # storage of the blocks' matrices: float32 | bfloat16, rounded stochastically (App. D)
    gradient_scaling: str = "global"  # float16: one scale on the loss | "resblock": one per residual block (App. D)
    gradient_exponent: int | None = None  # simulated exponent bits of gradients in branches, with scaling (float16: 5)
    recompute: bool = False  # activation checkpointing of residual branches: less memory, 1/3 more compute (Sec. 2.4)
    recompute_layers: int | None = None  # with recompute: only in the first so many transformer blocks; null: in all
    compile: bool = False  # torch.compile of each residual block; the first update takes minutes
    compression: CompressionConfig = field(default_factory=CompressionConfig)  # of gradients exchanged by ranks
    max_skipped_steps: int = 25  # updates skipped in a row for NaN or inf before the run stops; GPU: up to twice that
    log_every: int = 50  # updates between two lines of metrics; 0: only at the end
    validate_every: int = 5_000  # updates between two validations; 0: only at the end
    preview_every: int = 5_000  # updates between two preview images in previews/; 0: only at the end
    save_every: int = 5_000  # updates between two checkpoints; 0: only at the end
    async_save: bool = False  # write checkpoints while training goes on, from a copy in the host's memory
    keep_every: int = 0  # updates between two copies of the checkpoint, kept in checkpoints/<step>/; 0: none
    keep_best: bool = False  # keep the checkpoint with the lowest validation loss in best/
    log_gradient_norms: bool = False  # log the gradient norm of each residual block and of each other child module
    spike_deviations: float = 6.0  # a loss so many standard deviations above its mean is a spike; 0: report none
    stall_minutes: float = 10.0  # minutes without a finished update before a line says where the run is; 0: never
    profile: bool = False  # write a trace of some updates to profile/, on a GPU also a memory snapshot
    profile_steps: tuple[int, int] = (10, 13)  # first and last update profiled, from 1 where the command begins

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        rate = self.optimizer.learning_rate.for_run(self.steps)
        object.__setattr__(self, "optimizer", replace(self.optimizer, learning_rate=rate))
        for name, value in list(vars(self).items()):
            if isinstance(value, Schedule):
                object.__setattr__(self, name, value.for_run(self.steps))
        for name in ("log_every", "validate_every", "preview_every", "save_every", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.recompute_layers is not None and (not self.recompute or self.recompute_layers < 1):
            raise ValueError(
                f"recompute_layers={self.recompute_layers} must be at least 1 and needs recompute=true; null "
                "recomputes all layers"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm={self.clip_norm} must be above 0; null turns clipping off")
        for name in ("spike_deviations", "stall_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0; 0 turns it off")
        if len(self.profile_steps) != 2 or not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps={list(self.profile_steps)} must be two updates in order, from 1 on")
        check_precision(self.precision)
        check_float32_matmul_precision(self.float32_matmul_precision)
        if self.parameters not in PARAMETER_DTYPES:
            raise ValueError(f"parameters={self.parameters} is unknown; choose one of {', '.join(PARAMETER_DTYPES)}")
        if self.parameters == "bfloat16" and self.precision not in ("auto", "bfloat16"):
            raise ValueError(f"parameters=bfloat16 needs precision=bfloat16, not {self.precision}")
        if self.parameters == "bfloat16" and self.optimizer.kind != "adamw":
            raise ValueError(
                f"parameters=bfloat16 works with optimizer.kind=adamw, where updates are rounded stochastically, not"
                f" with {self.optimizer.kind}"
            )
        if self.gradient_scaling not in GRADIENT_SCALINGS:
            choices = " or ".join(GRADIENT_SCALINGS)
            raise ValueError(f"gradient_scaling={self.gradient_scaling} is unknown; choose {choices}")
        if self.gradient_exponent is not None and not 2 <= self.gradient_exponent <= 5:
            raise ValueError(f"gradient_exponent={self.gradient_exponent} must be 2 to 5 bits, or null for no format")

    def schedule_warning(self) -> str | None:
        """Return a warning if the learning rate's schedule ends well before the run, or after it; else None.

        Also None for the default schedule with the default `steps`: the paper's dVAE has such lengths.
        """
        rate, default = self.optimizer.learning_rate, type(self)()
        last = rate.last_step
        if last is None or (rate, self.steps) == (default.optimizer.learning_rate, default.steps):
            return None
        if (1 - MAX_CONSTANT_END) * self.steps <= last <= self.steps:
            return None
        return (
            f"the schedule of the learning rate ends after {last:,} updates, the run after {self.steps:,}; with "
            "optimizer.learning_rate.steps=null both end together"
        )

    def check_sharding(self) -> None:
        """Raise ValueError for settings with which weights cannot be sharded."""
        if self.parameters == "bfloat16":  # FSDP does not shard them together with float32 ones
            raise ValueError(
                "parameters=bfloat16 does not work with sharded weights: set distributed=ddp or parameters=float32"
            )

    def micro_batch_size(self, world_size: int) -> int:
        """Return the images per micro-batch and rank. Raises ValueError if the batch does not divide evenly."""
        size, rest = divmod(self.batch_size, world_size * self.accumulate)
        if rest or not size:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into {world_size} ranks"
                f" x {self.accumulate} micro-batches: make it a multiple of {world_size * self.accumulate}"
            )
        return size


class StageData(Protocol):
    """Data of a stage, as the command that trains it uses them."""

    image_size: int  # side of the images in pixels

    def warn_if_changed(self, folder: Path) -> None:
        """Log a warning if the data are not those that the checkpoint in `folder` records."""
        ...


class Stage(Protocol):
    """A training stage: model, data, loss, validation and checkpoint. The loop is the same for all stages.

    It is built as `Stage(config, data, context)` from the stage's config, the data set's, and a `StageContext`.
    The argument `model` of a method is `self.model`, its distributed wrapper (to be called, not accessed by attribute),
    or a copy with the EMA weights. For validation of a sharded model it may be the sharded one with the EMA weights, to
    be called only: see `StageConfig.validates_sharded`.
    """

    name: str
    validation_loss: str  # the metric of `validate` that is lowest for the best checkpoint

    @property
    def model(self) -> nn.Module:
        """Model on the device; parameters that require gradients are trained."""
        ...

    @property
    def data(self) -> StageData:
        """Training data."""
        ...

    def batches(self, start: int) -> Iterator[Any]:
        """Iterate over this rank's training micro-batches endlessly, from number `start` on.

        Each has `StageConfig.micro_batch_size` images and is a pure function of its number. Together, the
        micro-batches of one update have the same images for any number of ranks and micro-batches. The report of a loss
        spike shows the attribute `keys` of its micro-batches, a list of their records' keys, if they have it.
        """
        ...

    def before_update(self, step: int, batches: Sequence[Any]) -> None:
        """Prepare an update with this rank's micro-batches; `step` is the number of updates done.

        May change the model, as a pure function of the weights, the seed and `step`, the same on all ranks.
        """
        ...

    def loss(
        self, model: nn.Module, batch: Any, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Return the mean loss of a micro-batch and other metrics by name; `step` is the number of updates done.

        All randomness comes from `generator`, on the model's device and seeded by (seed, step, rank, micro-batch), or
        from torch's global generator (dropout), seeded by (seed, step, rank).
        """
        ...

    def image_cost(self) -> ImageCost:
        """Return the work of the model for one training image, for the log."""
        ...

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return metrics on held-out data. All ranks call it, and get the same numbers.

        Each rank evaluates its share of the data. A sharded model must be called equally often on all ranks.
        """
        ...

    def preview(self, model: nn.Module) -> Image.Image | None:
        """Return a preview image for monitoring, or None. Only the first rank calls it."""
        ...

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        """Write a checkpoint of `model`, which can be loaded without the stage."""
        ...
