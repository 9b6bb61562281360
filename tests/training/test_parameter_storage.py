"""Weights stored in bfloat16: unbiased rounding, training like float32, and settings that are refused."""

from dataclasses import replace

import pytest
import torch
from line_stage import CPU, BlockStage, LineConfig, fit
from torch import nn

from dalle.models.blocks import BlockConfig, TransformerBlock
from dalle.models.transformer.model import Targets
from dalle.precision import autocast
from dalle.training.ema import EMA, EMAConfig
from dalle.training.optimizer import OptimizerConfig, build_optimizer
from dalle.training.parameter_storage import for_inference, round_stochastically, shared_copy, store_in_bfloat16
from dalle.training.schedules import Schedule
from dalle.training.sharding import total_norm
from dalle.training.stage import StageConfig
from dalle.training.state import TrainState

ONE, ZERO = torch.ones(()), torch.zeros(())
HALF = replace(LineConfig(), precision="auto", parameters="bfloat16")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rounded_values_are_neighbours_and_their_mean_is_exact():
    values = torch.tensor([1.0 + 2**-9, -3.3, 1e-20, 1e30, 5e-39]).repeat(40_000, 1)
    rounded = round_stochastically(values, generator()).double()
    below = (values.view(torch.int32) & -65536).view(torch.float32)
    above = ((values.view(torch.int32) & -65536) + 65536).view(torch.float32)  # in magnitude
    assert ((rounded == below.double()) | (rounded == above.double())).all()
    spacing = (above.double() - below.double())[0].abs()
    # the standard error of a mean of 40,000 is at most half a spacing / 200
    assert ((rounded.mean(dim=0) - values[0].double()).abs() < 4 * spacing / 2 / 200).all()
    assert (rounded != rounded[0]).any(dim=0).all()


def test_representable_values_are_unchanged():
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf, torch.nan, 2.0**-133])
    rounded = round_stochastically(values, generator()).float()
    torch.testing.assert_close(rounded, values, rtol=0, atol=0, equal_nan=True)
    signs = torch.signbit(values[:-2])  # that of NaN has no meaning
    assert torch.signbit(rounded[:-2]).equal(signs)


