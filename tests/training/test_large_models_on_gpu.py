"""Training steps with all settings that save memory: a tiny model on any device, the paper's 12B on a large GPU."""

import math
from pathlib import Path

import pytest
import torch
from random_tokens_stage import RandomTokensStage

from dalle.cli.config import compose
from dalle.models.transformer.model import Transformer
from dalle.planning.cards import find_card
from dalle.planning.plan import Planner
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


def take_two_steps(folder: Path, settings: list[str], device: torch.device) -> Transformer:
    """Do two updates, check loss, gradients and weights, and return the model."""
    config = compose("train", settings).stage
    stage = RandomTokensStage(config, device)
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
    assert {moment.dtype for moment in trainer.state.optimizer.state[matrix].values()} == {torch.float32, torch.int16}
    return stage.model


def test_a_tiny_model_takes_steps_with_these_settings(gpu, tmp_path):
    model = take_two_steps(tmp_path, [*SETTINGS, *TINY], gpu)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6


@pytest.mark.slow
def test_the_papers_12b_transformer_takes_steps_on_one_large_gpu(cuda, tmp_path):
    memory = torch.cuda.get_device_properties(cuda).total_memory
    if memory < GIGABYTES * 1e9:
        pytest.skip(f"needs a GPU with {GIGABYTES} GB; this one has {memory / 1e9:.0f}")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(cuda)
    model = take_two_steps(tmp_path, SETTINGS, cuda)
    assert sum(parameter.numel() for parameter in model.parameters()) > 12e9
    planned = Planner(256, 1, find_card("h200")).plan(compose("train", SETTINGS).stage, "ddp").memory.peak
    assert torch.cuda.max_memory_allocated(cuda) == pytest.approx(planned, rel=0.1)
