"""A stage that trains a transformer on random tokens, and neither validates nor saves anything."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle.models.transformer.model import Targets, Transformer
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.flops import ImageCost


class RandomTokensStage:
    name = "transformer"
    validation_loss = "loss"

    def __init__(self, config: TransformerStageConfig, device: torch.device | None = None, ranks: int = 1):
        self.config, self.device, self.ranks = config, device or torch.device("cpu"), ranks
        with self.device:  # 12B weights in float32 need not fit the machine's memory
            self.model = Transformer(config.model)

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        model, images = self.config.model, self.config.micro_batch_size(self.ranks)
        generator = torch.Generator().manual_seed(start)
        while True:
            caption = torch.randint(model.text_vocabulary, (images, model.text_positions), generator=generator)
            image = torch.randint(model.image_vocabulary, (images, model.grid**2), generator=generator)
            targets = image
            if self.config.image_targets == "soft":
                targets = torch.rand(*image.shape, model.image_vocabulary, generator=generator).softmax(dim=-1)
            yield caption.to(self.device), image.to(self.device), targets.to(self.device)

    def before_update(self, step: int, batches: Sequence[Any]) -> None:
        pass

    def image_cost(self) -> ImageCost:
        return ImageCost(1.0)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...], step: int, generator: Any) -> tuple[Tensor, dict]:
        caption, image, targets = batch
        nll = model(caption, image, targets=Targets(caption, targets))
        return nll.text.mean() / 8 + nll.image.mean() * 7 / 8, {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": 0.0}

    def preview(self, model: nn.Module) -> None:
        return None

    def save(self, folder: Path, model: nn.Module, meta: dict) -> None:
        pass
