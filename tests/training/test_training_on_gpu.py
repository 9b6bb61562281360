"""Optimizers, gradient scales and PowerSGD give the same results on a GPU as on a CPU."""

from dataclasses import replace

import pytest
import torch
from line_stage import Blocks
from torch import nn

from dalle.precision import autocast
from dalle.seeds import seed_global_generators, torch_generator
from dalle.training.branch_hooks import attach_hooks
from dalle.training.compression import CompressionConfig
from dalle.training.float_formats import FLOAT_0_6_10, FLOAT_1_6_9, ieee
from dalle.training.optimizer import AdamW, OptimizerConfig, build_optimizer
from dalle.training.powersgd import PowerSGD
from dalle.training.schedules import Schedule
from dalle.training.stage import StageConfig

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


def model_on(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return Blocks().to(device)


def differentiate(model: nn.Module, config: StageConfig, precision: str, device: torch.device) -> None:
    """Leave the gradients of a small batch's loss in `model`, scaled and unscaled again."""
    scaler, _ = attach_hooks(model, config, precision, device)
    points = torch.linspace(-1, 1, 16).reshape(8, 2).to(device)
    with autocast(precision, device):
        loss = (model(points) - points.sum(dim=1, keepdim=True)).square().mean() / 64  # a first scale fits
    scaler.scale_loss(loss).backward()
    scaler.unscale()
    scaler.update()
    restored = scaler.state_dict()
    scaler.load_state_dict(restored)
    assert scaler.state_dict() == restored


@pytest.mark.parametrize("scaling", ["global", "resblock"])
@pytest.mark.parametrize("recompute", [False, True])
def test_float16_gradients_on_gpu_match_float32_on_cpu(gpu, scaling, recompute):
    plain, ours = model_on(CPU), model_on(gpu)
    differentiate(plain, StageConfig(), "float32", CPU)
    config = StageConfig(gradient_scaling=scaling, recompute=recompute)
    differentiate(ours, config, "float16", gpu)
    for parameter, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert (parameter.grad - other.grad.cpu()).norm() < 0.03 * parameter.grad.norm() + 1e-4


def test_float_formats_have_the_same_codes_on_gpu(gpu):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, generator=generator) * 2.0 ** torch.randint(-75, 8, (10_000,), generator=generator)
    for format in (FLOAT_1_6_9, FLOAT_0_6_10, ieee(5, 10)):
        codes = format.encode(values)
        assert format.encode(values.to(gpu)).cpu().equal(codes)
        assert format.decode(codes.to(gpu)).cpu().equal(format.decode(codes))


@pytest.mark.parametrize("moments", ["float32", "paper16"])
@pytest.mark.parametrize("rank", [0, 4])
def test_updates_on_gpu_match_cpu(gpu, moments, rank):
    optimizing = OptimizerConfig(Schedule(start=1e-3), eps=1e-3, variance_clip=5.0, moments=moments)
    config = replace(StageConfig(), optimizer=optimizing)
    ended = []
    for device in (CPU, gpu):
        model = model_on(device)
        optimizer = build_optimizer(model, config.optimizer)
        reducer = PowerSGD(model, CompressionConfig(rank=rank, blocks=1))
        for step in range(5):
            model.zero_grad()
            differentiate(model, config, "float32", device)
            reducer.reduce(step)
            optimizer.step_if_finite(torch.ones((), device=device), 1e-3)
        ended.append(torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(ended[1], ended[0], rtol=1e-3, atol=1e-4)


def test_fused_adamw_skips_update_like_cpu(gpu):
    """`step_if_finite(0)` leaves weights, moments and step counts bitwise unchanged."""
    ended = []
    for device in (CPU, gpu):
        model = model_on(device)
        optimizer = build_optimizer(model, OptimizerConfig(Schedule(start=1e-3), eps=1e-3))
        assert isinstance(optimizer, AdamW)
        for finite in (1, 0, 1, 0, 0, 1):
            model.zero_grad()
            differentiate(model, StageConfig(), "float32", device)
            if not finite:
                next(model.parameters()).grad.fill_(float("nan"))
            kept = state_of(model, optimizer)
            optimizer.step_if_finite(torch.tensor(float(finite), device=device), 1e-3)
            unchanged = all(old.equal(new) for old, new in zip(kept, state_of(model, optimizer), strict=True))
            assert unchanged != bool(finite)
        ended.append(torch.cat([tensor.cpu().flatten() for tensor in state_of(model, optimizer)]))
    assert ended[0].isfinite().all()
    torch.testing.assert_close(ended[1], ended[0], rtol=1e-3, atol=1e-5)


def state_of(model: nn.Module, optimizer: AdamW) -> list[torch.Tensor]:
    """Return copies of the weights, and of moments and step counts where there are any."""
    weights = list(model.parameters())
    moments = [tensor for weight in weights for tensor in optimizer.state.get(weight, {}).values()]
    return [tensor.detach().clone() for tensor in (*weights, *moments)]


def test_seeded_generator_is_reproducible_on_gpu(gpu):
    draws = [torch.rand(1000, device=gpu, generator=torch_generator("test", 3, device=gpu)) for _ in range(2)]
    assert draws[0].equal(draws[1])
    other = torch.rand(1000, device=gpu, generator=torch_generator("test", 4, device=gpu))
    assert not draws[0].equal(other)


def test_seeding_covers_the_device(gpu):
    """Initial weights and dropout draw from the device's own generator."""
    draws = []
    for _ in range(2):
        seed_global_generators("test", 3, device=gpu)
        draws.append((torch.rand(1000, device=gpu), torch.rand(1000)))
    assert draws[0][0].equal(draws[1][0]) and draws[0][1].equal(draws[1][1])
