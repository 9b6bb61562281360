"""Something small to evaluate: the tiny models on tiny pictures of `blocks`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dalle.data.blocks import BlocksConfig
from dalle.evaluation.settings import EvaluateConfig
from dalle.evaluation.subject import Subject

BLOCKS = BlocksConfig(image_size=8, val=12, novel=12)


@pytest.fixture
def config(checkpoints, tmp_path) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=str(checkpoints),
        data=BLOCKS,
        captions=5,
        candidates=3,
        pictures=7,
        samples=6,
        curve_captions=4,
        curve_candidates=4,
        device="cpu",
        out=str(tmp_path / "metrics.json"),
    )


@pytest.fixture
def subject(config) -> Subject:
    return Subject.load(config)


@pytest.fixture
def without_clip(checkpoints, tmp_path) -> Callable[[], Path]:
    """A folder with the dVAE and the transformer alone."""

    def link() -> Path:
        folder = tmp_path / "without"
        folder.mkdir()
        for part in ("dvae", "transformer"):
            (folder / part).symlink_to(checkpoints / part, target_is_directory=True)
        return folder

    return link
