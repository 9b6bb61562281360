"""Every stage on a GPU: updates match a CPU, resuming is bitwise, and updates do not synchronise."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stages import BLOCKS, CONFIGS, CPU, build

from dalle import distributed
from dalle.models.dvae.relaxation import RELAXATIONS
from dalle.precision import BFLOAT16_CAPABILITY, FORMATS, autocast, float32_matmul_precision
from dalle.stages import STAGES
from dalle.stages.decoder import draw_noise
from dalle.training.compression import CompressionConfig
from dalle.training.logger import WandbConfig
from dalle.training.loop import Trainer, train
from dalle.training.optimizer import OptimizerConfig
from dalle.training.run import Run
from dalle.training.schedules import Schedule

pytestmark = pytest.mark.gpu

DVAE, CLIP, TRANSFORMER = (CONFIGS[name].model for name in ("dvae", "clip", "transformer"))
RESNET = replace(CLIP, image_encoder="resnet", image_width=4, image_blocks=(1, 1, 1, 1), image_heads=2)
PAPER = replace(TRANSFORMER, depth=4, patterns=["paper"])
# so large an eps makes steps follow the gradient, not its sign
OPTIMIZER = OptimizerConfig(Schedule(start=0.1), eps=1.0)
# every way to train a model: its stage, and what is set otherwise
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"dvae {name}": ("dvae", {"model": replace(DVAE, relaxation=name)}) for name in RELAXATIONS},
    "clip vit": ("clip", {}),
    "clip resnet": ("clip", {"model": RESNET, "data": replace(BLOCKS, image_size=32)}),
    "transformer": ("transformer", {"model": PAPER}),
    "transformer sparse": ("transformer", {"model": replace(PAPER, attention="sparse")}),
    "transformer flex": ("transformer", {"model": replace(PAPER, attention="flex")}),
    "transformer swiglu": ("transformer", {"model": replace(PAPER, qk_norm=True, mlp="swiglu")}),
    "transformer soft": ("transformer", {"image_targets": "soft"}),
    "transformer recompute": ("transformer", {"model": PAPER, "recompute": True}),
    "transformer muon": ("transformer", {"optimizer": replace(OPTIMIZER, kind="muon")}),
    "transformer paper16": ("transformer", {"optimizer": replace(OPTIMIZER, moments="paper16", variance_clip=5.0)}),
    "transformer compressed": ("transformer", {"compression": CompressionConfig(rank=4, blocks=2)}),
    "decoder": ("decoder", {}),
}
# distance of one update from a CPU's, over the update's own length
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.03}
ON_CUDA = {"transformer muon": 0.3}  # its iteration is in bfloat16 there

ONE_RANK = """
import sys
from pathlib import Path
import torch
from dalle import distributed
from test_stages_on_gpu import trained_weights

