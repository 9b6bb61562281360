"""Paths below the home folder: ~ is expanded in settings that the shell leaves as they are, such as out=~/runs."""

import shutil
from pathlib import Path

import pytest
import torch

from dalle import checkpoint
from dalle.cli.train import list_runs
from dalle.cli.train_inputs import tokens_folder
from dalle.data.blocks import BlocksConfig
from dalle.stages import initial_weights
from dalle.stages.clip import CLIPStageConfig
from dalle.stages.data_module import DataModule, StageContext
from dalle.stages.initial_weights import Init
from dalle.tokenizer import CaptionTokenizer


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize("stage", ["clip", "all"])
def test_runs_and_tokens(command, home, stage):
    (config,), _, _ = command(f"stage={stage}", "data=blocks", "out=~/runs", "run=mine")
    for run, folder in list_runs(config):
        assert folder == home / "runs" / ("clip/mine" if stage == "clip" else f"mine/{run.stage.name}")
        assert tokens_folder(run) == home / "runs" / "tokens"
    (config,), _, _ = command(f"stage={stage}", "data=blocks", "tokens=~/tokens")
    assert {tokens_folder(run) for run, _ in list_runs(config)} == {home / "tokens"}


def test_tokenizer(checkpoints, home):
    saved = checkpoints / "clip" / checkpoint.TOKENIZER
    shutil.copy(saved, home / "mine.json")
    stage, data = CLIPStageConfig(tokenizer="~/mine.json"), BlocksConfig(image_size=8, train=4, val=4)
    module = DataModule(data, stage, StageContext(0, torch.device("cpu")))
    ids = module.load_or_train_tokenizer(stage, 400).encode("a red circle")
    assert ids == CaptionTokenizer.load(saved).encode("a red circle")
    assert not initial_weights._other_tokenizer(Init(checkpoints / "clip", "clip", home), stage)
