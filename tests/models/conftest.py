"""Fixtures: a small CLIP with random weights, its sizes and its tokenizer."""

import pytest
import torch
from tiny_clip import CAPTIONS

from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.tokenizer import CaptionTokenizer


@pytest.fixture(scope="module")
def clip_tokenizer() -> CaptionTokenizer:
    """Return a tokenizer of 280 ids, trained on `CAPTIONS`."""
    return CaptionTokenizer.train(CAPTIONS * 4, 280)


@pytest.fixture(scope="module")
def clip_config(clip_tokenizer) -> CLIPConfig:
    """Return sizes for images of 12 x 12 pixels and captions of 30 tokens."""
    return CLIPConfig(
        image_size=12,
        patch=4,
        image_width=16,
        image_depth=2,
        image_heads=2,
        text_vocabulary=clip_tokenizer.vocabulary + 2,
        text_positions=32,
        text_width=12,
        text_depth=2,
        text_heads=3,
        embedding=8,
    )


@pytest.fixture
def clip(clip_config, clip_tokenizer) -> CLIP:
    """Return the model in eval mode."""
    torch.manual_seed(0)
    return CLIP(clip_config, clip_tokenizer).eval()
