"""prepare.py: import of published weights, and encoding of a data set into tokens."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle import checkpoint
from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.source import UnreadableRecord
from dalle.data.token_cache import TokenCache
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.config import TransformerConfig
from dalle.pretrained.openai_dvae import convolution_mappings
from dalle.stages.data_module import StageContext
from dalle.stages.transformer import TransformerStage, TransformerStageConfig
from dalle.weights_files import WEIGHTS

CPU = torch.device("cpu")
SIZES = {"width": 8, "vocabulary": 20, "decoder_input": 12, "groups": 4, "blocks_per_group": 1}


@pytest.fixture
def published(tmp_path):
    """Folder with encoder.pkl and decoder.pkl, state dicts with random tensors."""
    torch.manual_seed(0)
    for half in ("encoder", "decoder"):
        state = {}
        for layer in convolution_mappings(half, SIZES):
            state |= {f"{layer.source}.w": torch.randn(layer.shape), f"{layer.source}.b": torch.randn(layer.shape[0])}
        torch.save(state, tmp_path / f"{half}.pkl")
    return tmp_path


def test_imported_dvae_has_the_same_outputs(prepare, published):
    status, printed = prepare("import=openai-dvae", "encoder=encoder.pkl", "decoder=decoder.pkl", "out=mine/dvae")
    assert status == 0, printed
    assert "mine/dvae: dvae, " in printed
    saved, direct = DiscreteVAE.load("mine/dvae"), DiscreteVAE.from_openai()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert saved.logits(images).equal(direct.logits(images))
    _, meta = checkpoint.read_config("mine/dvae", "dvae")
    assert meta["imported"] == "openai-dvae"
    assert {path.name for path in Path("mine").rglob("*")} == {"dvae", WEIGHTS, checkpoint.CONFIG}


def test_the_default_output_folder_is_named_after_the_import(prepare, published):
    assert prepare("import=openai-dvae")[0] == 0
    assert DiscreteVAE.load("outputs/openai-dvae").vocabulary == 20


def test_the_transformer_trains_on_the_tokens_of_an_imported_dvae(prepare, published):
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
    assert (stage.model.config.grid, stage.model.config.image_vocabulary) == (4, 20)
    loss, _ = stage.loss(stage.model, next(stage.batches(0)), 0, torch.Generator())
    assert loss.isfinite()


def test_an_unreadable_file_leaves_no_output(prepare, published):
    before = set(published.rglob("*"))
    whole = Path("decoder.pkl").read_bytes()
    Path("decoder.pkl").write_bytes(whole[: len(whole) // 2])
    status, printed = prepare("import=openai-dvae", "out=dvae")
    assert status == 2
    assert printed.startswith("decoder.pkl is truncated or damaged")
    assert printed.count("\n") == 1
    assert set(published.rglob("*")) == before


def test_a_failed_write_leaves_no_output(prepare, published, monkeypatch):
    before = set(published.rglob("*"))

    def disk_full(path, *_):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", disk_full)  # the weights are written by then
    status, printed = prepare("import=openai-dvae", "out=dvae")
    assert status == 2
    assert "No space left on device" in printed
    assert set(published.rglob("*")) == before


def test_files_of_a_killed_run_are_replaced(prepare, published):
    left = published / ".dvae.7-abcd.part"
    left.mkdir()
    (left / "rest").touch()
    for path in (left, left / "rest"):
        os.utime(path, (0, 0))
    assert prepare("import=openai-dvae", "out=dvae")[0] == 0
    assert not (published / "dvae" / "rest").exists()
    assert not left.exists()


def test_an_existing_folder_is_not_overwritten(prepare, published):
    (published / "dvae").mkdir()
    (published / "dvae" / "notes.txt").write_text("mine")
    for out in ("dvae", "encoder.pkl"):
        status, printed = prepare("import=openai-dvae", f"out={out}")
        assert status == 2
        assert printed == f"{out} exists and is not an empty folder: choose another out=, or move it away\n"
    assert [path.name for path in (published / "dvae").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to prepare: give import=openai-dvae"),
        (["import=openai-dvea"], "there is no import=openai-dvea; choose one of"),
        (["import=openai-dvae", "encodr=x.pkl"], "there is no setting encodr; did you mean encoder?"),
        (
            ["sources=drawings", "data=blocks", "find=x"],
            "sources= and find= are separate tasks: run prepare.py once for",
        ),
        (["export=drawings", "sources=drawings", "datasheet=d"], "export= and sources= are separate tasks"),
        (["data=blocks", "find=x.png", "dvae=drawings/dvae"], "find= and dvae= are separate tasks"),
        (["import=openai-dvae", "dvae=drawings/dvae"], "import= and dvae= are separate tasks"),
        (["sources=drawings", "push=me/x"], "push= needs a checkpoint to export: export=<folder>"),
        (["sources=drawings", "private=true"], "private= needs a checkpoint to export: export=<folder>"),
        (["export=drawings", "private=true"], "private= needs a repository to upload to: push=<user/name>"),
        (["export=drawings", "revision=main", "private=true"], "revision= needs a repository to upload to: push="),
        (["import=openai-dvae", "encoder=x.pkl"], "there is no file x.pkl; OpenAI's encoder is published at https://"),
    ],
)
def test_errors_are_one_sentence(prepare, arguments, sentence, tmp_path):
    status, printed = prepare(*arguments)
    assert status == 2
    assert sentence in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- tokens ----------------------------------------------------------------------------------------------------

BLOCKS = ["data=blocks", "data.image_size=8", "data.train=100", "data.val=4"]


def test_a_data_set_is_encoded_and_the_next_command_is_printed(prepare, checkpoints):
    encode = [*BLOCKS, f"dvae={checkpoints / 'dvae'}", "crops=2", "workers=0"]
    status, printed = prepare(*encode)
    assert status == 0, printed
    (folder,) = Path("outputs/tokens").iterdir()
    assert f"tokens    {folder}: 100 images in 2 crops of 16 tokens each" in printed
    assert "stage.transform=transformer stage.crops=2" in printed
    before = (folder / "tokens.npy").stat().st_mtime_ns
    assert prepare(*encode)[0] == 0  # everything is encoded already
    assert (folder / "tokens.npy").stat().st_mtime_ns == before
    status, printed = prepare(*encode, "data.train=90", f"out={folder}")
    assert status == 2
    assert f"the token cache {folder} was made with other settings: the digest of the records was " in printed
    assert printed.count("\n") == 1


def test_encoding_again_tries_unreadable_images_again(prepare, checkpoints, monkeypatch):
    encode = [*BLOCKS, f"dvae={checkpoints / 'dvae'}", "transform=none", "crops=1", "workers=0"]
    read = BlocksSource.__getitem__

    def failing(source, index):
        if index == 40:
            raise UnreadableRecord("train/000040", "OSError: [Errno 5] Input/output error")
        return read(source, index)

    with monkeypatch.context() as patched:
        patched.setattr(BlocksSource, "__getitem__", failing)
        assert "99 images in 1 crops of 16 tokens each; 1 could not be read" in prepare(*encode)[1]
    assert "100 images in 1 crops of 16 tokens each" in prepare(*encode)[1]
    (folder,) = Path("outputs/tokens").iterdir()
    assert prepare(*encode, "out=at_once")[0] == 0
    assert (np.load(folder / "tokens.npy") == np.load("at_once/tokens.npy")).all()


KILLED = """
import os, signal, sys
sys.argv = ["prepare.py", *sys.argv[1:]]
from dalle.data.token_cache import TokenCache
from dalle.cli.prepare import main
write, done = TokenCache.write, []
def dying(cache, block, *rest):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(block)
    write(cache, block, *rest)
TokenCache.write = dying
main()
"""


def test_interrupted_encoding_resumes(prepare, checkpoints, monkeypatch):
    encode = [*BLOCKS, f"dvae={checkpoints / 'dvae'}", "transform=none", "crops=1", "workers=0", "out=tokens"]
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
