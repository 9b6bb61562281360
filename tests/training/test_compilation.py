"""Compiled blocks train like blocks that are not compiled."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from line_stage import CPU, Blocks, BlockStage, fit
from safetensors.torch import load_file
from sharded_runs import BASE, losses
from torch import nn

from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.training import compilation
from dalle.training.branch_hooks import attach_hooks
from dalle.training.compilation import check_compiler, compile_blocks
from dalle.training.ema import EMAConfig
from dalle.training.sharding import init_mesh
from dalle.training.stage import StageConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import torchrun  # noqa: E402 (found on the path set above)

CONFIG = replace(BASE, steps=4, ema=EMAConfig(0.5), clip_norm=0.5)
RANK = """
import sys
from pathlib import Path
from dalle import distributed
from test_compilation import train_blocks

distributed.init_process_group("cpu")
for mode in ("ddp", "fsdp"):
    train_blocks(Path(sys.argv[1]) / mode, mode, compile=True)
distributed.destroy_process_group()
"""


def train_blocks(folder: Path, mode: str = "ddp", **changes) -> None:
    config = replace(CONFIG, **changes)
    fit(folder, config, BlockStage(config), mesh=init_mesh(mode, None, CPU))


@pytest.fixture
def compiler(monkeypatch):
    """Compile in this process, which is quicker for few graphs."""
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.reset()


def test_model_without_blocks_raises():
    with pytest.raises(ValueError, match="no residual blocks, which compile=true compiles: set compile=false"):
        compile_blocks(nn.Linear(2, 2), CPU)


def test_missing_compiler_raises(monkeypatch):
    def fail(*_):
        raise RuntimeError("\nNo working C++ compiler found in g++")

    monkeypatch.setattr(torch, "compile", lambda function: fail)
    message = r"compile=true needs a C\+\+ compiler such as g\+\+, which did not work here \(No working C\+\+ compiler"
    with pytest.raises(ValueError, match=message):
        check_compiler(CPU)


def test_names_of_weights_stay_and_copies_are_not_compiled(monkeypatch):
    monkeypatch.setattr(compilation, "check_compiler", lambda _: None)
    model = Blocks()
    names = list(model.state_dict())
    assert compile_blocks(model, CPU) == "2 residual blocks are compiled; the first update takes longer"
    assert list(model.state_dict()) == names
    assert all(block._compiled_call_impl is not None for block in model.blocks)
    assert all(block._compiled_call_impl is None for block in copy.deepcopy(model).blocks)


@pytest.mark.parametrize(("device", "warned"), [("cpu", True), ("cuda", False)])
def test_a_compiled_dvae_on_a_cpu_is_warned_of(monkeypatch, caplog, device, warned):
    monkeypatch.setattr(compilation, "check_compiler", lambda _: None)
    for model in (DiscreteVAE(DVAEConfig(vocabulary=8, width=8, decoder_input=8, blocks_per_group=1)), Blocks()):
        compile_blocks(model, torch.device(device))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warned and all("slower on a CPU, .80 to .85" in message for message in messages)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_run_has_the_losses_of_an_eager_one(tmp_path):
    """Up to 1e-5 of a loss, in float32."""
    train_blocks(tmp_path / "eager")
    train_blocks(tmp_path / "compiled", compile=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("compiled", "eager"))
    assert list(ours) == list(theirs)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_ranks_have_the_losses_of_eager_one(tmp_path):
    """DDP and FSDP, up to 1e-3 of a loss, the tolerance of ranks that are not compiled."""
    train_blocks(tmp_path / "alone")
    (tmp_path / "rank.py").write_text(RANK)
    torchrun(2, tmp_path / "rank.py", tmp_path, search=(Path(__file__).parent,))
    for mode in ("ddp", "fsdp"):
        assert losses(tmp_path / mode) == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)


def gradients(model: Transformer, config: StageConfig, precision: str, device: torch.device) -> list[torch.Tensor]:
    """Return the loss of a small batch and its gradients, unscaled."""
    model.zero_grad()
    scaler, _ = attach_hooks(model, config, precision, device)
    generator = torch.Generator().manual_seed(0)
    caption, image = (torch.randint(8, (2, size), generator=generator).to(device) for size in (4, 16))
    with torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"):
        logits = model(caption, image)
    loss = (logits.image.square().mean() + logits.text.square().mean()) / 64  # fits the first scale
    scaler.scale_loss(loss).backward()
    scaler.unscale()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [loss.detach(), *found]


def paper_blocks(device: torch.device, patterns: list[str]) -> Transformer:
    torch.manual_seed(0)
    sizes = TransformerConfig(
        4, 8, 8, grid=4, width=32, depth=len(patterns), heads=2, kernel=3, patterns=patterns, initial_scale=1.0
    )
    model = Transformer(sizes)
    for head in (model.text_head, model.image_head):
        nn.init.normal_(head.weight, std=0.2)
    return model.to(device)


HOOKS = {
    "plain": StageConfig(),
    "recompute": StageConfig(recompute=True),
    "a scale per branch, recompute": StageConfig(recompute=True, gradient_scaling="resblock", gradient_exponent=5),
}


def assert_compiled_gradients_match(device: torch.device, name: str, precision: str, tolerance: float) -> None:
    found = []
    for compiled in (False, True):
        model = paper_blocks(device, ["row", "column", "row", "convolutional"])
        if compiled:
            compile_blocks(model, device)
        found.append(gradients(model, HOOKS[name], precision, device))
    for eager, compiled in zip(*found, strict=True):
        assert (compiled - eager).norm() <= tolerance * eager.norm() + 1e-7


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", HOOKS)
def test_compiled_patterns_and_hooks_have_the_gradients_of_eager_ones(name):
    """Up to 1e-5 of their norm, in float32; 1e-3 if gradients are rounded to 10 bits, where the last bit may differ."""
    assert_compiled_gradients_match(CPU, name, "float32", 1e-3 if "scale" in name else 1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", HOOKS)
def test_compiled_gradients_on_gpu_match_eager_ones(gpu, name, precision):
    if gpu.type != "cuda":
        pytest.skip("compiles for a GPU; a slow test does so for a CPU")
    assert_compiled_gradients_match(gpu, name, precision, {"float32": 1e-4}.get(precision, 0.03))
