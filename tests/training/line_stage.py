"""A minimal stage: a line fitted to noisy points, with every kind of randomness that a stage may use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dalle import checkpoint, distributed
from dalle.models.blocks import BlockConfig, TransformerBlock
from dalle.seeds import torch_generator
from dalle.training.ema import EMAConfig
from dalle.training.flops import ImageCost, forward_flops
from dalle.training.logger import WandbConfig
from dalle.training.loop import train
from dalle.training.optimizer import OptimizerConfig
from dalle.training.run import Run
from dalle.training.schedules import Schedule
from dalle.training.stage import StageConfig

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LineConfig(StageConfig):
    validates_sharded: ClassVar[bool] = True

    steps: int = 20
    batch_size: int = 8
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(Schedule("cosine", 0.1, 0.01, 20), warmup_steps=3)
    )
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(0.9, every=2))
    precision: str = "float32"
    log_every: int = 3
    validate_every: int = 5
    preview_every: int = 10
    save_every: int = 5
    dropout: float = 0.5  # draws from torch's global generator
    noise: float = 0.1  # drawn from the loop's generator


EXACT = LineConfig(dropout=0.0, noise=0.0, clip_norm=0.5)  # noise and dropout differ from rank to rank


class Line(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.Dropout(dropout), nn.Linear(4, 1))
        self.gains = nn.Parameter(torch.ones(1, 2, 2, 2).to(memory_format=torch.channels_last))  # as convolutions
        self.register_buffer("table", torch.arange(3))  # as models have masks

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points * self.gains.sum(dim=(0, 2, 3)) / 4)


class LineStage:
    name = "line"
    validation_loss = "loss"

    def __init__(self, config: LineConfig, data: Any = None, *, seed: int = 0, **_: Any):
        self.config, self.seed = config, seed
        self.micro_batch_size = config.micro_batch_size(distributed.get_world_size())
        torch.manual_seed(seed)
        self.model = Line(config.dropout)
        self.validations: list[int] = []

    def batches(self, start: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        size, world_size, number = self.micro_batch_size, distributed.get_world_size(), start
        while True:
            first = (number * world_size + distributed.get_rank()) * size  # index of the first point of the batch
            points = torch.stack([point(self.seed, first + index) for index in range(size)])
            yield number, points, points @ torch.tensor([[2.0], [-1.0]]) + 0.5
            number += 1

    def before_update(self, step: int, batches: Sequence[Any]) -> None:
        """Change nothing."""

    def loss(
        self, model: nn.Module, batch: tuple[int, Tensor, Tensor], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        _, points, targets = batch
        noise = self.config.noise * torch.randn(targets.shape, generator=generator)
        loss = (model(points) - targets - noise).square().mean()
        return loss, {"root": loss.sqrt(), "step_seen": float(step)}

    def image_cost(self) -> ImageCost:
        return ImageCost(forward_flops(self.model, (2,)), tokens=5)

    def validate(self, model: nn.Module) -> dict[str, float]:
        torch.rand(5)  # whatever it draws must not change the training that follows
        points = torch.stack([point(-1, index) for index in range(16)])
        targets = points @ torch.tensor([[2.0], [-1.0]]) + 0.5
        return {"loss": (model(points) - targets).square().mean().item()}

    def preview(self, model: nn.Module) -> Image.Image | None:
        return Image.new("RGB", (4, 4))

    def save(self, folder: Path, model: nn.Module, meta: dict[str, Any]) -> None:
        checkpoint.save_model(folder, "line", model, self.config, meta)


class Blocks(nn.Module):
    """The line as an image model with transformer blocks."""

    def __init__(self, depth: int = 2):
        super().__init__()
        self.expand = nn.Linear(2, 24)
        self.blocks = nn.ModuleList(TransformerBlock(BlockConfig(24, heads=2)) for _ in range(depth))
        self.out = nn.Linear(24, 1)

    def forward(self, points: Tensor) -> Tensor:
        x = self.expand(points).unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        return self.out(x.squeeze(1))


class BlockStage(LineStage):
    """The same with residual blocks."""

    def __init__(self, config: LineConfig, data: Any = None, *, seed: int = 0, depth: int = 2, **_: Any):
        super().__init__(config, data, seed=seed)
        torch.manual_seed(seed)
        self.model = Blocks(depth)


def point(seed: int, position: int) -> Tensor:
    return torch.randn(2, generator=torch_generator("line", seed, position))


def fit(
    folder: Path,
    config: LineConfig | None = None,
    stage: LineStage | None = None,
    seed: int = 0,
    mesh: DeviceMesh | None = None,
) -> LineStage:
    """Train a line in `folder`, resuming the run that is there."""
    config = config or LineConfig()
    stage = stage or LineStage(config, seed=seed)
    run_config = {"stage": {"steps": config.steps, "noise": config.noise}, "seed": seed}
    train(stage, config, Run(folder, run_config, seed, CPU, WandbConfig("disabled"), mesh=mesh))
    return stage
