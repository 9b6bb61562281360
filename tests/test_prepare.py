"""prepare.py by its command line: a published model becomes a checkpoint folder, or nothing does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle import checkpoint
from dalle.data.blocks import BlocksConfig
from dalle.data.token_cache import TokenCache
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import TransformerConfig
from dalle.pretrained.openai_dvae import counterparts
from dalle.stages.pictures import StageContext
from dalle.stages.transformer import TransformerStage, TransformerStageConfig

CPU = torch.device("cpu")
SIZES = {"width": 8, "vocabulary": 20, "decoder_input": 12, "groups": 4, "blocks_per_group": 1}


@pytest.fixture
def published(tmp_path):
    """encoder.pkl and decoder.pkl with random tensors, as state dicts."""
    torch.manual_seed(0)
    for half in ("encoder", "decoder"):
        state = {}
        for each in counterparts(half, SIZES):
            state |= {f"{each.theirs}.w": torch.randn(each.shape), f"{each.theirs}.b": torch.randn(each.shape[0])}
        torch.save(state, tmp_path / f"{half}.pkl")
    return tmp_path


def test_openais_dvae_becomes_a_checkpoint_that_equals_it(prepare, published):
    status, printed = prepare("import=openai-dvae", "encoder=encoder.pkl", "decoder=decoder.pkl", "out=mine/dvae")
    assert status == 0, printed
    assert "mine/dvae: dvae, " in printed
    saved, direct = DiscreteVAE.load("mine/dvae"), DiscreteVAE.from_openai()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert saved.logits(images).equal(direct.logits(images))
    _, meta = checkpoint.read_config("mine/dvae", "dvae")
    assert meta["imported"] == "openai-dvae"
    assert {path.name for path in Path("mine").rglob("*")} == {"dvae", checkpoint.WEIGHTS, checkpoint.CONFIG}


def test_without_a_folder_the_import_names_it(prepare, published):
    assert prepare("import=openai-dvae")[0] == 0
    assert DiscreteVAE.load("outputs/openai-dvae").vocabulary == 20


def test_the_transformer_learns_the_tokens_of_an_imported_dvae(prepare, published):
    Path("empty").mkdir()
    assert prepare("import=openai-dvae", "out=empty")[0] == 0
    config = TransformerStageConfig(
        model=TransformerConfig(text_positions=24, text_vocabulary=288, width=32, depth=1, heads=2, kernel=3),
        batch_size=4,
        workers=0,
        transform="none",
        tokenizer_records=4,
    )
    stage = TransformerStage(config, BlocksConfig(image_size=32, train=8, val=4), StageContext(0, CPU, Path("empty")))
    assert (stage.transformer.config.grid, stage.transformer.config.image_vocabulary) == (4, 20)
    loss, _ = stage.loss(stage.model, next(stage.batches(0)), 0, torch.Generator())
    assert loss.isfinite()


def test_a_file_that_cannot_be_read_leaves_nothing(prepare, published):
    before = set(published.rglob("*"))
    whole = Path("decoder.pkl").read_bytes()
    Path("decoder.pkl").write_bytes(whole[: len(whole) // 2])
    status, printed = prepare("import=openai-dvae", "out=dvae")
    assert status == 2
    assert printed.startswith("decoder.pkl is truncated or damaged")
    assert printed.count("\n") == 1
    assert set(published.rglob("*")) == before


def test_failing_to_write_leaves_nothing(prepare, published, monkeypatch):
    before = set(published.rglob("*"))

    def full(path, *_):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_json", full)  # the weights are written by then
    status, printed = prepare("import=openai-dvae", "out=dvae")
    assert status == 2
    assert "No space left on device" in printed
    assert set(published.rglob("*")) == before


def test_what_a_killed_run_left_is_in_nobodys_way(prepare, published):
    (published / ".dvae.part").mkdir()
    (published / ".dvae.part" / "rest").touch()
    assert prepare("import=openai-dvae", "out=dvae")[0] == 0
    assert not (published / "dvae" / "rest").exists()
    assert not (published / ".dvae.part").exists()


def test_a_folder_that_holds_something_is_left_alone(prepare, published):
    (published / "dvae").mkdir()
    (published / "dvae" / "notes.txt").write_text("mine")
    for out in ("dvae", "encoder.pkl"):
        status, printed = prepare("import=openai-dvae", f"out={out}")
        assert status == 2
        assert printed == f"{out} is not empty: choose another out=, or move away what is there\n"
    assert [path.name for path in (published / "dvae").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to prepare: import=openai-dvae"),
        (["import=openai-dvea"], "there is no import=openai-dvea; choose one of"),
        (["import=openai-dvae", "encodr=x.pkl"], "there is no setting encodr; did you mean encoder?"),
        (["import=openai-dvae", "encoder=x.pkl"], "there is no file x.pkl; OpenAI's encoder is published at https://"),
    ],
)
def test_mistakes_are_said_in_a_sentence(prepare, arguments, sentence, tmp_path):
    status, printed = prepare(*arguments)
    assert status == 2
    assert sentence in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- tokens ----------------------------------------------------------------------------------------------------

BLOCKS = ["data=blocks", "data.image_size=8", "data.train=100", "data.val=4"]


def test_a_data_set_becomes_tokens_and_says_how_to_train_on_them(prepare, checkpoints):
    encode = [*BLOCKS, f"dvae={checkpoints / 'dvae'}", "views=2", "workers=0"]
    status, printed = prepare(*encode)
    assert status == 0, printed
    (folder,) = Path("outputs/tokens").iterdir()
    assert f"tokens    {folder}: 100 pictures in 2 views of 16 tokens each" in printed
    assert "stage.transform=transformer stage.views=2" in printed
    before = (folder / "tokens.npy").stat().st_mtime_ns
    assert prepare(*encode)[0] == 0  # there is nothing left to do
    assert (folder / "tokens.npy").stat().st_mtime_ns == before
    status, printed = prepare(*encode, "data.train=90", f"out={folder}")
    assert status == 2
    assert f"the token cache {folder} was made with other settings: the digest of the records was " in printed
    assert printed.count("\n") == 1


KILLED = """
import os, signal, sys
sys.argv = ["prepare.py", *sys.argv[1:]]
from dalle.data.token_cache import TokenCache
from prepare import main
write, done = TokenCache.write, []
def dying(cache, block, *rest):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(block)
    write(cache, block, *rest)
TokenCache.write = dying
main()
"""


def test_who_is_killed_while_encoding_goes_on_there(prepare, checkpoints, monkeypatch):
    encode = [*BLOCKS, f"dvae={checkpoints / 'dvae'}", "transform=none", "views=1", "workers=0", "out=tokens"]
    root = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", KILLED, *encode], env={**os.environ, "PYTHONPATH": root})
    assert killed.returncode == -signal.SIGKILL
    assert (np.load("tokens/states.npy") != 0).sum() == 64  # two blocks of four
    written = []
    write = TokenCache.write
    monkeypatch.setattr(TokenCache, "write", lambda *given: (written.append(given[1].first), write(*given)))
    assert prepare(*encode)[0] == 0
    assert written == [64, 96]
    assert prepare(*encode[:-1], "out=at_once")[0] == 0
    assert (np.load("tokens/tokens.npy") == np.load("at_once/tokens.npy")).all()
