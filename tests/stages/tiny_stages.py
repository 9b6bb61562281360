"""The stages at a tiny size: 16-pixel images of 4 x 4 codes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dalle.data.blocks import BlocksConfig
from dalle.models.clip.model import CLIPConfig
from dalle.models.decoder.model import DecoderConfig
from dalle.models.dvae.model import DVAEConfig
from dalle.models.transformer.config import TransformerConfig
from dalle.stages import STAGES
from dalle.stages.clip import CLIPStageConfig
from dalle.stages.data_module import StageContext
from dalle.stages.decoder import DecoderStageConfig
from dalle.stages.dvae import DVAEStageConfig
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.optimizer import OptimizerConfig
from dalle.training.schedules import Schedule
from dalle.training.stage import Stage

CPU = torch.device("cpu")
SIZE = 16  # pixels
BLOCKS = BlocksConfig(image_size=SIZE, train=64, val=10)
COMMON: dict[str, Any] = {
    "transform": "none",
    "workers": 0,
    "steps": 2,
    "batch_size": 8,
    "validation_images": 10,
    "precision": "float32",
    "optimizer": OptimizerConfig(Schedule(start=1e-3)),
}
CONFIGS: dict[str, Any] = {
    "dvae": DVAEStageConfig(
        model=DVAEConfig(vocabulary=16, width=16, groups=3, blocks_per_group=1, decoder_input=8, gain=0.5), **COMMON
    ),
    "clip": CLIPStageConfig(
        model=CLIPConfig(
            patch=8,
            image_width=32,
            image_depth=1,
            image_heads=2,
            text_vocabulary=340,
            text_positions=48,
            text_width=32,
            text_depth=1,
            text_heads=2,
            embedding=16,
        ),
        tokenizer_records=16,
        **COMMON,
    ),
    "transformer": TransformerStageConfig(
        model=TransformerConfig(
            text_positions=24, text_vocabulary=288, width=32, depth=2, heads=2, kernel=3, initial_scale=0.5
        ),
        tokenizer_records=16,
        **COMMON,
    ),
    "decoder": DecoderStageConfig(
        model=DecoderConfig(width=8, levels=2, blocks=1, patch=2, residual_scale=1.0), **COMMON
    ),
}
NEED_DVAE = ("transformer", "decoder")


def build(
    name: str,
    dvae: Path | None = None,
    data: Any = BLOCKS,
    seed: int = 0,
    tokens: Path | None = None,
    device: torch.device = CPU,
    **changes: Any,
) -> Any:
    """Return the stage `name` with `changes` to its settings."""
    torch.manual_seed(seed)
    config = replace(CONFIGS[name], **changes)
    context = StageContext(seed, device, dvae if name in NEED_DVAE else None, tokens)
    return STAGES[name].build(config, data, context)


def overfit(stage: Stage, batch: Any, updates: int, learning_rate: float) -> list[float]:
    """Train the stage on one batch repeatedly; return the losses."""
    optimizer = torch.optim.AdamW(stage.model.parameters(), lr=learning_rate)
    found = []
    for step in range(updates):
        loss, _ = stage.loss(stage.model, batch, step, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found
