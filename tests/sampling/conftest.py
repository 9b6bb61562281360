"""A whole DALL-E with random weights, in a folder, for the tests that need all its parts."""

from pathlib import Path

import pytest
import torch

from dalle import checkpoint
from dalle.models.clip import CLIP, CLIPConfig
from dalle.models.dvae import DiscreteVAE, DVAEConfig
from dalle.tokenizer import CaptionTokenizer

CAPTIONS = ["a small red circle above a large blue square", "three green triangles", "one circle left of a square"]


@pytest.fixture(scope="session")
def checkpoints(make_transformer, tmp_path_factory) -> Path:
    """A folder with dvae/, transformer/ and clip/: 8-pixel pictures of 4 x 4 tokens."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.train(CAPTIONS * 4, 280)
    dvae = DiscreteVAE(DVAEConfig(vocabulary=13, width=8, groups=2, blocks_per_group=1, decoder_input=8, gain=1.0))
    dvae.save(folder / "dvae")
    transformer = make_transformer(text_positions=32, text_vocabulary=tokenizer.vocabulary)
    trained_on = {"path": "../dvae", "digest": checkpoint.digest(folder / "dvae")}
    transformer.save(folder / "transformer", {"dvae": trained_on}, tokenizer)
    sizes = CLIPConfig(
        image_size=8,
        patch=4,
        image_width=16,
        image_depth=1,
        image_heads=2,
        text_vocabulary=tokenizer.vocabulary + 2,
        text_positions=34,
        text_width=16,
        text_depth=1,
        text_heads=2,
        embedding=8,
    )
    CLIP(sizes, tokenizer).save(folder / "clip")
    return folder