device = distributed.init_process_group(sys.argv[1])
assert distributed.is_distributed() and distributed.get_world_size() == 1
torch.save(trained_weights(device, *map(Path, sys.argv[2:])), Path(sys.argv[2], "weights.pt"))
distributed.destroy_process_group()
"""


def trainer_of(name: str, device: torch.device, dvae: Path, folder: Path, **changes: Any) -> Trainer:
    options = {"steps": 4, "optimizer": OPTIMIZER, "log_every": 0, "validate_every": 0, "preview_every": 0}
    stage = build(name, dvae, device=device, **{**options, **changes})
    if name == "transformer":  # whose fresh heads are zero, so that no gradient would reach its layers
        generator = torch.Generator().manual_seed(0)
        for head in (stage.model.text_head, stage.model.image_head):
            weight = torch.randn(head.weight.shape, generator=generator) * head.weight.shape[1] ** -0.5
            head.weight.data.copy_(weight)
    if name == "decoder":  # likewise
        generator = torch.Generator().manual_seed(0)
        for key, weight in stage.model.named_parameters():
            if key.endswith(("second.weight", "scale_shift.weight", "output.weight")):
                weight.data.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return Trainer(stage, stage.config, Run(folder, {}, 0, device, WandbConfig("disabled")))


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()])


@pytest.fixture
def same_noise(monkeypatch):
    """Draw loss noise on the CPU: random streams of CPU and GPU differ."""

    fill = torch.Tensor.exponential_

    def exponential(self: torch.Tensor, generator: Any = None) -> torch.Tensor:
        return self.copy_(fill(torch.empty(self.shape), generator=torch.Generator().manual_seed(0)))

    monkeypatch.setattr(torch.Tensor, "exponential_", exponential)

    def decoder_noise(images: torch.Tensor, _: Any) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.to(images.device) for tensor in draw_noise(images.cpu(), torch.Generator().manual_seed(0)))

    monkeypatch.setattr("dalle.stages.decoder.draw_noise", decoder_noise)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_update_on_gpu_matches_cpu(gpu, model, precision, dvae_folder, tmp_path, same_noise, record_property):
    name, changes = MODELS[model]
    ended, losses = [], []
    for device in (CPU, gpu):
        trainer = trainer_of(name, device, dvae_folder, tmp_path, precision=precision, **changes)
        fresh = flat(trainer.stage.model)
        trainer.state.scaler.scales.fill_(2.0**8)  # of float16, where there are any: no gradient overflows
        trainer.update()
        assert not trainer.state.metrics.skipped
        ended.append(flat(trainer.stage.model))
        losses.append(trainer.state.metrics.compute_and_reset()["loss"])
    distance = ((ended[1] - ended[0]).norm() / (ended[0] - fresh).norm()).item()
    record_property("distance", distance)
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCES[precision])
    assert distance < max(TOLERANCES[precision], ON_CUDA.get(model, 0) if gpu.type == "cuda" else 0)


@pytest.mark.parametrize("name", STAGES)
def test_losses_in_tf32_match_float32(gpu, name, dvae_folder, tmp_path):
    """TF32 has as many significand bits as float16, so the tolerance is the same."""
    losses = []
    for matmul_precision in ("highest", "high"):
        trainer = trainer_of(
            name, gpu, dvae_folder, tmp_path, precision="float32", float32_matmul_precision=matmul_precision
        )
        for _ in range(3):
            trainer.update()
        losses.append(trainer.state.metrics.compute_and_reset()["loss"])  # mean of the updates
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCES["float16"])


def test_products_and_convolutions_are_exact_after_updates_in_tf32(gpu):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator).to(gpu) for _ in range(2))
    images, kernels = left.view(4, 64, 32, 32), right.view(64, 64, 8, 8)

    def products() -> tuple[torch.Tensor, ...]:
        return left @ right, torch.nn.functional.conv2d(images, kernels)

    exact = products()
    with float32_matmul_precision("high", gpu):
        rounded = products()
    for one, other, again in zip(exact, rounded, products(), strict=True):
        distance = (one - other).norm() / one.norm()
        assert distance < 2**-8
        assert (again - one).norm() < 1e-6 * one.norm()
    if gpu.type == "cuda" and torch.cuda.get_device_capability(gpu) >= BFLOAT16_CAPABILITY:
        assert (exact[0] - rounded[0]).norm() > 1e-5 * exact[0].norm()


@pytest.mark.parametrize("name", STAGES)
def test_validation_on_gpu_matches_cpu(gpu, name, dvae_folder, same_noise):
    found = []
    for device in (CPU, gpu):
        stage = build(name, dvae_folder, device=device)
        with torch.no_grad():
            found.append(stage.validate(stage.model.eval()))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["dvae", "transformer"])
def test_previews_are_drawn_on_gpu(gpu, name, dvae_folder):
    stage = build(name, dvae_folder, device=gpu)
    with torch.no_grad(), autocast("bfloat16", gpu):
        picture = stage.preview(stage.model.eval())
    assert len(picture.getcolors(1 << 20)) > 8


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", STAGES)
def test_run_resumes_bitwise_on_gpu(gpu, name, precision, dvae_folder, tmp_path):
    ended = []
    torch.use_deterministic_algorithms(True)
    try:
        for steps in ((4,), (2, 4)):
            for until in steps:
                options = {"precision": precision, "steps": until, "optimizer": OPTIMIZER, "preview_every": 2}
                stage = build(name, dvae_folder, device=gpu, **options)
                # the run config leaves the steps out, as resuming with more of them does
                run = Run(tmp_path / str(steps), {"stage": {"steps": until}}, 0, gpu, WandbConfig("disabled"))
                train(stage, stage.config, run)
            ended.append(flat(stage.model))
    finally:
        torch.use_deterministic_algorithms(False)
    assert ended[0].equal(ended[1])
    previews = tmp_path.glob("*/previews/step-*.png")  # which fail with a warning alone
    assert len(list(previews)) == (0 if name == "clip" else 4)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_update_has_no_gpu_sync(cuda, model, precision, dvae_folder, tmp_path):
    name, changes = MODELS[model]
    trainer = trainer_of(name, cuda, dvae_folder, tmp_path, precision=precision, accumulate=2, **changes)
    trainer.update()  # the first one allocates, chooses kernels and builds tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained_weights(device: torch.device, folder: Path, dvae: Path) -> dict[str, torch.Tensor]:
    """Return the weights after three updates, with averaged and compressed gradients."""
    found = {}
    for name in STAGES:
        for rank in (0, 4):
            compression = CompressionConfig(rank=rank, blocks=2)
            trainer = trainer_of(name, device, dvae, folder / f"{name} {rank}", compression=compression)
            for _ in range(3):
                trainer.update()
            found[f"{name} {rank}"] = flat(trainer.stage.model)
    return found


def test_one_rank_matches_no_process_group(gpu, dvae_folder, tmp_path):
    """With NCCL on a GPU: torchrun's process group, DDP, and compressed gradients."""
    script = tmp_path / "rank.py"
    script.write_text(ONE_RANK)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [*launch, str(script), str(gpu), str(tmp_path), str(dvae_folder)]
    subprocess.run(command, env=environment, check=True, timeout=240)
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert not distributed.is_distributed()
    for name, weights in trained_weights(gpu, tmp_path / "alone", dvae_folder).items():
        stage = name.split()[0]
        fresh = flat(build(stage, dvae_folder).model)
        assert (together[name] - weights).norm() < 1e-3 * (weights - fresh).norm(), name
