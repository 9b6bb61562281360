"""Fixtures for stages: a dVAE checkpoint, a folder of captioned images, and a trained checkpoint of each stage."""

import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from init_runs import everything
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Return a folder with dvae/, clip/ and transformer/, each trained for two updates with seed 1."""
    folder = tmp_path_factory.mktemp("trained")
    script = str(Path(__file__).parents[2] / "train.py")
    with pytest.MonkeyPatch.context() as patch:  # in this process: a new one would import torch once more
        patch.chdir(folder)
        patch.setattr(sys, "argv", [script, *everything("first", "seed=1")])
        runpy.run_path(script, run_name="__main__")
    return folder / "outputs" / "first"


@pytest.fixture
def base(trained, tmp_path) -> Path:
    """Return a copy of `trained` that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "base"))
