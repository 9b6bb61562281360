"""Fixtures: tiny models with random weights, and functions that run the commands."""

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore

from dalle import checkpoint
from dalle.cli import config
from dalle.cli import main as cli
from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.models.decoder.model import DecoderConfig, DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.precision import use_exact_float32
from dalle.tokenizer import CaptionTokenizer

CAPTIONS = ["a small red circle above a large blue square", "three green triangles", "one circle left of a square"]

MakeTransformer = Callable[..., Transformer]
RunCommand = Callable[..., tuple[int, str]]

ROOT = Path(__file__).parents[1]
RANK_FIXTURES = {"ranks", "two_ranks"}  # they train on several processes
SHARED_FIXTURES = {*RANK_FIXTURES, "wheel"}  # costly, and shared by the tests of a file

# Hydra copies all registered configs each time that it composes one, and changes none: a fifth of the time of composing
ConfigStore.__deepcopy__ = lambda self, _: self


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of several ranks as slow, and those that `make test-slow` runs in one process for a fixture."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if RANK_FIXTURES & fixtures:
            item.add_marker(pytest.mark.slow)
        if "browser" in fixtures:
            item.add_marker(pytest.mark.xdist_group("browser"))
        elif SHARED_FIXTURES & fixtures:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def make_transformer() -> MakeTransformer:
    """Function that builds tiny transformers with random weights; new ones would have logits of zero."""

    def make(seed: int = 0, **changes) -> Transformer:
        sizes = {
            "text_positions": 6,
            "text_vocabulary": 11,
            "image_vocabulary": 13,
            "grid": 4,
            "width": 16,
            "depth": 2,
            "heads": 2,
            "kernel": 3,
        }
        model = Transformer(TransformerConfig(**{**sizes, **changes}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if parameter.ndim == 1:  # biases, and the norms' gains
                    parameter.add_(noise * 0.1)
                else:
                    parameter.copy_(noise if name.startswith("embed") else noise * parameter.shape[-1] ** -0.5)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def checkpoints(make_transformer, tmp_path_factory) -> Path:
    """Folder with a dvae/, transformer/ and clip/ for images of 8 x 8 pixels and 4 x 4 tokens."""
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


@pytest.fixture(scope="session")
def decoder_folder(checkpoints, tmp_path_factory) -> Path:
    """Folder with a diffusion decoder of random weights for the dVAE in `checkpoints`."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    sizes = {"width": 8, "levels": 1, "blocks": 1, "patch": 2, "residual_scale": 0.5}
    decoder = DiffusionDecoder(DecoderConfig(**sizes, image_vocabulary=13, code_channels=8, code_side=2, grid=4))
    torch.nn.init.normal_(decoder.unet.output.weight, std=0.2)  # zeros at the start of training
    decoder.save(folder, {"dvae": {"path": "unused", "digest": checkpoint.digest(checkpoints / "dvae")}})
    return folder


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """Device of tests marked gpu: CUDA, or the value of DALLE_TEST_DEVICE, to run them without a GPU."""
    device = torch.device(os.environ.get("DALLE_TEST_DEVICE", "cuda"))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts: for deterministic kernels
    use_exact_float32()
    return device


@pytest.fixture(scope="session")
def cuda(gpu) -> torch.device:
    """CUDA device of tests that cannot run on another device."""
    if gpu.type != "cuda":
        pytest.skip("needs a CUDA device")
    return gpu


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """A hub without repositories that huggingface_hub talks to, logged in, with an empty cache."""
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    from hub_server import running_hub
    from huggingface_hub import constants

    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "right")
        yield running


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys) -> RunCommand:
    """Function that runs a script with arguments in an empty folder. Returns (exit status, output)."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        try:
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.fixture
def train(run_command) -> RunCommand:
    """Function that runs train.py with arguments, as `run_command` does."""
    return partial(run_command, "train")


@pytest.fixture
def prepare(run_command) -> RunCommand:
    """Function that runs prepare.py with arguments, as `run_command` does."""
    return partial(run_command, "prepare")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Function that runs a command with a stub main. Returns (configs that main received, exit status, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(config.HYDRA_FULL_ERROR, raising=False)

    def run(*arguments, name="train", act=lambda _: None):
        calls = []

        def main(composed):
            calls.append(composed)
            act(composed)

        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        try:
            config.command(name)(main)()
            status = 0
        except SystemExit as end:
            status = end.code
        return calls, status, capsys.readouterr().err

    return run


@pytest.fixture
def verify(monkeypatch, capsys):
    """Return a function that runs `dalle verify` and returns (exit status, standard output, error output)."""

    def run(*files: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dalle", "verify", *map(str, files)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def checkpoint_ranked_by(checkpoints, tmp_path) -> Callable[[str | None], Path]:
    """Function that copies the checkpoints, with a default score for ranking; None: without an entry for it."""

    def copy(rerank: str | None) -> Path:
        folder = Path(shutil.copytree(checkpoints, tmp_path / f"ranked-by-{rerank}"))
        path = folder / "transformer" / "config.json"
        written = json.loads(path.read_text())
        written["meta"].pop("rerank", None)
        written["meta"] |= {} if rerank is None else {"rerank": rerank}
        path.write_text(json.dumps(written))
        return folder

    return copy