def test_rounding_is_a_function_of_the_generator():
    values = torch.randn(1000, generator=generator())
    first, again, other = (round_stochastically(values, generator(seed)) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_only_matrices_of_blocks_are_bfloat16(make_transformer):
    model = make_transformer()
    store_in_bfloat16(model)
    narrow = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert narrow == {name for name in dict(model.named_parameters()) if ".branch." in name and name.endswith("weight")}
    with pytest.raises(ValueError, match="no transformer blocks to store in 16 bits: set parameters=float32"):
        store_in_bfloat16(nn.Linear(2, 2))


def trained(make_transformer, storage, updates=60, rate=3e-4):
    """Return the losses of a tiny transformer on one batch: float32, bfloat16, or bfloat16 rounded to nearest."""
    model = make_transformer()
    if storage != "float32":
        store_in_bfloat16(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".branch." in name and name.endswith("weight"))  # the others are never bfloat16
    nn.init.normal_(model.image_head.weight, std=0.3, generator=generator(1))
    optimizer = build_optimizer(model, OptimizerConfig(Schedule(start=rate), variance_clip=5.0, weight_decay=0.0))
    config = model.config
    caption = torch.randint(0, config.text_vocabulary, (4, config.text_positions), generator=generator())
    image = torch.randint(0, config.image_vocabulary, (4, config.grid**2), generator=generator())
    losses = []
    for step in range(updates):
        model.zero_grad()
        with autocast("bfloat16", CPU):
            loss = model(caption, image, targets=Targets(caption, image)).image.mean()
        loss.backward()
        optimizer.step_if_finite(ONE, rate, seeds=(0, step))
        losses.append(loss.item())
    return losses


def test_training_is_like_that_in_float32_where_rounding_to_nearest_stalls(make_transformer, monkeypatch):
    exact = trained(make_transformer, "float32")
    stochastic = trained(make_transformer, "bfloat16")
    monkeypatch.setattr("dalle.training.paper_adam.round_stochastically", lambda values, _: values.bfloat16())
    nearest = trained(make_transformer, "bfloat16")
    fall = exact[0] - exact[-1]
    assert fall > 0.02
    assert abs(stochastic[-1] - exact[-1]) < 0.1 * fall
    assert nearest[0] - nearest[-1] < 0.7 * fall


@pytest.mark.parametrize("moments", ["float32", "paper16"])
def test_skipped_step_changes_nothing(moments):
    block = TransformerBlock(BlockConfig(16, heads=2))
    store_in_bfloat16(block)
    optimizer = build_optimizer(block, OptimizerConfig(moments=moments))
    for finite, gradient in ((ONE, 1.0), (ZERO, torch.nan)):
        before = {name: weight.detach().clone() for name, weight in block.named_parameters()}
        for parameter in block.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step_if_finite(finite, 0.01, seeds=(0, 0))
        changed = [not weight.equal(before[name]) for name, weight in block.named_parameters()]
        assert all(changed) if finite else not any(changed)


def test_average_is_float32_or_shares_the_weights():
    model = BlockStage(HALF).model
    store_in_bfloat16(model)
    average, shared = EMA(model, EMAConfig(0.5, warmup=False)), EMA(model, EMAConfig(0.0, every=5))
    assert {parameter.dtype for parameter in average.model.parameters()} == {torch.float32}
    weight = model.blocks[0].mlp.branch.out.weight
    before = weight.detach().float()
    weight.data.add_(1)
    for ema in (average, shared):
        ema.update(1)
    assert average.model.blocks[0].mlp.branch.out.weight.equal((before + weight.float()) / 2)
    assert shared.model.blocks[0].mlp.branch.out.weight.data_ptr() == weight.data_ptr()
    assert not shared.model.blocks[0].mlp.branch.out.weight.requires_grad


def test_shared_copies_can_be_used_without_autocast(make_transformer):
    model = make_transformer()
    assert for_inference(model) is model
    store_in_bfloat16(model)
    copied = for_inference(shared_copy(model))
    caption, image = torch.zeros(1, model.config.text_positions).long(), torch.zeros(1, model.config.grid**2).long()
    with autocast("bfloat16", CPU):
        expected = model(caption, image).image
    torch.testing.assert_close(copied(caption, image).image, expected, rtol=0.02, atol=0.02)
    weight = model.layers[0].mlp.branch.out.weight
    assert copied.layers[0].mlp.branch.out.weight.data_ptr() == weight.data_ptr()


def test_norm_of_bfloat16_gradients_is_float32():
    gradients = [torch.full((100,), 1.0), torch.full((7,), 1.0).bfloat16()]
    assert total_norm(gradients).item() == pytest.approx(107**0.5, rel=1e-6)


def test_a_run_trains_saves_and_previews(tmp_path):
    for decay in (0.9, 0.0):
        stage = fit(tmp_path / str(decay), replace(HALF, ema=EMAConfig(decay)), BlockStage(HALF))
        assert stage.model.blocks[0].mlp.branch.out.weight.dtype == torch.bfloat16
        assert (tmp_path / str(decay) / "model.safetensors").is_file()


def test_unsupported_settings_raise():
    with pytest.raises(ValueError, match="parameters=float8 is unknown; choose one of float32, bfloat16"):
        StageConfig(parameters="float8")
    with pytest.raises(ValueError, match="parameters=bfloat16 needs precision=bfloat16, not float16"):
        StageConfig(parameters="bfloat16", precision="float16")
    with pytest.raises(ValueError, match="parameters=bfloat16 works with optimizer.kind=adamw, .*, not with muon"):
        StageConfig(parameters="bfloat16", optimizer=OptimizerConfig(kind="muon"))
    with pytest.raises(ValueError, match="parameters=bfloat16 does not work with sharded weights"):
        TrainState(BlockStage(HALF).model, HALF, CPU, mesh=object())  # type: ignore[arg-type]
