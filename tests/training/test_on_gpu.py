"""What training adds to a model does on a GPU what it does on a CPU."""

from dataclasses import replace

import pytest
import torch
from line_stage import Blocks
from torch import nn

from dalle.precision import autocast
from dalle.training import branches
from dalle.training.optimizer import OptimizerConfig, build_optimizer
from dalle.training.powersgd import CompressionConfig, PowerSGD
from dalle.training.schedules import Schedule
from dalle.training.small_floats import MEAN, VARIANCE, ieee
from dalle.training.stage import TrainingConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def model_on(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return Blocks().to(device)


def differentiate(model: nn.Module, config: TrainingConfig, precision: str, device: torch.device) -> None:
    """Leave the gradients of a small batch's loss in `model`, scaled and unscaled again."""
    scales = branches.prepare(model, config, precision, device)
    points = torch.linspace(-1, 1, 16).reshape(8, 2).to(device)
    with autocast(precision, device):
        loss = (model(points) - points.sum(dim=1, keepdim=True)).square().mean() / 64  # a first scale fits
    scales.of_loss(loss).backward()
    scales.unscale()
    scales.update()
    restored = scales.state()
    scales.restore(restored)
    assert scales.state() == restored


@pytest.mark.parametrize("scaling", ["global", "resblock"])
@pytest.mark.parametrize("recompute", [False, True])
def test_float16_gradients_on_a_gpu_are_near_those_of_float32_on_a_cpu(scaling, recompute):
    plain, ours = model_on(CPU), model_on(GPU)
    differentiate(plain, TrainingConfig(), "float32", CPU)
    config = TrainingConfig(gradient_scaling=scaling, recompute=recompute)
    differentiate(ours, config, "float16", GPU)
    for parameter, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert (parameter.grad - other.grad.cpu()).norm() < 0.03 * parameter.grad.norm() + 1e-4


def test_small_floats_have_the_same_codes():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, generator=generator) * 2.0 ** torch.randint(-75, 8, (10_000,), generator=generator)
    for format in (MEAN, VARIANCE, ieee(5, 10)):
        codes = format.encode(values)
        assert format.encode(values.to(GPU)).cpu().equal(codes)
        assert format.decode(codes.to(GPU)).cpu().equal(format.decode(codes))


@pytest.mark.parametrize("moments", ["float32", "paper16"])
@pytest.mark.parametrize("rank", [0, 4])
def test_updates_are_those_of_a_cpu(moments, rank):
    optimizing = OptimizerConfig(Schedule(start=1e-3), eps=1e-3, variance_clip=5.0, moments=moments)
    config = replace(TrainingConfig(), optimizer=optimizing)
    ended = []
    for device in (CPU, GPU):
        model = model_on(device)
        optimizer = build_optimizer(model, config.optimizer)
        exchange = PowerSGD(model, CompressionConfig(rank=rank, blocks=1))
        for step in range(5):
            model.zero_grad()
            differentiate(model, config, "float32", device)
            exchange.combine(step)
            optimizer.step_where(torch.ones((), device=device), 1e-3)
        ended.append(torch.cat([each.detach().cpu().flatten() for each in model.parameters()]))
    torch.testing.assert_close(ended[1], ended[0], rtol=1e-3, atol=1e-4)
