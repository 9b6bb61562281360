"""Fixtures for evaluation: the tiny models on small images of `blocks`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dalle.data.blocks import BlocksConfig
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.evaluate_config import EvaluateConfig

BLOCKS = BlocksConfig(image_size=8, val=12, novel=12)


@pytest.fixture
def config(checkpoints, tmp_path) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=str(checkpoints),
        data=BLOCKS,
        captions=5,
        candidates=3,
        pairs=7,
        samples=6,
        curve_captions=4,
        curve_candidates=4,
        device="cpu",
        out=str(tmp_path / "metrics.json"),
    )


@pytest.fixture
def context(config) -> EvaluationContext:
    return EvaluationContext.load(config)


@pytest.fixture
def without_clip(checkpoints, tmp_path) -> Callable[[], Path]:
    """Make a checkpoint folder with the dVAE and the transformer only."""

    def link() -> Path:
        folder = tmp_path / "without_clip"
        folder.mkdir()
        for part in ("dvae", "transformer"):
            (folder / part).symlink_to(checkpoints / part, target_is_directory=True)
        return folder

    return link
