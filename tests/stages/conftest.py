"""Fixtures for stages: a dVAE checkpoint, and a folder of captioned images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_stages import CONFIGS

from dalle.models.dvae.model import DiscreteVAE


@pytest.fixture(scope="session")
def dvae_folder(tmp_path_factory) -> Path:
    """Return a checkpoint of a dVAE with random weights: 16 codes of 4 x 4 pixels."""
    folder = tmp_path_factory.mktemp("dvae")
    torch.manual_seed(0)
    DiscreteVAE(CONFIGS["dvae"].model).save(folder)
    return folder


@pytest.fixture(scope="session")
def pictures_folder(tmp_path_factory) -> Path:
    """Return a folder of twelve captioned images of different sizes, and one that is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(256, size=(20 + number, 40 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number} of noise\nnoise, number {number}\n")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a picture that cannot be read")
    return folder
