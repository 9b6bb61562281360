"""Training steps with all settings that save memory: a tiny model on any device, the paper's 12B on a large GPU."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.cli.config import compose
from dalle.models.transformer.model import Targets, Transformer
from dalle.planning.cards import find_card
from dalle.planning.plan import Planner
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.flops import ImageCost
from dalle.training.logger import WandbConfig
from dalle.training.loop import Trainer
from dalle.training.run import Run

pytestmark = pytest.mark.gpu
# the settings of docs/training.md, "Large models on one GPU"
SETTINGS = [
    *("stage=transformer", "preset=paper", "data=folder", "data.image_size=256", "stage.batch_size=1"),
    *("stage.precision=bfloat16", "stage.parameters=bfloat16", "stage.ema.decay=0", "stage.compression.rank=0"),
]
TINY = [
    *("stage.model.depth=2", "stage.model.width=128", "stage.model.heads=2"),
    *("stage.model.text_vocabulary=100", "stage.model.image_vocabulary=64"),
]
GIGABYTES = 140  # memory that the 12B model needs, with a margin


class RandomTokens:
    """Stage that trains a transformer on random tokens."""

    name = "transformer"
    validation_loss = "loss"

    def __init__(self, config: TransformerStageConfig, device: torch.device):
        self.config, self.device = config, device
        with device:  # 12B weights in float32 need not fit the machine's memory
            self.model = Transformer(config.model)

    def batches(self, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        model, generator = self.config.model, torch.Generator().manual_seed(start)
        while True:
            caption = torch.randint(model.text_vocabulary, (1, model.text_positions), generator=generator)
            image = torch.randint(model.image_vocabulary, (1, model.grid**2), generator=generator)
            yield caption.to(self.device), image.to(self.device)

    def before_update(self, step: int) -> None:
        pass

    def image_cost(self) -> ImageCost:
        return ImageCost(1.0)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], step: int, generator: Any) -> tuple[Tensor, dict]:
        caption, image = batch
        nll = model(caption, image, targets=Targets(caption, image))
        return nll.text.mean() / 8 + nll.image.mean() * 7 / 8, {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"loss": 0.0}

    def preview(self, model: nn.Module) -> None:
        return None

    def save(self, folder: Path, model: nn.Module, meta: dict) -> None:
        pass


def take_two_steps(folder: Path, settings: list[str], device: torch.device) -> Transformer:
    """Do two updates, check loss, gradients and weights, and return the model."""
    config = compose("train", settings).stage
    stage = RandomTokens(config, device)
    trainer = Trainer(stage, config, Run(folder, {"stage": {}}, 0, device, WandbConfig("disabled")))
    matrix = stage.model.layers[0].mlp.branch.out.weight
    assert matrix.dtype == torch.bfloat16
    states = []
    for step in range(2):
        trainer.update()
        assert trainer.state.step == step + 1
        means = trainer.state.metrics.compute_and_reset()
        assert trainer.state.metrics.skipped.item() == 0
        states.append((means["loss"], matrix.detach().float().norm().item()))
    trainer.close()
    classes = config.model.text_vocabulary + 1, config.model.image_vocabulary
    uniform = math.log(classes[0]) / 8 + math.log(classes[1]) * 7 / 8
    assert states[0][0] == pytest.approx(uniform, rel=1e-3)  # the heads are zero at first
    assert math.isfinite(states[1][0])
    assert {each.dtype for each in trainer.state.optimizer.state[matrix].values()} == {torch.float32, torch.int16}
    return stage.model


def test_a_tiny_model_takes_steps_with_these_settings(gpu, tmp_path):
    model = take_two_steps(tmp_path, [*SETTINGS, *TINY], gpu)
    assert sum(each.numel() for each in model.parameters()) < 1e6


@pytest.mark.slow
def test_the_papers_12b_transformer_takes_steps_on_one_large_gpu(cuda, tmp_path):
    memory = torch.cuda.get_device_properties(cuda).total_memory
    if memory < GIGABYTES * 1e9:
        pytest.skip(f"needs a GPU with {GIGABYTES} GB; this one has {memory / 1e9:.0f}")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)
    model = take_two_steps(tmp_path, SETTINGS, cuda)
    assert sum(each.numel() for each in model.parameters()) > 12e9
    planned = Planner(256, 1, find_card("h200")).plan(compose("train", SETTINGS).stage, "ddp").memory.peak
    assert torch.cuda.max_memory_allocated(cuda) == pytest.approx(planned, rel=0.1)
